create or replace function fleet.shard_map()
returns table (low integer, high integer, host text, port integer, is_local boolean)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if not fleet.is_distributed() then
    return;
  end if;
  -- The names of Citus are known only to a database that has it.
  return query execute $query$
    select s.shardminvalue::integer, s.shardmaxvalue::integer, n.nodename, n.nodeport,
      n.groupid = (select g.groupid from pg_catalog.pg_dist_local_group g)
    from pg_catalog.pg_dist_shard s
    join pg_catalog.pg_dist_placement p on p.shardid = s.shardid
    join pg_catalog.pg_dist_node n on n.groupid = p.groupid
    where s.logicalrelid = 'fleet.device_last_status'::regclass
      and s.shardminvalue is not null and n.noderole = 'primary' and n.isactive
    order by s.shardminvalue::integer
  $query$;
end
$$;

comment on function fleet.shard_map() is
  'Which node of a distributed store has which devices: those for which hashint8(device_id) is from low to high. is_local says '
  'whether it is the node that answers. By it the server sends heartbeats to the node that has their device. No row in a plain '
  'store. Every node answers the same. Example: select * from fleet.shard_map();';
