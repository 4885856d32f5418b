create or replace trigger imports_seal
  before insert on fleet.imports
  for each row execute function fleet.seal_source();

comment on trigger imports_seal on fleet.imports is 'Sets relid_seal, which marks relid as recorded in this database.';
