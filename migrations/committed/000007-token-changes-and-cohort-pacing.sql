--! Previous: sha1:2bcc5f69d780cca2b2e506ecc09919bad24d291a
--! Hash: sha1:a54f107c648327eb795b3ac91579562cbcd36df0
--! Message: token changes and cohort pacing

create table fleet.cohorts (
  cohort text not null,
  min_interval interval,
  last_interval interval,
  changed_at timestamptz not null default now(),
  constraint cohorts_pkey primary key (cohort),
  constraint cohorts_min_interval_range check (min_interval >= '1 second' and min_interval <= '1 day')
);
comment on table fleet.cohorts is 'Cohorts that are slowed down, or were lately. Change it with fleet.set_cohort_interval(cohort, interval).';
comment on column fleet.cohorts.cohort is 'fleet.devices.cohort.';
comment on column fleet.cohorts.min_interval is
  'No device of the cohort is asked to send more often than this, whatever its own interval; null: no longer slowed.';
comment on column fleet.cohorts.last_interval is
  'What held before. Its devices may follow it until they have had an answer since changed_at, and are not late for that.';
comment on column fleet.cohorts.changed_at is 'When it was last changed.';
comment on column fleet.settings_audit.setting is 'Column of fleet.settings, or cohort_interval:<cohort>.';

create table fleet.token_change_log (
  change_id bigint generated always as identity,
  changed_at timestamptz not null default now(),
  changed_xid xid8 not null default pg_current_xact_id(),
  subject text not null,
  constraint token_change_log_pkey primary key (change_id)
);
comment on table fleet.token_change_log is
  'Tokens of which servers must forget what they remember: revoked, or their device paced anew. Read with fleet.token_changes().';
comment on column fleet.token_change_log.change_id is 'Names the change.';
comment on column fleet.token_change_log.changed_at is 'When; for pruning.';
comment on column fleet.token_change_log.changed_xid is
  'The transaction that did it. By it, and not by time or change_id, a change that is committed late is still found.';
comment on column fleet.token_change_log.subject is 'device:<id> or gateway:<id>.';
create index token_change_log_changed_xid_idx on fleet.token_change_log (changed_xid);
comment on index fleet.token_change_log_changed_xid_idx is 'What changed since.';

drop function fleet.authenticate(bytea);
--! Included functions/authenticate.sql
create or replace function fleet.authenticate(p_token_hash bytea)
returns table (
  kind text, device_id bigint, gateway_id bigint, name text, cohort text, own_interval_s integer, next_interval_s integer
)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select 'device', d.device_id, null::bigint, d.alias, d.cohort, extract(epoch from d.heartbeat_interval)::integer,
    extract(epoch from greatest(d.heartbeat_interval, c.min_interval))::integer
  from fleet.devices d
  left join fleet.cohorts c on c.cohort = d.cohort
  where d.token_hash = p_token_hash and d.revoked_at is null
  union all
  select 'gateway', null, g.gateway_id, g.gateway_name, null, null, null
  from fleet.gateways g
  where g.token_hash = p_token_hash and g.revoked_at is null;
$$;

comment on function fleet.authenticate(bytea) is
  'Whose token has this SHA-256: a device (its own interval, and the one to ask for, which its cohort may slow), a gateway, or (no row) nobody''s or a revoked one.';
--! EndIncluded functions/authenticate.sql
--! Included functions/known_devices.sql
create or replace function fleet.known_devices(p_device_ids bigint[])
returns table (device_id bigint, next_interval_s integer)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select d.device_id, extract(epoch from greatest(d.heartbeat_interval, c.min_interval))::integer
  from fleet.devices d
  left join fleet.cohorts c on c.cohort = d.cohort
  where d.device_id = any (p_device_ids) and d.revoked_at is null;
$$;

comment on function fleet.known_devices(bigint[]) is
  'Those of the devices that are enrolled and not revoked: whom a gateway may speak for.';
