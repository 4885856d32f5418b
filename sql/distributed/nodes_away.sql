-- A node that is cut off does not refuse connections, so it is given up soon. Sessions that are connected already notice it by
-- tcp_user_timeout, which docs/scale-out.md sets.
create or replace function fleet.nodes_away() returns text
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set client_min_messages = error
set citus.node_connection_timeout = '3s'
as $$
declare
  v_node record;
  v_away text;
begin
  for v_node in
    select n.nodename, n.nodeport
    from pg_catalog.pg_dist_node n
    where n.groupid <> 0 and n.noderole = 'primary'
    order by n.nodeid
  loop
    if not pg_catalog.citus_check_connection_to_node(v_node.nodename, v_node.nodeport) then
      v_away := concat_ws(', ', v_away, format('%s:%s', v_node.nodename, v_node.nodeport));
    end if;
  end loop;
  return v_away;
end
$$;

comment on function fleet.nodes_away() is
  'The form of fleet.nodes_away() for a distributed store: the workers that do not answer this node within 3 seconds; null if all do.';
