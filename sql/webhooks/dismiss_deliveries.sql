create or replace function fleet.dismiss_deliveries(p_name text) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_webhook fleet.webhooks := fleet.get_webhook(p_name);
  v_dismissed bigint;
begin
  update fleet.webhook_deliveries
  set state = 'dropped'
  where webhook_id = v_webhook.webhook_id and state = 'dead';
  get diagnostics v_dismissed = row_count;
  if v_dismissed > 0 then
    perform fleet.audit_webhook('dismissed', p_name, v_dismissed || ' dead messages', 'dismissed');
  end if;
  return v_dismissed;
end
$$;

comment on function fleet.dismiss_deliveries(text) is
  'Gives up the dead messages of a webhook for good, so that fleet.check() no longer reports them. Returns how many. '
  'Example: select fleet.dismiss_deliveries(''on-call'');';
