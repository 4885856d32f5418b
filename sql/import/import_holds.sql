create or replace function fleet.import_holds() returns table (source text, since timestamptz)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select a.source, min(d.day)::timestamptz
  from fleet.imports a
  join pg_class c on c.oid = fleet.source_table(a)
  join fleet.import_days d on d.source = a.source
  where a.state in ('moving', 'moved', 'verified', 'abandoning')
  group by a.source;
$$;

comment on function fleet.import_holds() is
  'Tables whose import is neither confirmed nor abandoned, with the first day of their rows. Partitions from that day on are not '
  'retired, so that imported rows can be verified.';
