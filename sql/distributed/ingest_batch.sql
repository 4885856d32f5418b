-- In steps: Citus plans a statement over distributed tables only if all it reads besides them are values. So what is judged goes into
-- arrays, and the two writes read these. Any node can run it; one that has the devices of the batch needs no other.
create or replace function fleet.ingest_batch(
  p_batch json,
  p_received_at timestamptz default now(),
  p_token_hashes bytea[] default null,
  p_items integer[] default null,
  out results text[],
  out reasons text[],
  out tss timestamptz[],
  out device_ids bigint[],
  out next_intervals integer[]
) returns record
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
as $$
#variable_conflict use_column
declare
  v_settings fleet.settings;
  v_owners bigint[];  -- for each item: the device of its token, 0 for a gateway, -1 if the token is unknown or revoked
  v_intervals integer[];
  v_heard bigint[];
  v_firsts boolean[];
  v_signal_dbms smallint[];
  v_battery_pcts smallint[];
  v_unity_runnings boolean[];
  v_network_types text[];
  v_agent_versions text[];
  v_next_in_ss integer[];
  v_stoppings text[];
  v_ips inet[];
  v_extras jsonb[];
  v_stored_ids bigint[];
  v_stored_tss timestamptz[];
  v_now timestamptz := now();
  v_bound timestamptz;
  v_lag interval;
  v_rows bigint;
  v_online tstzmultirange;
  v_settled tstzmultirange;
  -- The clock, not now(): heartbeats that fleet.roll_up() does not wait for have to be recorded as late.
  v_today timestamptz;
begin
  if p_received_at > now() then
    perform fleet.not_in_future(p_received_at);
  end if;
  select * into strict v_settings from fleet.settings;
  v_bound := v_now + v_settings.max_future;
  v_lag := fleet.allowed_lag(v_settings.offline_after, v_settings.max_late);
  if p_token_hashes is not null then
    select array_agg(i.owner), array_agg(i.next_interval_s)
    into v_owners, v_intervals
    from (
      select r.owner, r.next_interval_s, generate_series(1, r.items)
      from (
        select t.items, coalesce(d.next_interval_s, 0) as next_interval_s,
          case
            when d.device_id is not null then d.device_id
            when g.gateway_id is not null then 0
            else -1
          end as owner
        from unnest(p_token_hashes, p_items) with ordinality as t (token_hash, items, nth)
        left join fleet.enrolled_devices d on d.token_hash = t.token_hash
        left join fleet.gateways g on g.token_hash = t.token_hash and g.revoked_at is null
        order by t.nth
      ) r
    ) i;
  end if;
  for v_try in 1..3 loop
    begin
      with given as materialized (
        select i.ordinality as item, t.ts, t.owner,
          case when t.owner > 0 then t.owner when t.owner = 0 or p_token_hashes is null then i.device_id end as device_id,
          i.device_id as named_id,
          i.signal_dbm, i.battery_pct, i.unity_running, i.network_type, i.agent_version,
          i.next_in_s, i.stopping,
          fleet.stored_ip(i.ip, v_settings.store_ip) as ip, i.extra,
          case
            when t.ts < p_received_at - least(v_settings.max_late, v_settings.retention) then 'too_late'
            when t.ts > p_received_at + v_settings.max_future then 'in_future'
            -- As in a plain store, only if the insert found no partition for a row, or one that is settled.
            when v_try > 1 and v_settled @> t.ts then 'too_late'
            when v_try > 1 and not coalesce(v_online @> t.ts, false) then 'no_partition'
          end as reason
        from rows from (
          json_to_recordset(p_batch) as (
            device_id bigint, ts timestamptz,
            signal_dbm smallint, battery_pct smallint, unity_running boolean, network_type text, agent_version text,
            next_in_s integer, stopping text,
            ip inet, extra jsonb
          )
        ) with ordinality i
        cross join lateral (select coalesce(i.ts, p_received_at) as ts, v_owners[i.ordinality] as owner) t
      ),
      judged as (
        select g.*,
          -- Null if the item is refused because of its token or its device.
          case
            when g.owner > 0 then case when g.named_id is null or g.named_id = g.owner then v_intervals[g.item] end
            when g.owner = 0 then e.next_interval_s
          end as next_interval_s
        from given g
        left join fleet.enrolled_devices e on g.owner = 0 and e.device_id = g.named_id
      ),
      sorted as (
        select j.*,
          j.reason is null and (j.next_interval_s is not null or p_token_hashes is null) as is_taken,
          row_number() over (
            partition by j.device_id, fleet.heartbeat_bucket(j.ts),
              j.reason is null and (j.next_interval_s is not null or p_token_hashes is null)
            order by j.item
          ) = 1 as is_first
        from judged j
      )
      select array_agg(s.reason), array_agg(s.ts), array_agg(s.device_id), array_agg(s.next_interval_s),
        array_agg(s.is_taken and s.is_first),
        array_agg(s.signal_dbm), array_agg(s.battery_pct), array_agg(s.unity_running), array_agg(s.network_type),
        array_agg(s.agent_version), array_agg(s.next_in_s), array_agg(s.stopping), array_agg(s.ip), array_agg(s.extra)
      into reasons, tss, device_ids, next_intervals,
        v_firsts,
        v_signal_dbms, v_battery_pcts, v_unity_runnings, v_network_types,
        v_agent_versions, v_next_in_ss, v_stoppings, v_ips, v_extras
      from (select o.* from sorted o order by o.item) s;

      v_stored_ids := null;
      if true = any (v_firsts) then
        with stored as (
          insert into fleet.device_heartbeats (
            ts, received_at, device_id,
            signal_dbm, battery_pct, unity_running, network_type, agent_version,
            next_in_s, stopping,
            ip, extra
          )
          select n.ts, p_received_at, n.device_id,
            n.signal_dbm, n.battery_pct, n.unity_running, n.network_type, n.agent_version,
            n.next_in_s, n.stopping,
            n.ip, n.extra
          from unnest(
            tss, device_ids, v_firsts, v_signal_dbms, v_battery_pcts, v_unity_runnings, v_network_types, v_agent_versions,
            v_next_in_ss, v_stoppings, v_ips, v_extras
          ) as n (
            ts, device_id, is_first, signal_dbm, battery_pct, unity_running, network_type, agent_version,
            next_in_s, stopping, ip, extra
          )
          where n.is_first
          order by n.device_id, n.ts
          on conflict do nothing
          returning device_id, ts
        )
        select array_agg(i.device_id), array_agg(i.ts) into v_stored_ids, v_stored_tss from stored i;
      end if;
      exit;
    exception when check_violation then
      if v_try = 3 then
        raise;
      end if;
      if to_regclass('fleet.hb_partitions') is not null then
        perform fleet.sync_partitions();
      end if;
      select range_agg(tstzrange(o.range_start, o.range_end)),
        range_agg(tstzrange(o.range_start, o.range_end)) filter (where o.is_settled)
      into v_online, v_settled
      from fleet.online_ranges o;
    end;
  end loop;

  if v_stored_ids is not null then
    v_today := date_trunc('day', clock_timestamp(), 'UTC');
    if exists (select from unnest(v_stored_tss) t where t < v_today) then
      insert into fleet.late_arrivals (device_id, day)
      select distinct s.device_id, (s.ts at time zone 'UTC')::date
      from unnest(v_stored_ids, v_stored_tss) as s (device_id, ts)
      where s.ts < v_today;
    end if;
    with newest as (
      select distinct on (u.device_id) u.*, p_received_at as received_at, u.ts as stored_ts
      from unnest(
        tss, device_ids, v_firsts, v_signal_dbms, v_battery_pcts, v_unity_runnings, v_network_types, v_agent_versions,
        v_next_in_ss, v_stoppings, v_ips, v_extras
      ) as u (
        ts, device_id, is_first, signal_dbm, battery_pct, unity_running, network_type, agent_version,
        next_in_s, stopping, ip, extra
      )
      join unnest(v_stored_ids, v_stored_tss) as s (device_id, ts) on s.device_id = u.device_id and s.ts = u.ts
      where u.is_first
      order by u.device_id, u.ts desc
    )
