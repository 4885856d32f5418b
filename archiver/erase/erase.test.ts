import { mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import postgres from 'postgres'
import t, { type Test } from 'tap'
import { leftToCi, size } from '../../local/config.ts'
import { spawnNode, waitFor, withCluster, withDatabase, type TestDatabase } from '../../testing/database.ts'
import { plainOnly } from '../../testing/distributed.ts'
import { asRole, enroll, value } from '../../testing/fleet.ts'
import { contentOf } from '../../testing/rows.ts'
import { generator } from '../../testing/random.ts'
import { withObjectStore, withoutStore, withProxy, type TestBucket } from '../../testing/s3.ts'
import type { Manifest } from '../archive/manifest.ts'
import { findOrphans, listArchives, verifyArchive } from '../archive/verify.ts'
import {
  archiverEnv,
  daysAgo,
  fillAwkwardDay,
  fillDay,
  leftovers,
  makeDirectory,
  partitionOf,
  pathsOf,
  retiredDay as day,
  runCli,
  runOnce,
  stateOf,
  stepsOf,
  withWorker,
  workAll,
} from '../../testing/archiver.ts'

/** The device that is erased: fillDay gives it a hundredth of the rows. */
const DEVICE = 7

/** The rows of a table without the device, as an archive must say. */
async function contentWithout({ admin }: TestDatabase, table: string, device: number | string = DEVICE) {
  await admin.unsafe(`create table public.expected as select * from ${table} where device_id <> ${device}`)
  const content = await contentOf(admin, 'public.expected')
  await admin`drop table public.expected`
  return content
}

/** A database whose archive holds one day, which is dropped, and what the archive must hold after the erasure. */
async function withArchivedDay(t: Test, rows: number | 'awkward' = 3000, db?: TestDatabase) {
  db ??= await withDatabase(t)
  const directory = await makeDirectory(t)
  await enroll(db.sql, 10)
  if (rows === 'awkward') await fillAwkwardDay(db.admin, day)
  else await fillDay(db.admin, day, rows)
  const partition = await partitionOf(db.sql, day)
  const device = rows === 'awkward' ? await awkwardDevice(db) : DEVICE
  const expected = await contentWithout(db, `fleet.${partition}`, device)
  await db.sql`select fleet.archive_partition(${partition})`
  await workAll(t, db, directory)
  t.match(await stateOf(db.sql, partition), { state: 'dropped' })
  return { db, directory, partition, expected, device, paths: pathsOf(directory), dba: asRole(t, db, 'fleet_dba') }
}

/** One of the strange ids of the awkward day, which is not 1 to 10. */
async function awkwardDevice({ admin }: TestDatabase) {
  const device = (await value(admin`select max(device_id) from fleet.device_heartbeats`)) as string
  await admin`
    insert into fleet.devices (device_id, alias, token_hash) overriding system value values (${device}, 'awkward', 'x')`
  return device
}

const erase = async ({ sql }: Pick<TestDatabase, 'sql'>, device: number | string | undefined = DEVICE) => {
  const id = await value(sql`select fleet.erase_device(${device}, 'a test')`)
  await sql`call fleet.run_erasures()`
  return id as string
}

async function faultsOf(t: Test, db: TestDatabase, directory: string) {
  const { worker } = await withWorker(t, db, directory)
  const faults = await findOrphans(worker)
  for (const archive of await listArchives(worker)) faults.push(...(await verifyArchive(worker, archive, false)))
  return faults
}

async function restored({ db, directory }: { db: TestDatabase; directory: string }, t: Test) {
  await db.sql`select fleet.request_restore(${day}::date)`
  return (await workAll(t, db, directory)).results
}

for (const rows of [3000, 'awkward'] as const) {
  t.test(`a dropped day (${rows}) loses a device, is proven, and is restored without it`, async t => {
    const made = await withArchivedDay(t, rows)
    const { db, directory, partition, expected, device, paths, dba } = made
    const first = JSON.parse(await readFile(paths.manifest, 'utf8')) as Manifest
    await erase(db, device)
    t.match(await dba`select state, archives_left from fleet.erasure_progress`, [{ state: 'running', archives_left: '1' }])
    const { results, events } = await workAll(t, db, directory)
    t.same(results, ['done'])
    t.ok(events.some(({ event }) => event === 'partition.erase.end'))
    const state = await stateOf(db.sql, partition)
    t.match(state, { state: 'dropped', ...expected, lease_owner: null })
    t.equal(basename(state.archive_url as string), `device_heartbeats_${day.replaceAll('-', '')}_r2.parquet`)
    t.match(JSON.parse(await readFile(paths.manifest, 'utf8')) as Manifest, {
      revision: 2,
      replaces: first.sha256,
      row_count: Number(expected.row_count),
    })
    t.same((await readdir(paths.folder)).sort(), [basename(state.archive_url as string)], 'the old file is gone')
    t.same(await faultsOf(t, db, directory), [])
    await dba`call fleet.run_erasures()`
    t.match(await dba`select state, rows_archived, archives_rewritten from fleet.erasure_progress`, [
      { state: 'done', rows_archived: String(Number(first.row_count) - Number(expected.row_count)), archives_rewritten: '1' },
    ])
    t.match(await dba`select event, rows from fleet.events where event = 'partition.erase'`, [
      { rows: String(Number(first.row_count) - Number(expected.row_count)) },
    ])
    // Postgres itself proves the restore, by its own hash, from which it took that of the erased rows.
    t.ok(state.rows_hash)
    t.same(await restored(made, t), ['done'])
    t.same(await contentOf(db.admin, `fleet.${partition}`), expected)
    t.same(await leftovers(directory), [])
  })
}

t.test('an archive without the device stays as it is, and many devices are erased with one revision', async t => {
  const made = await withArchivedDay(t)
  const { db, directory, partition, paths, dba } = made
  const before = await readFile(paths.parquet)
  await db.admin`select setval('fleet.devices_device_id_seq', 100)`
  await erase(db, (await enroll(db.sql, 1, 'without'))[0])
  t.same((await workAll(t, db, directory)).results, ['done'])
  t.same(await readFile(paths.parquet), before)
  await dba`call fleet.run_erasures()`
  t.match(await dba`select state, archives_rewritten from fleet.erasure_progress`, [{ state: 'done', archives_rewritten: '0' }])

  for (let device = 1; device < 99; device++) await db.sql`select fleet.erase_device(${device}, 'many')`
  await db.sql`call fleet.run_erasures()`
  t.same((await workAll(t, db, directory)).results, ['done'])
  t.match(await stateOf(db.sql, partition), { state: 'dropped', row_count: '60', archive_url: /_r2\.parquet$/ })
  await db.sql`call fleet.run_erasures()`
  t.equal(await value(db.sql`select count(*)::int from fleet.erasure_progress where state = 'done' and rows_archived = 30`), 98)
  t.same(await restored(made, t), ['done'])
  t.same(
    (await db.admin.unsafe(`select distinct device_id from fleet.${partition} order by 1`)).map(row => row.device_id as string),
    ['0', '99'],
  )
})

t.test('a day that has only heartbeats of the device becomes an archive without rows', async t => {
  const db = await withDatabase(t)
  const directory = await makeDirectory(t)
  await enroll(db.sql, 10)
  await db.admin`
    insert into fleet.device_heartbeats (ts, received_at, device_id)
    select ${day}::date + n * interval '1 minute', now(), ${DEVICE} from generate_series(1, 100) n`
  const partition = await partitionOf(db.sql, day)
  await db.sql`select fleet.archive_partition(${partition})`
  await workAll(t, db, directory)
  await erase(db)
  t.same((await workAll(t, db, directory)).results, ['done'])
  t.match(await stateOf(db.sql, partition), { row_count: '0', min_ts: null, rows_hash: '0' })
  t.same(await faultsOf(t, db, directory), [])
  t.same(await restored({ db, directory }, t), ['done'])
  t.equal(await value(db.admin.unsafe(`select count(*)::int from fleet.${partition}`)), 0)
})

t.test('a retired day that is not dropped yet loses the device in its table and its archive together', async t => {
  const db = await withDatabase(t)
  const directory = await makeDirectory(t)
  await enroll(db.sql, 10)
  await fillDay(db.admin, day, 3000)
  await db.sql`update fleet.settings set archive_grace = '1 day'`
  const partition = await partitionOf(db.sql, day)
  const expected = await contentWithout(db, `fleet.${partition}`)
  await db.sql`select fleet.archive_partition(${partition})`
  // It is erased while it waits for the archiver, which first archives it.
  await erase(db)
  t.same((await workAll(t, db, directory)).results, ['done', 'done'])
  t.match(await stateOf(db.sql, partition), { state: 'archived', ...expected })
  t.same(await contentOf(db.admin, `fleet_detached.${partition}`), expected)
  await db.sql`update fleet.settings set archive_grace = '0'`
  t.same((await workAll(t, db, directory)).results, ['done'])
  t.match(await stateOf(db.sql, partition), { state: 'dropped', ...expected })
  await db.sql`call fleet.run_erasures()`
  t.match(await db.sql`select state, rows_online, rows_archived from fleet.erasure_progress`, [
    { state: 'done', rows_online: '30', rows_archived: '30' },
  ])
  t.same(await faultsOf(t, db, directory), [])
})

t.test('a restored day loses the device online and in its archive, also if it is archived again at once', async t => {
  const made = await withArchivedDay(t)
  const { db, directory, partition, expected } = made
  t.same(await restored(made, t), ['done'])
  await erase(db)
  await db.sql`select fleet.release_partition(${partition})`
  await db.sql`select fleet.archive_partition(${partition})`
  t.same((await workAll(t, db, directory)).results, ['done', 'done'])
  t.match(await stateOf(db.sql, partition), { state: 'dropped', ...expected })
  t.same(await faultsOf(t, db, directory), [])
  await db.sql`call fleet.run_erasures()`
  t.match(await db.sql`select state from fleet.erasure_progress`, [{ state: 'done' }])
})

t.test('a restore that is running when the device is erased is finished first, and the day then loses the device', async t => {
  const made = await withArchivedDay(t)
  const { db, directory, partition, expected } = made
  await db.sql`select fleet.request_restore(${day}::date)`
  const [claimed] = await db.sql`select * from fleet.claim_restore('slow')`
  t.ok(claimed)
  await erase(db)
  t.same((await workAll(t, db, directory)).results, [], 'nobody reads the archive meanwhile')
  t.match(await db.sql`select partitions_left > 0 as waits from fleet.erasure_progress`, [{ waits: true }])
  // As if it had ended: another archiver takes it over, with the rows that it had claimed.
  await db.admin`update fleet.restore_items set state = 'pending', lease_owner = null, lease_until = null`
  await db.admin`update fleet.erasure_items set archive_at = now() where partition_name = ${partition}`
  t.same((await workAll(t, db, directory)).results, ['done'])
  await db.admin`update fleet.erasure_items set archive_at = null where partition_name = ${partition}`
  t.match(await stateOf(db.sql, partition), { state: 'restored', row_count: '3000' })
  await db.sql`call fleet.run_erasures()`
  t.same(await contentOf(db.admin, `fleet.${partition}`), expected)
  t.same((await workAll(t, db, directory)).results, ['done'])
  await db.sql`call fleet.run_erasures()`
  t.match(await db.sql`select state from fleet.erasure_progress`, [{ state: 'done' }])
  t.same(await faultsOf(t, db, directory), [])
})

t.test('a file that is kept because of a dropped column loses the device, too', async t => {
  const made = await withArchivedDay(t)
  const { db, directory, partition } = made
  t.same(await restored(made, t), ['done'])
  await db.sql`alter table fleet.device_heartbeats drop column network_type cascade`
  await db.sql`select fleet.release_partition(${partition})`
  await db.sql`select fleet.archive_partition(${partition})`
  t.same((await workAll(t, db, directory)).results, ['done'])
  const aside = join(directory, 'archive/superseded', `date=${day}`)
  const name = `device_heartbeats_${day.replaceAll('-', '')}`
  t.same((await readdir(aside)).sort(), [`${name}.manifest.json`, `${name}.parquet`])
  await erase(db)
  t.same((await workAll(t, db, directory)).results, ['done'])
  t.same((await readdir(aside)).sort(), [`${name}_r3.manifest.json`, `${name}_r3.parquet`])
  const manifest = JSON.parse(await readFile(made.paths.manifest, 'utf8')) as Manifest
  t.match(manifest, { revision: 4, row_count: 2970, superseded: [{ file: `${name}_r3.parquet`, columns: ['network_type'] }] })
  t.match(JSON.parse(await readFile(join(aside, `${name}_r3.manifest.json`), 'utf8')) as Manifest, { row_count: 2970 })
  t.same(await faultsOf(t, db, directory), [])

  // `reindex` was killed after it had moved one of the two objects of a kept file.
  const old = join(directory, 'archive/device_heartbeats/superseded', `date=${day}`)
  for (const [suffix, device] of [
    ['.parquet', 8],
    ['.manifest.json', 9],
  ] as const) {
    const [kept] = (await readdir(aside)).filter(file => file.endsWith('.parquet')).map(file => basename(file, '.parquet'))
    await mkdir(old, { recursive: true })
    await rename(join(aside, `${kept}${suffix}`), join(old, `${kept}${suffix}`))
    await erase(db, device)
    t.same((await workAll(t, db, directory)).results, ['done'])
    t.same((await readdir(aside)).length, 2)
    t.same(await readdir(old), [])
    t.same(await faultsOf(t, db, directory), [])
  }
})

t.test('a database from before the erasure forgets what was replaced, and registers what the store has', async t => {
  const made = await withArchivedDay(t)
  const { db, directory, partition, expected, dba } = made
  const [before] = await db.admin<
    Record<string, string>[]
  >`select archive_url, archive_bytes, checksum_sha256, rows_sha256, row_count, rows_hash from fleet.hb_partitions where partition_name = ${partition}`
  await erase(db)
  t.same((await workAll(t, db, directory)).results, ['done'])
  // As after the restore of a backup.
  await db.admin`delete from fleet.erasures`
  await db.admin`
    update fleet.hb_partitions set ${db.admin(before!)}
    where partition_name = ${partition}`
  t.match(await runCli(t, db, directory, 'verify', '--all'), { code: 1, output: /but the database has/ })
  t.match(await runCli(t, db, directory, 'register'), { code: 1, output: /is not registered: the database has partition/ })

  await t.rejects(dba`select fleet.forget_archive(${partition}, ' ')`, { code: 'FL422' })
  await t.rejects(asRole(t, db, 'fleet_archiver')`select fleet.forget_archive(${partition}, 'x')`, { code: '42501' })
  await t.rejects(dba`select fleet.forget_archive(${await partitionOf(db.sql, daysAgo(1))}, 'x')`, { code: 'FL002' })
  await dba`select fleet.forget_archive(${partition}, 'from a backup')`
  t.match(await runCli(t, db, directory, 'register'), { code: 0 })
  t.match(await stateOf(db.sql, partition), { state: 'dropped', row_count: '2970', archive_url: /_r2\.parquet$/ })
  t.match(await runCli(t, db, directory, 'verify', '--all'), { code: 0 })
  t.same(await restored(made, t), ['done'])
  t.same(await contentOf(db.admin, `fleet.${partition}`), expected)
})

t.test('an archiver can have only objects of the day deleted, and a hold stops it', async t => {
  const { db, partition } = await withArchivedDay(t)
  await erase(db)
  const archiver = asRole(t, db, 'fleet_archiver')
  t.equal((await archiver`select * from fleet.claim_erasure('w')`).length, 1)
  await archiver`select fleet.begin_erasure(${partition}, 'w')`
  const [{ archive_url }] = (await db.sql`select archive_url from fleet.archives`) as unknown as [{ archive_url: string }]
  const url = archive_url.replace('.parquet', '_r2.parquet')
  const own = `device_heartbeats/date=${day}`
  for (const leftovers of [
    [`device_heartbeats/date=${daysAgo(3)}/device_heartbeats.parquet`],
    [`${own}/../date=2020-01-01/a.parquet`],
    ['index.json'],
    [`${own}/${basename(url)}`],
    [null],
  ]) {
    await t.rejects(
      archiver`
        select fleet.record_erasure(${partition}, 'w', ${[DEVICE]}::bigint[], ${url}, ${'0'.repeat(64)}, 1, 4, ${'0'.repeat(64)}, 1, null, null,
          ${leftovers as string[]}::text[])`,
      { code: 'FL422', message: /does not replace/ },
      String(leftovers[0]),
    )
  }
  t.equal(await value(archiver`select fleet.renew_erasure_lease(${partition}, 'w')`), true)
  await db.admin`update fleet.hb_partitions set held_reason = 'a lawsuit' where partition_name = ${partition}`
  t.equal(await value(archiver`select fleet.renew_erasure_lease(${partition}, 'w')`), false)
})

t.test('an archive in the old layout moves to the new one when a device is erased from it', async t => {
  const { db, directory, paths, expected, partition } = await withArchivedDay(t)
  await rename(paths.manifest, paths.oldManifest)
  await erase(db)
  t.same((await workAll(t, db, directory)).results, ['done'])
  const state = await stateOf(db.sql, partition)
  t.match(state, { state: 'dropped', ...expected })
  t.same(await readdir(paths.folder), [basename(state.archive_url as string)], 'the old manifest and the old file are gone')
  t.match(JSON.parse(await readFile(paths.manifest, 'utf8')) as Manifest, { row_count: 2970, history: [{ reason: 'erased' }] })
  t.same(await faultsOf(t, db, directory), [])
})

t.test('with two proofs, the old object stays until a second login has compared both', async t => {
  const made = await withArchivedDay(t)
  const { db, directory, partition, expected, paths } = made
  await db.sql`update fleet.settings set proofs_needed = 2`
  await erase(db)
  const confirm = async () => {
    const cli = await spawnNode(t, 'archiver/cli.ts', {
      args: ['confirm'],
      env: { ...archiverEnv(db, directory), VERIFIER_DATABASE_URL: db.url('fleet_verifier') },
    })
    const { code } = await cli.exited
    return { code, output: cli.output() }
  }
  t.same((await workAll(t, db, directory)).results, ['done'])
  t.match(await stateOf(db.sql, partition), { ...expected, archive_url: /_r2\.parquet$/, lease_owner: null })
  t.equal((await readdir(paths.folder)).length, 2, 'both files are there')
  t.same((await workAll(t, db, directory)).results, [], 'the archiver waits')
  t.match(await db.sql`select status, remedy from fleet.check(now() + interval '2 days') where check_name = 'erasures'`, [
    { status: 'warn', remedy: /-- confirm/ },
  ])
  const archiver = asRole(t, db, 'fleet_archiver')
  await t.rejects(archiver`select fleet.confirm_erasure(${partition}, 'a', 'b', 'c', 'c')`, { code: '42501' })
  await t.rejects(asRole(t, db, 'fleet_owner')`select fleet.confirm_erasure(${partition}, 'a', 'b', 'c', 'c')`, {
    code: 'FL002',
    message: /cannot confirm what the archiver proved/,
  })
  const verifier = asRole(t, db, 'fleet_verifier')
  await t.rejects(verifier`select fleet.confirm_erasure(${partition}, 'a', 'b', 'c', 'c')`, { code: 'FL010' })

  // The old object is damaged: nobody can say what it held.
  const old = await readFile(paths.parquet)
  await writeFile(paths.parquet, old.subarray(0, old.length - 1))
  t.match(await confirm(), { code: 1 })
  await writeFile(paths.parquet, old)
  t.match(await confirm(), { code: 0, output: /1 confirmed/ })
  t.match(await confirm(), { code: 0, output: /0 confirmed/ })
  t.same((await workAll(t, db, directory)).results, ['done'])
  t.equal((await readdir(paths.folder)).length, 1)
  await db.sql`call fleet.run_erasures()`
  t.match(await db.sql`select state from fleet.erasure_progress`, [{ state: 'done' }])
})

t.test('with two proofs, a day that is not dropped is confirmed again', async t => {
  const db = await withDatabase(t)
  const directory = await makeDirectory(t)
  await enroll(db.sql, 10)
  await fillDay(db.admin, day, 3000)
  await db.sql`update fleet.settings set proofs_needed = 2`
  const partition = await partitionOf(db.sql, day)
  await db.sql`select fleet.archive_partition(${partition})`
  await workAll(t, db, directory)
  await db.admin`update fleet.hb_partitions set confirmed_at = now(), confirmed_by = 'x' where partition_name = ${partition}`
  await erase(db)
  await workAll(t, db, directory)
  t.match(await stateOf(db.sql, partition), { state: 'archived', confirmed_at: null, row_count: '2970' })
  const cli = await spawnNode(t, 'archiver/cli.ts', {
    args: ['confirm'],
    env: { ...archiverEnv(db, directory), VERIFIER_DATABASE_URL: db.url('fleet_verifier') },
  })
  t.equal((await cli.exited).code, 0, cli.output())
  t.match(cli.output(), /2 confirmed/)
  await workAll(t, db, directory)
  t.match(await stateOf(db.sql, partition), { state: 'dropped' })
})

t.test('a damaged archive, or a store that cannot be written, is named and nothing is lost', async t => {
  const made = await withArchivedDay(t)
  const { db, directory, partition, paths, expected } = made
  const id = await erase(db)
  const whole = await readFile(paths.parquet)
  await writeFile(paths.parquet, whole.subarray(0, whole.length - 1))
  t.same((await workAll(t, db, directory)).results, ['failed'])
  t.match(await db.sql`select last_error from fleet.erasure_progress`, [{ last_error: /\.parquet: the object differs/ }])
  await writeFile(paths.parquet, whole)
  t.same((await workAll(t, db, directory)).results, [], 'it waits before it tries again')
  await db.sql`select fleet.retry_erasure(${id})`
  const obstacle = paths.parquet.replace('.parquet', '_r2.parquet')
  await mkdir(obstacle)
  t.same((await workAll(t, db, directory)).results, ['failed'])
  t.match(await db.sql`select last_error from fleet.erasure_progress`, [{ last_error: /_r2\.parquet: could not be written/ }])
  t.match(await db.sql`select status, detail from fleet.check() where check_name = 'erasures'`, [
    { status: 'fail', detail: RegExp(`erasure ${id}: ${partition}: `) },
  ])
  t.same(await faultsOf(t, db, directory), [], 'the archive is as it was')
  await rm(obstacle, { recursive: true })
  await db.sql`select fleet.retry_erasure(${id})`
  t.same((await workAll(t, db, directory)).results, ['done'])
  t.match(await stateOf(db.sql, partition), { ...expected })
})

t.test('an archive in an older store is rewritten there', async t => {
  const made = await withArchivedDay(t)
  const { db, directory, partition, expected } = made
  await erase(db)
  const newer = { ARCHIVE_URL: archiverEnv(db, join(directory, 'newer')).ARCHIVE_URL }
  const { code, output } = await runOnce(t, db, directory, newer)
  t.equal(code, 0, output)
  const state = await stateOf(db.sql, partition)
  t.match(state, { ...expected })
  t.equal(fileURLToPath(state.archive_url as string), made.paths.parquet.replace('.parquet', '_r2.parquet'))
})

t.test('an archiver cannot use an erasure for anything else', async t => {
  const { db, directory, partition } = await withArchivedDay(t)
  const archiver = asRole(t, db, 'fleet_archiver')
  const before = await stateOf(db.sql, partition)
  const url = (before.archive_url as string).replace('.parquet', '_r2.parquet')
  const record = (ids: number[], rows: number, place = url, worker = 'thief') => archiver`
    select fleet.record_erasure(${partition}, ${worker}, ${`{${ids.join(',')}}`}::text::bigint[], ${place}, ${'ab'.repeat(32)}, 10, 3,
      ${'cd'.repeat(32)}, ${rows}, ${before.min_ts as string}, ${before.max_ts as string}, '{}')`
  // Nobody erases anything.
  await t.rejects(record([DEVICE], 2970), { code: 'FL003' })
  await t.rejects(archiver`select fleet.begin_erasure(${partition}, 'thief')`, { code: 'FL003' })
  await t.rejects(archiver`select fleet.record_absence(${partition}, null, '{7}', ${'ab'.repeat(32)})`, { code: 'FL002' })
  t.same(await archiver`select * from fleet.claim_erasure('thief')`, [])
  await erase(db)
  await t.rejects(record([DEVICE], 2970), { code: 'FL003', message: /leased to nobody, not to thief/ })
  await archiver`select * from fleet.claim_erasure('thief')`
  await t.rejects(record([DEVICE], 2970), { code: 'FL002', message: /has not begun/ })
  const table = (await value(archiver`select fleet.begin_erasure(${partition}, 'thief')`)) as string
  const fill = (devices: string) =>
    archiver.unsafe(`insert into ${table} (ts, received_at, device_id) select '${day} 12:00Z', now(), ${devices}`)
  await fill(`${DEVICE} from generate_series(1, 30)`)
  // Another device, more or fewer rows, another place, an earlier revision.
  await t.rejects(record([DEVICE, 8], 2970), { code: 'FL002', message: /no erasure covers/ })
  await t.rejects(record([DEVICE], 2900), { code: 'FL010', message: /not the old one without the erased devices/ })
  await t.rejects(record([DEVICE], 2970, before.archive_url as string), { code: 'FL422' })
  await t.rejects(record([DEVICE], 2970, 'file:///elsewhere/device_heartbeats_20260101_r2.parquet'), { code: 'FL422' })
  await fill('8')
  await t.rejects(record([DEVICE], 2969), { code: 'FL010', detail: /erased 31 \(1 of them of other devices\)/ })
  await t.rejects(archiver`select fleet.record_absence(${partition}, 'thief', '{7}', ${'ab'.repeat(32)})`, { code: 'FL010' })
  await t.rejects(archiver`select fleet.finish_erasure(${partition}, 'thief')`, { code: 'FL001' })
  t.match(await stateOf(db.sql, partition), {
    archive_url: before.archive_url as string,
    row_count: '3000',
    rows_hash: before.rows_hash as string,
  })
  await archiver`select fleet.fail_erasure(${partition}, 'thief', 'caught')`
  await db.sql`select fleet.retry_erasure(erasure_id) from fleet.erasures`
  t.same((await workAll(t, db, directory)).results, ['done'])
})

/** Runs an archiver until it is about to set this column of the erasure, and kills it with -9 before that is committed. */
async function killBefore(t: Test, db: TestDatabase, directory: string, column: 'recorded_at' | 'archive_at') {
  await db.admin.unsafe(`
    create function public.stop_erasing() returns trigger language plpgsql security definer as $$
    begin
      if old.${column} is null and new.${column} is not null then
        perform pg_advisory_xact_lock(4711);
      end if;
      return new;
    end $$;
    create trigger stop_erasing before update on fleet.erasure_items for each row execute function public.stop_erasing()`)
  await db.admin.begin(async holder => {
    await holder`select pg_advisory_xact_lock(4711)`
    const archiver = await spawnNode(t, 'archiver/main.ts', { env: archiverEnv(db, directory) })
    await waitFor(async () => {
      const waiting = await db.admin`
        select from pg_locks where locktype = 'advisory' and objid = 4711 and not granted
          and database = (select oid from pg_database where datname = current_database())`
      return waiting.length > 0
    })
    await archiver.stop('SIGKILL')
    await db.admin`
      select pg_terminate_backend(pid) from pg_stat_activity where usename = 'fleet_archiver' and datname = current_database()`
  })
  await db.admin`drop trigger stop_erasing on fleet.erasure_items`
  await db.admin`update fleet.hb_partitions set lease_until = now() - interval '1 second' where lease_until is not null`
}

t.test('killed with -9 after any step, the next run finishes the erasure', { skip: leftToCi() }, async t => {
  type Archived = Awaited<ReturnType<typeof withArchivedDay>>
  type First = { manifest: Buffer; parquet: Buffer }
  const second = ({ paths }: Archived) => paths.parquet.replace('.parquet', '_r2.parquet')
  // If no statement waits between two steps, the state after the kill is changed back to that of a moment earlier.
  const moments: Record<string, ['recorded_at' | 'archive_at', (made: Archived, first: First) => Promise<void>]> = {
    'in the middle of the new file': [
      'recorded_at',
      async (made, first) => {
        await writeFile(made.paths.manifest, first.manifest)
        await rename(second(made), join(made.paths.folder, `.${basename(second(made))}.0123456789ab.part`))
      },
    ],
    'between the new file and its manifest': ['recorded_at', ({ paths }, first) => writeFile(paths.manifest, first.manifest)],
    'after the manifest': ['recorded_at', async () => {}],
    'between the record and the deletion': ['archive_at', ({ paths }, first) => writeFile(paths.parquet, first.parquet)],
    'after the deletion': ['archive_at', async () => {}],
  }
  for (const [moment, [column, earlier]] of Object.entries(moments)) {
    await t.test(moment, async t => {
      const made = await withArchivedDay(t)
      const { db, directory, partition, expected, paths } = made
      const first = { manifest: await readFile(paths.manifest), parquet: await readFile(paths.parquet) }
      await erase(db)
      await killBefore(t, db, directory, column)
      if (column === 'recorded_at')
        t.same(await readFile(paths.parquet), first.parquet, 'the old file is there until the new one is recorded')
      await earlier(made, first)
      const { code, output } = await runOnce(t, db, directory)
      t.equal(code, 0, output)
      const state = await stateOf(db.sql, partition)
      t.match(state, { state: 'dropped', ...expected })
      const files = (await readdir(paths.folder)).filter(name => !name.endsWith('.part'))
      t.same(files.sort(), [basename(state.archive_url as string)])
      t.same(await faultsOf(t, db, directory), [])
      t.equal((await stepsOf(db.sql, partition)).filter(event => event === 'partition.erase').length, 1, 'it is erased once')
      await db.sql`call fleet.run_erasures()`
      t.match(await db.sql`select state, rows_archived from fleet.erasure_progress`, [{ state: 'done', rows_archived: '30' }])
      t.same(await restored(made, t), ['done'])
      t.same(await contentOf(db.admin, `fleet.${partition}`), expected)
    })
  }
})

const KILLS = size({ deep: 20, quick: 5 })
t.test(`killed with -9 at ${KILLS} random moments, the erasure ends and loses nothing else`, async t => {
  const random = generator(20261129)
  const db = await withDatabase(t)
  const directory = await makeDirectory(t)
  await enroll(db.sql, 10)
  const days: { day: string; partition: string; expected: object }[] = []
  for (let n = 0; n < 4; n++) {
    const day = daysAgo(70 + n)
    await fillDay(db.admin, day, 2000)
    const partition = await partitionOf(db.sql, day)
    days.push({ day, partition, expected: await contentWithout(db, `fleet.${partition}`) })
    await db.sql`select fleet.archive_partition(${partition})`
  }
  await erase(db)
  for (let killed = 0; killed < KILLS; killed++) {
    const archiver = await spawnNode(t, 'archiver/main.ts', {
      args: ['--once'],
      env: archiverEnv(db, directory),
      ready: /archiver\.ready/,
    })
    await sleep(random() * 500)
    await archiver.stop('SIGKILL')
    await db.admin`select pg_terminate_backend(pid) from pg_stat_activity where usename = 'fleet_archiver' and datname = current_database()`
    await db.admin`update fleet.hb_partitions set lease_until = now() - interval '1 second' where lease_until is not null`
  }
  const { code, output } = await runOnce(t, db, directory)
  t.equal(code, 0, output)
  for (const { partition, expected } of days) t.match(await stateOf(db.sql, partition), { state: 'dropped', ...expected })
  t.same(await faultsOf(t, db, directory), [])
  await db.sql`call fleet.run_erasures()`
  t.match(await db.sql`select state, rows_archived from fleet.erasure_progress`, [{ state: 'done', rows_archived: '80' }])
})

t.test(
  'Postgres crashes while a device is erased: the erasure ends and loses nothing else',
  { skip: plainOnly('it has a cluster of its own') || leftToCi(), timeout: 300_000 },
  async t => {
    const db = await withCluster(t, { durable: true })
    const directory = await makeDirectory(t)
    const ask = async <T>(use: (sql: postgres.Sql) => Promise<T>) => {
      const sql = postgres(db.url('postgres'), { max: 1, onnotice: () => {} })
      try {
        return await use(sql)
      } finally {
        await sql.end({ timeout: 1 })
      }
    }
    const days = await ask(async sql => {
      await enroll(sql, 10)
      const made: { partition: string; expected: object }[] = []
      for (let n = 0; n < 6; n++) {
        const day = daysAgo(70 + n)
        await fillDay(sql, day, 10_000)
        const partition = await partitionOf(sql, day)
        made.push({ partition, expected: await contentWithout({ ...db, admin: sql }, `fleet.${partition}`) })
        await sql`select fleet.archive_partition(${partition})`
      }
      return made
    })
    t.equal((await runOnce(t, db, directory)).code, 0)
    await ask(sql => sql`select fleet.erase_device(${DEVICE}, 'a test')`)
    const archiver = await spawnNode(t, 'archiver/main.ts', { env: archiverEnv(db, directory), ready: /archiver\.ready/ })
    for (let crashes = 0; crashes < size({ deep: 5, quick: 3 }); crashes++) {
      await ask(sql => sql`call fleet.run_erasures()`)
      await sleep(150 + crashes * 130)
      await db.cluster.stop('immediate')
      await db.cluster.start()
      await ask(
        sql => sql`update fleet.hb_partitions set lease_until = now() - interval '1 second' where lease_until is not null`,
      )
      await ask(sql => sql`select fleet.retry_erasure(erasure_id) from fleet.erasures`)
    }
    await waitFor(
      () =>
        ask(async sql => {
          await sql`select fleet.retry_erasure(erasure_id) from fleet.erasures`
          await sql`call fleet.run_erasures()`
          return (await value(sql`select state from fleet.erasures`)) === 'done'
        }),
      { timeoutMs: 120_000, what: () => `the erasure to end; the archiver printed:\n${archiver.output()}` },
    )
    t.equal((await archiver.stop('SIGTERM')).code, 0)
    await ask(async sql => {
      for (const { partition, expected } of days) t.match(await stateOf(sql, partition), { state: 'dropped', ...expected })
    })
    t.same(await faultsOf(t, { ...db, sql: postgres(db.url('postgres'), { max: 1 }) }, directory), [])
  },
)

t.test('in a bucket, through a store that fails half of its requests', { skip: withoutStore, timeout: 300_000 }, async t => {
  const bucket = await withObjectStore(t)
  const db = await withDatabase(t)
  const directory = await makeDirectory(t)
  await enroll(db.sql, 10)
  await fillDay(db.admin, day, 3000)
  const partition = await partitionOf(db.sql, day)
  const expected = await contentWithout(db, `fleet.${partition}`)
  await db.sql`select fleet.archive_partition(${partition})`
  const env = (from: TestBucket, endpoint = from.endpoint) => ({
    ARCHIVE_URL: from.url,
    AWS_ENDPOINT_URL_S3: endpoint,
    ...from.env,
  })
  t.equal((await runOnce(t, db, directory, env(bucket))).code, 0)
  await erase(db)
  const fates = ['refuse', 'cut', 'lose', 'break'] as const
  const proxy = await withProxy(t, bucket.endpoint, number => (number % 2 === 0 ? fates[(number / 2) % 4]! : 'pass'))
  const { code, output } = await runOnce(t, db, directory, env(bucket, proxy.endpoint))
  t.equal(code, 0, output)
  t.match(await stateOf(db.sql, partition), { state: 'dropped', ...expected, archive_url: /_r2\.parquet$/ })
  await db.sql`call fleet.run_erasures()`
  t.match(await db.sql`select state from fleet.erasure_progress`, [{ state: 'done' }])
  await db.sql`select fleet.request_restore(${day}::date)`
  t.equal((await runOnce(t, db, directory, env(bucket))).code, 0)
  t.same(await contentOf(db.admin, `fleet.${partition}`), expected)
})
