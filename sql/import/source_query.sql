-- Decides what becomes of a row: the same for the move, the trigger, the verification and the list of refused rows.
create or replace function fleet.source_query(a fleet.imports, p_from text, p_tid text) returns text
language sql
stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO, MDY'
as $$
  select format(
    $query$
      select c.tid, c.source_device,
        case
          when c.ts is null then 'no_ts'
          when c.ts < %1$L then 'too_old'
          -- Compared with the time of its arrival, if that is known.
          when c.ts > coalesce(c.received_at, now()) + s.max_future then 'in_future'
          when c.device_id is null then 'unknown_device'
          when p.retired @> c.ts then 'retired_day'
        end as reason,
        row(%2$s)::fleet.device_heartbeats as beat
      from (
        select %3$s as tid, r.%4$I::text as source_device, %5$s as device_id, %6$s
        from %7$s
        left join fleet.import_devices m on m.source = %8$L and m.source_device = r.%4$I::text
        left join fleet.devices d on %9$s
      ) c
      cross join fleet.settings s
      cross join fleet.retired_ranges() as p (retired)
    $query$,
    a.oldest,
    string_agg(
      case k.name
        -- Infinity has no canonical form.
        when 'received_at' then 'case when isfinite(c.received_at) then c.received_at else c.ts end'
        when 'ip' then case a.store_ip
          when 'full' then 'c.ip'
          when 'prefix' then 'network(set_masklen(c.ip, case family(c.ip) when 4 then 24 else 48 end))::inet'
          else 'null'
        end
        else format('c.%I', k.name)
      end,
      ', ' order by k.position
    ),
    p_tid,
    a.columns ->> 'device_id',
    case a.match_by when 'map' then 'm.device_id' else 'coalesce(m.device_id, d.device_id)' end,
    string_agg(
      coalesce('r.' || quote_ident(a.columns ->> k.name), 'null') || format('::%s as %I', k.type, k.name),
      ', ' order by k.position
    ) filter (where k.name <> 'device_id'),
    p_from,
    a.source,
    case a.match_by
      when 'map' then 'false'
      when 'alias' then format('d.alias = r.%I::text', a.columns ->> 'device_id')
      else format('d.device_id = r.%I', a.columns ->> 'device_id')
    end
  )
  from fleet.archive_columns('fleet.device_heartbeats') k;
$$;

comment on function fleet.source_query(fleet.imports, text, text) is
  'The query that turns the rows of p_from, which has the alias r, into rows of fleet.source_row: it finds their devices, casts '
  'their values, and decides which are refused.';
