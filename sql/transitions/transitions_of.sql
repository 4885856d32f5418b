create or replace function fleet.transitions_of(
  p_device_id bigint, p_before bigint default null, p_limit integer default 100, p_cohorts text[] default null
) returns setof fleet.device_transitions
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if not exists (
    select from fleet.devices d where d.device_id = p_device_id and (p_cohorts is null or d.cohort = any (p_cohorts))
  ) then
    raise exception using
      errcode = 'FL404',
      message = format('there is no device %s', coalesce(p_device_id::text, 'null')),
      hint = 'Find it by alias: select device_id, alias from fleet.device_status;';
  end if;
  return query
    select t.*
    from fleet.device_transitions t
    where t.device_id = p_device_id and t.transition_id < coalesce(p_before, 9223372036854775807)
      and (p_cohorts is null or t.cohort = any (p_cohorts))
    order by t.transition_id desc
    limit p_limit;
end
$$;

comment on function fleet.transitions_of(bigint, bigint, integer, text[]) is
  'The transitions of a device, newest first, before a transition_id if one is given, and only those in some '
  'cohorts if these are given. '
  'Example: select at, event, reason, previous_for from fleet.transitions_of(42);';