--! EndIncluded functions/known_devices.sql
--! Included functions/set_cohort_interval.sql
create or replace function fleet.set_cohort_interval(p_cohort text, p_interval interval) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_old interval;
begin
  if p_cohort is null or btrim(p_cohort) = '' or length(p_cohort) > 100 then
    raise exception using
      errcode = 'FL422',
      message = 'cohort must have 1 to 100 characters',
      hint = 'Example: select fleet.set_cohort_interval(''lobby'', ''5 minutes'');';
  end if;
  if p_interval < interval '1 second' or p_interval > interval '1 day' then
    raise exception using
      errcode = 'FL422',
      message = format('interval %s is not between 1 second and 1 day', p_interval),
      hint = 'Example: select fleet.set_cohort_interval(''lobby'', ''5 minutes''); null removes it.';
  end if;
  -- Two at once would both see the same old value. Readers do not wait.
  lock table fleet.cohorts in share row exclusive mode;
  select min_interval into v_old from fleet.cohorts where cohort = p_cohort;
  if v_old is distinct from p_interval then
    insert into fleet.cohorts as c (cohort, min_interval)
    values (p_cohort, p_interval)
    on conflict (cohort) do update
      set min_interval = excluded.min_interval,
        last_interval = greatest(
          c.min_interval,
          case when now() < c.changed_at + 2 * c.last_interval then c.last_interval end
        ),
        changed_at = now();
    insert into fleet.settings_audit (setting, old_value, new_value)
    values ('cohort_interval:' || p_cohort, v_old, p_interval);
    perform pg_notify('fleet_tokens', 'cohort:' || p_cohort);
  end if;
  return format(
    'cohort %s: %s (was %s); it has %s devices', p_cohort,
    coalesce('at least ' || p_interval || ' between heartbeats', 'not slowed'),
    coalesce(v_old::text, 'not slowed'),
    (select count(*) from fleet.devices where cohort = p_cohort and revoked_at is null)
  );
end
$$;

comment on function fleet.set_cohort_interval(text, interval) is
  'Slows a cohort: none of its devices is asked to send more often than this; null lets each follow its own interval again. A device learns it with its next answer. Example: select fleet.set_cohort_interval(''lobby'', ''5 minutes'');';
--! EndIncluded functions/set_cohort_interval.sql
--! Included functions/record_token_change.sql
create or replace function fleet.record_token_change() returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into fleet.token_change_log (subject)
  select case tg_table_name when 'devices' then 'device:' || o.device_id else 'gateway:' || o.gateway_id end
  from jsonb_to_record(to_jsonb(old)) as o (device_id bigint, gateway_id bigint);
  -- One for all rows of the transaction: equal notifications are sent once.
  notify fleet_tokens, 'changes';
  return null;
end
$$;

comment on function fleet.record_token_change() is
  'Trigger on fleet.devices and fleet.gateways: what servers remember of the token no longer holds.';
--! EndIncluded functions/record_token_change.sql
--! Included functions/token_changes.sql
create or replace function fleet.token_changes(p_since xid8 default null)
returns table (started_at timestamptz, horizon xid8, changes json, cohorts json)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select
    pg_postmaster_start_time(),
    -- Every transaction before this one has ended, and is seen here or never. A change that is committed late belongs
    -- to this one or a later one, and so to the next answer.
    pg_snapshot_xmin(pg_current_snapshot()),
    coalesce(
      (
        select json_agg(json_build_array(l.change_id, l.subject))
        from fleet.token_change_log l
        where l.changed_xid >= p_since
      ),
      '[]'
    ),
    coalesce(
      (
        select json_object_agg(c.cohort, extract(epoch from c.min_interval)::integer)
        from fleet.cohorts c
        where c.min_interval is not null
      ),
      '{}'
    );
$$;

comment on function fleet.token_changes(xid8) is
  'For a server that remembers tokens: which changed since the horizon of its last answer ([change_id, "device:7"]; some may come again), and the slowed cohorts. Another started_at: another or a restarted Postgres, whose horizons cannot be compared. Example: select * from fleet.token_changes();';
--! EndIncluded functions/token_changes.sql
--! Included functions/recent_tokens.sql
create or replace function fleet.recent_tokens(p_limit integer)
returns table (
  token_hash text, kind text, device_id bigint, gateway_id bigint, cohort text, own_interval_s integer, next_interval_s integer
)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $$
  select encode(g.token_hash, 'base64'), 'gateway', null::bigint, g.gateway_id, null, null, null
  from fleet.gateways g
  where g.revoked_at is null
  union all
  (
    select encode(d.token_hash, 'base64'), 'device', d.device_id, null, d.cohort,
      extract(epoch from d.heartbeat_interval)::integer,
      extract(epoch from greatest(d.heartbeat_interval, c.min_interval))::integer
    from fleet.devices d
    left join fleet.cohorts c on c.cohort = d.cohort
    left join fleet.device_last_status ls on ls.device_id = d.device_id
    where d.revoked_at is null
    order by ls.last_received_at desc nulls last
    limit p_limit
  )
  limit p_limit;
$$;

comment on function fleet.recent_tokens(integer) is
  'As fleet.authenticate() answers, for all gateways and the devices heard from last, so that a server that starts need not ask for each. Hashes are base64.';
--! EndIncluded functions/recent_tokens.sql
--! Included functions/prune.sql
create or replace function fleet.prune(p_now timestamptz default now()) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_quarantined bigint;
  v_events bigint;
  v_commands bigint;
  v_dispatches bigint;
