create or replace function fleet.check_webhooks(p_now timestamptz default now())
returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO'
set lock_timeout = '300ms'
as $$
#variable_conflict use_column
declare
  v_webhooks bigint;
  v_silence interval;
  v_waiting bigint;
  v_oldest interval;
  v_dead text;
  v_retries text;
  v_failing text;
  v_failing_briefly text;
  v_looks text;
begin
  perform fleet.not_in_future(p_now);
  select count(*) filter (where w.paused_at is null) into v_webhooks from fleet.webhooks w;
  -- A row in the future would hide a dead notifier: the clock may have run ahead.
  select p_now - max(n.last_seen_at) into v_silence from fleet.notifiers n where n.last_seen_at <= p_now;
  select count(*), p_now - min(d.due_at) into v_waiting, v_oldest
  from fleet.webhook_deliveries d
  join fleet.webhooks w using (webhook_id)
  where d.state = 'pending' and d.due_at <= p_now and w.paused_at is null;

  check_name := 'notifier';
  status := case
    when v_webhooks = 0 or v_silence < interval '2 minutes' then 'ok'
    when v_oldest > interval '2 minutes' then 'fail'
    else 'warn'
  end;
  detail := case when v_webhooks = 0 then 'there is no webhook to send to' else concat_ws(
    '; ', coalesce('last seen ' || date_trunc('second', v_silence) || ' ago', 'never seen'),
    case when v_waiting > 0 then format('%s messages are due, the oldest for %s', v_waiting, date_trunc('second', v_oldest)) end
  ) end;
  remedy := case when status <> 'ok' then e'# in a shell; it keeps running\nnpm run notifier' end;
  return next;

  check_name := 'webhooks';
  select string_agg(format('%s has %s', w.webhook_name, d.dead), ', ' order by w.webhook_name),
    string_agg(format('select fleet.retry_deliveries(%L);', w.webhook_name), e'\n' order by w.webhook_name)
  into v_dead, v_retries
  from fleet.webhooks w
  join (
    select l.webhook_id, count(*) as dead from fleet.webhook_deliveries l where l.state = 'dead' group by l.webhook_id
  ) d using (webhook_id);
  select
    string_agg(f.error, '; ' order by f.webhook_name) filter (where f.is_long),
    string_agg(f.error, '; ' order by f.webhook_name) filter (where not f.is_long),
    string_agg(format('select fleet.test_webhook(%L);', f.webhook_name), e'\n' order by f.webhook_name) filter (where f.is_long)
  into v_failing, v_failing_briefly, v_looks
  from (
    select w.webhook_name, format('%s: %s', w.webhook_name, coalesce(w.last_error, 'no answer')) as error,
      -- A receiver that restarts is no reason to act.
      p_now - coalesce(w.last_success_at, w.created_at) > interval '15 minutes' as is_long
    from fleet.webhooks w
    where w.failures > 0 and w.paused_at is null
  ) f;
  status := case when v_dead is not null or v_failing is not null then 'warn' else 'ok' end;
  detail := coalesce(
    concat_ws(
      '; ', 'not accepted for 15 minutes or longer: ' || v_failing, 'could not be sent for three days (dead letters): ' || v_dead
    ),
    ''
  );
  detail := case
    when detail <> '' then detail
    else coalesce('not accepted for less than 15 minutes: ' || v_failing_briefly, 'every receiver accepts its messages')
  end;
  remedy := case
    when v_failing is not null then e'-- once the receiver is fixed; select * from fleet.webhook_health shows the webhooks\n' || v_looks
    when v_dead is not null then
      e'-- once the receiver is fixed; fleet.dismiss_deliveries() gives them up instead\n' || v_retries
  end;
  return next;
end
$$;

comment on function fleet.check_webhooks(timestamptz) is
  'The part of fleet.check() about webhooks: whether a notifier runs, receivers that fail, and dead letters.';
