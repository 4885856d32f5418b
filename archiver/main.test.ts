import { createHash } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { DuckDBInstance } from '@duckdb/node-api'
import t, { type Test } from 'tap'
import { spawnNode, waitFor, withDatabase, type TestDatabase } from '../testing/database.ts'
import type { Manifest } from './archive/manifest.ts'
import {
  archiverEnv,
  daysAgo,
  eventsOf,
  fillAwkwardDay,
  fillDay,
  leftovers,
  makeDirectory,
  partitionOf,
  pathsOf,
  retiredDay as day,
  runOnce,
  stateOf,
  stepsOf,
  withRetiredDay,
} from '../testing/archiver.ts'

async function startArchiver(t: Test, db: TestDatabase, directory: string, ...args: string[]) {
  return await spawnNode(t, 'archiver/main.ts', { args, env: archiverEnv(db, directory), ready: /archiver\.ready/ })
}

t.test('partitions past a new retention are detached, archived, proven and dropped, in that order', async t => {
  const db = await withDatabase(t)
  await fillDay(db.admin, day, 5000)
  await fillAwkwardDay(db.admin, daysAgo(65))
  await fillDay(db.admin, daysAgo(10), 1000)
  const rows = await db.admin`
    select device_id, ts::text from fleet.device_heartbeats where ts < ${daysAgo(60)}::date order by 1, 2`.values()
  const directory = await makeDirectory(t)
  const partition = await partitionOf(db.sql, day)

  await db.sql`select fleet.set_retention('60 days')`
  await db.sql`call fleet.nightly()`
  t.match(await stateOf(db.sql, partition), { state: 'detached' })
  const { code, output, events } = await runOnce(t, db, directory)
  t.equal(code, 0, output)

  t.same(await stepsOf(db.sql, partition), [
    'partition.detach',
    'partition.archive.start',
    'partition.archive.end',
    'partition.drop',
  ])
  t.same(
    events.filter(line => line.partition === partition).map(line => line.event),
    ['partition.archive.start', 'partition.archive.end', 'partition.drop'],
  )
  const state = await stateOf(db.sql, partition)
  t.match(state, { state: 'dropped', row_count: '5000', relid: null })
  const [left] =
    await db.admin`select count(*)::int as count from pg_class where relnamespace = 'fleet_detached'::regnamespace and relkind = 'r'`
  t.same(left, { count: 0 }, 'no retired table is left')
  const [online] = await db.sql`select count(*)::int as count from fleet.device_heartbeats`
  t.same(online, { count: 1000 }, 'days within the retention stay')

  const parquet = await readFile(pathsOf(directory).parquet)
  const sha256 = createHash('sha256').update(parquet).digest('hex')
  const manifest = JSON.parse(await readFile(pathsOf(directory).manifest, 'utf8')) as Manifest
  t.match(manifest, {
    format_version: 4,
    partition,
    range_start: `${day}T00:00:00.000000Z`,
    row_count: 5000,
    bytes: parquet.length,
    sha256,
    rows_sha256: state.rows_sha256 as string,
  })
  t.equal(state.checksum_sha256, sha256)
  t.equal(state.archive_bytes, String(parquet.length))
  t.equal(fileURLToPath(state.archive_url as string), pathsOf(directory).parquet)

  const index = JSON.parse(await readFile(join(directory, 'archive/index.json'), 'utf8')) as {
    archives: unknown[]
  }
  const [archives] = await db.sql`select count(*)::int as count from fleet.archives`
  t.equal(index.archives.length, archives?.count)

  const duckdb = await (await DuckDBInstance.create()).connect()
  await duckdb.run(`set TimeZone = 'UTC'`)
  const found = await duckdb.runAndReadAll(`
    select device_id::varchar, ts::varchar from read_parquet('${directory}/archive/device_heartbeats/*/*.parquet') order by device_id, epoch_us(ts)`)
  t.same(
    found.getRows(),
    rows.map(row => Array.from<unknown>(row)),
    'DuckDB reads the same rows from all the archives',
  )
  duckdb.closeSync()

  t.same(await leftovers(directory), [], 'no temporary file is left')
})

