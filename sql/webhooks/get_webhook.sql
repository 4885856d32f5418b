create or replace function fleet.get_webhook(p_name text) returns fleet.webhooks
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_webhook fleet.webhooks;
begin
  -- Not FOR UPDATE: the foreign key of each message that ingest queues would wait for it.
  select * into v_webhook from fleet.webhooks where webhook_name = p_name for no key update;
  if not found then
    raise exception using
      errcode = 'FL404',
      message = format('there is no webhook %s', coalesce(p_name, 'null')),
      hint = 'Check the name: select webhook_name from fleet.webhook_health;';
  end if;
  return v_webhook;
end
$$;

comment on function fleet.get_webhook(text) is 'Returns the row of a webhook, locked. Raises an error if there is none of this name.';
