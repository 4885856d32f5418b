create or replace trigger hb_partitions_seal
  before insert or update of relid, relid_seal on fleet.hb_partitions
  for each row execute function fleet.seal_relid();

comment on trigger hb_partitions_seal on fleet.hb_partitions is
  'Sets relid_seal, which marks relid as recorded in this database.';
