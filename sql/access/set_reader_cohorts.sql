create or replace function fleet.set_reader_cohorts(p_name text, p_cohorts text[]) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_cohorts text[] := fleet.reader_cohorts(p_cohorts);
  v_before text[];
begin
  select r.cohorts into v_before from fleet.readers r where r.reader = p_name for update;
  if not found then
    perform fleet.no_such_reader(p_name);
  end if;
  if v_before = v_cohorts then
    return false;
  end if;
  update fleet.readers set cohorts = v_cohorts where reader = p_name;
  perform fleet.audit(
    p_action => 'reader.changed', p_target => 'reader:' || p_name, p_before => jsonb_build_object('cohorts', v_before),
    p_after => jsonb_build_object('cohorts', v_cohorts)
  );
  return true;
end
$$;

comment on function fleet.set_reader_cohorts(text, text[]) is
  'Changes the cohorts of a reader, from its next statement on. Returns false if they are the same. '
  'Example: select fleet.set_reader_cohorts(''acme_dashboard'', array[''acme'', ''acme-lab'']);';
