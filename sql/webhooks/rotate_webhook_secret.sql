create or replace function fleet.rotate_webhook_secret(p_name text, p_keep_old interval default '1 day') returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_webhook fleet.webhooks := fleet.get_webhook(p_name);
  v_secret text := fleet.make_webhook_secret();
begin
  if p_keep_old is null or p_keep_old < interval '0' or p_keep_old > interval '30 days' then
    raise exception using
      errcode = 'FL422',
      message = format('keep_old %s is not between 0 and 30 days', coalesce(p_keep_old::text, 'null')),
      hint = 'If the secret leaked: select fleet.rotate_webhook_secret(''on-call'', ''0'');';
  end if;
  update fleet.webhooks
  set secret = v_secret,
    old_secret = case when p_keep_old > interval '0' then v_webhook.secret end,
    old_secret_until = case when p_keep_old > interval '0' then now() + p_keep_old end
  where webhook_id = v_webhook.webhook_id;
  perform fleet.audit_webhook('secret_rotated', p_name, 'a secret', format('a new secret; the old one signs too for %s', p_keep_old));
  return v_secret;
end
$$;

comment on function fleet.rotate_webhook_secret(text, interval) is
  'Gives a webhook a new secret and returns it; it is shown only now. For p_keep_old messages are signed with the old one, too, so '
  'that the receiver can change over. Use ''0'' if the old one leaked. Example: select fleet.rotate_webhook_secret(''on-call'');';
