-- A sequence does not do: numbers are taken in one order and become visible in another, so a reader would skip what commits late.
-- Transaction ids have a bound below which everything is visible. They begin again in a store that was restored from a dump, and
-- some come twice after a failover that lost the last transactions; the base takes the positions past all that were handed out.
create or replace function fleet.feed_base() returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  c_jump constant bigint := 1::bigint << 32;
  v_cluster text := format(
    '%s/%s', (select c.system_identifier from pg_control_system() c), left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)
  );
  v_base bigint;
begin
  select f.base into v_base from fleet.transition_feed f where f.cluster = v_cluster;
  if found then
    return v_base;
  end if;
  perform from fleet.transition_feed f for update;
  select f.base into v_base from fleet.transition_feed f where f.cluster = v_cluster;
  if found then
    return v_base;
  end if;
  update fleet.transition_feed f
  set cluster = v_cluster,
    base = case when f.cluster = '' then 0 else greatest(
      f.base, coalesce((select max(t.position) from fleet.device_transitions t), 0)
    ) + c_jump - pg_current_xact_id()::text::bigint end
  returning f.base into v_base;
  return v_base;
end
$$;

comment on function fleet.feed_base() is
  'What is added to the id of a transaction for the position of its transitions in the feed. It grows when the store runs in '
  'another cluster than before, or on another timeline, so that positions never go back.';
