create or replace function fleet.is_settled(p_table oid) returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select exists (select from pg_constraint k where k.conrelid = p_table and k.conname = 'device_heartbeats_settled');
$$;

comment on function fleet.is_settled(oid) is
  'Whether a table has the constraint that refuses every new row, because the day is settled. The catalog decides, not '
  'hb_partitions.settled_at.';
