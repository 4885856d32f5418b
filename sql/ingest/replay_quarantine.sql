create or replace function fleet.replay_quarantine(
  p_from timestamptz default '-infinity',
  p_to timestamptz default 'infinity',
  p_device_id bigint default null,
  out stored bigint,
  out duplicate bigint,
  out remaining bigint
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
begin
  select r.stored, r.duplicate, r.remaining into stored, duplicate, remaining
  from fleet.replay_heartbeats(p_from, p_to, p_device_id) r;
  if stored + duplicate > 0 then
    perform fleet.audit(
      'quarantine.replayed', coalesce('device:' || p_device_id, 'quarantine:all'),
      p_after => jsonb_build_object(
        'from', p_from, 'to', p_to, 'stored', stored, 'duplicate', duplicate, 'remaining', remaining
      )
    );
  end if;
end
$$;

comment on function fleet.replay_quarantine(timestamptz, timestamptz, bigint) is
  'Stores quarantined heartbeats, selected by ts, if their partition now exists (created or restored) and their lateness is now '
  'allowed; opens settled days for them. Readers of a day that it opens wait until the replay has ended, unless it was opened '
  'before with fleet.unsettle_partition(). Returns how many were stored, how many were duplicates, and how many remain. '
  'Example: select * from fleet.replay_quarantine(current_date - 3, current_date);';
