-- The statement that stores heartbeats also authenticates them, so no server caches tokens any longer.
alter table fleet.devices add column if not exists changed_at timestamptz;
comment on column fleet.devices.changed_at is
  'When its token, its cohort or its own interval was last changed. Null if never.';
do $$
begin
  if to_regclass('fleet.token_change_log') is not null then
    update fleet.devices d
    set changed_at = l.changed_at
    from (
      select substring(c.subject from '^device:(\d+)$')::bigint as device_id, max(c.changed_at) as changed_at
      from fleet.token_change_log c
      group by 1
    ) l
    where l.device_id = d.device_id;
  end if;
end
$$;
drop trigger if exists devices_token_change on fleet.devices;
drop trigger if exists gateways_token_change on fleet.gateways;
delete from fleet.recorded_triggers where trigger_name in ('devices_token_change', 'gateways_token_change');
drop function if exists fleet.record_token_change();
drop function if exists fleet.token_changes(xid8);
drop function if exists fleet.recent_tokens(integer);
drop function if exists fleet.known_devices(bigint[]);
drop table if exists fleet.token_change_log;
drop function if exists fleet.authenticate(bytea);
drop function if exists fleet.ingest_batch(json, timestamptz);

--!include devices/note_change.sql
--!include devices/devices.trigger.sql
--!include devices/enrolled_devices.view.sql
--!include devices/authenticate.sql
--!include devices/make_device_token.sql
--!include devices/create_device.sql
--!include devices/renew_token.sql
--!include devices/revoke_device.sql
--!include devices/revoke_gateway.sql
--!include devices/set_cohort_interval.sql
--!include import/enroll_unknown.sql
--!include ingest/ingest_batch.sql
--!include jobs/prune.sql
--!include partitions/relink_tables.sql
--!include checks/check_devices.sql
--!include checks/check_ingest.sql
--!include checks/check_sessions.sql
--!include setup/grants.sql
