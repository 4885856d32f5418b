create or replace view fleet.settings_audit as
select a.audit_id, a.at as changed_at, a.actor as changed_by,
  case when a.action = 'setting.changed' then substr(a.target, length('setting:') + 1) else a.target end as setting,
  a.before #>> '{}' as old_value, a.after #>> '{}' as new_value
from fleet.audit_log a
where a.action in ('setting.changed', 'cohort_interval.changed')
  or a.target like 'webhook:%' and a.action not in ('webhook.tested', 'webhook.retried')
order by a.audit_id;

comment on view fleet.settings_audit is
  'Every change of fleet.settings, of the interval of a cohort and of a webhook: when, by whom, from what, to what. A part of '
  'fleet.audit_log. Example: select * from fleet.settings_audit where setting = ''retention'';';
