create or replace function fleet.fail_delivery(
  p_delivery_id bigint, p_worker text, p_status integer, p_error text, p_is_down boolean default false,
  p_retry_after interval default null
) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  -- As long as the receiver asks for, if that is no longer than a day.
  v_asked constant interval := least(greatest(p_retry_after, interval '0'), interval '1 day');
  v_failed fleet.webhook_deliveries;
begin
  -- Before the message: see fleet.remove_webhook().
  perform
  from fleet.webhooks w
  where w.webhook_id = (select d.webhook_id from fleet.webhook_deliveries d where d.delivery_id = p_delivery_id)
  for no key update;
  update fleet.webhook_deliveries d
  set lease_owner = null, last_status = p_status, last_error = left(p_error, 500),
    state = case when now() - d.due_at > fleet.give_up_after() then 'dead' else 'pending' end,
    -- 5 s, 10 s, 20 s, … up to an hour, half of it by chance, so that messages that failed together do not come back together.
    next_attempt_at = now() + greatest(
      v_asked,
      least(interval '5 seconds' * power(2, least(d.attempts, 20) - 1), interval '1 hour') * (0.5 + random() / 2)
    )
  where d.delivery_id = p_delivery_id and d.state = 'pending' and d.lease_owner = p_worker
  returning d.* into v_failed;
  if not found then
    return null;
  end if;
  perform fleet.increment_counter('hb_webhook_failed_total');
  update fleet.webhooks w
  set last_error_at = now(), last_error = left(p_error, 500), last_status = p_status,
    -- Several messages that were on their way together count once.
    failures = case
      when p_is_down and coalesce(w.hold_until, '-infinity') <= now() then w.failures + 1 else w.failures
    end,
    hold_until = case
      when p_is_down and coalesce(w.hold_until, '-infinity') <= now() then now() + greatest(
        v_asked, least(interval '1 second' * power(2, least(w.failures, 20)), interval '5 minutes') * (0.5 + random() / 2)
      )
      else w.hold_until
    end
  where w.webhook_id = v_failed.webhook_id;
  if v_failed.state = 'dead' then
    perform fleet.increment_counter('hb_webhook_dead_total');
    -- What follows from a message that nobody got makes no sense to them.
    update fleet.webhook_deliveries l
    set state = 'dropped', last_error = 'its first message is dead'
    where l.first_id = v_failed.message_id and l.kind in ('reminder', 'recovery') and l.state = 'pending'
      and v_failed.kind = 'first';
  end if;
  return v_failed.state;
end
$$;

comment on function fleet.fail_delivery(bigint, text, integer, text, boolean, interval) is
  'Records that a message could not be sent, and when it is tried again: after 5 seconds at first, then after longer times, and '
  'after three days no more (dead). With p_is_down the whole receiver is given a pause. Returns the new state, or null if this '
  'notifier no longer has the lease.';
