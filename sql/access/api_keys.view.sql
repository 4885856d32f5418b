create or replace view fleet.api_keys as
select c.key_name as name, c.scopes, c.cohorts,
  case
    when c.revoked_at is not null then 'revoked'
    when c.expires_at <= now() then 'expired'
    else 'valid'
  end as state,
  c.created_at, c.created_by, c.expires_at, c.revoked_at, c.previous_until, c.last_used_at, c.last_address
from fleet.api_credentials c
order by c.key_name;

comment on view fleet.api_keys is
  'The API keys: what they may do, until when, and when and from where they were last used. previous_until: until then the key '
  'from before the last rotation is valid, too. Example: select name, last_used_at from fleet.api_keys where state = ''valid'';';
