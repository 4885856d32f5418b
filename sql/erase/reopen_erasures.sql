create or replace function fleet.reopen_erasures(p_partition text) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_id bigint;
  v_count bigint := 0;
begin
  for v_id in
    update fleet.erasures e
    set state = 'running', finished_at = null
    returning e.erasure_id
  loop
    perform fleet.add_erasure_items(v_id, p_partition);
    v_count := v_count + 1;
  end loop;
  return v_count;
end
$$;

comment on function fleet.reopen_erasures(text) is
  'Lets every erasure go through one more archive, because it was registered after them and may hold their devices. Returns how '
  'many erasures there are. Called by fleet.register_archive().';
