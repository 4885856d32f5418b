create or replace trigger hb_partitions_note_range
  after insert or update of state, relid, range_start, range_end, settled_at on fleet.hb_partitions
  for each row execute function fleet.note_range();

comment on trigger hb_partitions_note_range on fleet.hb_partitions is
  'Keeps fleet.online_ranges up to date, by which the ingest of each node knows the days that are online.';
