// Measures test A of document 000, and the criteria of 001 and 002 for partitions, archives and jobs.
import { readFile } from 'node:fs/promises'
import { execFile } from 'node:child_process'
import { basename, dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import postgres from 'postgres'
import { plainEnv } from '../../local/config.ts'
import { nodeArgs, repository } from '../../lib/repository.ts'
import { step } from '../../lib/progress.ts'
import { waitFor } from '../database.ts'
import { percentile } from '../../bench/figure.ts'
import { fillDays } from '../../bench/load-history.ts'
import { enroll, startProgram } from '../../bench/store.ts'
import { archiveAll, type RunStore } from './store.ts'
import { atLeast, atMost, equal, type Line } from './table.ts'
import { contentOf } from '../rows.ts'

const run = promisify(execFile)
const DAY_MS = 86_400_000

export interface Sizes {
  rows: number
  days: number
  /** How many of these days are beyond the retention. */
  expired: number
  devices: number
}

export async function generate(store: RunStore, { rows, days, devices }: Sizes): Promise<Line[]> {
  const { admin, kept } = store
  if (kept.devices.length === 0) {
    kept.devices = await enroll(store, devices, 'acceptance')
    await store.keep()
  }
  // The retention is longer for now, so that some days can be beyond it later.
  await admin`select fleet.set_retention(${`${days + 10} days`}::interval)`
  const today = Math.floor(Date.now() / DAY_MS) * DAY_MS
  const first = new Date(today - days * DAY_MS)
  await step(
    `Making the partitions of ${days} days`,
    () => admin`select fleet.create_partitions(${first}::timestamptz::date, ${new Date(today - 1)}::timestamptz::date)`,
  )
  const partitions = await admin<{ partition_name: string; range_start: Date }[]>`
    select partition_name, range_start from fleet.attached_partitions()
    where range_start >= ${first} and range_end <= ${new Date(today)} order by range_start
  `
  const empty: (typeof partitions)[number][] = []
  for (const partition of partitions) {
    const [found] = await admin.unsafe(`select from fleet.${partition.partition_name} limit 1`)
    if (!found) empty.push(partition)
  }
  const perDay = Math.ceil(rows / days / devices)
  const loaded = await fillDays(
    admin,
    kept.devices.map(({ device_id }) => device_id),
    empty,
    perDay,
    2,
  )
  await step('Filling last status', () => admin`select fleet.backfill_last_status(2)`)
  await step('Counting, and VACUUM (ANALYZE)', () => admin.unsafe('vacuum (analyze) fleet.device_heartbeats'))
  const [size] = await admin<{ rows: number; days: number }[]>`
    select sum(c.rows)::float8 as rows, count(*)::float8 as days
    from (select tableoid, count(*) as rows from fleet.device_heartbeats group by tableoid) c
  `
  return [
    atLeast(
      '000 A',
      'synthetic heartbeats over historical dates',
      size!.rows,
      rows,
      'rows',
      loaded.rows > 0 ? { note: `By COPY, ${Math.round(loaded.rows / loaded.seconds).toLocaleString('en')} rows/s` } : {},
    ),
    atLeast('000 A', 'days that they cover', size!.days, 90, 'days'),
  ]
}

export async function plans(store: RunStore): Promise<Line[]> {
  const { admin, kept } = store
  const reader = postgres(store.cluster.url('fleet_reader', 'fleet'), { max: 1, onnotice: () => {} })
  try {
    const [about] = await admin<{ partitions: number }[]>`select count(*)::float8 as partitions from fleet.attached_partitions()`
    const device = kept.devices[0]!.device_id
    const touched = async (query: string) => {
      const [row] = await reader.unsafe<{ 'QUERY PLAN': unknown }[]>(`explain (format json) ${query}`)
      return new Set(JSON.stringify(row).match(/device_heartbeats_p\d{8}|device_heartbeats_p\d{4}_\d{2}_\d{2}/g)).size
    }
    const day = `date_trunc('day', now(), 'UTC') - interval '30 days'`
    const [indexes] = await admin<{ lacking_hot: number; lacking_key: number }[]>`
      select
        count(*) filter (where not exists (
          select from pg_index i where i.indrelid = a.relid and i.indisvalid and pg_get_indexdef(i.indexrelid) like '%(device_id, ts DESC)'
        ))::float8 as lacking_hot,
        count(*) filter (where not exists (
          select from pg_index i where i.indrelid = a.relid and i.indisvalid and i.indisunique and pg_get_indexdef(i.indexrelid) like '%date_bin%'
        ))::float8 as lacking_key
      from fleet.attached_partitions() a
    `
    const times: number[] = []
    for (let turn = 0; turn < 200; turn++) {
      const { device_id } = kept.devices[(turn * 37) % kept.devices.length]!
      const since = new Date(Date.now() - (1 + (turn % 80)) * DAY_MS)
      const started = performance.now()
      await reader`
        select ts, battery_pct, network_type from fleet.device_heartbeats
        where device_id = ${device_id} and ts >= ${since} and ts < ${since}::timestamptz + interval '1 day'
        order by ts desc limit 100
      `
      times.push(performance.now() - started)
    }
    const of = `of ${about!.partitions}`
    return [
      equal(
        '000 A',
        `partitions in the plan of one device's day, ${of}`,
        await touched(
          `select * from fleet.device_heartbeats where device_id = ${device} and ts >= '${await literal(store, day)}' and ts < '${await literal(store, `${day} + interval '1 day'`)}'`,
        ),
        1,
      ),
      equal(
        '000 A',
        `partitions in the plan of a count of two days, ${of}`,
        await touched(
          `select count(*) from fleet.device_heartbeats where ts >= '${await literal(store, day)}' and ts < '${await literal(store, `${day} + interval '2 days'`)}'`,
        ),
        2,
      ),
      equal('000 1', 'partitions without a valid index (device_id, ts desc)', indexes!.lacking_hot, 0),
      equal('000 1', 'partitions without the unique key against duplicates', indexes!.lacking_key, 0),
      atMost('004', "a device's heartbeats of a past day, p95 of 200", percentile(times, 95), 50, 'ms', {
        note: 'The first query of each day',
      }),
    ]
  } finally {
    await reader.end({ timeout: 1 })
  }
}

async function literal({ admin }: RunStore, expression: string) {
  const [row] = await admin.unsafe<{ text: string }[]>(
    `select to_char((${expression}) at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') as text`,
  )
  return row!.text
}

/**
 * Retires what is beyond the retention, kills the archiver in the middle of a day, lets the next nightly run repair that, and
 * checks everything.
 */
export async function retire(store: RunStore, { expired }: Sizes): Promise<Line[]> {
  const { admin, cluster } = store
  const owner = postgres(cluster.url('fleet_owner', 'fleet'), { max: 1, onnotice: () => {} })
  try {
    await admin`select fleet.set_retention('90 days')`
    const old = await admin<{ partition_name: string }[]>`
      select partition_name from fleet.retention_plan() where action = 'retire' and state = 'active'
    `
    const before: { partition_name: string; row_count: string; rows_sha256: string }[] = []
    for (const { partition_name } of old) before.push({ partition_name, ...(await contentOf(admin, `fleet.${partition_name}`)) })
    const [premade] = await admin<{ last: Date }[]>`select max(range_end) as last from fleet.attached_partitions()`
    const tomorrow = new Date(Date.now() + DAY_MS)
    await step('A night', () => owner`call fleet.nightly(null, null, ${tomorrow})`)
    const [made] = await admin<{ last: Date; ahead: number }[]>`
      select max(range_end) as last, (count(*) filter (where range_start > now()))::float8 as ahead from fleet.attached_partitions()
    `
    const detached = await admin<
      { partition_name: string }[]
    >`select partition_name from fleet.hb_partitions where state = 'detached'`

    const { cut, partial } = await killWithin(store)
    await step('The next nightly run', () => owner`call fleet.nightly(null, null, ${tomorrow})`)
    await step('Archiving', () => archiveAll(store))

    const after = await admin<
      {
        partition_name: string
        state: string
        row_count: string
        rows_sha256: string
        archive_url: string
        retired_again: number
      }[]
    >`
      select partition_name, state, row_count::text, rows_sha256, archive_url from fleet.hb_partitions
      where partition_name = any (${before.map(({ partition_name }) => partition_name)}::text[])
    `
    const same = before.filter(was =>
      after.some(
        now =>
          now.partition_name === was.partition_name && now.row_count === was.row_count && now.rows_sha256 === was.rows_sha256,
      ),
    )
    let manifests = 0
    for (const { archive_url } of after) {
      const folder = dirname(fileURLToPath(archive_url))
      const file = join(folder, '../../manifests', basename(folder), 'manifest.json')
      const manifest = await readFile(file, 'utf8').then(
        text => JSON.parse(text) as { sha256?: string },
        () => undefined,
      )
      if (manifest?.sha256) manifests++
    }
    const verified = await step('Reading every archive back', () =>
      run(process.execPath, [...nodeArgs('archiver/cli.ts'), 'verify', '--all'], {
        cwd: repository,
        env: { ...plainEnv(), ...store.archiverEnv() },
      }).then(
        () => 'every byte and row as proven',
        (error: { stdout: string; stderr: string }) => (error.stdout || error.stderr).trim(),
      ),
    )
    const refused = await admin`drop table fleet.${admin(await someActive(store))}`.then(
      () => 'dropped',
      (error: unknown) => (error instanceof postgres.PostgresError ? 'refused' : String(error)),
    )
    const second = await countNight(store, owner, tomorrow)
    const other = postgres(cluster.url('fleet_owner', 'fleet'), { max: 1, onnotice: () => {} })
    // Connects first, so that one run does not end while the other session logs in.
    await other`select`
    const both = await Promise.all(
      [owner, other].map(sql =>
        sql`call fleet.nightly(null, null, ${tomorrow})`.then(
          () => 'ran',
          (error: unknown) => (error instanceof postgres.PostgresError && error.code === 'FL003' ? 'refused' : String(error)),
        ),
      ),
    )
    await other.end({ timeout: 1 })
    const [left] = await admin<{ oldest: number }[]>`
      select (extract(epoch from date_trunc('day', now(), 'UTC') - min(range_start)) / 86400)::float8 as oldest from fleet.attached_partitions()
    `
    return [
      equal(
        '000 A',
        'a nightly run creates the next partition',
        Math.round((made!.last.getTime() - premade!.last.getTime()) / DAY_MS),
        1,
        { note: "Days added by tomorrow's run" },
      ),
      atLeast('000 1', 'partitions ahead', made!.ahead, 14, 'days'),
      atLeast('000 A', 'old partitions retired', detached.length, expired, 'partitions'),
      equal(
        '000 A',
        'of those with rows: archived, proven, dropped',
        after.filter(({ state }) => state === 'dropped').length,
        before.length,
      ),
      equal('000 A', 'their manifests exist', manifests, before.length),
      equal('002 4', 'archives read back: SHA-256 and content', verified, 'every byte and row as proven'),
      equal('000 D', `archiver killed at step ${cut.step}: the day stays, in state`, partial.state, 'archiving'),
      equal(
        '000 D',
        'its rows are still in the database',
        partial.rows,
        before.find(({ partition_name }) => partition_name === cut.partition_name)?.row_count ?? '0',
      ),
      equal('000 D', 'days that the archive holds completely after the next nightly run', same.length, before.length, {
        note: 'The lease of the dead archiver was ended at once instead of after 5 minutes',
      }),
      equal('000 D', 'DROP TABLE of a partition without an archive, by a superuser', refused, 'refused'),
      equal('002 5', 'a second nightly run creates and retires nothing', second, 0),
      equal('002 5', 'two nightly runs at the same time', both.toSorted().join(', '), 'ran, refused'),
      atMost('001', 'storage stays flat: the oldest day online is', left!.oldest, 91, 'days old', { note: 'Retention 90 days' }),
    ]
  } finally {
    await owner.end({ timeout: 1 })
  }
}

/** Test D: kills an archiver in the middle of a day. If it had already finished that day, the next day is tried. */
async function killWithin(store: RunStore) {
  const { admin } = store
  for (let tried = 1; ; tried++) {
    const archiver = startProgram('archiver/main.ts', { env: store.archiverEnv() })
    let cut: { partition_name: string; step: string } | undefined
    await waitFor(
      async () => {
        ;[cut] = await admin<NonNullable<typeof cut>[]>`
        select partition_name, step from fleet.hb_partitions where state = 'archiving' and step is not null limit 1
      `
        return cut !== undefined
      },
      { timeoutMs: 60_000, what: () => `an archiver to begin:\n${archiver.output()}` },
    ).finally(() => archiver.kill('SIGKILL'))
    await archiver.exited
    await admin`select pg_terminate_backend(pid, 10000) from pg_stat_activity where usename = 'fleet_archiver'`
    const [partial] = await admin<{ state: string; rows: string | null }[]>`
      select p.state, case when p.relid is not null then (select c.row_count::text from fleet.count_rows(p.relid::regclass) c) end as rows
      from fleet.hb_partitions p where p.partition_name = ${cut!.partition_name}
    `
    await admin`update fleet.hb_partitions set lease_until = now() - interval '1 second' where lease_until is not null`
    if (partial!.state === 'archiving' || tried === 3)
      return { cut: cut!, partial: { state: partial!.state, rows: partial!.rows ?? 'none' } }
  }
}

async function someActive({ admin }: RunStore) {
  const [row] = await admin<{ name: string }[]>`
    select partition_name as name from fleet.hb_partitions where state = 'active' and range_end < now() order by range_start desc limit 1
  `
  return row!.name
}

async function countNight({ admin }: RunStore, owner: postgres.Sql, now: Date) {
  const count = async () => {
    const [row] = await admin<{ events: number }[]>`
      select count(*)::float8 as events from fleet.events where event in ('partition.create', 'partition.detach')
    `
    return row!.events
  }
  const before = await count()
  await owner`call fleet.nightly(null, null, ${now})`
  return (await count()) - before
}
