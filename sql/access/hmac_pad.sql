create or replace function fleet.hmac_pad(p_key bytea, p_byte integer) returns bytea
language plpgsql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
  v_pad bytea := case when length(p_key) > 64 then sha256(p_key) else p_key end;
begin
  v_pad := v_pad || decode(repeat('00', 64 - length(v_pad)), 'hex');
  for v_i in 0..63 loop
    v_pad := set_byte(v_pad, v_i, get_byte(v_pad, v_i) # p_byte);
  end loop;
  return v_pad;
end
$$;

comment on function fleet.hmac_pad(bytea, integer) is
  'The key of an HMAC with SHA-256 (RFC 2104), padded to 64 bytes, each of them XOR a byte: the inner pad with 54 (0x36), the '
  'outer one with 92 (0x5c). The HMAC is sha256(outer || sha256(inner || text)).';
