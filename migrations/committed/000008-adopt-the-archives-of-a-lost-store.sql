--! Previous: sha1:a54f107c648327eb795b3ac91579562cbcd36df0
--! Hash: sha1:fdb71fe028e2fa8c20bb941b2b13bd2bf582ee88
--! Message: Adopt the archives of a lost store

--! Included functions/adopt_archive.sql
-- For a store that is made anew beside an archive that outlived the former one.
create or replace function fleet.adopt_archive(
  p_partition text,
  p_range_start timestamptz,
  p_range_end timestamptz,
  p_row_count bigint,
  p_content_checksum numeric,
  p_min_ts timestamptz,
  p_max_ts timestamptz,
  p_archive_url text,
  p_checksum_sha256 text,
  p_archive_bytes bigint
) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_known fleet.hb_partitions;
  v_has_rows boolean := false;
begin
  select * into v_known
  from fleet.hb_partitions p
  where (p.range_start < p_range_end and p.range_end > p_range_start) or p.partition_name = p_partition
  order by p.partition_name = p_partition desc
  limit 1
  for update;
  if v_known.checksum_sha256 = p_checksum_sha256 and v_known.archive_url = p_archive_url then
    return false;
  end if;

  -- A store that was just made has empty partitions for the days of the retention.
  if v_known.partition_name = p_partition and v_known.state = 'active' and v_known.relid is not null and p_range_end <= now()
    and (v_known.range_start, v_known.range_end) = (p_range_start, p_range_end) then
    -- Takes the lock of LOCK TABLE, which only who may write may ask for.
    execute format('alter table %s disable row level security', v_known.relid::regclass);
    execute format('select exists (select from %s)', v_known.relid::regclass) into v_has_rows;
    if not v_has_rows then
      update fleet.hb_partitions set is_proven_empty = true where partition_name = p_partition;
      execute format('drop table %s', v_known.relid::regclass);
      update fleet.hb_partitions
      set state = 'dropped', relid = null, dropped_at = now(), bytes_size = 0, row_count = 0
      where partition_name = p_partition
      returning * into v_known;
    end if;
  end if;

  if v_known.partition_name is not null and not (
    v_known.partition_name = p_partition and v_known.state = 'dropped' and v_known.row_count = 0
  ) then
    raise exception using
      errcode = 'FL409',
      message = format(
        'the archive of %s is not adopted: the store has partition %s, which is %s%s',
        p_partition, v_known.partition_name, v_known.state, case when v_has_rows then ' and holds rows' else '' end
      ),
      hint = format('See select * from fleet.partition_health where partition_name = %L;', v_known.partition_name);
  end if;

  insert into fleet.hb_partitions (
    partition_name, range_start, range_end, state, step, row_count, bytes_size, min_ts, max_ts, checksum_sha256, content_checksum,
    archive_url, archive_bytes, archived_at, proven_at, dropped_at
  ) values (
    p_partition, p_range_start, p_range_end, 'dropped', 'proven', p_row_count, 0, p_min_ts, p_max_ts, p_checksum_sha256,
    p_content_checksum, p_archive_url, p_archive_bytes, now(), now(), now()
  )
  on conflict (partition_name) do update
    set state = excluded.state, step = excluded.step, row_count = excluded.row_count, min_ts = excluded.min_ts,
      max_ts = excluded.max_ts, checksum_sha256 = excluded.checksum_sha256, content_checksum = excluded.content_checksum,
      archive_url = excluded.archive_url, archive_bytes = excluded.archive_bytes, archived_at = excluded.archived_at,
      proven_at = excluded.proven_at, is_proven_empty = false, last_error = null;
  perform fleet.record_event('partition.adopt', p_partition, p_row_count, p_detail => p_archive_url);
  return true;
end
$$;

comment on function fleet.adopt_archive(text, timestamptz, timestamptz, bigint, numeric, timestamptz, timestamptz, text, text, bigint) is
  'Makes an archive known to a store that did not write it, once the archiver has read it back and proven it; false when it was known. Used by: npm run archive -- adopt.';
--! EndIncluded functions/adopt_archive.sql
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
  fleet.fail_restore(text, text, text),
  fleet.adopt_archive(text, timestamptz, timestamptz, bigint, numeric, timestamptz, timestamptz, text, text, bigint)
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
