create or replace function fleet.create_webhook(
  p_name text,
  p_url text,
  p_events text[] default array['offline', 'unity_down', 'cohort_silent', 'network_silent', 'ingest_down'],
  p_cohort text default null,
  p_grace interval default '2 minutes',
  p_repeat_after interval default null,
  p_format text default 'json'
) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_example constant text := 'Example: select fleet.create_webhook(''on-call'', ''https://example.com/hooks/fleet'');';
  v_events text[];
  v_unknown text;
  v_webhook fleet.webhooks;
begin
  if p_name is null or p_name !~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$' then
    raise exception using
      errcode = 'FL422',
      message = 'name must have 1 to 100 letters, digits, dots, dashes or underscores, and begin with a letter or digit',
      hint = v_example;
  end if;
  -- The rest is judged by the notifier, which knows the addresses behind the name at the time when it connects.
  if p_url is null or p_url !~ '^https?://([^/?#]*@)?[^/?#@:][^/?#@]*([/?#]|$)' or p_url ~ '[^\x21-\x7e]' or strpos(p_url, '\') > 0
    or length(p_url) > 2000 then
    raise exception using
      errcode = 'FL422',
      message = 'url must begin with https:// or http:// and a host, in at most 2000 characters of ASCII without spaces and backslashes',
      hint = v_example;
  end if;
  v_events := array(select distinct e from unnest(p_events) e order by e);
  select string_agg(coalesce(e, 'null'), ', ') into v_unknown
  from unnest(v_events) e
  where e is null or e <> all (fleet.webhook_events());
  if cardinality(v_events) = 0 or v_unknown is not null then
    raise exception using
      errcode = 'FL422',
      message = coalesce('events: unknown: ' || v_unknown, 'events must name at least one event'),
      hint = 'They are: ' || array_to_string(fleet.webhook_events(), ', ') || '.';
  end if;
  if p_cohort is not null and (btrim(p_cohort) = '' or length(p_cohort) > 100) then
    raise exception using
      errcode = 'FL422',
      message = 'cohort must have 1 to 100 characters, or be null for the whole fleet',
      hint = v_example;
  end if;
  if p_grace is null or p_grace < interval '0' or p_grace > interval '1 day' then
    raise exception using
      errcode = 'FL422',
      message = format('grace %s is not between 0 and 1 day', coalesce(p_grace::text, 'null')),
      hint = 'A device that is well again within this time is not reported.';
  end if;
  if p_repeat_after < interval '1 minute' or p_repeat_after > interval '30 days' then
    raise exception using
      errcode = 'FL422',
      message = format('repeat_after %s is not between 1 minute and 30 days', p_repeat_after),
      hint = 'With null, nothing is repeated.';
  end if;
  if p_format is null or p_format not in ('json', 'slack', 'teams', 'ntfy', 'alertmanager') then
    raise exception using
      errcode = 'FL422',
      message = format('format must be json, slack, teams, ntfy or alertmanager, not %s', coalesce(p_format, 'null')),
      hint = v_example;
  end if;
  insert into fleet.webhooks (webhook_name, url, format, events, cohort, grace, repeat_after, secret)
  values (p_name, p_url, p_format, v_events, p_cohort, p_grace, p_repeat_after, fleet.make_webhook_secret())
  on conflict (webhook_name) do nothing
  returning * into v_webhook;
  if not found then
    raise exception using
      errcode = 'FL409',
      message = format('a webhook named %s already exists', p_name),
      hint = format('Choose another name, or remove it first: select fleet.remove_webhook(%L);', p_name);
  end if;
  perform fleet.audit_webhook('created', p_name, null, fleet.describe_webhook(v_webhook));
  return v_webhook.secret;
end
$$;

comment on function fleet.create_webhook(text, text, text[], text, interval, interval, text) is
  'Tells a URL from now on what happens to devices. Returns the secret with which its messages are signed; it is shown only now. '
  'A webhook that asks for offline is told of incidents, too. With p_cohort, only of that cohort. What is over within p_grace is '
  'not reported: an offline device has been silent for settings.offline_after already, but an app that restarts is down for one '
  'heartbeat. p_repeat_after repeats a message while the trouble lasts. p_format: json, slack, teams, ntfy or alertmanager. '
  'Example: select fleet.create_webhook(''on-call'', ''https://example.com/hooks/fleet'', p_repeat_after => ''4 hours'');';
