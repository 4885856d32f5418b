create or replace view fleet.reader_logins as
select r.reader, r.cohorts,
  array(select c from unnest(r.cohorts) c where not exists (select from fleet.devices d where d.cohort = c)) as empty_cohorts,
  coalesce(l.rolcanlogin, false) as can_login, l.rolconnlimit as connection_limit,
  (select count(*) from pg_stat_activity a where a.usesysid = l.oid) as sessions,
  r.created_at, r.created_by
from fleet.readers r
left join pg_roles l on l.rolname = r.reader and pg_has_role(l.oid, 'fleet_cohort_reader', 'member');

comment on view fleet.reader_logins is
  'The logins that see only their cohorts, and of each the cohorts, those of them that have no device, whether it can log in, how '
  'many connections it may have and has now. Example: select reader, cohorts from fleet.reader_logins;';
