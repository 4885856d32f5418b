create or replace function fleet.take_index_lock() returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '10s'
as $$
begin
  -- A session lock: it is released when the connection ends.
  perform pg_advisory_lock(hashtext('fleet.archive_index'));
end
$$;

comment on function fleet.take_index_lock() is
  'Takes the lock of the archive''s index.json for this session, and waits for it at most 10 s. Runs with the owner''s rights, '
  'because only the owner may take advisory locks.';
