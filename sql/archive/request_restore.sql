create or replace function fleet.request_restore(p_from date, p_to date default null) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_to date := coalesce(p_to, p_from);
  v_request_id bigint;
begin
  if p_from is null or p_from > v_to then
    raise exception using
      errcode = 'FL422',
      message = format('cannot restore from %s to %s', coalesce(p_from::text, 'null'), coalesce(v_to::text, 'null')),
      hint = 'Give a first and a last day, in order: select fleet.request_restore(current_date - 100, current_date - 98);';
  end if;
  if not exists (
    select from fleet.hb_partitions p
    where p.state = 'dropped' and p.range_start < (v_to + 1)::timestamptz and p.range_end > p_from::timestamptz
  ) then
    raise exception using
      errcode = 'FL404',
      message = format('there is nothing to restore from %s to %s: no day in this range is only in the archive', p_from, v_to),
      hint = 'Days that are online or not yet dropped need no restore. See where each day is: select * from fleet.data_coverage;';
  end if;

  insert into fleet.restore_requests (from_day, to_day)
  values (p_from, v_to)
  returning request_id into v_request_id;
  insert into fleet.restore_items (request_id, partition_name)
  select v_request_id, p.partition_name
  from fleet.hb_partitions p
  where p.state = 'dropped' and p.range_start < (v_to + 1)::timestamptz and p.range_end > p_from::timestamptz;
  perform fleet.audit(
    'restore.requested', 'restore:' || v_request_id, p_after => jsonb_build_object('from', p_from, 'to', v_to)
  );
  perform pg_notify('fleet_archiver', 'restore');
  return v_request_id;
end
$$;

comment on function fleet.request_restore(date, date) is
  'Asks the archiver to bring archived days back online, and returns the number of the request. Follow it in '
  'fleet.restore_items. '
  'Example: select fleet.request_restore(day) from fleet.data_coverage where "where" = ''archived'' order by day desc limit 1;';