begin
  delete from fleet.heartbeat_quarantine q
  using fleet.settings s
  where q.received_at < p_now - s.quarantine_keep;
  get diagnostics v_quarantined = row_count;
  delete from fleet.events e
  using fleet.settings s
  where e.at < p_now - s.events_keep;
  get diagnostics v_events = row_count;
  delete from fleet.device_commands c
  using fleet.settings s
  where c.created_at < p_now - s.commands_keep;
  get diagnostics v_commands = row_count;
  delete from fleet.command_dispatch_log l
  using fleet.settings s
  where l.at < p_now - s.commands_keep;
  get diagnostics v_dispatches = row_count;
  delete from fleet.token_change_log l
  where l.changed_at < p_now - interval '7 days';
  delete from fleet.cohorts c
  where c.min_interval is null and c.changed_at < p_now - interval '7 days';
  delete from fleet.archivers a
  where a.last_seen_at < p_now - interval '7 days';
  return v_quarantined + v_events + v_commands + v_dispatches;
end
$$;

comment on function fleet.prune(timestamptz) is
  'Removes quarantined heartbeats, events and commands that are past their time; returns how many. Run by fleet.nightly().';
--! EndIncluded functions/prune.sql
--! Included triggers/devices.sql
create or replace trigger devices_forget_marks
  after update of heartbeat_interval on fleet.devices
  for each statement execute function fleet.forget_marks();

comment on trigger devices_forget_marks on fleet.devices is 'A changed interval moves the time after which a device is offline.';

create or replace trigger devices_token_change
  after update of token_hash, revoked_at, cohort, heartbeat_interval or delete on fleet.devices
  for each row execute function fleet.record_token_change();

comment on trigger devices_token_change on fleet.devices is 'Tells servers what to forget.';
--! EndIncluded triggers/devices.sql
--! Included triggers/gateways.sql
create or replace trigger gateways_token_change
  after update of token_hash, revoked_at or delete on fleet.gateways
  for each row execute function fleet.record_token_change();

comment on trigger gateways_token_change on fleet.gateways is 'Tells servers what to forget.';
--! EndIncluded triggers/gateways.sql
--! Included views/device_state.sql
-- The setting as a subquery: joined, a table of one row is guessed to have hundreds, and so is everything that follows.
create or replace view fleet.device_state as
select d.device_id, d.alias, d.cohort,
  case
    when ls.status = 'clock_skewed' then 'clock_skewed'
    when ls.last_ts is null then 'new'
    -- A little more than one interval of silence is jitter; offline is never less than two intervals.
    when now() - ls.last_ts > greatest((select s.offline_after from fleet.settings s), 2 * i.expected) then 'offline'
    when now() - ls.last_ts > 1.5 * i.expected + interval '15 seconds' then 'late'
    else 'online'
  end as status,
  ls.last_ts,
  extract(epoch from now() - ls.last_ts)::bigint as seconds_since,
  ls.battery_pct, ls.network_type, ls.unity_running, ls.signal_dbm, ls.agent_version, ls.ip, ls.last_received_at,
  i.asked as heartbeat_interval, d.enrolled_at,
  ls.is_silent, ls.status as said
from fleet.devices d
left join fleet.device_last_status ls using (device_id)
left join fleet.cohorts c on c.cohort = d.cohort
cross join lateral (
  select
    greatest(d.heartbeat_interval, c.min_interval) as asked,
    -- A cohort that is slowed no longer hears of it with its next answers; until then its devices keep to the old pace.
    greatest(
      d.heartbeat_interval,
      c.min_interval,
      case when now() < c.changed_at + 2 * c.last_interval then c.last_interval end
    ) as expected
) i
where d.revoked_at is null;

comment on view fleet.device_state is
  'fleet.device_status and what its indexes are on: is_silent, the mark of devices that may be offline, and said, the stored status. Behind the other views and fleet.list_devices().';
--! EndIncluded views/device_state.sql
--! Included grants.sql
-- Who may do what. Everything is revoked first, so that this file is the whole truth.
revoke all on all tables in schema fleet from public, fleet_server, fleet_archiver, fleet_reader, fleet_dba;
revoke all on all routines in schema fleet from public, fleet_server, fleet_archiver, fleet_reader, fleet_dba;
revoke all on schema fleet, fleet_detached from public;

grant usage on schema fleet to fleet_server, fleet_archiver, fleet_reader, fleet_dba;
grant usage on schema fleet_detached to fleet_reader, fleet_dba;
-- CREATE is what owning a table there takes.
grant usage, create on schema fleet_detached to fleet_archiver;

-- Heartbeats are never changed, not even by the owner: rows leave with their partition, once it is proven.
revoke update, delete, truncate on fleet.device_heartbeats from fleet_owner;

grant execute on function
  fleet.ingest(json, timestamptz),
  fleet.authenticate(bytea),
  fleet.known_devices(bigint[]),
  fleet.token_changes(xid8),
  fleet.recent_tokens(integer),
  fleet.take_commands(bigint),
  fleet.ack_command(bigint, bigint),
  fleet.metric_values()
