/*
 * Measures what a row costs when there are more rows: ingest, reads, a nightly run and an archive at different numbers of rows
 * online, spread over 90 days. Each size has a cluster of its own, and they take turns. A device sends as often at each size;
 * there are more devices. Then it measures how long the planner takes with more partitions.
 *
 * ingest: the writer's statement, in batches of 500 heartbeats of the same devices, sent straight to Postgres
 * status: fleet.device_status of one device
 * day: a device's heartbeats of one of the last seven days, which lie as they arrived, and how much was read from the disk
 * settled: the same of an older day, which is settled
 * night: fleet.nightly() with one day to retire, per row of that day
 * archive: from partition.archive.start to partition.drop of that day, per row
 */
import { mkdtemp, rm, statfs, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import postgres, { type Sql } from 'postgres'
import { say, step } from '../lib/progress.ts'
import { atMost, median, type Figure } from './figure.ts'
import { fillDays } from './load-history.ts'
import { UsageError } from '../lib/errors.ts'
import { readOptions } from './options.ts'
import { clientsOf, pgbench } from './pgbench.ts'
import { plot } from './plot.ts'
import { diskReads } from './processes.ts'
import { enroll, startProgram, withStore, type Store } from './store.ts'

const DAYS = 90
const DAY_MS = 86_400_000
/** The size of a row with its index entries, as measured and rounded up. */
const BYTES_A_ROW = 250
/** The cost of a row at the largest size may be at most this multiple of the cost at the smallest. */
const MOST = 1.1
/** The same for a settled day of a device. */
const MOST_SETTLED = 1.05

const options = {
  sizes: { otherwise: [1_000_000, 10_000_000, 100_000_000], what: 'rows online' },
  beats: { otherwise: 111, what: 'heartbeats of a device per day' },
  rounds: { otherwise: 3, what: 'number of rounds' },
  seconds: { otherwise: 10, what: 'seconds of each ingest measurement' },
  partitions: { otherwise: [105, 400], what: 'numbers of partitions for the planner' },
  plot: { otherwise: 'docs/growth.svg', what: 'file for the plot' },
} as const

const names = {
  ingest: 'ingest',
  status: 'status of a device',
  day: 'a day of a device',
  settled: 'a settled day of a device',
  night: 'nightly run',
  archive: 'archive',
}
type Kind = keyof typeof names
const kinds = Object.keys(names) as Kind[]

interface Site {
  admin: Sql
  owner: Sql
  /** The devices that have a history. */
  ids: number[]
  straight: ReturnType<typeof pgbench>
  archive: () => Promise<void>
}

export async function benchGrowth(args: string[]): Promise<Figure[]> {
  const given = readOptions('bench -- growth', args, options)
  const sizes = [...given.sizes].sort((a, b) => a - b)
  if (given.rounds > DAYS / 2) throw new UsageError('--rounds must be at most 45, because each round retires days')
  const { bavail, bsize } = await statfs(tmpdir())
  const all = sizes.reduce((sum, size) => sum + size, 0)
  if (bavail * bsize < all * BYTES_A_ROW) {
    throw new Error(
      `${tmpdir()} has ${Math.round((bavail * bsize) / 1e9)} GB free; ${all.toLocaleString('en')} rows may need ${Math.round((all * BYTES_A_ROW) / 1e9)} GB`,
    )
  }
  return withStores(sizes.length, async stores => {
    const sites: Site[] = []
    const directory = await mkdtemp(join(tmpdir(), 'fleet-growth-'))
    try {
      for (const [n, store] of stores.entries())
        sites.push(await fill(store, sizes[n]!, given.beats, join(directory, `archive-${n}`)))
      const costs = sites.map(() => Object.fromEntries(kinds.map(kind => [kind, [] as number[]])) as Record<Kind, number[]>)
      const fromDisk = sites.map(() => ({ day: [] as number[], settled: [] as number[] }))
      for (let round = 1; round <= given.rounds; round++) {
        // All sizes take their turn at one kind before the next kind begins. Another size is first in each round.
        const turns = sites.map((_, n) => (n + round) % sites.length)
        for (const n of turns) costs[n]!.ingest.push(1e6 / (await sites[n]!.straight(500, given.seconds)).perSecond)
        for (const n of turns) costs[n]!.status.push(await readStatus(sites[n]!, round))
        for (const kind of ['day', 'settled'] as const)
          for (const n of turns) {
            const { us, bytes } = await readDays(sites[n]!, round, kind)
            costs[n]![kind].push(us)
            fromDisk[n]![kind].push(bytes)
          }
        for (const n of turns) {
          const { night, archive } = await oneNight(sites[n]!, round)
          costs[n]!.night.push(night)
          costs[n]!.archive.push(archive)
        }
        say(
          `round ${round} of ${given.rounds}: ${kinds.map(kind => `${kind} ${costs.map(cost => cost[kind].at(-1)!.toFixed(2)).join(', ')}`).join('; ')} µs/row`,
        )
      }
      const planning: Figure[] = []
      for (const count of given.partitions) planning.push(...(await plan(sites[0]!.admin, count)))
      await writeFile(
        resolve(given.plot),
        plot({
          title: 'Cost of a row by rows online',
          x: 'rows online',
          y: 'µs a row',
          isLogarithmic: true,
          series: kinds.map(kind => ({
            name: names[kind],
            points: sizes.map((size, n) => [size, median(costs[n]![kind])] as [number, number]),
          })),
        }),
      )
      const [first, last] = [costs[0]!, costs.at(-1)!]
      return [
        ...sizes.flatMap((size, n) =>
          kinds.map((kind): Figure => ({
            name: `${size.toLocaleString('en')} rows online: ${names[kind]}`,
            measured: median(costs[n]![kind]),
            unit: 'µs/row',
          })),
        ),
        ...sizes.flatMap((size, n) =>
          (['day', 'settled'] as const).map(kind => ({
            name: `${size.toLocaleString('en')} rows online: read from the disk for ${names[kind]}`,
            measured: median(fromDisk[n]![kind]),
            unit: 'bytes/row',
          })),
        ),
        ...(first === last
          ? []
          : kinds.map((kind): Figure => ({
              name: `${names[kind]}: a row at ${sizes.at(-1)!.toLocaleString('en')} / at ${sizes[0]!.toLocaleString('en')}`,
              measured: median(last[kind].map((cost, n) => cost / first[kind][n]!)),
              unit: '',
              target: atMost(kind === 'settled' ? MOST_SETTLED : MOST),
            }))),
        ...planning,
      ]
    } finally {
      await Promise.all(sites.map(({ owner }) => owner.end({ timeout: 1 })))
      await rm(directory, { recursive: true, force: true })
    }
  })
}

function withStores<T>(count: number, work: (stores: Store[]) => Promise<T>, stores: Store[] = []): Promise<T> {
  return stores.length === count ? work(stores) : withStore(store => withStores(count, work, [...stores, store]))
}

/** Fills a store with `size` rows over 90 days, from as many devices as that takes. */
async function fill(store: Store, size: number, beats: number, archive: string): Promise<Site> {
  const { admin, cluster } = store
  const owner = postgres(cluster.url('fleet_owner', 'fleet'), { max: 1, onnotice: () => {} })
  const own = (await enroll(store, 1_000, 'ingest')).map(({ device_id }) => device_id)
  const straight = pgbench(store, clientsOf(store, own, 2))
  const ids = (await enroll(store, Math.max(1, Math.round(size / DAYS / beats)), 'history')).map(({ device_id }) => device_id)
  const site: Site = { admin, owner, ids, straight, archive: () => archiveAll(archive, cluster.url('fleet_archiver', 'fleet')) }
  const today = Math.floor(Date.now() / DAY_MS) * DAY_MS
  const days = await admin<{ partition_name: string; range_start: Date }[]>`
    select partition_name, range_start from fleet.attached_partitions()
    where range_start >= ${new Date(today - DAYS * DAY_MS)} and range_end <= ${new Date(today)} order by range_start
  `
  await fillDays(admin, ids, days, beats, 2)
  await step('Settling the days of which no heartbeat can come any more', async () => {
    for (const { partition_name } of await admin<{ partition_name: string }[]>`
      select partition_name from fleet.settle_plan() where action in ('settle', 'too_large')
    `)
      await admin`select fleet.settle_partition(${partition_name})`
  })
  // The nights that are measured lie in the future. They would settle the day into which ingest goes.
  await admin`update fleet.settings set settle = false`
  await step('VACUUM (ANALYZE), and a first nightly run', async () => {
    await admin.unsafe('vacuum (analyze) fleet.device_heartbeats')
    // It rolls up everything that is new. Each nightly run that is measured has one day.
    await owner`call fleet.nightly()`
    await site.archive()
    await admin`checkpoint`
  })
  return site
}

async function archiveAll(directory: string, url: string) {
  const archiver = startProgram('archiver/main.ts', {
    args: ['--once'],
    env: { ARCHIVER_DATABASE_URL: url, ARCHIVE_URL: pathToFileURL(directory).href },
  })
  await archiver.exited
  if (/"level":"(error|fatal)"/.test(archiver.output())) throw new Error(`the archiver failed:\n${archiver.output()}`)
}

/** Measures the status of many devices in turn. Returns the median in µs. */
async function readStatus({ admin, ids }: Site, round: number) {
  const times: number[] = []
  for (let turn = 0; turn < 500; turn++) {
    const started = performance.now()
    await admin`select * from fleet.device_status where device_id = ${ids[(turn * 37 + round * 11) % ids.length]!}`
    times.push(1000 * (performance.now() - started))
  }
  return median(times)
}

/**
 * Reads days of many devices in turn, each of them for the first time. Returns the median in µs per row, and the bytes per row
 * that came from the disk.
 */
async function readDays({ admin, ids }: Site, round: number, kind: 'day' | 'settled') {
  // Yesterday and the five days before it lie as they arrived. Those from the tenth on are settled, and the last are retired here.
  const [first, count] = kind === 'day' ? [1, 6] : [10, 34]
  const times: number[] = []
  let rows = 0
  const bytes = await diskReads()
  for (let turn = 0; turn < 200; turn++) {
    const id = ids[(turn * 37 + round * 11) % ids.length]!
    const from = new Date(Math.floor(Date.now() / DAY_MS) * DAY_MS - (first + (turn % count)) * DAY_MS)
    const started = performance.now()
    const found = await admin`
      select * from fleet.device_heartbeats
      where device_id = ${id} and ts >= ${from} and ts < ${from}::timestamptz + interval '1 day' order by ts desc
    `
    if (found.length > 0) times.push((1000 * (performance.now() - started)) / found.length)
    rows += found.length
  }
  return { us: median(times), bytes: (await bytes()) / rows }
}

/**
 * Makes the nightly run of `night` days from now, which retires a day, and the archive of that day. Returns µs per row of that
 * day for both.
 */
async function oneNight({ admin, owner, archive }: Site, night: number) {
  const started = performance.now()
  await owner`call fleet.nightly(null, null, ${new Date(Date.now() + night * DAY_MS)})`
  const took = 1000 * (performance.now() - started)
  const [day] = await admin<{ partition_name: string }[]>`
    select partition_name from fleet.hb_partitions where state = 'detached' order by range_start desc limit 1
  `
  if (!day) throw new Error(`nightly run ${night} retired no day`)
  await archive()
  const [done] = await admin<{ rows: number; us: number }[]>`
    select p.row_count::float8 as rows,
      1e6 * extract(epoch from max(e.at) filter (where e.event = 'partition.drop') - max(e.at) filter (where e.event = 'partition.archive.start'))::float8 as us
    from fleet.hb_partitions p
    join fleet.events e using (partition_name)
    where p.partition_name = ${day.partition_name}
    group by p.row_count
  `
  if (!done?.rows || !done.us) throw new Error(`${day.partition_name} was not archived with rows in it`)
  return { night: took / done.rows, archive: done.us / done.rows }
}

/**
 * Measures the planning of a device's day, of a day's count, and of a device's newest heartbeat without a range of `ts`, with
 * `count` partitions attached.
 */
async function plan(admin: Sql, count: number): Promise<Figure[]> {
  await admin`select fleet.set_retention(${`${count + 30} days`}::interval)`
  // Days that were archived are not created again, so days before them are.
  const attached = async () =>
    (
      await admin<{ count: number; first: Date }[]>`
    select count(*)::integer as count, min(range_start) as first from fleet.attached_partitions()
  `
    )[0]!
  let now = await attached()
  for (let before = now.first; now.count < count;) {
    const until = new Date(before.getTime() - DAY_MS)
    before = new Date(before.getTime() - (count - now.count) * DAY_MS)
    await admin`select fleet.create_partitions((${before}::timestamptz at time zone 'UTC')::date, (${until}::timestamptz at time zone 'UTC')::date)`
    now = await attached()
  }
  const planned = async (query: string) => {
    const times: number[] = []
    for (let turn = 0; turn < 50; turn++) {
      const [row] = await admin.unsafe<{ 'QUERY PLAN': { 'Planning Time': number }[] }[]>(
        `explain (format json, summary) ${query}`,
      )
      times.push(row!['QUERY PLAN'][0]!['Planning Time'])
    }
    return median(times)
  }
  const day = new Date(Date.now() - 5 * DAY_MS).toISOString()
  return [
    {
      name: `planning a device's day, ${now.count} partitions`,
      measured: await planned(
        `select * from fleet.device_heartbeats where device_id = 1 and ts >= '${day}' and ts < '${day}'::timestamptz + interval '1 day'`,
      ),
      unit: 'ms',
    },
    {
      name: `planning a day's count, ${now.count} partitions`,
      measured: await planned(
        `select count(*) from fleet.device_heartbeats where ts >= '${day}'::timestamptz and ts < timestamptz '${day}' + interval '1 day'`,
      ),
      unit: 'ms',
    },
    {
      name: `planning without a range of ts, ${now.count} partitions`,
      measured: await planned('select * from fleet.device_heartbeats where device_id = 1 order by ts desc limit 1'),
      unit: 'ms',
    },
  ]
}
