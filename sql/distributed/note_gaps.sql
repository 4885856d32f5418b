-- In a plain store ingest notes a gap at once. Here it keeps the gap in last status until this has noted it.
create or replace function fleet.note_gaps(p_max_rows integer default 1000) returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_ids bigint[];
  v_gaps timestamptz[];
begin
  select array_agg(g.device_id), array_agg(g.gap_from) into v_ids, v_gaps
  from (
    select ls.device_id, ls.gap_from
    from fleet.device_last_status ls
    where ls.gap_from is not null
    order by ls.device_id
    limit p_max_rows
  ) g;
  if v_ids is null then
    return 0;
  end if;
  perform fleet.note_transitions(v_ids);
  -- A gap that ingest has written since stays for the next minute.
  insert into fleet.device_last_status as ls (device_id, gap_from)
  select g.device_id, g.gap_from
  from unnest(v_ids, v_gaps) as g (device_id, gap_from)
  order by g.device_id
  on conflict (device_id) do update
    set gap_from = null, gap_next_in_s = null, gap_stopping = null, gap_battery_pct = null, gap_signal_dbm = null
    where ls.gap_from = excluded.gap_from;
  return cardinality(v_ids);
end
$$;

comment on function fleet.note_gaps(integer) is
  'Notes the silences between two heartbeats that ingest has found, for at most so many devices, and returns how many. Only in a '
  'distributed store; called each minute by fleet.mark_silent(). Example: select fleet.note_gaps();';
