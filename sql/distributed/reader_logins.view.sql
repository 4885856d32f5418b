-- Citus plans devices together with the roles of Postgres, whose table nobody may read. There are no such logins.
create or replace view fleet.reader_logins as
select r.reader, r.cohorts, '{}'::text[] as empty_cohorts, false as can_login, 0 as connection_limit, 0::bigint as sessions,
  r.created_at, r.created_by
from fleet.readers r;

comment on view fleet.reader_logins is
  'The form of fleet.reader_logins for a distributed store, which has no logins that see only their cohorts: always empty.';
