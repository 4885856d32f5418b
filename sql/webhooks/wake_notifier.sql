create or replace function fleet.wake_notifier(p_reason text default 'messages waiting') returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if not exists (
    select from fleet.webhooks w
    where w.paused_at is null and coalesce(w.hold_until, '-infinity') <= now()
      and exists (
        select from fleet.webhook_deliveries d
        where d.webhook_id = w.webhook_id and d.state = 'pending' and d.next_attempt_at <= now()
      )
  ) then
    return false;
  end if;
  perform pg_notify('fleet_notifier', p_reason);
  return true;
end
$$;

comment on function fleet.wake_notifier(text) is
  'Notifies the notifier if a message is due, and returns whether one is. Run by pg_cron every minute. '
  'Example: select fleet.wake_notifier();';
