create or replace function fleet.record_slo(p_server text, p_counts json) returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  insert into fleet.slo_counts as c (slo, minute, server, good, bad)
  select r.slo, r.minute, p_server, r.good, r.bad
  from json_to_recordset(p_counts) as r (slo text, minute timestamptz, good bigint, bad bigint)
  order by r.slo, r.minute
  -- These are totals of the minute so far, so a server that is not sure whether they arrived sends them again.
  on conflict on constraint slo_counts_pkey do update
    set good = greatest(c.good, excluded.good),
      bad = greatest(c.bad, excluded.bad);
$$;

comment on function fleet.record_slo(text, json) is
  'Records what a server process counted for the error budgets: its totals for each minute, sent every 10 seconds. Recording the '
  'same totals again is harmless. Example: select fleet.record_slo(''a'', '
  '''[{"slo":"heartbeat_writes","minute":"now","good":1000,"bad":2}]'');';
