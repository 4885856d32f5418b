create or replace function fleet.reader_cohorts(p_cohorts text[]) returns text[]
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  if coalesce(cardinality(p_cohorts), 0) = 0 or cardinality(p_cohorts) > 1000 or exists (
    select from unnest(p_cohorts) c where c is null or btrim(c) = '' or length(c) > 100
  ) then
    raise exception using
      errcode = 'FL422',
      message = 'cohorts must have 1 to 1000 names of 1 to 100 characters',
      hint = 'Example: array[''lobby'', ''warehouse'']. Who may see every cohort gets a login with the rights of fleet_reader.';
  end if;
  if '(all)' = any (p_cohorts) then
    raise exception using
      errcode = 'FL422',
      message = 'cohorts must not name (all)',
      hint = 'In fleet.fleet_summary that is the whole fleet. Who may see it gets a login with the rights of fleet_reader.';
  end if;
  return array(select distinct c from unnest(p_cohorts) c order by c);
end
$$;

comment on function fleet.reader_cohorts(text[]) is
  'The cohorts for a reader, each once and in order. Fails if there are none or one cannot be the name of a cohort. They need not '
  'exist yet.';
