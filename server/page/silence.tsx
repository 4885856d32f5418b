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

/** The first is the whole fleet. Of the primary: what watches over silence works there. */
export async function readSilence(pool: Pool) {
  return [
    ...(await pool.run(
      sql => sql<Silence[]>`
    select cohort, active, gone_quiet, usual_share, is_alarming, muted_reason from fleet.fleet_silence
  `,
    )),
  ]
}

/** Why nothing is said of anybody's silence. */
const MUTED: Record<string, string> = {
  ingest_down: 'no heartbeat comes in at all',
  ingest_resumed: 'heartbeats have come in again for too short a time',
  unwatched: 'the job that watches does not run',
  few_devices: 'too few devices',
  few_samples: 'it takes a day to know what is usual',
}

export function SilenceAlarm({ silence: { active, gone_quiet, usual_share } }: { silence: Silence }) {
  return (
    <span class="badge fail alarm">
      gone quiet: {count(gone_quiet)} of {plural(active, 'device')}, usually {short(100 * (usual_share ?? 0))} %
    </span>
  )
}

/** Of the whole fleet: the alarm, or that nobody judges. */
export function FleetSilence({ silence }: { silence: Silence }) {
  if (silence.is_alarming)
    return (
      <p>
        <SilenceAlarm silence={silence} />
      </p>
    )
  if (silence.muted_reason === null) return <p class="muted">No more devices have gone quiet than usual.</p>
  return (
    <p class="muted">
      Whether more devices go quiet than usual is not judged: {MUTED[silence.muted_reason] ?? silence.muted_reason}.
    </p>
  )
}
