-- One transaction that is short whatever the device has sent: it revokes the device by deleting it, with all that is not a
-- heartbeat. Heartbeats are deleted afterwards, one partition a transaction, by fleet.run_erasures(), and in the archive by the
-- archiver.
create or replace function fleet.erase_device(p_device_id bigint, p_reason text) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_erasure fleet.erasures;
  v_partition fleet.hb_partitions;
  v_table regclass;
  v_has_rows boolean;
  v_is_known boolean;
  v_rows bigint;
begin
  if p_device_id is null or p_reason is null or btrim(p_reason) = '' or length(p_reason) > 500 then
    raise exception using
      errcode = 'FL422',
      message = format(
        'device %s is not erased: %s', coalesce(p_device_id::text, 'null'),
        case when p_device_id is null then 'device_id is null' else 'the reason must have 1 to 500 characters' end
      ),
      hint = 'Give a device and a reason that names no person: select fleet.erase_device(42, ''request 4711'');';
  end if;
  -- One call at a time for a device; the others find that it is being erased.
  perform from fleet.devices d where d.device_id = p_device_id for update;
  v_is_known := found;
  select * into v_erasure from fleet.erasures e where e.device_id = p_device_id for update;
  if v_erasure.state = 'running' and not v_is_known then
    return v_erasure.erasure_id;
  end if;

  for v_partition in
    select p.* from fleet.hb_partitions p where p.held_reason is not null order by p.range_start
  loop
    v_table := fleet.table_of(v_partition);
    continue when v_table is null;
    execute format('select exists (select 1 from only %s where device_id = $1)', v_table) into v_has_rows using p_device_id;
    if v_has_rows then
      raise exception using
        errcode = 'FL002',
        message = format(
          'device %s is not erased: partition %s has heartbeats of it and is held (%s) by %s; nothing was deleted',
          p_device_id, v_partition.partition_name, v_partition.held_reason, v_partition.held_by
        ),
        hint = format('When the hold may end: select fleet.release_partition(%L);', v_partition.partition_name);
    end if;
  end loop;

  if not v_is_known and v_erasure.erasure_id is null then
    -- Ids are never used twice. A device that somebody deleted before may still have heartbeats, also in the archive.
    select p_device_id between 1 and s.last_value and (s.is_called or p_device_id < s.last_value) into v_is_known
    from fleet.devices_device_id_seq s;
    if not v_is_known then
      select exists (select 1 from fleet.device_heartbeats h where h.device_id = p_device_id) into v_is_known;
    end if;
    if not v_is_known then
      raise exception using
        errcode = 'FL404',
        message = format('there is no device %s and there never was one; nothing was erased', p_device_id),
        hint = 'Find it by alias: select device_id, alias from fleet.device_status;';
    end if;
  end if;

  -- Its token ends with the commit. The trigger on fleet.devices deletes what else is known of the device; the second call is for
  -- a device that is not in fleet.devices any more.
  select count(*) into v_rows
  from fleet.devices d where d.device_id = p_device_id;
  v_rows := v_rows + fleet.delete_device_rows(array[p_device_id]);
  delete from fleet.devices d where d.device_id = p_device_id;
  -- These events say who changed the device and when. Its id and its alias go.
  update fleet.events e
  set detail = 'a device that was erased; by ' || coalesce(substring(e.detail from '.*; by (.*)$'), 'unknown')
  where e.event in ('device.revoked', 'device.renamed', 'device.moved', 'device.token_renewed')
    and e.detail ~ format('^device %s\D', p_device_id);

  insert into fleet.erasures as e (device_id, reason, rows_other)
  values (p_device_id, p_reason, v_rows)
  on conflict on constraint erasures_device_id_key do update
    set state = 'running', waits_for = null, finished_at = null, last_error = null,
      rows_other = e.rows_other + excluded.rows_other
  returning * into v_erasure;
  perform fleet.add_erasure_items(v_erasure.erasure_id);
  perform fleet.record_event(
    'device.erase', p_rows => v_rows,
    p_detail => format('erasure %s; by %s: %s', v_erasure.erasure_id, (fleet.current_actor()).actor, p_reason)
  );
  -- Who did what with the device stays, with its number. What the rows say about it goes; the trigger keep_audit_log allows that
  -- only now that the erasure is recorded.
  with named as (
    update fleet.audit_log l
    set before = null, after = null
    where l.target = 'device:' || p_device_id and (l.before is not null or l.after is not null)
    returning l.at
  ),
  mapped as (
    update fleet.audit_log l
    set before = null, after = null
    where l.action in ('import_device.mapped', 'import_device.changed', 'import_device.unmapped')
      and p_device_id::text in (l.before ->> 'device_id', l.after ->> 'device_id')
    returning l.at
  )
  -- These months are archived again.
  update fleet.audit_archives a
  set wanted = a.wanted + 1
  where a.month in (select date_trunc('month', n.at)::date from (table named union all table mapped) n);
  perform fleet.audit(
    'erasure.requested', 'erasure:' || v_erasure.erasure_id, p_after => jsonb_build_object('reason', p_reason)
  );
  -- An archive whose day is not online can be read at once.
  perform pg_notify('fleet_archiver', 'erase');
  return v_erasure.erasure_id;
end
$$;

comment on function fleet.erase_device(bigint, text) is
  'Erases a device and every heartbeat of it, online and in the archive, and returns the number of the erasure. With the commit '
  'the device is gone and its token refused; fleet.run_erasures() and the archiver then delete its heartbeats, which '
  'fleet.erasure_progress shows. Nothing brings them back. Refused while a partition with heartbeats of the device is held. A '
  'second call for a device that is erased looks again, for example after an old archive was registered. The reason is kept, so '
  'it should name no person. Example: select fleet.erase_device(42, ''request 4711'');';
