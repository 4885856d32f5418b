/*
 * Loads a simulated fleet's history at full speed: by COPY, straight into the partitions, several days at once. Each device sends
 * at regular times with its own phase and some jitter, never twice in a 10-second bucket. Rows are in order of time, as a fleet
 * writes them. fleet.create_partitions() makes the partitions with all their indexes, which stay while rows are loaded. Last
 * status is filled at the end, because its trigger is on the parent. COPY uses its binary form, because at these rates Postgres
 * would spend most of its time reading timestamps and addresses as text.
 *
 * If DATABASE_URL is set (a migrated database, as its superuser or fleet_owner), the history is loaded there and stays. Otherwise
 * it is loaded into a throwaway cluster, to measure the rate.
 */
import { statfs } from 'node:fs/promises'
import { availableParallelism, tmpdir } from 'node:os'
import { finished } from 'node:stream/promises'
import postgres, { type Sql } from 'postgres'
import { optionalDatabaseUrl } from '../local/config.ts'
import { elapsed, say, step } from '../lib/progress.ts'
import { generator } from '../testing/random.ts'
import type { Figure } from './figure.ts'
import { readOptions } from './options.ts'
import { withStore } from './store.ts'
import { UsageError } from '../lib/errors.ts'

const options = {
  rows: { otherwise: 100_000_000, what: 'heartbeats in total' },
  days: { otherwise: 90, what: 'days over which they are spread, up to yesterday' },
  devices: { otherwise: 2_000, what: 'devices that send them; they are enrolled as history-…' },
  jobs: { otherwise: availableParallelism(), what: 'days that are loaded at once' },
} as const

const DAY_MS = 86_400_000
/** The size of a row with its two index entries, as measured and rounded up. */
const BYTES_A_ROW = 250
/** The least time between two heartbeats of a device, including jitter. */
const LEAST_GAP_MS = 10_000

export async function benchLoadHistory(args: string[]): Promise<Figure[]> {
  const given = readOptions('bench -- load-history', args, options)
  const perDay = Math.ceil(given.rows / given.days / given.devices)
  // A quarter of the interval is jitter.
  const most = Math.floor((0.75 * DAY_MS) / LEAST_GAP_MS)
  if (perDay > most) {
    throw new UsageError(
      `--devices ${given.devices} would each send ${perDay} heartbeats a day, but only ${most} fit into buckets of their own`,
    )
  }
  const url = optionalDatabaseUrl()
  if (url === undefined) {
    const { bavail, bsize } = await statfs(tmpdir())
    if (bavail * bsize < given.rows * BYTES_A_ROW) {
      throw new Error(
        `${tmpdir()} has ${gb(bavail * bsize)} GB free; ${given.rows.toLocaleString('en')} heartbeats may need ${gb(given.rows * BYTES_A_ROW)} GB`,
      )
    }
    return withStore(({ admin }) => loadHistory(admin, given, perDay))
  }
  const sql = postgres(url, { max: given.jobs + 1, onnotice: () => {} })
  try {
    return await loadHistory(sql, given, perDay)
  } finally {
    await sql.end({ timeout: 5 })
  }
}

async function loadHistory(
  sql: Sql,
  given: { rows: number; days: number; devices: number; jobs: number },
  perDay: number,
): Promise<Figure[]> {
  const today = Math.floor(Date.now() / DAY_MS) * DAY_MS
  const firstDay = today - given.days * DAY_MS
  const ids = await step(`Enrolling ${given.devices.toLocaleString('en')} devices`, () => enrollHistory(sql, given.devices))
  const partitions = await step(`Making the partitions of ${given.days} days`, async () => {
    await sql`select fleet.create_partitions(${new Date(firstDay)}::timestamptz::date, ${new Date(today - 1)}::timestamptz::date)`
    return sql<{ partition_name: string; range_start: Date }[]>`
      select partition_name, range_start from fleet.attached_partitions()
      where range_start >= ${new Date(firstDay)} and range_end <= ${new Date(today)}
      order by range_start
    `
  })
  if (partitions.length !== given.days) {
    throw new Error(
      `${partitions.length} daily partitions exist for ${given.days} days: some are retired, or the store is partitioned by month`,
    )
  }

  const { rows, seconds } = await fillDays(sql, ids, partitions, perDay, given.jobs)

  const [filled] = await step(
    'Filling last status',
    () => sql<{ updated: number }[]>`
    select fleet.backfill_last_status(2)::integer as updated
  `,
  )
  const [size] = await step('Counting', async () => {
    await sql`analyze fleet.device_heartbeats`
    return sql<{ bytes: number; rows: number }[]>`
      select sum(pg_total_relation_size(a.relid))::float8 as bytes, (select count(*)::float8 from fleet.device_heartbeats) as rows
      from fleet.attached_partitions() a
      where a.range_start >= ${new Date(firstDay)} and a.range_end <= ${new Date(today)}
    `
  })
  if ((size?.rows ?? 0) < rows) throw new Error(`${size?.rows} rows are in the store, but ${rows} were sent`)
  return [
    { name: 'rows loaded', measured: rows, unit: '' },
    { name: 'COPY into indexed partitions', measured: rows / seconds, unit: 'rows/s' },
    { name: 'size with both indexes', measured: (size?.bytes ?? 0) / rows, unit: 'bytes/row' },
    { name: 'devices whose last status was filled', measured: filled?.updated ?? 0, unit: '' },
  ]
}

interface Day {
  partition_name: string
  range_start: Date
}