to fleet_server;

grant execute on function
  fleet.list_devices(text, interval, bigint, integer),
  fleet.marks_hold(interval)  -- what the view devices_offline calls
to fleet_server, fleet_reader, fleet_dba;

grant execute on function
  fleet.create_device(text, text),
  fleet.enroll_device(text, text),
  fleet.revoke_device(bigint),
  fleet.send_command(bigint, text, jsonb),
  fleet.reconcile(interval, integer),
  fleet.nightly_plan(interval, timestamptz),
  fleet.run_steps(bigint),
  fleet.check(),
  -- What the procedures call with the rights of who calls them.
  fleet.begin_run(text),
  fleet.end_run(bigint, text, integer),
  fleet.do_step(text, text, timestamptz),
  fleet.retention_plan(interval, timestamptz),
  fleet.record_event(text, text, bigint, bigint, text, boolean, bigint),
  fleet.count_up(text, numeric),
  fleet.elapsed_ms(timestamptz),
  fleet.is_night_missed(timestamptz)
to fleet_server, fleet_dba;
grant execute on procedure
  fleet.maintain(bigint, timestamptz),
  fleet.nightly(bigint, interval, timestamptz),
  fleet.run_step(bigint, text, text, timestamptz, integer)
to fleet_server, fleet_dba;

grant execute on function
  fleet.set_retention(interval),
  fleet.set_premake(integer),
  fleet.set_cadence(text, timestamptz),
  fleet.recommend_cadence(),
  fleet.force_unlock(text),
  fleet.set_cohort_interval(text, interval),
  fleet.create_partitions(date, date),
  fleet.sync_partitions(),
  fleet.archive_partition(text),
  fleet.retry_archive(text),
  fleet.hold_partition(text, text),
  fleet.release_partition(text),
  fleet.create_gateway_token(text),
  fleet.revoke_gateway(text),
  fleet.backfill_last_status(integer),
  fleet.replay_quarantine(timestamptz, timestamptz, bigint),
  fleet.schedule_jobs(),
  fleet.ingest(json, timestamptz),
  fleet.metric_values()
to fleet_dba;

grant execute on function
  fleet.drop_partition(text),
  fleet.request_restore(date, date),
  fleet.wake_archiver(text),
  fleet.content_checksum(regclass),
  fleet.archive_columns(regclass)
to fleet_dba, fleet_archiver;

grant execute on function
  fleet.claim_partition(text, interval),
  fleet.renew_lease(text, text, interval),
  fleet.release_lease(text, text),
  fleet.record_frozen(text, text),
  fleet.record_export(text, text, bigint, numeric, timestamptz, timestamptz),
  fleet.record_upload(text, text, text, text, bigint),
  fleet.record_proof(text, text, text, numeric, bigint, timestamptz, timestamptz),
  fleet.record_failure(text, text, text),
  fleet.archiver_heartbeat(text, text),
  fleet.claim_restore(text, interval),
  fleet.renew_restore_lease(text, text, interval),
  fleet.begin_restore(text, text),
  fleet.finish_restore(text, text),
  fleet.release_restore(text, text),
  fleet.fail_restore(text, text, text)
to fleet_archiver;

grant select on
  fleet.device_status, fleet.devices_offline, fleet.unity_down, fleet.fleet_summary
to fleet_server, fleet_reader, fleet_dba;

grant select on
  fleet.partition_health, fleet.archives, fleet.data_coverage, fleet.storage_growth, fleet.job_health
to fleet_reader, fleet_dba;
-- What the view job_health calls.
grant execute on function fleet.job_history() to fleet_reader, fleet_dba;
grant select on fleet.archives, fleet.partition_health to fleet_archiver;

grant select on
  fleet.device_heartbeats, fleet.device_last_status, fleet.hb_partitions, fleet.events, fleet.counters, fleet.settings,
  fleet.device_commands, fleet.command_dispatch_log, fleet.cohorts
to fleet_reader, fleet_dba;
grant select on fleet.hb_partitions, fleet.restore_requests, fleet.restore_items to fleet_archiver, fleet_dba;
-- For queries over the archive and the online days together.
grant select on fleet.device_heartbeats to fleet_archiver;
grant select on fleet.settings_audit, fleet.heartbeat_quarantine, fleet.archivers to fleet_dba;
grant select (device_id, alias, cohort, heartbeat_interval, enrolled_at, revoked_at) on fleet.devices to fleet_reader, fleet_dba;
grant update (cohort, heartbeat_interval) on fleet.devices to fleet_dba;
grant update (
  max_late, max_future, offline_after, archive_grace, archive_max_attempts, store_ip, quarantine_keep, quarantine_per_device,
  events_keep, command_expires_after, commands_keep
) on fleet.settings to fleet_dba;
--! EndIncluded grants.sql
