create or replace function fleet.record_token_change() returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into fleet.token_change_log (subject)
  select case tg_table_name when 'devices' then 'device:' || o.device_id else 'gateway:' || o.gateway_id end
  from jsonb_to_record(to_jsonb(old)) as o (device_id bigint, gateway_id bigint);
  -- One notification for all rows of the transaction: Postgres sends equal ones only once.
  notify fleet_tokens, 'changes';
  return null;
end
$$;

comment on function fleet.record_token_change() is
  'Trigger on fleet.devices and fleet.gateways: records that what servers have cached for the token is no longer valid.';
