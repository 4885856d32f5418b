import type { Reader } from '../reader.ts'
import { nameOf, Status } from './devices.tsx'
import { duration } from './format.ts'
import { Table } from './layout.tsx'
import { reasonOf } from './reasons.ts'
import { Moment } from './time.tsx'

const LIMIT = 25

/** A row of the view fleet.recent_changes. */
export interface Change {
  transition_id: number
  device_id: number
  alias: string | null
  cohort: string
  since: string
  event: string
  previous_status: string
  /** Seconds; null if unknown. */
  previous_for: number | null
  reason: string | null
}

/** The changes of the last hour, newest first, one more than are shown. */
export async function readChanges(reader: Reader, cohorts: string | null = null) {
  return [
    ...(await reader.run(
      sql => sql<Change[]>`
    select transition_id, device_id, alias, cohort, since, event, previous_status,
      extract(epoch from previous_for)::float8 as previous_for, reason
    from fleet.recent_changes
    where ${cohorts}::text::text[] is null or cohort = any (${cohorts}::text::text[])
    limit ${LIMIT + 1}
  `,
    )),
  ]
}

/** The newest changes of a device. */
export async function readHistory(reader: Reader, deviceId: number, cohorts: string | null = null) {
  return [
    ...(await reader.run(
      sql => sql<Change[]>`
    select transition_id, device_id, null as alias, cohort, since, event, previous_status,
      extract(epoch from previous_for)::float8 as previous_for, reason
    from fleet.transitions_of(${deviceId}, null, ${LIMIT + 1}, ${cohorts}::text::text[])
  `,
    )),
  ]
}

export function Changes({ changes, now }: { changes: Change[]; now: Date }) {
  if (changes.length === 0) return <p class="muted">Nothing has changed in the last hour.</p>
  return (
    <>
      <Table
        label="Changes of the last hour"
        head={['Device', 'Change', 'Since', 'Before', 'Reason', 'Cohort']}
        rows={changes
          .slice(0, LIMIT)
          .map(change => [
            <a href={`/devices/${change.device_id}`}>{nameOf(change)}</a>,
            <Status status={change.event} />,
            <Moment at={change.since} now={now} />,
            <Before change={change} />,
            reasonOf(change.reason),
            change.cohort,
          ])}
      />
      {changes.length > LIMIT && (
        <p class="muted">
          These are the newest {LIMIT}. To see all: <code>select * from fleet.recent_changes;</code>
        </p>
      )}
    </>
  )
}

export function History({ changes, now }: { changes: Change[]; now: Date }) {
  return (
    <>
      <Table
        label="Changes of this device"
        head={['Change', 'Since', 'Before', 'Reason']}
        rows={changes
          .slice(0, LIMIT)
          .map(change => [
            <Status status={change.event} />,
            <Moment at={change.since} now={now} />,
            <Before change={change} />,
            reasonOf(change.reason),
          ])}
      />
      {changes.length > LIMIT && <p class="muted">These are the newest {LIMIT}.</p>}
    </>
  )
}

function Before({ change: { previous_status, previous_for } }: { change: Change }) {
  return (
    <>
      {previous_status.replaceAll('_', ' ')}
      {previous_for !== null && <small> for {duration(previous_for)}</small>}
    </>
  )
}