--!include distributed/upsert_last_status.inc.sql
    if v_rows < (select count(distinct u) from unnest(v_stored_ids) u) then
      perform fleet.record_arrivals(
        array_agg(n.device_id), array_fill(p_received_at, array[count(*)::integer]), array_agg(n.ts)
      )
      from (
        select s.device_id, max(s.ts) as ts from unnest(v_stored_ids, v_stored_tss) as s (device_id, ts) group by s.device_id
      ) n;
    end if;
  end if;

  if cardinality(v_stored_ids) = cardinality(tss) then
    reasons := null;
    return;
  end if;
  v_heard := device_ids;
  if p_token_hashes is not null then
    -- Of what is refused because of its token or its device, nothing is kept and nobody was heard from.
    select array_agg(case when u.next_interval_s is not null then u.device_id end order by u.item),
      array_agg(case when u.next_interval_s is not null then u.reason end order by u.item),
      array_agg(
        case when u.next_interval_s is null then case when u.owner >= 0 then 'unknown_device' else 'unauthorized' end end
        order by u.item
      )
    into v_heard, reasons, results
    from unnest(device_ids, reasons, next_intervals, v_owners) with ordinality
      as u (device_id, reason, next_interval_s, owner, item)
    where u.item <= cardinality(tss);
  end if;
  select array_agg(
    coalesce(u.result, case when u.reason is null then case when s.ts is null then 'duplicate' else 'stored' end end)
    order by u.item
  )
  into results
  from unnest(v_heard, tss, reasons, results, v_firsts) with ordinality as u (device_id, ts, reason, result, is_first, item)
  left join unnest(v_stored_ids, v_stored_tss) as s (device_id, ts)
    on u.is_first and s.device_id = u.device_id and s.ts = u.ts;

  if array_position(results, null) is not null then
    results := fleet.quarantine(p_batch, p_received_at, v_heard, tss, reasons, results);
    reasons := array(
      select case u.result when 'rejected' then 'quarantine_full' else u.reason end
      from unnest(results, reasons) with ordinality as u (result, reason, item)
      order by u.item
    );
  end if;
  perform fleet.record_others(p_batch, p_received_at, v_heard, tss, results);
end
$$;

comment on function fleet.ingest_batch(json, timestamptz, bytea[], integer[]) is
  'The form of fleet.ingest_batch() for a store that is distributed with Citus: the same arguments and the same answers, on any node. '
  'It notes no transitions: fleet.mark_silent() does, within a minute. '
  'Example: select * from fleet.ingest_batch(''[{"device_id":1,"battery_pct":80}]'');';
