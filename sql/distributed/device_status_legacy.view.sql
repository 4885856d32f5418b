-- It reads all heartbeats of all nodes together with a table of the coordinator. Citus cannot plan that.
create or replace view fleet.device_status_legacy as
select ls.device_id, ls.alias, ls.cohort, ls.status, ls.last_ts, ls.seconds_since, ls.last_received_at, ls.heartbeat_interval,
  ls.enrolled_at, ls.reason,
--!include status/reported_fields.inc.sql
from fleet.device_status ls
where (select fleet.refuse_distributed('fleet.device_status_legacy'));

comment on view fleet.device_status_legacy is
  'Not available in a distributed store: every query is refused. Use fleet.device_status.';
