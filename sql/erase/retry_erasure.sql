create or replace function fleet.retry_erasure(p_erasure_id bigint) returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_count integer;
begin
  if not exists (select from fleet.erasures e where e.erasure_id = p_erasure_id) then
    raise exception using
      errcode = 'FL404',
      message = format('there is no erasure %s', coalesce(p_erasure_id::text, 'null')),
      hint = 'The erasures are in: select * from fleet.erasure_progress;';
  end if;
  update fleet.erasure_items i
  set next_attempt_at = null, attempts = 0
  where i.erasure_id = p_erasure_id and (i.online_at is null or i.archive_at is null);
  get diagnostics v_count = row_count;
  if v_count > 0 then
    perform fleet.audit('erasure.retried', 'erasure:' || p_erasure_id, p_after => jsonb_build_object('left', v_count));
  end if;
  perform pg_notify('fleet_archiver', 'erase');
  return v_count;
end
$$;

comment on function fleet.retry_erasure(bigint) is
  'Lets an erasure try again at once what failed; returns how many partitions and archives are left. '
  'Example: select fleet.retry_erasure(erasure_id) from fleet.erasure_progress where last_error is not null;';
