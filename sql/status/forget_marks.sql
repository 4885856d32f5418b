create or replace function fleet.forget_marks() returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  -- On a worker of Citus, which has its own copy of the table and nothing to write to.
  if to_regclass('fleet.hb_partitions') is null then
    return null;
  end if;
  update fleet.silence_marks
  set marked_at = '-infinity', changes = changes + 1;
  return null;
end
$$;

comment on function fleet.forget_marks() is
  'Trigger on fleet.devices: with different heartbeat intervals, devices are offline after different times. So the marks of '
  'fleet.mark_silent() are not used until its next run.';
