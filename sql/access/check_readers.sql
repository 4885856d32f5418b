create or replace function fleet.check_readers()
returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '300ms'
as $$
#variable_conflict use_column
declare
  -- The views of devices, which were made with the rights of the login.
  c_views constant text[] := array[
    'device_state', 'device_status', 'devices_offline', 'unity_down', 'fleet_summary', 'recent_changes', 'missed_beats',
    'device_availability', 'unreadable_fields'
  ];
  v_open record;
  v_mark text;
begin
  -- Missing if the administrator has not run the setup of this version.
  if to_regprocedure('fleet_guard.reader_mark()') is not null then
    execute 'select fleet_guard.reader_mark()' into v_mark;
  end if;
  check_name := 'readers';

  -- What the logins may read is a table with a policy for them, or a view that reads such tables with their rights.
  select string_agg(o.name, ', ' order by o.name) as names, string_agg(o.remedy, e'\n' order by o.name) as remedies
  into v_open
  from (
    select c.oid::regclass::text as name,
      case
        when p.polname is not null and c.relkind in ('r', 'p') then
          format('alter table %s enable row level security;', c.oid::regclass)
        when c.relname = any (c_views) then format('alter view %s set (security_invoker = true);', c.oid::regclass)
        else format('revoke select on %s from fleet_cohort_reader;', c.oid::regclass)
      end as remedy
    from pg_class c
    left join pg_policy p on p.polrelid = c.oid and p.polname = 'seen_cohorts' and not p.polpermissive
      and p.polroles = array['fleet_cohort_reader'::regrole::oid]
    where c.relnamespace in ('fleet'::regnamespace, 'fleet_detached'::regnamespace) and c.relkind in ('r', 'p', 'v', 'm', 'f')
      and has_any_column_privilege('fleet_cohort_reader', c.oid, 'select')
      -- Two that show nothing of other cohorts by themselves: when a device is offline, and what fleet.silence_at() returns.
      and c.relname not in ('settings', 'fleet_silence')
      and not (c.relkind in ('r', 'p') and c.relrowsecurity and p.polname is not null)
      and not (c.relkind = 'v' and coalesce('security_invoker=true' = any (c.reloptions), false))
  ) o;
  if v_open.names is not null then
    status := 'fail';
    detail := 'the logins of fleet.create_reader() see every cohort in ' || v_open.names;
    remedy := e'-- as fleet_owner\n' || v_open.remedies;
    return next;
    return;
  end if;

  select string_agg(format('%s is a member of %s', l.rolname, l.more), ', ' order by l.rolname, l.more) as names,
    string_agg(format('revoke %I from %I;', l.more, l.rolname), e'\n' order by l.rolname, l.more) as remedies
  into v_open
  from (
    select r.rolname, m.roleid::regrole::text as more
    from pg_roles r
    join pg_auth_members m on m.member = r.oid
    where r.rolcanlogin and not r.rolsuper and pg_has_role(r.oid, 'fleet_cohort_reader', 'usage')
      and m.roleid <> 'fleet_cohort_reader'::regrole
  ) l;
  if v_open.names is not null then
    status := 'warn';
    detail := format('logins that should see only their cohorts have more rights: %s', v_open.names);
    remedy := e'-- as superuser\n' || v_open.remedies;
    return next;
    return;
  end if;

  select string_agg(r.reader, ', ' order by r.reader) as names,
    string_agg(format('select fleet.renew_reader_password(%L);', r.reader), e'\n' order by r.reader) as remedies
  into v_open
  from fleet.readers r
  where not exists (
    select from pg_roles l
    where l.rolname = r.reader and l.rolcanlogin and pg_has_role(l.oid, 'fleet_cohort_reader', 'usage')
  );
  if v_open.names is not null then
    status := 'warn';
    detail := format('readers without a login, as after the restore of a dump: %s', v_open.names);
    remedy := e'-- makes the login again, and shows its new password once\n' || v_open.remedies;
    return next;
    return;
  end if;

  select string_agg(r.rolname, ', ' order by r.rolname) as names,
    string_agg(format('select fleet.drop_reader(%L);', r.rolname), e'\n' order by r.rolname) as remedies
  into v_open
  from pg_roles r
  where shobj_description(r.oid, 'pg_authid') = v_mark
    and not exists (select from fleet.readers c where c.reader = r.rolname);
  if v_open.names is not null then
    status := 'warn';
    detail := format('logins without a row in fleet.readers, which see nothing: %s', v_open.names);
    remedy := v_open.remedies;
    return next;
    return;
  end if;

  status := 'ok';
  detail := format('%s logins see only their cohorts', (select count(*) from fleet.readers));
  return next;
end
$$;

comment on function fleet.check_readers() is
  'The part of fleet.check() about the logins of fleet.create_reader(): whether they are there, and see no more than they should.';
