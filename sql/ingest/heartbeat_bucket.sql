-- No SET clause, and a body that is parsed at creation, so that it is inlined and the index of the bucket is used. The index of
-- the template has the same expression written out, because a new definition would not change the index.
create or replace function fleet.heartbeat_bucket(p_ts timestamptz) returns timestamptz
language sql
immutable
parallel safe
return date_bin('10 seconds', p_ts, timestamptz '2000-01-01 00:00:00+00');

comment on function fleet.heartbeat_bucket(timestamptz) is
  'The start of the 10 seconds of which only the first heartbeat of a device is stored. '
  'Example: select fleet.heartbeat_bucket(now());';
