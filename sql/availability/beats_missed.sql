create or replace function fleet.beats_missed(p_silence interval, p_expected interval) returns bigint
language sql
immutable
parallel safe
-- round(silence / expected) - 1, half up, in whole microseconds.
return greatest(
  (2 * (extract(epoch from p_silence) * 1000000)::bigint + (extract(epoch from p_expected) * 1000000)::bigint)
    / (2 * (extract(epoch from p_expected) * 1000000)::bigint) - 1,
  0
);

comment on function fleet.beats_missed(interval, interval) is
  'How many heartbeats are missing in a silence of this length, at this interval. A heartbeat is missing once it is more than '
  'half an interval overdue, so jitter costs nothing. '
  'Example: select fleet.beats_missed(''10 min'', ''60 s'');';
