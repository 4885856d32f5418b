-- Runs with the caller's rights and in the caller's snapshot: the archiver calls it beside its COPY.
create or replace function fleet.content_checksum(
  p_table regclass,
  out row_count bigint,
  out content_checksum numeric,
  out min_ts timestamptz,
  out max_ts timestamptz
)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_canonical text;
begin
  select string_agg(
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
  into v_canonical
  from fleet.archive_columns(p_table) c;

  execute format(
    $f$select count(*), coalesce(sum(('x' || left(md5(%s), 15))::bit(60)::bigint), 0), min(ts), max(ts) from %s$f$,
    v_canonical, p_table
  ) into row_count, content_checksum, min_ts, max_ts;
end
$$;

comment on function fleet.content_checksum(regclass) is
  'Rows of a partition, their checksum independent of order and format, and the oldest and newest ts. Example: select * from fleet.content_checksum(''fleet_detached.device_heartbeats_p2026_08_15'');';
