create or replace function fleet.stored_ip(p_ip inet, p_store_ip text) returns inet
language sql
immutable
parallel safe
return case p_store_ip
  when 'full' then p_ip
  when 'prefix' then network(set_masklen(p_ip, case family(p_ip) when 4 then 24 else 48 end))::inet
end;

comment on function fleet.stored_ip(inet, text) is
  'What is stored of an address by settings.store_ip: all of it (full), its network (prefix) or nothing (none). '
  'Example: select fleet.stored_ip(''192.0.2.7'', ''prefix'');';
