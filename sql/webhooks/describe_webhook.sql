-- Without the path and the user of the URL: with many services, such as Slack, they are the secret.
create or replace function fleet.describe_webhook(p_webhook fleet.webhooks) returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select concat_ws(
    ', ',
    (p_webhook).format || ' to ' || fleet.webhook_origin((p_webhook).url),
    array_to_string((p_webhook).events, ' '),
    'cohort ' || (p_webhook).cohort,
    'grace ' || (p_webhook).grace,
    'repeated after ' || (p_webhook).repeat_after,
    case when (p_webhook).paused_at is not null then 'paused' end
  );
$$;

comment on function fleet.describe_webhook(fleet.webhooks) is
  'A webhook in one line, without its secret and without the part of its URL that may be secret. For fleet.audit_log.';
