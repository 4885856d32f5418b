create or replace trigger hb_partitions_protect
  after insert or update on fleet.hb_partitions
  for each row execute function fleet_guard.note_partition();

comment on trigger hb_partitions_protect on fleet.hb_partitions is
  'Tells the guard against drops which partitions are proven.';
