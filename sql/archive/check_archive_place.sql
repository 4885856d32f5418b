-- An archive with a range in the future would prevent the partitions of that range from being created. And the archiver fetches
-- from the URL, so it must be in a known store.
create or replace function fleet.check_archive_place(p_range_start timestamptz, p_range_end timestamptz, p_archive_url text)
returns void
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_day text;
  v_root text;
  v_known text[];
begin
  if p_range_start is null or p_range_end is null or not isfinite(p_range_start) or not isfinite(p_range_end)
    or p_range_start <> date_trunc('day', p_range_start) or p_range_end > clock_timestamp()
    or p_range_end not in (
      p_range_start + interval '1 day',
      p_range_start
        + case when p_range_start = date_trunc('month', p_range_start) then interval '1 month' else interval '1 day' end
    ) then
    raise exception using
      errcode = 'FL422',
      message = format(
        'the archive of %s to %s is not registered: its range is not a past UTC day or month', p_range_start, p_range_end
      ),
      hint = 'Check range_start and range_end in the manifest of the archive.';
  end if;
  v_day := to_char(p_range_start, 'YYYY-MM-DD');
  v_root := substring(
    p_archive_url
    from '^((?:file:///|s3://[^/]).*)/device_heartbeats/date=' || v_day || '/device_heartbeats_[0-9]+(?:_r[0-9]+)?\.parquet$'
  );
  if v_root is null or v_root ~ '(^|/)\.\.?(/|$)' then
    raise exception using
      errcode = 'FL422',
      message = format('%s is not a valid place for the archive of %s', coalesce(p_archive_url, 'null'), v_day),
      hint = format(
        'The place must be <store>/device_heartbeats/date=%s/device_heartbeats_%s.parquet.',
        v_day, to_char(p_range_start, 'YYYYMMDD')
      );
  end if;
  -- If no store is known yet, the first archive decides which one it is.
  select array_agg(distinct s.url) into v_known
  from (
    select substring(p.archive_url from '^(.*)/device_heartbeats/date=') as url
    from fleet.hb_partitions p
    where p.archive_url is not null
    union all
    select unnest(k.archive_stores) from fleet.settings k
  ) s
  where s.url is not null;
  if v_root <> all (v_known) then
    raise exception using
      errcode = 'FL422',
      message = format(
        '%s is not a known store of this database (%s); nothing is registered', v_root, array_to_string(v_known, ', ')
      ),
      hint = format('If you trust this store: update fleet.settings set archive_stores = archive_stores || %L;', v_root);
  end if;
end
$$;

comment on function fleet.check_archive_place(timestamptz, timestamptz, text) is
  'Raises an error unless the archive to register covers a past UTC day or month and is at its proper place in a known store.';
