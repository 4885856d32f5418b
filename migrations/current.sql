-- Values that cannot be read, and devices that share a token.

-- (extra) --

-- A store may have a column of its own with this name.
do $$
declare
  v_type text;
begin
  select format_type(a.atttypid, a.atttypmod) into v_type
  from pg_attribute a
  where a.attrelid = 'fleet.device_heartbeats'::regclass and a.attname = 'extra' and not a.attisdropped;
  if v_type <> 'jsonb' then
    raise exception using
      errcode = 'FL422',
      message = format('fleet.device_heartbeats has a column extra of type %s, and this version needs that name', v_type),
      hint = 'Rename it, and migrate again. As fleet_owner: '
        'alter table fleet.device_heartbeats rename column extra to own_extra;';
  end if;
end
$$;

-- In a new store the column is not a change: fleet.note_columns() records the columns of the store as they are then.
delete from fleet.heartbeat_columns
where not exists (select from fleet.device_heartbeats)
  and not exists (select from fleet.hb_partitions p where p.state <> 'active')
  and not exists (select from fleet.column_changes);

alter table fleet.device_heartbeats add column if not exists extra jsonb;
comment on column fleet.device_heartbeats.extra is 'The agent''s own values: a JSON object of at most 2 KiB.';
alter table fleet.device_heartbeats_template add column if not exists extra jsonb;
comment on column fleet.device_heartbeats_template.extra is 'The agent''s own values: a JSON object of at most 2 KiB.';
alter table fleet.device_last_status add column if not exists extra jsonb;
comment on column fleet.device_last_status.extra is 'The agent''s own values: a JSON object of at most 2 KiB.';

-- Partitions that exist already have the column without its comment.
do $$
declare
  v_table regclass;
begin
  for v_table in select a.relid from fleet.attached_partitions() a loop
    execute format('comment on column %s.extra is %L', v_table, 'The agent''s own values: a JSON object of at most 2 KiB.');
  end loop;
end
$$;

create table if not exists fleet.device_unreadable_fields (
  device_id bigint not null,
  field text not null,
  times bigint not null,
  first_at timestamptz not null,
  last_at timestamptz not null,
  example text not null,
  constraint device_unreadable_fields_pkey primary key (device_id, field)
);
comment on table fleet.device_unreadable_fields is
  'Fields of heartbeats whose value could not be read, by device. Read it with fleet.unreadable_fields.';
comment on column fleet.device_unreadable_fields.device_id is 'fleet.devices.device_id.';
comment on column fleet.device_unreadable_fields.field is
  'The field that was left out. ts, device_id or body: the whole heartbeat was refused because of it.';
comment on column fleet.device_unreadable_fields.times is 'How often.';
comment on column fleet.device_unreadable_fields.first_at is 'When it was first reported.';
comment on column fleet.device_unreadable_fields.last_at is 'When it was last reported.';
comment on column fleet.device_unreadable_fields.example is 'The value that was sent last, as JSON, cut to 64 characters.';
create index if not exists device_unreadable_fields_last_at_idx on fleet.device_unreadable_fields (last_at);
comment on index fleet.device_unreadable_fields_last_at_idx is 'For fleet.check() and for pruning by age.';

create index if not exists device_availability_daily_excess_idx on fleet.device_availability_daily (day, device_id)
  where beats > expected * 1.5 + 10;
comment on index fleet.device_availability_daily_excess_idx is
  'The few devices of a day that sent far more than expected, for fleet.check_devices().';

-- Functions, procedures, views

-- (extra) --
--!include archive/count_retired.sql
--!include status/record_last_status.sql
--!include status/heal_last_status.sql
--!include status/device_state.view.sql
--!include status/device_status.view.sql
--!include status/device_status_legacy.view.sql
--!include status/devices_offline.view.sql
--!include availability/missed_beats.view.sql

--!include archive/compare_with_archive.sql
--!include ingest/heartbeat_bucket.sql
--!include import/missing_heartbeats.sql
--!include import/confirm_import.sql
--!include import/verify_days.sql
--!include import/move_blocks.sql
--!include import/create_forward_function.sql
--!include import/start_forwarding.sql
--!include archive/note_columns.sql
--!include ingest/ingest.sql
--!include ingest/unreadable_fields.view.sql
--!include ingest/record_unreadable_fields.sql
--!include checks/check_fields.sql
--!include checks/check_devices.sql
--!include checks/check.sql
--!include jobs/prune.sql

--!include setup/grants.sql

-- (extra) --

select fleet.note_columns();

-- Imports that are under way get the functions of this version.
select fleet.create_forward_function(i)
from fleet.imports i
where to_regprocedure(format('fleet.%I()', 'forward_' || i.relid)) is not null;
