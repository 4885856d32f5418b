-- Each statement here sees what was committed before it began. So a late arrival is either deleted by the statement that counts
-- it, or it stays.
create or replace function fleet.roll_up_day(p_day date, p_now timestamptz default now(), p_late_only boolean default false)
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_table regclass := fleet.find_day_table(p_day);
  v_writers text[];
  v_count integer;
begin
  perform fleet.not_in_future(p_now);
  if p_day is null or p_now is null or (p_day + 1)::timestamptz > p_now then
    raise exception using
      errcode = 'FL422',
      message = format('cannot roll up %s: the day has not ended', coalesce(p_day::text, 'null')),
      hint = 'Days end at midnight UTC: select fleet.roll_up(current_date - 1);';
  end if;
  if v_table is null then
    raise exception using
      errcode = 'FL002',
      message = format('the heartbeats of %s are not in the database, so the day cannot be rolled up', p_day),
      hint = format('If the day is archived, bring it back first: select fleet.request_restore(%L);', p_day);
  end if;

  -- One at a time, so that an earlier count is never written after a later one.
  perform pg_advisory_xact_lock(hashtextextended('fleet.roll_up', 0));
  if p_late_only then
    if not exists (select from fleet.rolled_up_days r where r.day = p_day) then
      return 0;
    end if;
  else
    -- A heartbeat that was inserted before the end of its day is no late arrival, and may not be committed yet. So wait for the
    -- transactions that are writing to the table. They are watched instead of locked out, so that no heartbeat waits.
    v_writers := array(
      select l.virtualtransaction
      from pg_locks l
      where l.relation = v_table and l.mode = 'RowExclusiveLock' and l.granted and l.pid <> pg_backend_pid()
        and l.database = (select d.oid from pg_database d where d.datname = current_database())
    );
    for v_try in 0..100 loop
      exit when not exists (
        select from pg_locks l
        where l.relation = v_table and l.mode = 'RowExclusiveLock' and l.virtualtransaction = any (v_writers)
      );
      if v_try = 100 then
        raise exception using
          errcode = 'FL003',
          message = format('lock timeout: a transaction that wrote heartbeats of %s does not end', p_day),
          hint = 'Find it: select * from fleet.check_sessions(); The next night tries again.';
      end if;
      perform pg_sleep(0.02);
    end loop;
  end if;

  with late as (
    delete from fleet.late_arrivals l
    where l.day = p_day
    returning l.device_id
  ),
  counted as materialized (
    select c.*
    from fleet.availability_of_day(
      p_day, p_now, case when p_late_only then array(select distinct l.device_id from late l) end
    ) c
  ),
  written as (
    insert into fleet.device_availability_daily as a
    select c.*
    from counted c
    on conflict (device_id, day) do update
      set expected = excluded.expected,
        seen = excluded.seen,
        beats = excluded.beats,
        longest_gap = excluded.longest_gap,
        first_ts = excluded.first_ts,
        last_ts = excluded.last_ts,
        rolled_up_at = excluded.rolled_up_at
      where (a.expected, a.seen, a.beats, a.longest_gap, a.first_ts, a.last_ts)
        is distinct from (
          excluded.expected, excluded.seen, excluded.beats, excluded.longest_gap, excluded.first_ts, excluded.last_ts
        )
  ),
  gone as (
    delete from fleet.device_availability_daily a
    where a.day = p_day and not p_late_only
      and not exists (select from counted c where c.device_id = a.device_id)
  ),
  noted as (
    insert into fleet.rolled_up_days as r (day, devices)
    select p_day, count(*)
    from counted c
    where not p_late_only
    having not p_late_only
    on conflict (day) do update
      set devices = excluded.devices, rolled_up_at = excluded.rolled_up_at
  )
  select count(*) into v_count from counted;
  return v_count;
end
$$;

comment on function fleet.roll_up_day(date, timestamptz, boolean) is
  'Does what fleet.roll_up() says, which also records who asked for it. Called directly by fleet.nightly() and '
  'fleet.maintain().';
