-- The logins of fleet.create_reader(), which see only their cohorts. Making a role needs CREATEROLE, which fleet_owner does not
-- have, so these functions have the rights of the administrator. They make new roles with the rights of fleet_cohort_reader, and
-- change and drop only roles that they made. They read none of the owner's tables, because those could be replaced by code. Run
-- at setup, after guard.sql, by the administrator, who needs CREATEROLE.
-- Names resolve in pg_catalog, no matter who runs this, so that no object of an ordinary role is used instead.
set search_path = pg_catalog, pg_temp;

do $$
begin
  if not (select rolsuper or rolcreaterole from pg_catalog.pg_roles where rolname = current_user) then
    raise exception using
      errcode = 'insufficient_privilege',
      message = format('%s may not create roles, so fleet.create_reader() could not make a login', current_user);
  end if;
end
$$;

create or replace function fleet_guard.reader_mark() returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select format('NexMDM: sees only its cohorts in database %s. Made by fleet.create_reader().', current_database());
$$;
comment on function fleet_guard.reader_mark() is
  'The comment that marks a role as made by fleet_guard.create_reader() for this database. Only a role that may create roles can '
  'set it.';

-- Anything else could be a password in clear, which would then be in the statement.
create or replace function fleet_guard.require_verifier(p_verifier text) returns void
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_verifier is null or p_verifier !~ '^SCRAM-SHA-256\$4096:[A-Za-z0-9+/]{22}==\$[A-Za-z0-9+/]{43}=:[A-Za-z0-9+/]{43}=$' then
    raise exception using
      errcode = 'FL422',
      message = 'the verifier is not of SCRAM-SHA-256 with 4096 iterations',
      hint = 'fleet.scram_verifier() makes one.';
  end if;
end
$$;
comment on function fleet_guard.require_verifier(text) is
  'Fails unless the text is what Postgres stores instead of a password, as fleet.scram_verifier() makes it.';

-- Attributes and rights that were given to such a role later are not passed on with a new password.
create or replace function fleet_guard.find_reader(p_name text, p_is_plain boolean) returns oid
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_role record;
  v_more text;
begin
  select r.oid, r.rolsuper or r.rolcreaterole or r.rolcreatedb or r.rolreplication or r.rolbypassrls as is_mighty
  into v_role
  from pg_roles r
  where r.rolname = p_name
    and shobj_description(r.oid, 'pg_authid') = fleet_guard.reader_mark()
    and exists (select from pg_auth_members m where m.member = r.oid and m.roleid = 'fleet_cohort_reader'::regrole);
  if not found then
    return null;
  end if;
  select string_agg(m.roleid::regrole::text, ', ' order by m.roleid::regrole::text)
  into v_more
  from pg_auth_members m
  where m.member = v_role.oid and m.roleid <> 'fleet_cohort_reader'::regrole;
  if v_role.is_mighty or (p_is_plain and v_more is not null) then
    raise exception using
      errcode = 'FL002',
      message = format(
        'role %s has more rights than fleet.create_reader() gave it: %s', p_name,
        concat_ws(', ', case when v_role.is_mighty then 'an attribute such as SUPERUSER or CREATEROLE' end, 'member of ' || v_more)
      ),
      hint = format('Revoke them first, as superuser: \du %s in psql shows them.', p_name);
  end if;
  return v_role.oid;
end
$$;
comment on function fleet_guard.find_reader(text, boolean) is
  'The oid of a role that fleet_guard.create_reader() made for this database, or null if there is none. Fails if the role was '
  'given attributes since, or with p_is_plain, more rights.';

