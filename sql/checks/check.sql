-- The themes, the most important first. If one of them fails with an error, the others still report what they found.
create or replace function fleet.check(p_now timestamptz default now())
returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
set jit = off
as $$
#variable_conflict use_column
declare
  -- They read tables that a distributed store has on its workers.
  c_on_workers constant text[] := array[
    'check_partitions', 'check_ingest', 'check_fields', 'check_silence', 'check_devices', 'check_storage'
  ];
  v_theme text;
  v_away text;
begin
  perform fleet.not_in_future(p_now);
  v_away := fleet.nodes_away();
  foreach v_theme in array array[
    'check_partitions($1)', 'check_ingest($1)', 'check_fields($1)', 'check_silence($1)', 'check_devices($1)', 'check_scheduler($1)',
    'check_archive($1)', 'check_erasures($1)', 'check_webhooks($1)', 'check_columns()', 'check_readers()', 'check_sessions($1)',
    'check_storage($1)', 'check_imports($1)', 'check_settings()', 'check_nodes($1)'
  ] loop
    if v_away is not null and split_part(v_theme, '(', 1) = any (c_on_workers) then
      check_name := split_part(v_theme, '(', 1);
      status := 'warn';
      detail := format('could not be judged, because %s does not answer', v_away);
      remedy := format(e'-- once it answers again\nselect * from fleet.%I();', check_name);
      return next;
      continue;
    end if;
    begin
      return query execute 'select * from fleet.' || v_theme using p_now;
    exception when others then
      check_name := split_part(v_theme, '(', 1);
      status := 'fail';
      detail := 'the check itself failed: ' || sqlerrm;
      remedy := format(e'-- shows the whole error\nselect * from fleet.%I();', check_name);
      return next;
    end;
  end loop;
end
$$;

comment on function fleet.check(timestamptz) is
  'One row for each thing that can go wrong: ok, warn or fail, with the commands that fix it, one on each line. They are SQL, to '
  'be run as fleet_dba unless the first line says "-- as superuser" or "-- as fleet_owner", or shell commands if it says "# in a '
  'shell". Reads the heartbeats of a few devices only. Example: select * from fleet.check() where status <> ''ok'';';
