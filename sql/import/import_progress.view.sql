create or replace view fleet.import_progress as
select a.source, a.state, a.step,
  exists (select from fleet.lock_holders('import') h where h = a.backend) and cardinality(a.steps) > 0 as is_running,
  case
    when cardinality(a.steps) = 0 then 100
    when a.step is null then 0
    when a.step_total > 0 then round(least(100.0 * a.step_done / a.step_total, 100), 1)
    else 100
  end as percent,
  round(a.step_rows / nullif(extract(epoch from a.updated_at - a.step_started_at), 0)) as rows_per_s,
  case
    when cardinality(a.steps) > 0 and a.step_done > a.step_from then
      date_trunc('second', a.updated_at + (a.updated_at - a.step_started_at) * (
        (a.step_total - a.step_done)::double precision / (a.step_done - a.step_from)
      ))
  end as step_ends_at,
  a.rows_read, a.rows_stored, a.rows_duplicate, a.rows_refused,
  d.rows_kept, d.rows_missing, d.rows_changed,
  a.rows_written_back, a.pass, a.started_at, a.updated_at, a.moved_at, a.verified_at, a.confirmed_at, a.abandoned_at, a.last_error
from fleet.imports a
left join lateral (
  select sum(d.rows_kept) as rows_kept, sum(d.rows_missing) as rows_missing, sum(d.rows_changed) as rows_changed
  from fleet.import_days d
  where d.source = a.source and d.checked_at is not null
) d on true
order by a.started_at desc;

comment on view fleet.import_progress is
  'The plain tables that are being imported or were imported, and how far each import is. percent, rows_per_s and step_ends_at '
  'describe the current step (survey, partitions, move, verify, write_back), the columns rows_read to rows_refused the current '
  'pass, and rows_kept to rows_changed the verification. '
  'Example: select source, state, step, percent, rows_per_s, step_ends_at from fleet.import_progress;';
