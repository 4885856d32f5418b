create or replace function fleet.record_audit_archive(
  p_month date,
  p_worker text,
  p_revision integer,
  p_url text,
  p_sha256 text,
  p_bytes bigint,
  p_rows bigint,
  p_rows_sha256 text
) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_archive fleet.audit_archives;
  v_rows bigint;
begin
  select a.* into v_archive from fleet.audit_archives a where a.month = p_month for update;
  if v_archive.lease_owner is distinct from p_worker then
    raise exception using
      errcode = 'FL003',
      message = format(
        'the audit log of %s is leased to %s, not to %s', to_char(p_month, 'YYYY-MM'), coalesce(v_archive.lease_owner, 'nobody'),
        coalesce(p_worker, 'null')
      ),
      hint = 'The lease ran out and another archiver may have taken it: stop working on this month.';
  end if;
  select count(*) into v_rows
  from fleet.audit_log l
  where l.at >= p_month::timestamptz and l.at < p_month::timestamptz + interval '1 month';
  if v_rows is distinct from p_rows or v_archive.pruned_at is not null then
    raise exception using
      errcode = 'FL010',
      message = format('the audit log of %s has %s rows, and its archive %s', to_char(p_month, 'YYYY-MM'), v_rows, p_rows),
      hint = 'A transaction that began in that month has ended. The archiver tries again.';
  end if;
  update fleet.audit_archives a
  set url = p_url, sha256 = p_sha256, bytes = p_bytes, rows = p_rows, rows_sha256 = p_rows_sha256, archived_at = now(),
    done = p_revision, attempts = 0, next_attempt_at = null, last_error = null, lease_owner = null, lease_until = null
  where a.month = p_month;
  perform fleet.record_event('audit.archived', p_rows => p_rows, p_detail => p_url);
end
$$;

comment on function fleet.record_audit_archive(date, text, integer, text, text, bigint, bigint, text) is
  'Records the archive of a month of fleet.audit_log that was read back and compared. Refused if the month has another number of '
  'rows meanwhile.';
