create or replace function fleet.record_delivery(p_delivery_id bigint, p_worker text, p_status integer) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  -- Before the message: see fleet.remove_webhook().
  update fleet.webhooks w
  set last_success_at = now(), failures = 0, hold_until = null
  where w.webhook_id = (
      select d.webhook_id
      from fleet.webhook_deliveries d
      where d.delivery_id = p_delivery_id and d.state = 'pending' and d.lease_owner = p_worker
    )
    and (w.failures > 0 or w.last_success_at is null or now() - w.last_success_at > interval '1 second');
  update fleet.webhook_deliveries d
  set state = 'delivered', delivered_at = now(), last_status = p_status, last_error = null, lease_owner = null
  where d.delivery_id = p_delivery_id and d.state = 'pending' and d.lease_owner = p_worker;
  if not found then
    return false;
  end if;
  perform fleet.increment_counter('hb_webhook_delivered_total');
  return true;
end
$$;

comment on function fleet.record_delivery(bigint, text, integer) is
  'Records that a receiver accepted a message. Returns false if this notifier no longer has its lease.';
