-- Column by column, because pg_partman gives every new partition the rights on the whole table, and a partition that can be read
-- directly has no policy.
create or replace function fleet.grant_heartbeat_columns() returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_columns text;
begin
  -- A grant writes the row of the column in the catalog, which the guard takes for a change of the column. So only what is missing
  -- is granted, and no column that the archive cannot store, which the guard would refuse.
  select string_agg(quote_ident(a.attname), ', ' order by a.attnum)
  into v_columns
  from pg_attribute a
  where a.attrelid = 'fleet.device_heartbeats'::regclass and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''
    and fleet.archive_form(format_type(a.atttypid, a.atttypmod)) is not null
    and not has_column_privilege('fleet_cohort_reader', a.attrelid, a.attnum, 'select');
  if v_columns is not null then
    execute format('grant select (%s) on fleet.device_heartbeats to fleet_cohort_reader', v_columns);
  end if;
end
$$;

comment on function fleet.grant_heartbeat_columns() is
  'Lets the logins of fleet.create_reader() read each column of fleet.device_heartbeats, but no partition directly. Called by '
  'grants.sql and, when columns were added, by fleet.note_columns().';
