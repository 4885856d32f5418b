create or replace function fleet.incident_of(p_cohort text, p_network text, p_heard_at timestamptz, p_late_after_s integer)
returns bigint
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select i.incident_id
  from fleet.incidents i
  cross join fleet.settings s
  where i.ended_at is null
    and (
      i.kind = 'ingest'
      or i.kind = 'cohort' and i.subject = p_cohort
      or i.kind = 'network' and i.subject = p_network
    )
    -- A device that is lost later has a reason of its own.
    and case i.kind
      when 'ingest' then p_heard_at - i.began_at >= -greatest(s.offline_after, interval '105 seconds')
        and p_heard_at <= coalesce((select w.gap_to from fleet.silence_watch w where w.gap_to > i.began_at), 'infinity')
      else p_heard_at - i.began_at >= -greatest(p_late_after_s, 105) * interval '1 second'
        and p_heard_at - i.began_at <= greatest(2 * greatest(p_late_after_s, 105) * interval '1 second', interval '10 minutes')
    end
  order by case i.kind when 'ingest' then 1 when 'cohort' then 2 else 3 end, i.incident_id desc
  limit 1;
$$;

comment on function fleet.incident_of(text, text, timestamptz, integer) is
  'The open incident of a device of this cohort and network that fell silent at this time, and is late after so many seconds; null '
  'if there is none.';
