create or replace trigger gateways_token_change
  after update of token_hash, revoked_at or delete on fleet.gateways
  for each row execute function fleet.record_token_change();

comment on trigger gateways_token_change on fleet.gateways is 'Tells servers to drop what they cached for this gateway.';
