create or replace function fleet.fail_audit_archive(p_month date, p_worker text, p_error text) returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  update fleet.audit_archives a
  set attempts = a.attempts + 1, last_error = p_error, lease_owner = null, lease_until = null,
    -- After 1, 2, 4, ... minutes, at most an hour.
    next_attempt_at = now() + least(interval '1 minute' * (2 ^ least(a.attempts, 10)), interval '1 hour')
  where a.month = p_month and a.lease_owner = p_worker;
$$;

comment on function fleet.fail_audit_archive(date, text, text) is
  'Records that a month of fleet.audit_log could not be archived and why, and when to try again.';
