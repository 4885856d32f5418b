create or replace function fleet.grant_maintain() returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_table regclass;
  v_roles text;
  v_granted integer := 0;
begin
  if current_setting('server_version_num')::integer < 170000 then
    return 0;
  end if;
  for v_table, v_roles in
    select c.oid::regclass, case c.relnamespace when 'fleet'::regnamespace then 'fleet_owner' else 'fleet_owner, fleet_archiver' end
    from pg_class c
    where c.relnamespace in ('fleet'::regnamespace, 'fleet_detached'::regnamespace) and c.relkind in ('r', 'p')
      and c.relowner = 'fleet_owner'::regrole
      and (
        not has_table_privilege('fleet_owner', c.oid, 'maintain')
        or c.relnamespace = 'fleet_detached'::regnamespace and not has_table_privilege('fleet_archiver', c.oid, 'maintain')
      )
  loop
    execute format('grant maintain on %s to %s', v_table, v_roles);
    v_granted := v_granted + 1;
  end loop;
  return v_granted;
end
$$;

comment on function fleet.grant_maintain() is
  'Lets the owner, and for retired tables also the archiver, vacuum tables from which this right was revoked with all others, or '
  'that came from a PostgreSQL before 17, which has no such right. Returns for how many. Run by fleet.make_read_only(), '
  'fleet.relink_tables() and migrations.';
