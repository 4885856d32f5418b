create or replace function fleet.no_such_reader(p_name text) returns void
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception using
    errcode = 'FL404',
    message = format('there is no reader named %s', coalesce(p_name, 'null')),
    hint = 'They are in select reader from fleet.reader_logins;';
end
$$;

comment on function fleet.no_such_reader(text) is 'Fails because no reader has this name.';
