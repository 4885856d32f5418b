-- Column by column, because pg_partman gives every new partition the rights on the whole table, and a partition that can be read
-- directly has no policy.
create or replace function fleet.grant_heartbeat_columns() returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  execute format(
    'grant select (%s) on fleet.device_heartbeats to fleet_cohort_reader',
    (
      select string_agg(quote_ident(a.attname), ', ' order by a.attnum)
      from pg_attribute a
      where a.attrelid = 'fleet.device_heartbeats'::regclass and a.attnum > 0 and not a.attisdropped
    )
  );
end
$$;

comment on function fleet.grant_heartbeat_columns() is
  'Lets the logins of fleet.create_reader() read each column of fleet.device_heartbeats, but no partition directly. Called by '
  'grants.sql and, when columns were added, by fleet.note_columns().';
