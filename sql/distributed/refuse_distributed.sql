create or replace function fleet.refuse_distributed(p_what text) returns boolean
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception using
    errcode = 'FL002',
    message = format('%s is not available in a store that is distributed', p_what),
    hint = 'Citus cannot plan it. See "Limits" in docs/scale-out.md for what to use instead.';
end
$$;

comment on function fleet.refuse_distributed(text) is
  'Raises an error that says that something is not available in a distributed store. '
  'Example: select fleet.refuse_distributed(''fleet.device_status_legacy'');';
