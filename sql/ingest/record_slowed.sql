create or replace function fleet.record_slowed(p_counts json) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into fleet.device_slowdowns as s (device_id, hour, times, first_at, last_at)
  select d.device_id, date_trunc('hour', now(), 'UTC'), sum(r.times), now(), now()
  from json_to_recordset(p_counts) as r (token_hash text, times bigint)
  join fleet.devices d on d.token_hash = decode(r.token_hash, 'hex')  -- a token may be wrong, or renewed since
  group by d.device_id
  order by d.device_id
  on conflict on constraint device_slowdowns_pkey do update
    set times = s.times + excluded.times,
      last_at = excluded.last_at;
end
$$;

comment on function fleet.record_slowed(json) is
  'Records how many requests of devices a server process refused because they sent too many, by the SHA-256 of their token; sent '
  'every 10 seconds. Unknown tokens are left out. Example: select fleet.record_slowed('
  '''[{"token_hash":"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08","times":120}]'');';
