create or replace function fleet.network_of(p_ip inet) returns text
language sql
immutable
parallel safe
return text(network(set_masklen(p_ip, least(masklen(p_ip), case family(p_ip) when 4 then 24 else 48 end))));

comment on function fleet.network_of(inet) is
  'The network of an address: its /24, or its /48 of IPv6, as a provider gives one to a site. '
  'Example: select fleet.network_of(''198.51.100.7'');';
