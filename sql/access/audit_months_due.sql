create or replace function fleet.audit_months_due() returns setof date
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select m.month::date
  from fleet.settings s
  cross join generate_series(
    date_trunc('month', (select min(l.at) from fleet.audit_log l)), date_trunc('month', now()) - interval '1 month',
    interval '1 month'
  ) as m (month)
  left join fleet.audit_archives a on a.month = m.month::date
  where s.audit_archive and (a.month is null or a.wanted > a.done and a.pruned_at is null)
    and exists (select from fleet.audit_log l where l.at >= m.month and l.at < m.month + interval '1 month')
  order by m.month;
$$;

comment on function fleet.audit_months_due() is
  'The past months of fleet.audit_log that are to be archived, or to be archived again. None unless settings.audit_archive is on.';
