create or replace function fleet.note_range() returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if new.state in ('active', 'restored') and new.relid is not null then
    insert into fleet.online_ranges (range_start, range_end, is_settled)
    values (new.range_start, new.range_end, new.settled_at is not null)
    on conflict (range_start) do update
      set range_end = excluded.range_end, is_settled = excluded.is_settled;
  elsif tg_op = 'UPDATE' and old.state in ('active', 'restored') and old.relid is not null then
    delete from fleet.online_ranges where range_start = old.range_start;
  end if;
  return null;
end
$$;

comment on function fleet.note_range() is 'Trigger on fleet.hb_partitions: keeps fleet.online_ranges up to date in a distributed store.';
