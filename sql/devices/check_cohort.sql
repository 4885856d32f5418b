create or replace function fleet.check_cohort(p_cohort text, p_example text) returns void
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_cohort is null or btrim(p_cohort) = '' or length(p_cohort) > 100 then
    raise exception using
      errcode = 'FL422',
      message = 'cohort must have 1 to 100 characters',
      hint = p_example;
  end if;
  if not fleet.may_reach(p_cohort) then
    raise exception using
      errcode = 'FL403',
      message = format('cohort %s is not one of those to which this key is bound', p_cohort),
      hint = format('It is bound to: %s.',
        (select string_agg(c, ', ' order by c) from jsonb_array_elements_text(current_setting('fleet.cohorts')::jsonb) c));
  end if;
end
$$;

comment on function fleet.check_cohort(text, text) is
  'Raises an error unless this can be the cohort of a device and the key or session that acts knows it.';
