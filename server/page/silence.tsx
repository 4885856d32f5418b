import type { Pool } from '../database.ts'
import { count, plural, short } from './format.ts'

/** A row of the view fleet.fleet_silence. */
export interface Silence {
  cohort: string
  active: number
  gone_quiet: number
  usual_share: number | null
  is_alarming: boolean
  muted_reason: string | null
}

/** How many cohorts with an alarm are shown. */
const MOST_ALARMS = 50

/**
 * The first row is the whole fleet, the others are cohorts with an alarm. From the primary, because the job that watches for
 * silence runs there.
 */
export async function readSilence(pool: Pool) {
  return [
    ...(await pool.run(
      sql => sql<Silence[]>`
    select s.cohort, s.active, s.gone_quiet, s.usual_share, s.is_alarming, s.muted_reason
    from (select f.*, row_number() over () as place from fleet.fleet_silence f) s
    where s.place = 1 or s.is_alarming
    order by s.place
    limit ${MOST_ALARMS + 1}
  `,
    )),
  ]
}

/** Why silence is not judged. */
const MUTED: Record<string, string> = {
  ingest_down: 'no heartbeats arrive at all',
  ingest_resumed: 'heartbeats have only just begun to arrive again',
  unwatched: 'the job that watches for silence does not run',
  few_devices: 'there are too few devices',
  few_samples: 'it takes a day to learn what is usual',
}

export function SilenceAlarm({ silence: { active, gone_quiet, usual_share } }: { silence: Silence }) {
  return (
    <span class="badge fail alarm">
      {count(gone_quiet)} of {plural(active, 'device')} went quiet, usually {short(100 * (usual_share ?? 0))} %
    </span>
  )
}

/** For the whole fleet: the alarm, or why silence is not judged. */
export function FleetSilence({ silence }: { silence: Silence }) {
  if (silence.is_alarming)
    return (
      <p>
        <SilenceAlarm silence={silence} />
      </p>
    )
  if (silence.muted_reason === null) return <p class="muted">No more devices than usual have gone quiet.</p>
  return <p class="muted">Silence is not judged now: {MUTED[silence.muted_reason] ?? silence.muted_reason}.</p>
}
