-- Times decide what is old enough to leave. With a time in the future, a night would retire today and prune everything.
create or replace function fleet.not_in_future(p_now timestamptz) returns timestamptz
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  -- The login decides, not the current role, because functions with the owner's rights call this.
  if p_now > clock_timestamp() and not pg_has_role(session_user, 'fleet_owner', 'member') then
    raise exception using
      errcode = 'FL422',
      message = format('%s is later than now; only the owner of the store may pass a time in the future', p_now),
      hint = 'Leave the time out, so that the database''s clock is used.';
  end if;
  return p_now;
end
$$;

comment on function fleet.not_in_future(timestamptz) is
  'Returns its argument, or raises an error if it is later than now and the login is not a member of fleet_owner. Called by each '
  'function that takes a time and is granted to other roles.';
