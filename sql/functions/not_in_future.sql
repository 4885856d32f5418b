-- A time that has not come decides what is past its time: with one, a night would retire today and prune everything.
create or replace function fleet.not_in_future(p_now timestamptz) returns timestamptz
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  -- The login counts, not the role that a function with the owner's rights runs as.
  if p_now > clock_timestamp() and not pg_has_role(session_user, 'fleet_owner', 'member') then
    raise exception using
      errcode = 'FL422',
      message = format('%s is later than now; only the owner of the store may pass a time that has not come', p_now),
      hint = 'Leave the time out: the database''s clock counts.';
  end if;
  return p_now;
end
$$;

comment on function fleet.not_in_future(timestamptz) is
  'Its argument, or an error when it is later than now and the login is not a member of fleet_owner. Called by each function that is granted to others and takes a time.';
