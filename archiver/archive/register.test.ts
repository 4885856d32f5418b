import { cp, readFile, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import t from 'tap'
import { withDatabase, withPlainDatabase } from '../../testing/database.ts'
import {
  daysAgo,
  fillAwkwardDay,
  fillDay,
  makeDirectory,
  partitionOf,
  pathsOf,
  runCli,
  runOnce,
  stateOf,
  withWorker,
  workAll,
} from '../../testing/archiver.ts'
import { contentOf } from '../../testing/rows.ts'
import type { Manifest } from './manifest.ts'
import { registerArchives } from './register.ts'
import { listArchives, verifyArchive } from './verify.ts'
import { repository } from '../../lib/repository.ts'

t.test('a new database takes over the archive of a lost one, and brings its days back row for row', async t => {
  const lost = await withDatabase(t)
  const directory = await makeDirectory(t)
  // One day beyond the retention, for which a new database has no partition, and two for which it has empty partitions.
  const days = [200, 80, 70].map(daysAgo)
  await lost.sql`select fleet.create_partitions(${days[0]!}::date, ${days[0]!}::date)`
  await fillDay(lost.admin, days[0]!, 2000)
  await fillDay(lost.admin, days[1]!, 2000)
  await fillAwkwardDay(lost.admin, days[2]!)
  const partitions = await Promise.all(days.map(day => partitionOf(lost.sql, day)))
  for (const partition of partitions) await lost.sql`select fleet.archive_partition(${partition})`
  t.equal((await runOnce(t, lost, directory)).code, 0)
  const before = await lost.sql`select * from fleet.archives`

  const db = await withPlainDatabase(t)
  const { code, output } = await runCli(t, db, directory, 'register')
  t.equal(code, 0, output)
  t.match(output, /^3 registered, 0 known before$/m)
  const forget = (rows: readonly object[]) => rows.map(row => ({ ...row, proven_at: null }))
  t.same(forget(await db.sql`select * from fleet.archives`), forget(before), 'it knows everything that the lost one knew')
  const again = await runCli(t, db, directory, 'adopt')
  t.match(again.output, /^adopt is now called register/m, 'the former name still works')
  t.match(again.output, /^0 registered, 3 known before$/m)
  t.equal((await runCli(t, db, directory, 'verify', '--all')).code, 0)
  t.match(await db.sql`select * from fleet.check() where status = 'fail'`, [])

  for (const day of days) await db.sql`select fleet.request_restore(${day}::date)`
  await workAll(t, db, directory)
  for (const [n, partition] of partitions.entries()) {
    t.match(await stateOf(db.sql, partition), { state: 'restored' })
    t.match(before[n], await contentOf(db.admin, `fleet.${partition}`), `${days[n]} is back`)
  }
})

t.test('a manifest that is not in its own place is reported and not registered', async t => {
  const lost = await withDatabase(t)
  const directory = await makeDirectory(t)
  const [own, other] = [daysAgo(80), daysAgo(70)]
  await fillDay(lost.admin, own, 100)
  await lost.sql`select fleet.archive_partition(${await partitionOf(lost.sql, own)})`
  t.equal((await runOnce(t, lost, directory)).code, 0)
  await cp(dirname(pathsOf(directory, own).manifest), dirname(pathsOf(directory, other).manifest), { recursive: true })
  const { output } = await runCli(t, await withPlainDatabase(t), directory, 'register')
  t.match(output, /^1 registered, 0 known before; 1 not registered$/m)
  t.match(output, new RegExp(`date=${other}/manifest.json: the manifest is for ${own}`))
})

t.test('archives that are damaged, or whose day is online with rows, are reported and not registered', async t => {
  const lost = await withDatabase(t)
  const directory = await makeDirectory(t)
  const days = [80, 75, 70].map(daysAgo) as [string, string, string]
  for (const day of days) {
    await fillDay(lost.admin, day, 500)
    await lost.sql`select fleet.archive_partition(${await partitionOf(lost.sql, day)})`
  }
  t.equal((await runOnce(t, lost, directory)).code, 0)

  const db = await withPlainDatabase(t)
  await fillDay(db.admin, days[1], 300)
  const { parquet } = pathsOf(directory, days[0])
  const whole = await makeDirectory(t)
  await cp(parquet, `${whole}/copy`)
  const bytes = await readFile(parquet)
  bytes[bytes.length >> 1]! ^= 1
  await writeFile(parquet, bytes)

  const { code, output } = await runCli(t, db, directory, 'register')
  t.equal(code, 1)
  t.match(output, /^1 registered, 0 known before; 2 not registered$/m)
  t.match(output, /differs from its manifest: sha256/)
  t.match(output, /which is active and holds rows/)
  t.match(await stateOf(db.sql, await partitionOf(db.sql, days[1])), { state: 'active', archive_url: null })
  t.match(await stateOf(db.sql, await partitionOf(db.sql, days[0])), { state: 'active', archive_url: null })

  await cp(`${whole}/copy`, parquet)
  t.match((await runCli(t, db, directory, 'register')).output, /^1 registered, 1 known before; 1 not registered$/m)
})

t.test('an archive of format 3, as version 0.2.0 made it, is registered, verified and restored', async t => {
  const db = await withDatabase(t)
  const directory = await makeDirectory(t)
  await cp(join(repository, 'archiver/archive/fixtures/archive-3'), join(directory, 'archive'), { recursive: true })
  const { worker } = await withWorker(t, db, directory)
  t.same(await registerArchives(worker, () => {}), { registered: 1, alreadyKnown: 0, faults: [] })
  const [archive] = await listArchives(worker)
  t.same(await verifyArchive(worker, archive!, false), [])
  await db.sql`select fleet.request_restore('2026-06-30'::date)`
  t.same((await workAll(t, db, directory)).results, ['done'])
  const { row_count, rows_sha256, columns } = JSON.parse(
    await readFile(pathsOf(directory, '2026-06-30').oldManifest, 'utf8'),
  ) as Manifest
  t.same(await contentOf(db.admin, `fleet.${archive!.partition_name}`, columns), { row_count: String(row_count), rows_sha256 })
})
