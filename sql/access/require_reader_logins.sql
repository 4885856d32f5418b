create or replace function fleet.require_reader_logins() returns void
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if to_regprocedure('fleet_guard.create_reader(text, text)') is null then
    raise exception using
      errcode = 'FL002',
      message = 'the functions that make logins are missing in this database',
      hint = 'As an administrator who may create roles: psql -f sql/setup/reader-logins.sql';
  end if;
end
$$;

comment on function fleet.require_reader_logins() is
  'Fails if the administrator has not run sql/setup/reader-logins.sql.';
