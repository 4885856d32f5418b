create or replace function fleet.remind_webhooks(p_now timestamptz default now()) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_now constant timestamptz := greatest(p_now, now());
  v_reminders bigint;
  v_dead bigint;
begin
  perform fleet.not_in_future(p_now);
  -- Before any message is locked: see fleet.remove_webhook().
  perform from fleet.webhooks w order by w.webhook_id for key share;
  -- If the clock ran ahead and was set back, some times are later than any that could be meant: a lease, the end of the grace, or
  -- what a receiver asks for. The ten minutes are for transactions that began after this one.
  update fleet.webhooks w
  set hold_until = null
  where w.webhook_id in (
    select h.webhook_id from fleet.webhooks h where h.hold_until > v_now + interval '1 day 10 minutes' for no key update skip locked
  );
  update fleet.webhook_deliveries d
  set lease_owner = null, next_attempt_at = now(), due_at = least(d.due_at, now())
  where d.delivery_id = any (array(
    select l.delivery_id
    from fleet.webhooks w
    cross join lateral (
      select s.delivery_id
      from fleet.webhook_deliveries s
      where s.webhook_id = w.webhook_id and s.state = 'pending'
        and s.next_attempt_at > v_now + least(w.grace, interval '1 hour') + interval '10 minutes'
        and s.next_attempt_at > v_now + interval '10 minutes' + case
          when s.lease_owner is not null then interval '1 hour'
          when s.attempts = 0 then w.grace
          else interval '1 day'
        end
      for update skip locked
    ) l
  ));

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

  -- What a receiver kept waiting without being asked, because it refused everything; not what waits because nobody sends.
  with seen as (
    select range_agg(tstzrange(least(n.started_at, n.last_seen_at), n.last_seen_at + interval '10 minutes')) as times
    from fleet.notifiers n
  ),
  given_up as (
    select d.delivery_id, d.message_id, d.kind, w.last_error
    from fleet.webhooks w
    join fleet.webhook_deliveries d using (webhook_id)
    cross join seen s
    where w.failures > 0 and w.paused_at is null
      and d.state = 'pending' and d.lease_owner is null and p_now - d.due_at > fleet.give_up_after()
      and (d.attempts > 0 or s.times @> tstzrange(p_now - fleet.give_up_after(), p_now))
    order by d.delivery_id
    for update of d skip locked
  ),
  -- As in fleet.fail_delivery().
  followers as (
    update fleet.webhook_deliveries l
    set state = 'dropped', last_error = 'its first message is dead'
    from given_up g
    where l.first_id = g.message_id and l.kind in ('reminder', 'recovery') and l.state = 'pending' and g.kind = 'first'
    returning l.delivery_id
  ),
  -- The other part of the same rows: a statement cannot update a row twice.
  dead as (
    update fleet.webhook_deliveries d
    set state = 'dead', last_error = coalesce(d.last_error, 'the receiver did not accept anything: ' || g.last_error)
    from given_up g
    where d.delivery_id = g.delivery_id and not exists (select from followers l where l.delivery_id = g.delivery_id)
    returning d.delivery_id
  )
  select count(*) into v_dead from dead;
  if v_dead > 0 then
    perform fleet.increment_counter('hb_webhook_dead_total', v_dead);
  end if;
  return v_reminders;
end
$$;

comment on function fleet.remind_webhooks(timestamptz) is
  'Queues a reminder of each trouble that lasts for repeat_after since the webhook was told or reminded of it, gives up on '
  'messages that could not be sent for three days, and frees those that wait for a time that a wrong clock set. Returns how many reminders. Run by pg_cron every minute. '
  'Example: select fleet.remind_webhooks();';
