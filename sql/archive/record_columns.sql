-- Archives from before 0.2 have their columns only in the manifest.
create or replace function fleet.record_columns(
  p_partition text,
  p_checksum_sha256 text,
  p_columns jsonb,
  p_checksum_version integer,
  p_manifest_format integer
) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if pg_is_in_recovery() then
    return false;
  end if;
  perform fleet.require_forms(p_partition, p_columns);
  update fleet.hb_partitions
  set columns = p_columns, checksum_version = p_checksum_version, manifest_format = p_manifest_format
  where partition_name = p_partition and columns is null and checksum_sha256 = p_checksum_sha256 and proven_at is not null;
  return found;
end
$$;

comment on function fleet.record_columns(text, text, jsonb, integer, integer) is
  'Records the columns of a proven archive from before 0.2, which the archiver reads from its manifest. Returns false if they '
  'are already known.';
