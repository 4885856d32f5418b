-- The targets are also in docker/prometheus/rules/, because an alert must not depend on the database that failed.
create or replace view fleet.slo as
select o.slo, o.target, o.period, c.good, c.bad,
  round(b.ratio, 6) as ratio,
  round(1 - coalesce(b.ratio, 0) / o.target, 4) as budget_left,
  case
    when c.good + c.bad = 0 then 'idle'
    when b.ratio >= o.target then 'fail'
    when b.ratio >= o.target / 2 then 'warn'
    else 'ok'
  end as status
from (
  values
    ('heartbeat_writes', 0.005, interval '1 hour'),
    ('dispatch_log', 0.002, interval '1 hour')
) as o (slo, target, period)
cross join lateral (
  select coalesce(sum(k.good), 0)::bigint as good, coalesce(sum(k.bad), 0)::bigint as bad
  from fleet.slo_counts k
  where k.slo = o.slo and k.minute > now() - o.period and k.minute <= now()
) c
cross join lateral (select c.bad::numeric / nullif(c.good + c.bad, 0) as ratio) b;

comment on view fleet.slo is
  'The error budgets: the share of the servers'' attempts that failed in the last period (ratio), and how much of the budget '
  'that target allows is left (budget_left: 1 is all, 0 is nothing, below 0 is overspent). status: ok, warn (half is spent), '
  'fail (all is spent) or idle (no attempts). Up to 10 seconds behind. Example: select * from fleet.slo where status in '
  '(''warn'', ''fail'');';
