-- date_part() and not extract(), which makes a numeric and takes longer.
create or replace view fleet.enrolled_devices as
select d.device_id, d.alias, d.cohort, d.token_hash,
  date_part('epoch', greatest(d.heartbeat_interval, c.min_interval))::integer as next_interval_s
from fleet.devices d
left join fleet.cohorts c on c.cohort = d.cohort
where d.revoked_at is null;

comment on view fleet.enrolled_devices is
  'The devices that may send heartbeats: enrolled and not revoked, each with the SHA-256 of its token and the interval to ask it '
  'for, which its cohort may lengthen. Read by fleet.authenticate() and fleet.ingest_batch(); nobody else may, because of the hash.';