create or replace function fleet_guard.create_reader(p_name text, p_verifier text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_name is null or p_name !~ '^[a-z][a-z0-9_]{0,62}$' or p_name ~ '^(pg|fleet)_' or p_name in ('none', 'public') then
    raise exception using
      errcode = 'FL422',
      message = 'name must have 1 to 63 lower-case letters, digits or underscores, begin with a letter, and not begin with pg_ or '
        'fleet_',
      hint = 'Example: select fleet.create_reader(''acme_dashboard'', array[''acme'']);';
  end if;
  perform fleet_guard.require_verifier(p_verifier);
  begin
    execute format('create role %I login connection limit 5 password %L in role fleet_cohort_reader', p_name, p_verifier);
  exception when duplicate_object or unique_violation then
    raise exception using
      errcode = 'FL409',
      message = format('a role named %s already exists in this cluster', p_name),
      hint = 'Choose another name.';
  end;
  execute format('comment on role %I is %L', p_name, fleet_guard.reader_mark());
  -- As of fleet_reader: a login does not inherit the settings of a role.
  execute format('alter role %I set statement_timeout = ''30s''', p_name);
  execute format('alter role %I set idle_in_transaction_session_timeout = ''60s''', p_name);
  execute format('alter role %I set default_transaction_read_only = on', p_name);
  execute format('alter role %I set jit = off', p_name);
  begin
    execute format('alter role %I set temp_file_limit = ''512MB''', p_name);
  exception when insufficient_privilege then
    raise warning using
      message = format('%s can fill the disk with temporary files: only a superuser may set temp_file_limit', p_name),
      hint = format('As superuser: alter role %I set temp_file_limit = ''512MB'';', p_name);
  end;
end
$$;
comment on function fleet_guard.create_reader(text, text) is
  'Creates a login with the rights and limits of fleet_cohort_reader. Refuses a name that exists. Called by '
  'fleet.create_reader(), with the verifier of the password.';

create or replace function fleet_guard.end_reader_sessions(p_role oid) returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_session record;
  v_count integer := 0;
begin
  for v_session in select a.pid from pg_stat_activity a where a.usesysid = p_role loop
    begin
      v_count := v_count + pg_terminate_backend(v_session.pid)::integer;
    exception when insufficient_privilege then
      raise warning using
        message = format('backend %s is still connected: %s', v_session.pid, sqlerrm),
        hint = format('As fleet_dba: select pg_terminate_backend(%s);', v_session.pid);
    end;
  end loop;
  return v_count;
end
$$;
comment on function fleet_guard.end_reader_sessions(oid) is
  'Ends all sessions of a login, in every database, and returns how many. Not granted: called by the functions that checked the '
  'login.';

create or replace function fleet_guard.set_reader_password(p_name text, p_verifier text) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_role oid := fleet_guard.find_reader(p_name, p_is_plain => true);
begin
  if v_role is null then
    return false;
  end if;
  perform fleet_guard.require_verifier(p_verifier);
  execute format('alter role %I password %L', p_name, p_verifier);
  perform fleet_guard.end_reader_sessions(v_role);
  return true;
end
$$;
comment on function fleet_guard.set_reader_password(text, text) is
  'Gives a login that fleet_guard.create_reader() made for this database another password, and ends its sessions. Returns false '
  'if there is none with this name. Called by fleet.renew_reader_password().';

create or replace function fleet_guard.drop_reader(p_name text) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_role oid := fleet_guard.find_reader(p_name, p_is_plain => false);
  v_detail text;
begin
  if v_role is null then
    return false;
  end if;
  begin
    execute format('drop role %I', p_name);
  exception when dependent_objects_still_exist then
    get stacked diagnostics v_detail = pg_exception_detail;
    raise exception using
      errcode = 'FL002',
      message = format('role %s has rights or objects that fleet.create_reader() did not give it', p_name),
      detail = v_detail,
      hint = format(
        'As superuser, in each database where it has some: reassign owned by %1$I to postgres; drop owned by %1$I; '
        'To stop the login meanwhile: alter role %1$I nologin;', p_name
      );
  end;
  perform fleet_guard.end_reader_sessions(v_role);
  return true;
end
$$;
comment on function fleet_guard.drop_reader(text) is
  'Drops a login that fleet_guard.create_reader() made for this database, and ends its sessions. Returns false if there is none '
  'with this name. Called by fleet.drop_reader().';

revoke all on function
  fleet_guard.reader_mark(), fleet_guard.require_verifier(text), fleet_guard.find_reader(text, boolean),
  fleet_guard.create_reader(text, text), fleet_guard.set_reader_password(text, text), fleet_guard.end_reader_sessions(oid),
  fleet_guard.drop_reader(text)
from public;
grant execute on function
  fleet_guard.reader_mark(), fleet_guard.create_reader(text, text), fleet_guard.set_reader_password(text, text),
  fleet_guard.drop_reader(text)
to fleet_owner;
