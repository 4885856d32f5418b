import type { Reader } from '../reader.ts'

const DAY_MS = 86_400_000

/** A row of the view fleet.partition_health, with what fleet.archives has about it. */
export interface Partition {
  partition_name: string
  range_start: string
  range_end: string
  state: 'active' | 'detached' | 'archiving' | 'archived' | 'archive_failed' | 'restored' | 'dropped'
  step: string | null
  row_count: number | null
  bytes_size: number
  held_reason: string | null
  last_error: string | null
  /** When it was rewritten in the order of devices and closed for new rows; null: it takes rows. */
  settled_at: string | null
  /** About the archive; null if there is none that is proven. */
  proven_at: string | null
  archive_bytes: number | null
  archive_rows: number | null
  archive_url: string | null
  checksum_sha256: string | null
}

/** All partitions that ever existed, oldest first. */
export async function readPartitions(reader: Reader) {
  return [
    ...(await reader.run(
      sql => sql<Partition[]>`
    select p.partition_name, p.range_start, p.range_end, p.state, p.step, p.row_count, p.bytes_size, p.held_reason, p.last_error, p.settled_at,
      a.proven_at, a.archive_bytes, a.row_count as archive_rows, a.archive_url, a.checksum_sha256
    from fleet.partition_health p
    left join fleet.archives a using (partition_name)
    order by p.range_start
  `,
    )),
  ]
}

export const LOOKS = [
  'active',
  'settled',
  'ready',
  'detached',
  'archiving',
  'archived',
  'dropped',
  'failed',
  'held',
  'restored',
  'missing',
] as const
export type Look = (typeof LOOKS)[number]

export interface Day {
  day: string
  look: Look
  /** Undefined for a day without a partition. */
  partition: Partition | undefined
}

/** Each day from the first partition to the last. The partition of a month is there for each of its days. */
export function daysOf(partitions: Partition[], now: Date): Day[] {
  const days: Day[] = []
  let next = partitions[0] === undefined ? 0 : Date.parse(partitions[0].range_start)
  for (const partition of partitions) {
    const [start, end] = [Date.parse(partition.range_start), Date.parse(partition.range_end)]
    for (; next < start; next += DAY_MS) days.push({ day: iso(next), look: 'missing', partition: undefined })
    for (; next < end; next += DAY_MS) days.push({ day: iso(next), look: lookOf(partition, next, now), partition })
  }
  return days
}

/** `held` comes before the state. An active day is `settled` if it is closed, and `ready` if it has not begun. */
function lookOf({ state, held_reason, settled_at }: Partition, day: number, now: Date): Look {
  if (held_reason !== null) return 'held'
  if (state === 'archive_failed') return 'failed'
  if (state === 'active' && settled_at !== null) return 'settled'
  return state === 'active' && day > now.getTime() ? 'ready' : state
}

function iso(day: number) {
  return new Date(day).toISOString().slice(0, 10)
}
