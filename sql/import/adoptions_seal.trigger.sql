create or replace trigger adoptions_seal
  before insert on fleet.adoptions
  for each row execute function fleet.seal_source();

comment on trigger adoptions_seal on fleet.adoptions is 'Sets relid_seal, which marks relid as recorded in this database.';
