-- pg_partman and pg_cron, and what the owner may do with them. Run at setup, before the migrations.
-- A role without the right to create extensions can run it, too, if they already exist.
-- Names resolve in pg_catalog, no matter who runs this, so that no object of an ordinary role is used instead.
set search_path = pg_catalog, pg_temp;

create schema if not exists partman;

do $$
begin
  if not exists (select from pg_catalog.pg_extension where extname = 'pg_partman') then
    create extension pg_partman with schema partman;
  end if;

  -- pg_cron exists only in the database that cron.database_name names. For others, fleet.schedule_jobs() says what to run there.
  if not exists (select from pg_catalog.pg_extension where extname = 'pg_cron')
    -- Not current_setting(), which fails for a role that may not see the setting.
    and (select s.setting from pg_catalog.pg_settings s where s.name = 'cron.database_name') = current_database() then
    create extension pg_cron;
  end if;
end
$$;

-- Grants only what is missing, because a role that owns neither the database nor the extensions also runs this and may not grant.
do $$
begin
  if pg_has_role(current_user, (select datdba from pg_catalog.pg_database where datname = current_database()), 'usage') then
    -- A role that may create schemas could name one after the administrator, whose session would then call functions in it. The
    -- first migration creates the schemas of the store; after that nobody needs the right.
    if pg_catalog.to_regclass('graphile_migrate.current') is null or pg_catalog.to_regnamespace('fleet') is null then
      execute format('grant create on database %I to fleet_owner', current_database());
    else
      execute format('revoke create on database %I from fleet_owner', current_database());
    end if;
    -- Temporary tables of readers could fill the disk.
    execute format('revoke temporary on database %I from public', current_database());
    execute format('grant temporary on database %I to fleet_owner, fleet_dba', current_database());
    execute format(
      'grant connect on database %I to fleet_server, fleet_archiver, fleet_reader, fleet_dba, fleet_verifier, fleet_notifier, '
      'fleet_cohort_reader',
      current_database()
    );
  end if;

  -- A superuser who updates the extension runs its script in this schema, so no other role may put a function or a trigger there.
  -- (pg_partman's documentation grants more, which a store with a template table of its own does not need.)
  if pg_has_role(current_user, (select n.nspowner from pg_catalog.pg_namespace n where n.nspname = 'partman'), 'usage') then
    revoke create on schema partman from public, fleet_owner;
  end if;
  if not has_schema_privilege('fleet_owner', 'partman', 'usage')
    or exists (
      select from pg_catalog.pg_class c
      where c.relnamespace = 'partman'::regnamespace and c.relkind in ('r', 'v')
        and (not has_table_privilege('fleet_owner', c.oid, 'insert') or has_table_privilege('fleet_owner', c.oid, 'trigger'))
    )
    or exists (
      select from pg_catalog.pg_proc p
      where p.pronamespace = 'partman'::regnamespace and not has_function_privilege('fleet_owner', p.oid, 'execute')
    ) then
    grant usage on schema partman to fleet_owner;
    revoke all on all tables in schema partman from fleet_owner;
    grant select, insert, update, delete on all tables in schema partman to fleet_owner;
    grant execute on all functions in schema partman to fleet_owner;
    grant execute on all procedures in schema partman to fleet_owner;
  end if;

  if exists (select from pg_catalog.pg_extension where extname = 'pg_cron') and (
    not has_schema_privilege('fleet_owner', 'cron', 'usage')
    or not has_table_privilege('fleet_owner', 'cron.job', 'select')
    or not has_table_privilege('fleet_owner', 'cron.job_run_details', 'delete')
  ) then
    grant usage on schema cron to fleet_owner;
    grant select on cron.job, cron.job_run_details to fleet_owner;
    grant delete on cron.job_run_details to fleet_owner;
  end if;
end
$$;
