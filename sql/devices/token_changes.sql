create or replace function fleet.token_changes(p_since xid8 default null)
returns table (started_at timestamptz, horizon xid8, changes json, cohorts json)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select
    pg_postmaster_start_time(),
    -- Every transaction before this one has ended, so its changes are visible here or never. A change that is committed later
    -- belongs to this transaction or a later one, and so to the next answer.
    pg_snapshot_xmin(pg_current_snapshot()),
    coalesce(
      (
        select json_agg(json_build_array(l.change_id, l.subject))
        from fleet.token_change_log l
        where l.changed_xid >= p_since
      ),
      '[]'
    ),
    coalesce(
      (
        select json_object_agg(c.cohort, extract(epoch from c.min_interval)::integer)
        from fleet.cohorts c
        where c.min_interval is not null
      ),
      '{}'
    );
$$;

comment on function fleet.token_changes(xid8) is
  'For a server that caches tokens: returns what changed since the horizon of its last answer ([change_id, "device:7"]; some '
  'changes may be repeated), and the slowed cohorts. A different started_at means another Postgres or a restarted one, whose '
  'horizons cannot be compared. '
  'Example: select * from fleet.token_changes();';
