create or replace function fleet.checksum_expression(p_table regclass) returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select format(
    $f$('x' || left(md5(%s), 15))::bit(60)::bigint$f$,
    string_agg(
      format(
        case c.type
          when 'timestamp with time zone' then $f$coalesce((extract(epoch from %1$I) * 1000000)::bigint::text, '~')$f$
          when 'text' then $f$coalesce(octet_length(%1$I) || ':' || %1$I, '~')$f$
          when 'inet' then $f$coalesce(octet_length(abbrev(%1$I)) || ':' || abbrev(%1$I), '~')$f$
          else $f$coalesce(%1$I::text, '~')$f$
        end,
        c.name
      ),
      $f$ || '|' || $f$ order by c.position
    )
  )
  from fleet.archive_columns(p_table) c;
$$;

comment on function fleet.checksum_expression(regclass) is
  'The SQL expression for the checksum of one row, from its canonical form; see fleet.content_checksum().';
