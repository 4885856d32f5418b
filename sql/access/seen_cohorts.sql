-- Of the login, not of the current role: SET ROLE changes nothing, and neither does a function with the owner's rights.
create or replace function fleet.seen_cohorts() returns text[]
language plpgsql
stable
parallel safe
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  -- A superuser counts as a member of every role. Since PostgreSQL 16 a role that made fleet_cohort_reader is a member of it, too,
  -- but may not use its rights unless it gave them to itself; the setup makes it a member of fleet_owner.
  if pg_has_role(session_user, 'fleet_owner', 'member')
    or not pg_has_role(session_user, 'fleet_cohort_reader', 'usage')
    and not pg_has_role(
      session_user, 'fleet_cohort_reader',
      case when current_setting('server_version_num')::integer >= 160000 then 'set' else 'member' end
    ) then
    return null;
  end if;
  return coalesce((select c.cohorts from fleet.readers c where c.reader = session_user), '{}');
end
$$;

comment on function fleet.seen_cohorts() is
  'The cohorts that this login may see: null is all. For a login with the rights of fleet_cohort_reader they are those in '
  'fleet.readers, and none if it has no row there. The policies of the tables ask it. Example: select fleet.seen_cohorts();';
