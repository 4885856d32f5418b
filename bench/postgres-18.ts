// Measures what PostgreSQL 18 gives this store: asynchronous reads for the scan of an archive, skip scan for a question about all
// devices at once, and uuidv7() against the numbers that identify rows here.
import { writeFile } from 'node:fs/promises'
import type { Sql } from 'postgres'
import { say, step } from '../lib/progress.ts'
import { UsageError } from '../lib/errors.ts'
import { requirePostgres } from '../local/packages.ts'
import { copyOfRows } from '../archiver/archive/rows-csv.ts'
import type { Column } from '../archiver/archive/parquet.ts'
import { arrange, HEARTBEATS_A_DAY, loadDay, run } from './archive.ts'
import { median, type Figure } from './figure.ts'
import { readOptions } from './options.ts'
import { withStore, type Store } from './store.ts'

const options = {
  rows: { otherwise: 2_880_000, what: 'heartbeats in the day' },
  rounds: { otherwise: 5, what: 'number of rounds' },
} as const

/** How Postgres 18 reads: as all versions before, by its own workers (the default), or by the kernel's queue. */
const METHODS = ['sync', 'worker', 'io_uring']
/** Rows that are inserted to compare keys. */
const KEYS = 500_000

/** Needs PostgreSQL 18, and root to empty the kernel's cache of files. */
export async function benchPostgres18(args: string[]): Promise<Figure[]> {
  const given = readOptions('bench -- postgres-18', args, options)
  const { major } = await requirePostgres()
  if (major < 18) throw new UsageError(`postgres-18 needs PostgreSQL 18 or newer, and the newest here is ${major}`)
  return withStore(async store => {
    // The job would settle the day.
    await store.admin`update cron.job set schedule = '0 0 1 1 *'`
    const devices = Math.ceil(given.rows / HEARTBEATS_A_DAY)
    const partition = await step(`Loading a day of ${devices} devices`, () => loadDay(store.admin, devices))
    return [
      ...(await measureReads(store, partition, given.rounds)),
      ...(await measureWindow(store.admin, partition, given.rounds)),
      ...(await measureKeys(store.admin, given.rounds)),
    ]
  })
}

/** The COPY of an archive, from a disk whose pages nobody has read before. */
async function measureReads({ cluster, admin }: Store, partition: string, rounds: number): Promise<Figure[]> {
  const url = cluster.url('postgres', 'fleet')
  const methods = await availableMethods(admin)
  const figures: Figure[] = []
  for (const settled of [false, true]) {
    await arrange(admin, partition, settled)
    const columns = await admin<
      Column[]
    >`select name, type from fleet.archive_columns(${`fleet.${partition}`}::regclass) order by position`
    const copy = `set max_parallel_workers_per_gather = 0; ${copyOfRows(`fleet.${partition}`, columns)}`
    const took = new Map<string, number[]>(methods.map(method => [method, []]))
    for (let round = 1; round <= rounds; round++) {
      for (const method of methods) {
        await admin.unsafe(`alter system set io_method = ${method}`)
        await cluster.stop()
        await writeFile('/proc/sys/vm/drop_caches', '3')
        await cluster.start()
        const { seconds } = await run('sh', ['-c', '"$PSQL" -qX "$PGURL" -c "$COPY" > /dev/null'], {
          PGURL: url,
          PSQL: cluster.program('psql'),
          COPY: copy,
        })
        took.get(method)!.push(seconds)
      }
      say(`round ${round}: ${methods.map(method => `${method} ${took.get(method)!.at(-1)!.toFixed(2)} s`).join(', ')}`)
    }
    const what = settled ? 'settled' : 'as it arrived'
    for (const method of methods) {
      figures.push({ name: `COPY of a day ${what}, ${method}`, measured: median(took.get(method)!), unit: 's' })
      if (method === 'sync') continue
      const ratios = took.get('sync')!.map((seconds, round) => seconds / took.get(method)![round]!)
      figures.push({ name: `sync / ${method}, ${what}, in s`, measured: median(ratios), unit: '' })
    }
  }
  return figures
}

/** The methods that this Postgres was built with. */
async function availableMethods(admin: Sql) {
  const [found] = await admin<{ enumvals: string[] }[]>`select enumvals from pg_settings where name = 'io_method'`
  return METHODS.filter(method => found!.enumvals.includes(method))
}