t.test('a notification wakes a waiting archiver', async t => {
  const { db, directory, partition } = await withRetiredDay(t)
  const archiver = await startArchiver(t, db, directory)
  await waitFor(async () => (await stateOf(db.sql, partition)).state === 'dropped')
  const second = daysAgo(72)
  await fillDay(db.admin, second, 10)
  const asked = Date.now()
  await db.sql`select fleet.archive_partition(${await partitionOf(db.sql, second)})`
  await waitFor(async () => (await stateOf(db.sql, await partitionOf(db.sql, second))).state === 'dropped')
  t.ok(Date.now() - asked < 5000, 'within 5 s')
  const [seen] =
    await db.admin`select count(*)::int as count from fleet.archivers where last_seen_at > now() - interval '1 minute'`
  t.same(seen, { count: 1 }, 'it reports to the database')
  t.same(await archiver.stop('SIGTERM'), { code: 0, signal: null })
  t.same(await leftovers(directory), [])
})

t.test('SIGTERM gives the partition back, and the next run continues', async t => {
  const { db, directory, partition } = await withRetiredDay(t)
  await db.admin.begin(async blocking => {
    // Every reader of the table waits for this lock.
    await blocking`lock table fleet_detached.${blocking(partition)} in access exclusive mode`
    const archiver = await spawnNode(t, 'archiver/main.ts', { env: archiverEnv(db, directory) })
    await waitFor(
      async () =>
        (
          await db.admin`
      select from pg_stat_activity where datname = current_database() and usename = 'fleet_archiver' and wait_event_type = 'Lock'`
        ).length > 0,
    )
    t.same(await archiver.stop('SIGTERM'), { code: 0, signal: null })
  })
  t.match(await stateOf(db.sql, partition), { state: 'detached', lease_owner: null, attempts: 0 })
  t.same(await leftovers(directory), [])
  t.equal((await runOnce(t, db, directory)).code, 0)
  t.match(await stateOf(db.sql, partition), { state: 'dropped' })
})

t.test('two archivers share the work, and never the same partition', async t => {
  const db = await withDatabase(t)
  for (let days = 62; days < 75; days++) await fillDay(db.admin, daysAgo(days), 20_000)
  const directory = await makeDirectory(t)
  await db.sql`select fleet.set_retention('60 days')`
  await db.sql`call fleet.nightly()`
  const runs = await Promise.all([runOnce(t, db, directory), runOnce(t, db, directory)])
  t.same(
    runs.map(run => run.code),
    [0, 0],
  )
  const dropped = runs.map(run => run.events.filter(line => line.event === 'partition.drop').map(line => line.partition))
  t.ok(
    dropped.every(list => list.length > 0),
    'both did some of the work',
  )
  const [events] = await db.sql`
    select count(*)::int as count, count(distinct partition_name)::int as partitions from fleet.events where event = 'partition.archive.start'`
  t.equal(events?.count, events?.partitions, 'each was begun once')
  const [left] =
    await db.sql`select count(*)::int as count from fleet.hb_partitions where state in ('detached', 'archiving', 'archived', 'archive_failed')`
  t.same(left, { count: 0 })
  const index = JSON.parse(await readFile(join(directory, 'archive/index.json'), 'utf8')) as {
    archives: unknown[]
  }
  t.equal(index.archives.length, events?.partitions)
})

t.test('it reports what is wrong with its settings and with the database', async t => {
  const wrong = await spawnNode(t, 'archiver/main.ts', { env: { ARCHIVE_URL: '/somewhere', LOG_LEVEL: 'loud' } })
  t.equal((await wrong.exited).code, 2)
  for (const name of ['ARCHIVE_URL', 'LOG_LEVEL', 'ARCHIVER_DATABASE_URL']) t.match(wrong.output(), name)
  const usage = await spawnNode(t, 'archiver/main.ts', { args: ['--twice'] })
  t.equal((await usage.exited).code, 2)
  t.match(usage.output(), /usage: npm run archiver/)
  const directory = await makeDirectory(t)
  const nowhere = await spawnNode(t, 'archiver/main.ts', {
    args: ['--once'],
    env: { ARCHIVER_DATABASE_URL: 'postgres://fleet_archiver@127.0.0.1:1/none', ARCHIVE_URL: `file://${directory}/archive` },
  })
  t.equal((await nowhere.exited).code, 1)
  t.match(
    eventsOf(nowhere.output()).find(line => line.event === 'archiver.failed'),
    { error: { message: /ECONNREFUSED/ } },
  )
})
