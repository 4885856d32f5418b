-- The roles, once per Postgres cluster. Run at setup, before the migrations, by a role that may create roles.
-- All except the owner start without LOGIN: each deployment decides who may log in, and how.
-- Names resolve in pg_catalog, no matter who runs this, so that no object of an ordinary role is used instead.
set search_path = pg_catalog, pg_temp;

do $$
declare
  v_role text;
begin
  foreach v_role in array
    array[
      'fleet_owner', 'fleet_server', 'fleet_archiver', 'fleet_reader', 'fleet_dba', 'fleet_verifier', 'fleet_notifier',
      'fleet_cohort_reader'
    ]
  loop
    if not exists (select from pg_catalog.pg_roles where rolname = v_role) then
      begin
        execute format('create role %I', v_role);
      exception when duplicate_object or unique_violation then
        null;  -- another database of this cluster is being set up at the same time
      end;
    end if;
  end loop;

  if not pg_catalog.pg_has_role('fleet_owner', 'fleet_archiver', 'member') then
    -- Before 0.2 the archiver's role owned the retired tables, and the migration that takes them back needs this membership.
    grant fleet_archiver to fleet_owner;
  end if;
  if not (
    pg_catalog.pg_has_role('fleet_owner', 'pg_monitor', 'member') and pg_catalog.pg_has_role('fleet_dba', 'pg_monitor', 'member')
    and pg_catalog.pg_has_role('fleet_dba', 'pg_signal_backend', 'member')
  ) then
    begin
      -- Both can then see whether pg_cron's launcher runs. The DBA can see which session blocks which, and end it.
      grant pg_monitor to fleet_owner, fleet_dba;
      grant pg_signal_backend to fleet_dba;
    exception when insufficient_privilege then
      raise warning using
        message = 'fleet_owner and fleet_dba may not see the activity of other roles: '
          'fleet.check() cannot tell whether the scheduler runs',
        hint = 'As superuser: grant pg_monitor to fleet_owner, fleet_dba; grant pg_signal_backend to fleet_dba;';
    end;
  end if;
  if not (select rolcanlogin from pg_catalog.pg_roles where rolname = 'fleet_owner') then
    -- pg_cron runs a job as its owner in a background worker, whose role must have the right to log in.
    alter role fleet_owner login;
  end if;
  -- Since PostgreSQL 16, a role that creates another one is a member of it but may not SET ROLE to it.
  if not pg_catalog.pg_has_role(
    current_user, 'fleet_owner', case when current_setting('server_version_num')::integer >= 160000 then 'set' else 'member' end
  ) then
    execute format('grant fleet_owner to %I', current_user);
  end if;

  -- Changed only if different: several databases may be set up at once, and two ALTER ROLEs of one role collide.
  if not exists (
    select from pg_catalog.pg_db_role_setting s
    join pg_catalog.pg_roles r on r.oid = s.setrole
    where r.rolname = 'fleet_reader' and s.setdatabase = 0 and s.setconfig @> array['statement_timeout=30s', 'jit=off']
  ) then
    alter role fleet_reader set statement_timeout = '30s';
    alter role fleet_reader set idle_in_transaction_session_timeout = '60s';
    alter role fleet_reader set default_transaction_read_only = on;
    -- JIT compilation takes longer than the queries of the views.
    alter role fleet_reader set jit = off;
  end if;

  if not exists (
    select from pg_catalog.pg_db_role_setting s
    join pg_catalog.pg_roles r on r.oid = s.setrole
    where r.rolname = 'fleet_server' and s.setdatabase = 0 and 'statement_timeout=2s' = any (s.setconfig)
  ) then
    -- For the hot path through pgBouncer, which cannot pass on the settings that the server asks for at login.
    alter role fleet_server set statement_timeout = '2s';
  end if;

  for v_role in
    select r.rolname
    from pg_catalog.pg_roles r
    where r.rolname in ('fleet_owner', 'fleet_server', 'fleet_archiver', 'fleet_verifier', 'fleet_notifier')
      and not exists (
        select from pg_catalog.pg_db_role_setting s
        where s.setrole = r.oid and s.setdatabase = 0
          and exists (select from unnest(s.setconfig) c where c like 'search_path=%')
      )
  loop
    -- For the jobs of pg_cron and for logins through pgBouncer, which do not set it themselves.
    execute format('alter role %I set search_path = pg_catalog, pg_temp', v_role);
  end loop;

  -- A login that takes all connections would keep out heartbeats and the administrator. A tenth for each of these five roles
  -- leaves half to the servers. A limit that you set yourself stays, even a larger one:
  -- alter role fleet_reader connection limit 50.
  for v_role in
    select r.rolname
    from pg_catalog.pg_roles r
    where r.rolname in ('fleet_reader', 'fleet_dba', 'fleet_archiver', 'fleet_verifier', 'fleet_notifier') and r.rolconnlimit = -1
  loop
    execute format(
      'alter role %I connection limit %s', v_role, greatest(5, pg_catalog.current_setting('max_connections')::integer / 10)
    );
  end loop;

  if not exists (
    select from pg_catalog.pg_db_role_setting s
    join pg_catalog.pg_roles r on r.oid = s.setrole
    where r.rolname = 'fleet_reader' and s.setdatabase = 0
      and exists (select from unnest(s.setconfig) c where c like 'temp_file_limit=%')
  ) then
    begin
      -- For each session. Unlike the time limits, no login can lift it.
      alter role fleet_reader set temp_file_limit = '512MB';
    exception when insufficient_privilege then
      raise warning using
        message = 'fleet_reader can fill the disk with temporary files: only a superuser may set temp_file_limit',
        hint = 'As superuser: alter role fleet_reader set temp_file_limit = ''512MB'';';
    end;
  end if;

  if pg_catalog.to_regrole('pg_use_reserved_connections') is not null
    and not pg_catalog.pg_has_role('fleet_dba', 'pg_use_reserved_connections', 'member') then
    begin
      -- Since PostgreSQL 16. The setting reserved_connections says how many there are.
      grant pg_use_reserved_connections to fleet_dba;
    exception when insufficient_privilege then
      raise warning using
        message = 'fleet_dba may not use reserved connections',
        hint = 'As superuser: grant pg_use_reserved_connections to fleet_dba;';
    end;
  end if;

  if pg_catalog.shobj_description('fleet_cohort_reader'::regrole, 'pg_authid') is null then
    comment on role fleet_owner is 'NexMDM: owns the heartbeat store; runs migrations and the pg_cron jobs.';
    comment on role fleet_server is
      'NexMDM: the HTTP server; calls functions for ingest, enrolment and ops; reads the tables of its views, writes none.';
    comment on role fleet_archiver is 'NexMDM: the archiver; reads the retired tables and owns nothing.';
    comment on role fleet_reader is 'NexMDM: dashboards; reads views, with time limits.';
    comment on role fleet_cohort_reader is
      'NexMDM: the rights of logins that see only the cohorts in fleet.readers. Nobody logs in as this role. Grant it to nobody: '
      'fleet.create_reader() does.';
    comment on role fleet_verifier is
      'NexMDM: reads archives back and confirms them, as a second proof that does not depend on the archiver.';
    comment on role fleet_notifier is
      'NexMDM: the notifier; takes the messages that webhooks wait for, and reads no table.';
    comment on role fleet_dba is 'NexMDM: database administrators; call the functions that run the store.';
  end if;
end
$$;
