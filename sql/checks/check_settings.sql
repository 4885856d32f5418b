-- The guidelines: shared_buffers about a quarter of the memory (4 GB at most, as npm start sets it), effective_cache_size half
-- to three quarters, work_mem 4 to 16 MB, autovacuum_naptime 10 s, statements slower than 250 ms in the log.
create or replace function fleet.check_settings()
returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_directory text := coalesce((select s.setting from pg_settings s where s.name = 'data_directory'), '$PGDATA');
  c_restart constant text := format('pg_ctl restart -m fast -D ''%s''', v_directory);
  v_memory bigint;
  v_setting record;
begin
  begin
    v_memory := fleet_guard.memory_bytes();
  exception when undefined_function or insufficient_privilege then
    v_memory := null;  -- set up before this function existed
  end;

  for v_setting in
    select w.*, s.pending_restart, s.context = 'postmaster' as needs_restart,
      coalesce(current_setting(w.name, true), 'unknown') as shown
    from (
      select k.name, k.guideline, k.advice, s.vartype = 'bool' and s.reset_val = 'on' or k.is_good as is_good
      from pg_settings s
      cross join lateral (
        select s.reset_val::numeric as n where s.vartype = 'integer'
        union all
        select null where s.vartype <> 'integer'
      ) v
      join lateral (
        values
          ('shared_buffers', 'a quarter of the memory', format('%sMB', least(v_memory >> 22, 4096)),
            v_memory is null or v.n * 8192 >= least(v_memory / 4, 4::bigint << 30) / 2),
          ('effective_cache_size', 'half to three quarters of the memory', format('%sMB', (v_memory * 0.6)::bigint >> 20),
            v_memory is null or v.n * 8192 between v_memory * 0.4 and v_memory),
          ('work_mem', '4 to 16 MB', '8MB', v.n between 4096 and 16384),
          ('autovacuum_naptime', '10 s', '10s', v.n <= 10),
          ('log_min_duration_statement', '250 ms', '250ms', v.n between 0 and 250),
          ('autovacuum', 'on', 'on', false),
          ('fsync', 'on, or a crash loses acknowledged heartbeats', 'on', false),
          ('full_page_writes', 'on, or a crash loses acknowledged heartbeats', 'on', false)
      ) as k (name, guideline, advice, is_good) on k.name = s.name
    ) w
    join pg_settings s on s.name = w.name
    order by w.name
  loop
    check_name := 'setting_' || v_setting.name;
    status := case when v_setting.is_good then 'ok' else 'warn' end;
    detail := format('%s; the guideline is %s', v_setting.shown, v_setting.guideline);
    if v_setting.guideline like '%of the memory' then
      detail := detail || coalesce(format(' (%s)', pg_size_pretty(v_memory)), ', whose size is unknown');
    end if;
    remedy := null;
    if not v_setting.is_good and v_setting.pending_restart then
      detail := detail || '; a new value is set and takes effect when Postgres is restarted';
      remedy := e'# in a shell, as the user of Postgres\n' || c_restart;
    elsif not v_setting.is_good then
      remedy := format(
        e'-- as superuser%s\nalter system set %s = %L;\nselect pg_reload_conf();',
        case when v_setting.needs_restart then '; then restart Postgres: ' || c_restart end, v_setting.name, v_setting.advice
      );
    end if;
    return next;
  end loop;
end
$$;

comment on function fleet.check_settings() is
  'The part of fleet.check() about the settings of Postgres: compares each with its guideline and gives the value to set.';
