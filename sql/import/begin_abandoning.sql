create or replace function fleet.begin_abandoning(p_source regclass) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  a fleet.imports := fleet.get_import(p_source);
  v_grants text;
  v_needed text;
begin
  if a.state = 'confirmed' then
    raise exception using
      errcode = 'FL002',
      message = format('the import of %s was confirmed at %s and can no longer be abandoned', a.source, a.confirmed_at),
      hint = format('You can copy heartbeats by hand: insert into %s select … from fleet.device_heartbeats;', a.source);
  end if;

  select string_agg(g.grant_, '; ') into v_grants
  from (
    select format('grant insert on %s to %I', a.source, current_user) as grant_
    where not has_table_privilege(p_source, 'insert')
    union all
    -- A serial column takes its default from this sequence.
    select format('grant usage on sequence %s to %I', d.objid::regclass, current_user)
    from pg_depend d
    join pg_class s on s.oid = d.objid
    where d.classid = 'pg_class'::regclass and d.refobjid = p_source and d.deptype = 'a'
      and case s.relkind when 'S' then not has_sequence_privilege(s.oid, 'usage') else false end
  ) g;
  -- A quick look at whether the store has received anything since. If not, nothing is written back and no right is needed.
  if v_grants is not null and exists (select from fleet.device_last_status ls where ls.last_received_at >= a.started_at) then
    raise exception using
      errcode = 'FL422',
      message = format('heartbeats cannot be written back into %s: role %s may not insert there', a.source, current_user),
      hint = format('As its owner: %s;', v_grants);
  end if;
  select string_agg(t.attname, ', ' order by t.attnum) into v_needed
  from pg_attribute t
  where t.attrelid = p_source and t.attnum > 0 and not t.attisdropped and t.attnotnull and not t.atthasdef and t.attidentity = ''
    and t.attname not in (select k.value from jsonb_each_text(a.columns) k where k.value is not null);
  if v_needed is not null then
    raise exception using
      errcode = 'FL422',
      message = format(
        'heartbeats cannot be written back into %s: the store has no values for its columns %s', a.source, v_needed
      ),
      hint = format(
        'As its owner, give them a default: alter table %s alter %I set default …;', a.source, split_part(v_needed, ', ', 1)
      );
  end if;

  perform fleet.take_import_lock();
  update fleet.imports f
  set state = 'abandoning', backend = pg_backend_pid(), last_error = null,
    steps = case when a.state = 'abandoning' then f.steps else '{unforward,survey,write_back}' end,
    step = case when a.state = 'abandoning' then f.step end,
    step_started_at = clock_timestamp(), step_from = f.step_done, step_rows = 0
  where f.source = a.source;
  perform fleet.audit('import.abandoning_begun', 'import:' || a.source, jsonb_build_object('state', a.state));
  return a.source;
end
$$;

comment on function fleet.begin_abandoning(regclass) is
  'Begins to abandon the import of a table. Called by fleet.abandon_import().';
