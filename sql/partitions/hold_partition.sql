create or replace function fleet.hold_partition(p_partition text, p_reason text) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_partition fleet.hb_partitions;
begin
  if p_reason is null or btrim(p_reason) = '' then
    raise exception using
      errcode = 'FL422',
      message = format('a reason is needed to hold partition %s', coalesce(p_partition, 'null')),
      hint = format('Example: select fleet.hold_partition(%L, ''legal hold, case 4711'');', p_partition);
  end if;
  v_partition := fleet.get_partition(p_partition);
  if v_partition.state = 'dropped' then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s was dropped; its rows are in %s', p_partition, v_partition.archive_url),
      hint = format('Bring it back first: select fleet.request_restore(%L);', (v_partition.range_start at time zone 'UTC')::date);
  end if;
  if v_partition.state in ('active', 'restored') then
    perform fleet.bind_range(p_partition);
  end if;
  if v_partition.held_reason is distinct from p_reason then
    update fleet.hb_partitions
    set held_reason = p_reason, held_by = (fleet.current_actor()).actor
    where partition_name = p_partition;
    perform fleet.record_event('partition.hold', p_partition, p_detail => p_reason);
    perform fleet.audit(
      'partition.held', 'partition:' || p_partition,
      case when v_partition.held_reason is not null then
        jsonb_build_object('reason', v_partition.held_reason, 'held_by', v_partition.held_by)
      end,
      jsonb_build_object('reason', p_reason)
    );
  end if;
  return format('partition %s is held: %s', p_partition, p_reason);
end
$$;

comment on function fleet.hold_partition(text, text) is
  'Keeps a partition from being retired, archived or dropped until it is released. '
  'Example: select fleet.hold_partition(partition_name, ''legal hold'') from fleet.partition_health '
  'where range_start <= current_date - 30 and range_end > current_date - 30;';
