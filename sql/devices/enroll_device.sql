create or replace function fleet.enroll_device(p_alias text, p_cohort text default 'default') returns text
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  select d.token from fleet.create_device(p_alias, p_cohort) d;
$$;

comment on function fleet.enroll_device(text, text) is
  'Enrolls a device and returns its token, which is shown only now. '
  'Example: select fleet.enroll_device(''lobby-tablet-7'', ''lobby'');';
