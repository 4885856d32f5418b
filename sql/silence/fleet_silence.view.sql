create or replace view fleet.fleet_silence as
select s.cohort, s.devices, s.active, s.gone_quiet, s.share, s.usual_share, s.ratio, s.is_alarming, s.is_muted, s.muted_reason,
  s.window_start, s.counted_at
from fleet.silence_at(now()) s;

comment on view fleet.fleet_silence is
  'For the whole fleet (all) and for each cohort: devices on the roster, devices active in the window (since window_start), '
  'active devices that have gone quiet in it, their share, the usual share at this time of day, and whether this is an alarm. '
  'While the alarm cannot be evaluated, muted_reason says why: ingest_down, ingest_resumed, unwatched, few_devices or '
  'few_samples. The devices of a large fleet are counted once a minute, at counted_at. '
  'Example: select * from fleet.fleet_silence where is_alarming;';
