create or replace function fleet.erase_step() returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_ready bigint[];
  v_item record;
  v_erasure fleet.erasures;
  v_rows bigint;
  v_error text;
  v_unread text;
  v_table regclass;
  v_has_rows boolean;
  v_is_over boolean := true;
begin
  -- Which transactions may still write rows of the device.
  update fleet.erasures e
  set waits_for = array(select l.transaction from fleet.lockers_of_devices() l)
  where e.erasure_id in (
    select t.erasure_id from fleet.erasures t where t.state = 'running' and t.waits_for is null for update skip locked
  );
  if found then
    return 'done';
  end if;
  update fleet.erasures e
  set waits_for = case when w.pids is null then '{}' else e.waits_for end,
    last_error = 'waits for transactions that began before it: backends ' || w.pids
  from (
    select t.erasure_id,
      (select string_agg(l.pid::text, ', ' order by l.pid) from fleet.lockers_of_devices(t.waits_for) l) as pids
    from fleet.erasures t
    where t.state = 'running' and t.waits_for <> '{}'
    for update of t skip locked
  ) w
  where w.erasure_id = e.erasure_id;
  v_ready := array(
    select e.erasure_id from fleet.erasures e
    where e.state = 'running' and e.waits_for = '{}'
    order by e.erasure_id
    for update skip locked
  );

  -- What needs no work: nothing is online, or there is no archive.
  update fleet.erasure_items i
  set online_at = coalesce(i.online_at, now()),
    archive_at = coalesce(i.archive_at, case when p.archive_url is null then now() end)
  from fleet.hb_partitions p
  where (i.erasure_id, i.partition_name) in (
      -- An archiver may be recording one of them.
      select t.erasure_id, t.partition_name
      from fleet.erasure_items t
      where t.erasure_id = any (v_ready) and (t.online_at is null or t.archive_at is null)
      for update skip locked
    )
    and p.partition_name = i.partition_name and p.state = 'dropped'
    and (i.online_at is null or i.archive_at is null and p.archive_url is null)
    -- It may bring the device back.
    and not exists (
      select from fleet.restore_items o where o.partition_name = i.partition_name and o.state = 'running'
    );

  -- Up to 100 devices from one partition, so that the transaction is short.
  select p.partition_name, p.archive_url, (array_agg(i.erasure_id order by i.erasure_id))[1:100] as erasure_ids into v_item
  from fleet.erasure_items i
  join fleet.hb_partitions p using (partition_name)
  where i.erasure_id = any (v_ready) and i.online_at is null and p.state in ('active', 'restored')
    and (i.next_attempt_at is null or i.next_attempt_at <= now())
  group by p.partition_name
  order by p.range_start
  limit 1;
  if found then
    begin
      update fleet.erasure_items i
      set online_at = clock_timestamp(), rows_online = i.rows_online + coalesce(d.deleted, 0), attempts = 0,
        next_attempt_at = null, last_error = null,
        -- A day that is archived later is archived without the device.
        archive_at = coalesce(i.archive_at, case when v_item.archive_url is null then clock_timestamp() end)
      from fleet.erasures e
      left join fleet.delete_heartbeats(
        v_item.partition_name,
        array(select o.device_id from fleet.erasures o where o.erasure_id = any (v_item.erasure_ids))
      ) d using (device_id)
      where e.erasure_id = any (v_item.erasure_ids)
        and i.erasure_id = e.erasure_id and i.partition_name = v_item.partition_name;
    exception when others then
      v_error := sqlerrm;
      update fleet.erasure_items i
      set attempts = i.attempts + 1, last_error = v_error,
        next_attempt_at = now() + least(interval '1 minute' * (2 ^ least(i.attempts, 10)), interval '1 hour')
      where i.erasure_id = any (v_item.erasure_ids) and i.partition_name = v_item.partition_name;
    end;
    return 'done';
  end if;

  -- What is over. Some at a time, because each looks into every table.
  for v_erasure in
    select e.* from fleet.erasures e
    where e.erasure_id = any (v_ready)
      and not exists (
        select from fleet.erasure_items i
        where i.erasure_id = e.erasure_id and (i.online_at is null or i.archive_at is null)
      )
    order by e.last_error is not null, e.erasure_id
    limit 20
  loop
    v_rows := fleet.delete_device_rows(array[v_erasure.device_id]);
    select string_agg(t::text, ', ') into v_unread from fleet.tables_of_devices() t where not has_table_privilege(t, 'select');
    if v_unread is not null then
      update fleet.erasures
      set last_error = format('%s may not read %s, where rows of the device may be', current_user, v_unread),
        rows_other = rows_other + v_rows
      where erasure_id = v_erasure.erasure_id;
      continue;
    end if;
    v_error := null;
    for v_table in select t from fleet.tables_of_devices() t loop
      execute format('select exists (select 1 from only %s where device_id = $1)', v_table)
      into v_has_rows using v_erasure.device_id;
      v_error := concat_ws(', ', v_error, case when v_has_rows then v_table::text end);
    end loop;
    v_error := nullif(v_error, '');
    if v_error is not null then
      -- Rows that came since, for example with a partition that was attached by hand.
      insert into fleet.erasure_items as i (erasure_id, partition_name)
      select v_erasure.erasure_id, p.partition_name
      from fleet.hb_partitions p
      where fleet.table_of(p)::regclass::text = any (string_to_array(v_error, ', '))
      on conflict on constraint erasure_items_pkey do update
        set online_at = null, archive_at = null, next_attempt_at = now() + interval '1 minute';
      update fleet.erasures
      set last_error = format('there are rows of the device again, in %s', v_error), rows_other = rows_other + v_rows
      where erasure_id = v_erasure.erasure_id;
      continue;
    end if;
    update fleet.erasures e
    set state = 'done', finished_at = now(), last_error = null, waits_for = null, rows_other = e.rows_other + v_rows
    where e.erasure_id = v_erasure.erasure_id;
    perform fleet.record_event(
      'device.erased', p_rows => s.rows_online, p_duration_ms => fleet.elapsed_ms(v_erasure.requested_at),
      p_detail => format(
        'erasure %s; %s heartbeats online, %s in %s archives', v_erasure.erasure_id, s.rows_online, s.rows_archived, s.rewritten
      )
    )
    from (
      select sum(i.rows_online)::bigint as rows_online, sum(i.rows_archived)::bigint as rows_archived,
        count(*) filter (where i.rows_archived > 0) as rewritten
      from fleet.erasure_items i
      where i.erasure_id = v_erasure.erasure_id
    ) s;
    v_is_over := false;
  end loop;
  if not v_is_over then
    return 'done';
  end if;
  if exists (select from fleet.erasure_items i where i.archive_at is null) then
    perform fleet.wake_archiver('erase');
  end if;
  return 'over';
end
$$;

comment on function fleet.erase_step() is
  'Does one step of the erasures that are running: deletes the heartbeats of their devices from one partition, or ends '
  'erasures for which nothing is left. Returns done, or over when there is nothing to do now. Called by fleet.run_erasures(). '
  'Example: select fleet.erase_step();';