/** Five minutes of all devices, by the index on (device_id, ts), which Postgres 18 can read without a device. */
async function measureWindow(admin: Sql, partition: string, rounds: number): Promise<Figure[]> {
  const question = `
    select count(*) from fleet.${partition}
    where ts >= date_trunc('day', now(), 'UTC') - interval '10 days' + interval '12 hours'
      and ts < date_trunc('day', now(), 'UTC') - interval '10 days' + interval '12 hours 5 minutes'`
  const [skip, scan, forced]: [number[], number[], number[]] = [[], [], []]
  let plan = ''
  await admin.unsafe(`vacuum (analyze) fleet.${partition}`)
  for (let round = 1; round <= rounds; round++) {
    const chosen = await explain(admin, question)
    plan = chosen.node
    skip.push(chosen.ms)
    scan.push(
      (
        await explain(
          admin,
          question,
          'set local enable_indexscan = off; set local enable_indexonlyscan = off; set local enable_bitmapscan = off',
        )
      ).ms,
    )
    forced.push((await explain(admin, question, 'set local enable_seqscan = off')).ms)
  }
  say(`five minutes of all devices: Postgres chose ${plan}`)
  return [
    { name: 'five minutes of all devices, as planned', measured: median(skip), unit: 'ms' },
    { name: 'five minutes of all devices, whole table', measured: median(scan), unit: 'ms' },
    { name: 'five minutes of all devices, by the index', measured: median(forced), unit: 'ms' },
    { name: 'whole table / as planned', measured: median(scan.map((ms, round) => ms / skip[round]!)), unit: '' },
  ]
}

/** The time of a query and the scan that it used. */
async function explain(admin: Sql, query: string, settings = '') {
  return admin.begin(async sql => {
    if (settings) await sql.unsafe(settings)
    const [row] = await sql.unsafe<{ 'QUERY PLAN': [{ Plan: PlanNode; 'Execution Time': number }] }[]>(
      `explain (analyze, timing off, format json) ${query}`,
    )
    const [explained] = row!['QUERY PLAN']
    return { ms: explained['Execution Time'], node: scanOf(explained.Plan) }
  })
}

interface PlanNode {
  'Node Type': string
  'Index Searches'?: number
  Plans?: PlanNode[]
}

function scanOf(node: PlanNode): string {
  const below = node.Plans?.map(scanOf) ?? []
  if (below.length > 0) return below.join(', ')
  return node['Index Searches'] === undefined ? node['Node Type'] : `${node['Node Type']} with ${node['Index Searches']} searches`
}

/** Rows with a key that counts up, as the tables here have, and with uuidv7() and a random uuid. */
async function measureKeys(admin: Sql, rounds: number): Promise<Figure[]> {
  const keys = {
    bigint: 'bigint generated always as identity',
    uuidv7: 'uuid default uuidv7()',
    random: 'uuid default gen_random_uuid()',
  }
  const took = new Map<string, number[]>(Object.keys(keys).map(key => [key, []]))
  const bytes = new Map<string, number>()
  for (let round = 1; round <= rounds; round++) {
    for (const [key, type] of Object.entries(keys)) {
      await admin.unsafe(`drop table if exists public.keyed; create table public.keyed (id ${type} primary key, at timestamptz)`)
      await admin`checkpoint`
      const started = performance.now()
      await admin.unsafe(`insert into public.keyed (at) select now() from generate_series(1, ${KEYS})`)
      took.get(key)!.push(performance.now() - started)
      const [size] = await admin<{ bytes: number }[]>`select pg_total_relation_size('public.keyed')::float8 as bytes`
      bytes.set(key, size!.bytes / KEYS)
    }
  }
  const names = { bigint: 'an identity column', uuidv7: 'uuidv7()', random: 'gen_random_uuid()' } as const
  return Object.entries(names).flatMap(([key, name]) => [
    { name: `insert with ${name}`, measured: (median(took.get(key)!) * 1000) / KEYS, unit: 'µs/row' },
    { name: `a row with ${name} and its index`, measured: bytes.get(key)!, unit: 'bytes' },
  ])
}