/** Fills several days at once, each in one transaction, so that a day is either complete or empty. */
export async function fillDays(sql: Sql, ids: number[], days: Day[], perDay: number, jobs: number) {
  const wanted = days.length * ids.length * perDay
  const started = performance.now()
  let rows = 0
  const told = setInterval(() => {
    const rate = rows / ((performance.now() - started) / 1000)
    const left = rate > 0 ? `, ${Math.ceil((wanted - rows) / rate / 60)} min left` : ''
    say(
      `  ${rows.toLocaleString('en')} of ${wanted.toLocaleString('en')} rows, ${Math.round(rate).toLocaleString('en')} rows/s${left}`,
    )
  }, 10_000)
  const waiting = [...days]
  const loadDays = async () => {
    for (let day = waiting.shift(); day; day = waiting.shift()) {
      const copy = await sql
        .unsafe(
          `
        copy fleet.${day.partition_name}
          (ts, received_at, device_id, signal_dbm, battery_pct, unity_running, network_type, agent_version, ip)
        from stdin (format binary)
      `,
        )
        .writable()
      const isCopied = finished(copy)
      isCopied.catch(() => {}) // the race below reports it
      const write = (chunk: Buffer) =>
        Promise.race([
          isCopied,
          new Promise<void>((resolve, reject) => {
            copy.write(chunk, error => (error ? reject(error) : resolve()))
          }),
        ])
      await write(HEADER)
      for (const chunk of dayOf(ids, day.range_start.getTime(), perDay)) {
        // The same buffer becomes the next chunk, so this one must be sent first.
        await write(chunk)
        rows += ids.length
      }
      copy.end(TRAILER)
      await isCopied
    }
  }
  try {
    await Promise.all(Array.from({ length: Math.min(jobs, days.length) }, loadDays))
  } finally {
    clearInterval(told)
  }
  const seconds = (performance.now() - started) / 1000
  say(`${rows.toLocaleString('en')} rows were loaded in ${elapsed(started)}`)
  return { rows, seconds }
}

/** A second history gets devices of its own, so that its heartbeats never collide with those of the first. */
async function enrollHistory(sql: Sql, count: number) {
  const run = new Date().toISOString()
  const rows = await sql<{ device_id: string }[]>`
    select d.device_id
    from generate_series(1, ${count}::integer) n
    cross join lateral fleet.create_device('history-' || ${run}::text || '-' || n) d
    order by d.device_id
  `
  return rows.map(({ device_id }) => Number(device_id))
}

const HEADER = Buffer.concat([Buffer.from('PGCOPY\n\xff\r\n\0', 'latin1'), Buffer.alloc(8)])
const TRAILER = Buffer.from([0xff, 0xff])
/** Postgres counts from 2000, not from 1970. */
const EPOCH_MS = 946_684_800_000

/** The rows of a day in COPY's binary form. Each turn of the fleet is a chunk; the same buffer is changed in place each time. */
function* dayOf(ids: number[], day: number, perDay: number) {
  const random = generator(day / DAY_MS)
  const rows = ids.map(rowOf)
  const chunk = Buffer.concat(rows)
  const step = DAY_MS / perDay
  const phases = ids.map(() => random())
  for (let turn = 0; turn < perDay; turn++) {
    for (let index = 0, at = 0; index < ids.length; at += rows[index]!.length, index++) {
      // Two heartbeats of a device are at least three quarters of a step apart, and all are within the day.
      const ts = day + (turn + index / ids.length / 2 + (phases[index]! + random()) / 4) * step - EPOCH_MS
      writeTimestamp(chunk, ts, at + 6)
      writeTimestamp(chunk, ts + 40 + random() * 160, at + 18)
      chunk.writeInt16BE(-60 - (index % 30) + Math.floor(random() * 8), at + 42)
      chunk.writeInt16BE(100 - (Math.floor((turn * 100) / perDay + index) % 100), at + 48)
      chunk[at + 54] = random() < 0.01 ? 0 : 1
    }
    yield chunk
  }
}

/** A row without its times, signal, battery and unity_running. dayOf writes them at its offsets. */
function rowOf(id: number) {
  const field = (bytes: Buffer) => {
    const length = Buffer.alloc(4)
    length.writeInt32BE(bytes.length)
    return Buffer.concat([length, bytes])
  }
  const device = Buffer.alloc(8)
  device.writeBigInt64BE(BigInt(id))
  const fields = Buffer.from([0, 9])
  const address = Buffer.from([2, 32, 0, 4, 10, (id >> 16) & 255, (id >> 8) & 255, id & 255]) // family, bits, is_cidr, length
  return Buffer.concat([
    fields,
    field(Buffer.alloc(8)),
    field(Buffer.alloc(8)),
    field(device),
    field(Buffer.alloc(2)),
    field(Buffer.alloc(2)),
    field(Buffer.alloc(1)),
    field(Buffer.from(id % 5 === 0 ? 'lte' : 'wifi')),
    field(Buffer.from(`3.${id % 4}.0`)),
    field(address),
  ])
}

/** Writes microseconds as 64 bits, in two halves, because a BigInt for each would cost as much as the whole row. */
function writeTimestamp(buffer: Buffer, ms: number, at: number) {
  const us = Math.floor(ms * 1000)
  buffer.writeInt32BE(Math.floor(us / 2 ** 32), at)
  buffer.writeUInt32BE(us % 2 ** 32, at + 4)
}

function gb(bytes: number) {
  return Math.round(bytes / 1e9)
}
