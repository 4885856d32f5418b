create or replace function fleet.remind_webhooks(p_now timestamptz default now()) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_reminders bigint;
  v_dead bigint;
begin
  perform fleet.not_in_future(p_now);
  with due as (
    select f.delivery_id, f.message_id, f.reminders + 1 as number
    from fleet.webhook_deliveries f
    join fleet.webhooks w using (webhook_id)
    where f.is_open and f.state = 'delivered' and w.repeat_after is not null and w.paused_at is null
      and p_now - coalesce(f.reminded_at, f.delivered_at) >= w.repeat_after
      -- A message about it that waits is newer than a reminder would be.
      and not exists (select from fleet.webhook_deliveries l where l.first_id = f.message_id and l.state = 'pending')
    order by f.delivery_id
    for update of f skip locked
  ),
  noted as (
    update fleet.webhook_deliveries f
    set reminders = d.number, reminded_at = p_now
    from due d
    where f.delivery_id = d.delivery_id
    returning f.*
  )
  insert into fleet.webhook_deliveries
    (webhook_id, device_id, incident_id, transition_id, event, kind, first_id, body, due_at, next_attempt_at)
  select f.webhook_id, f.device_id, f.incident_id, n.transition_id, n.event, 'reminder', f.message_id,
    n.body || jsonb_build_object(
      'timestamp', p_now,
      'data', (n.body -> 'data') || jsonb_build_object('kind', 'reminder', 'first_id', f.message_id, 'reminder', f.reminders)
    ),
    p_now, p_now
  from noted f
  -- The newest state that was told.
  cross join lateral (
    select d.transition_id, d.event, d.body
    from fleet.webhook_deliveries d
    where d.message_id = f.message_id or d.first_id = f.message_id and d.kind = 'change'
    order by d.delivery_id desc
    limit 1
  ) n
  order by f.delivery_id;
  get diagnostics v_reminders = row_count;

  -- What a receiver kept waiting without being asked, because it refused everything. See fleet.fail_delivery().
  update fleet.webhook_deliveries d
  set state = 'dead', last_error = coalesce(d.last_error, 'the receiver did not accept anything: ' || w.last_error)
  from fleet.webhooks w
  where w.webhook_id = d.webhook_id and w.failures > 0 and w.paused_at is null
    and d.state = 'pending' and d.lease_owner is null and p_now - d.due_at > fleet.give_up_after();
  get diagnostics v_dead = row_count;
  if v_dead > 0 then
    perform fleet.increment_counter('hb_webhook_dead_total', v_dead);
  end if;
  return v_reminders;
end
$$;

comment on function fleet.remind_webhooks(timestamptz) is
  'Queues a reminder of each trouble that lasts for repeat_after since the webhook was told or reminded of it, and gives up on '
  'messages that could not be sent for three days. Returns how many reminders. Run by pg_cron every minute. '
  'Example: select fleet.remind_webhooks();';
