create or replace function fleet.nightly_plan(p_retention interval default null, p_now timestamptz default now())
returns table (step text, partition_name text, detail text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
#variable_conflict use_column
begin
  return query
    (
      select 'premake', null::text, format('create the partition of %s', d.day::date)
      from fleet.settings s
      cross join generate_series(
        fleet.not_in_future(p_now)::date::timestamptz, p_now::date + s.premake_days * interval '1 day', interval '1 day'
      ) as d (day)
      where not exists (
        select from fleet.attached_partitions() a where a.range_start <= d.day and a.range_end > d.day
      )
      order by d.day
    )
    union all
    (
      select 'roll_up', r.partition_name, format('roll up %s', r.day)
      from fleet.rollup_plan(p_now) r
      where r.action = 'roll_up' and r.state in ('active', 'restored')
      order by r.day
    )
    union all
    select 'retire', r.partition_name, r.reason
    from fleet.retention_plan(p_retention, p_now) r
    where r.action = 'retire'
    union all
    select 'hold', r.partition_name, r.reason
    from fleet.retention_plan(p_retention, p_now) r
    where r.action = 'hold'
    union all
    (
      select 'archive', p.partition_name, format('state %s%s', p.state, ': ' || p.last_error)
      from fleet.hb_partitions p
      where p.state in ('detached', 'archiving', 'archive_failed', 'archived')
      order by p.range_start
    )
    union all
    (
      select 'settle', r.partition_name, r.reason
      from fleet.settle_plan(p_now) r
      where r.action = 'settle'
      order by r.range_start desc
    );
end
$$;

comment on function fleet.nightly_plan(interval, timestamptz) is
  'The dry run of fleet.nightly(): what it would create, roll up, retire, leave to the archiver and settle, the last within '
  'settings.settle_budget. Changes nothing. Example: '
  'select * from fleet.nightly_plan(''60 days'');';
