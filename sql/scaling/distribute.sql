-- A procedure that commits can have neither SET nor SECURITY DEFINER.
create or replace procedure fleet.distribute(p_shards integer default 32)
language plpgsql
as $$
declare
  v_step text;
begin
  for v_step in select p.step from fleet.distribution_plan() p order by p.nth loop
    perform fleet.distribute_step(v_step, p_shards);
    commit;
  end loop;
end
$$;

comment on procedure fleet.distribute(integer) is
  'Distributes the tables of this store over the workers that Citus knows, by device_id in so many shards, and creates its functions on '
  'them. May be stopped and called again. Heartbeats are refused from the first step on, until npm run distribute has installed what '
  'differs in a distributed store. See docs/scale-out.md. Example: call fleet.distribute(32);';
