create or replace function fleet.write_back_partition(a fleet.imports) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO, MDY'
as $$
declare
  v_partition record;
  v_insert text;
  v_beat fleet.device_heartbeats;
  v_rows bigint := 0;
  v_failed bigint := 0;
  v_error text;
begin
  select p.partition_name, p.range_start, p.range_end into v_partition
  from fleet.attached_partitions() p
  where p.range_start > a.next_partition
  order by p.range_start
  limit 1;
  if not found then
    update fleet.imports f
    set state = 'abandoned', abandoned_at = clock_timestamp()
    where f.source = a.source;
    delete from fleet.import_ranges r where r.source = a.source;
    perform fleet.record_event(
      'import.abandoned', p_rows => a.rows_written_back, p_is_ok => a.rows_not_written_back = 0,
      p_detail => format('%s: %s written back, %s refused by the table', a.source, a.rows_written_back, a.rows_not_written_back)
    );
    return false;
  end if;

  if exists (
    select from fleet.device_heartbeats h
    where h.ts >= v_partition.range_start and h.ts < v_partition.range_end and h.received_at >= a.started_at
  ) then
    select format(
      $query$
        insert into %s (%s)
        select %s
        from {beats} h
        left join fleet.devices d on d.device_id = h.device_id
        left join lateral (
          select min(n.source_device) as source_device
          from fleet.import_devices n
          where n.source = %L and n.device_id = h.device_id
        ) m on true
      $query$,
      a.source,
      string_agg(format('%I', k.value), ', ' order by k.key),
      string_agg(
        case k.key
          when 'device_id' then format(
            'coalesce(m.source_device, %s h.device_id::text)::%s',
            case when a.match_by <> 'device_id' then 'd.alias,' end,
            format_type(t.atttypid, null)
          )
          -- A plain cast of inet to text would add a mask.
          when 'ip' then format('abbrev(h.ip)::%s', format_type(t.atttypid, null))
          else format('h.%I::%s', k.key, format_type(t.atttypid, null))
        end,
        ', ' order by k.key
      ),
      a.source
    )
    into v_insert
    from jsonb_each_text(a.columns) k
    join pg_attribute t on t.attrelid = a.relid and t.attname = k.value
    where k.value is not null;
    begin
      execute replace(v_insert, '{beats}', 'fleet.missing_heartbeats($1, $2, $3)')
      using a, v_partition.range_start, v_partition.range_end;
      get diagnostics v_rows = row_count;
    exception when data_exception or integrity_constraint_violation then
      -- One row that does not fit must not stop the others.
      for v_beat in select l.* from fleet.missing_heartbeats(a, v_partition.range_start, v_partition.range_end) l loop
        begin
          execute replace(v_insert, '{beats}', '(select ($1).*)') using v_beat;
          v_rows := v_rows + 1;
        exception when data_exception or integrity_constraint_violation then
          v_failed := v_failed + 1;
          v_error := sqlerrm;
        end;
      end loop;
    end;
  end if;

  if v_failed > 0 then
    perform fleet.record_event(
      'import.write_back', p_is_ok => false, p_rows => v_failed, p_partition => v_partition.partition_name,
      p_detail => format('refused by %s; the last error: %s', a.source, v_error)
    );
  end if;
  update fleet.imports f
  set next_partition = v_partition.range_start, step_done = f.step_done + 1, step_rows = f.step_rows + v_rows,
    rows_written_back = f.rows_written_back + v_rows, rows_not_written_back = f.rows_not_written_back + v_failed
  where f.source = a.source;
  return true;
end
$$;

comment on function fleet.write_back_partition(fleet.imports) is
  'Writes back into a table the heartbeats of the next partition that have arrived since the import began and that the table '
  'does not have; false when there is no further partition.';
