create or replace function fleet.retry_failed_archives() returns bigint
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  with due as (
    update fleet.hb_partitions
    set attempts = 0, next_attempt_at = now()
    where state = 'archive_failed' and next_attempt_at is null
    returning partition_name
  )
  select count(*) from due;
$$;

comment on function fleet.retry_failed_archives() is
  'Makes partitions due again whose attempts were used up, and returns how many. Called by fleet.nightly().';
