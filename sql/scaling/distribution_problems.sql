create or replace function fleet.distribution_problems() returns table (problem text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if not exists (select from pg_extension where extname = 'citus') then
    problem := 'the extension citus is not in this database';
    remedy := 'As superuser: alter system set shared_preload_libraries = ''citus, pg_cron''; restart Postgres; '
      'create extension citus;';
    return next;
  end if;
  if exists (select from fleet.imports i where i.state <> 'confirmed') then
    problem := format(
      'a table is being imported: %s',
      (select string_agg(i.source, ', ' order by i.source) from fleet.imports i where i.state <> 'confirmed')
    );
    remedy := 'Finish it first, because a distributed store cannot import: select * from fleet.import_progress;';
    return next;
  end if;
  if exists (select from fleet.restore_items i where i.state in ('pending', 'running')) then
    problem := 'an archived day is being restored';
    remedy := 'Wait until it is done: select * from fleet.restore_items where state in (''pending'', ''running'');';
    return next;
  end if;
  if exists (select from fleet.erasures e where e.state = 'running') then
    problem := 'a device is being erased';
    remedy := 'Wait until it is done: select * from fleet.erasure_progress;';
    return next;
  end if;
  if exists (select from fleet.hb_partitions p where p.state in ('detached', 'archiving', 'archived', 'archive_failed')) then
    problem := format(
      'retired days wait for the archiver or for their drop: %s',
      (
        select string_agg(p.partition_name, ', ' order by p.range_start)
        from fleet.hb_partitions p
        where p.state in ('detached', 'archiving', 'archived', 'archive_failed')
      )
    );
    remedy := 'Their tables would stay on the coordinator. Wait until they are dropped: '
      'select * from fleet.partition_health where state <> ''active'';';
    return next;
  end if;
  if exists (select from fleet.readers) then
    problem := 'there are logins of fleet.create_reader(), which see only their cohorts';
    remedy := 'Citus has no row-level security of that kind. Drop them: select fleet.drop_reader(reader) from fleet.reader_logins;';
    return next;
  end if;
end
$$;

comment on function fleet.distribution_problems() is
  'Why this store cannot be distributed now, and what to do about it; no row if it can. '
  'Example: select * from fleet.distribution_problems();';
