-- The themes in order of importance. Whatever is broken, one of them fails alone: the others still say what they see.
create or replace function fleet.check(p_now timestamptz default now())
returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
#variable_conflict use_column
declare
  v_theme text;
begin
  perform fleet.not_in_future(p_now);
  foreach v_theme in array array[
    'check_partitions($1)', 'check_ingest($1)', 'check_silence($1)', 'check_scheduler($1)', 'check_archive($1)', 'check_columns()',
    'check_sessions($1)', 'check_storage($1)', 'check_imports($1)', 'check_settings()'
  ] loop
    begin
      return query execute 'select * from fleet.' || v_theme using p_now;
    exception when others then
      check_name := split_part(v_theme, '(', 1);
      status := 'fail';
      detail := 'could not look: ' || sqlerrm;
      remedy := format(e'-- shows where it ends\nselect * from fleet.%I();', check_name);
      return next;
    end;
  end loop;
end
$$;

comment on function fleet.check(timestamptz) is
  'One row per thing that can go wrong: ok, warn or fail, with the remedy as commands, one a line: SQL as fleet_dba unless its first line says "-- as superuser" or "-- as fleet_owner", a shell''s where it says "# in a shell". Reads no heartbeats but those of a few devices. Example: select * from fleet.check() where status <> ''ok'';';
