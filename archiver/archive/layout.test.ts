import { cp, mkdir, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { DuckDBInstance } from '@duckdb/node-api'
import t, { type Test } from 'tap'
import { withDatabase, type TestDatabase } from '../../testing/database.ts'
import { openWith, withObjectStore, withoutStore } from '../../testing/s3.ts'
import {
  makeDirectory,
  pathsOf,
  retiredDay,
  runCli,
  runCliWith,
  stateOf,
  withRetiredDay,
  withWorker,
  workAll,
} from '../../testing/archiver.ts'
import { moveOldObjects } from './move.ts'
import { registerArchives } from './register.ts'
import { findOrphans, listArchives, verifyArchive } from './verify.ts'
import { repository } from '../../lib/repository.ts'

/** The day of the fixtures. */
const OLD_DAY = '2026-06-30'
const OLD_FILE = `device_heartbeats_20260630.parquet`

/** All files below a directory, by their path. */
async function treeOf(directory: string) {
  const entries = await readdir(directory, { recursive: true, withFileTypes: true }).catch(() => [])
  return entries
    .filter(entry => entry.isFile())
    .map(entry => join(entry.parentPath, entry.name).slice(directory.length + 1))
    .sort()
}

/** A store with an archive of format 3, which a new database has registered. */
async function withOldStore(t: Test, fixture = 'archive-3') {
  const db = await withDatabase(t)
  const directory = await makeDirectory(t)
  const archive = join(directory, 'archive')
  await cp(join(repository, 'archiver/archive/fixtures', fixture), archive, { recursive: true })
  await rm(join(archive, 'rows.csv'), { force: true })
  const { worker } = await withWorker(t, db, directory)
  t.same(await registerArchives(worker, () => {}), { registered: 1, alreadyKnown: 0, faults: [] })
  const [{ partition_name: partition } = { partition_name: '' }] = await listArchives(worker)
  return { db, directory, archive, worker, partition, paths: pathsOf(directory, OLD_DAY) }
}

/** Gives a restored day one more row, and archives it again. */
async function archiveAgain(t: Test, { db, directory, partition }: { db: TestDatabase; directory: string; partition: string }) {
  await db.sql`select fleet.request_restore(${OLD_DAY}::date)`
  t.same((await workAll(t, db, directory)).results, ['done'])
  await db.sql`select fleet.unsettle_partition(${partition})`
  await db.admin.unsafe(
    `insert into fleet.${partition} (ts, received_at, device_id) values ('${OLD_DAY} 12:34:56Z', now(), 4711)`,
  )
  await db.sql`select fleet.release_partition(${partition})`
  await db.sql`select fleet.archive_partition(${partition})`
  t.same((await workAll(t, db, directory)).results, ['done'])
}

async function verifyAll(t: Test, { db, directory }: { db: TestDatabase; directory: string }) {
  const { worker } = await withWorker(t, db, directory)
  const faults: string[] = []
  for (const isQuick of [true, false])
    for (const archive of await listArchives(worker)) faults.push(...(await verifyArchive(worker, archive, isQuick)))
  return [...faults, ...(await findOrphans(worker)), ...(await findOrphans(worker, OLD_DAY))]
}

t.test('only Parquet files are below device_heartbeats/, and an engine reads the folder as a table', async t => {
  const { db, directory } = await withRetiredDay(t, 1000)
  t.same((await workAll(t, db, directory)).results, ['done'])
  const { parquet } = pathsOf(directory)
  t.same(await treeOf(join(directory, 'archive')), [
    `device_heartbeats/date=${retiredDay}/${basename(parquet)}`,
    'index.json',
    `manifests/date=${retiredDay}/manifest.json`,
  ])
  const duckdb = await (await DuckDBInstance.create()).connect()
  // Every file of the folder, whatever its name is, as other engines take them.
  const rows = await duckdb.runAndReadAll(
    `select count(*)::int as rows, date::varchar as date from read_parquet('${join(directory, 'archive/device_heartbeats')}/**') group by date`,
  )
  t.same(rows.getRowObjectsJson(), [{ rows: 1000, date: retiredDay }])
  duckdb.closeSync()
})

for (const fixture of ['archive-1', 'archive-3']) {
  t.test(`the day of ${fixture} is archived again in the new layout, and its old manifest is deleted`, async t => {
    const old = await withOldStore(t, fixture)
    await archiveAgain(t, old)
    t.match(await stateOf(old.db.sql, old.partition), { state: 'dropped', row_count: '81', manifest_format: 4 })
    t.same(await treeOf(old.archive), [
      `device_heartbeats/date=${OLD_DAY}/${OLD_FILE.replace('.parquet', '_r2.parquet')}`,
      'index.json',
      `manifests/date=${OLD_DAY}/manifest.json`,
    ])
    t.same(await verifyAll(t, old), [])
  })

  t.test(`reindex moves what is in the way in ${fixture}, and everything is as it was`, async t => {
    const old = await withOldStore(t, fixture)
    const { db, directory, archive, paths } = old
    const manifest = await readFile(paths.oldManifest)
    t.same(await verifyAll(t, old), [], 'an old store is no fault')
    t.ok((await treeOf(archive)).includes('device_heartbeats/index.json'))
    const { code, output } = await runCli(t, db, directory, 'reindex')
    t.equal(code, 0, output)
    t.match(output, /^1 objects of an older version moved out of device_heartbeats\/\nindex.json lists 1 archive$/m)
    t.same(await treeOf(archive), [
      `device_heartbeats/date=${OLD_DAY}/${OLD_FILE}`,
      'index.json',
      `manifests/date=${OLD_DAY}/manifest.json`,
    ])
    t.same(await readFile(paths.manifest), manifest, 'byte for byte')
    t.match(JSON.parse(await readFile(join(archive, 'index.json'), 'utf8')), {
      archives: [{ path: `device_heartbeats/date=${OLD_DAY}/${OLD_FILE}`, manifest: `manifests/date=${OLD_DAY}/manifest.json` }],
    })
    t.equal((await runCli(t, db, directory, 'reindex')).output, 'index.json lists 1 archive\n')
    t.same(await verifyAll(t, old), [])
    await db.sql`select fleet.request_restore(${OLD_DAY}::date)`
    t.same((await workAll(t, db, directory)).results, ['done'])
  })
}

t.test('a device is erased from an old archive, which gets the new layout', async t => {
  const old = await withOldStore(t)
  const { db, directory, archive, paths } = old
  const duckdb = await (await DuckDBInstance.create()).connect()
  const [[device] = []] = (
    await duckdb.runAndReadAll(`select max(device_id)::varchar from read_parquet('${paths.parquet}')`)
  ).getRows()
  duckdb.closeSync()
  await db.admin`
    insert into fleet.devices (device_id, alias, token_hash) overriding system value values (${String(device)}, 'old', 'x')`
  await db.sql`select fleet.erase_device(${String(device)}, 'a test')`
  await db.sql`call fleet.run_erasures()`
  t.same((await workAll(t, db, directory)).results, ['done'])
  t.same(await treeOf(archive), [
    `device_heartbeats/date=${OLD_DAY}/${OLD_FILE.replace('.parquet', '_r2.parquet')}`,
    'index.json',
    `manifests/date=${OLD_DAY}/manifest.json`,
  ])
  t.same(await verifyAll(t, old), [])
})

t.test('reindex goes on where a killed one stopped', async t => {
  const old = await withOldStore(t)
  const { db, directory, archive, paths } = old
  const manifest = await readFile(paths.oldManifest)
  const moments: Record<string, () => Promise<void>> = {
    'before the copy appeared': async () => {
      await mkdir(dirname(paths.manifest), { recursive: true })
      await writeFile(join(dirname(paths.manifest), '.manifest.json.0123456789ab.part'), manifest.subarray(0, 100))
    },
    'between the copy and the deletion': async () => {
      await mkdir(dirname(paths.manifest), { recursive: true })
      await writeFile(paths.manifest, manifest)
    },
    'between the deletion and the index': async () => {
      await mkdir(dirname(paths.manifest), { recursive: true })
      await writeFile(paths.manifest, manifest)
      await rm(paths.oldManifest)
    },
  }
  for (const [moment, arrange] of Object.entries(moments)) {
    await rm(dirname(paths.manifest), { recursive: true, force: true })
    await writeFile(paths.oldManifest, manifest)
    await arrange()
    t.same(await verifyAll(t, old).then(faults => faults.filter(fault => !fault.includes('reindex'))), [], moment)
    const { code, output } = await runCli(t, db, directory, 'reindex')
    t.equal(code, 0, output)
    t.same(
      await treeOf(archive),
      [`device_heartbeats/date=${OLD_DAY}/${OLD_FILE}`, 'index.json', `manifests/date=${OLD_DAY}/manifest.json`],
      moment,
    )
    t.same(await readFile(paths.manifest), manifest, moment)
  }
})

t.test('reindex moves superseded files with their manifests, and leaves a day alone that is being archived', async t => {
  const old = await withOldStore(t)
  const { db, archive, worker, partition, paths } = old
  await db.sql`drop view if exists fleet.device_status_legacy cascade`
  await db.sql`alter table fleet.device_heartbeats drop column agent_version`
  await archiveAgain(t, old)
  // As an older version left it.
  await rename(paths.superseded, join(dirname(paths.folder), 'old'))
  await mkdir(join(archive, 'device_heartbeats/superseded'))
  await rename(join(dirname(paths.folder), 'old'), join(archive, `device_heartbeats/superseded/date=${OLD_DAY}`))
  await rename(paths.manifest, paths.oldManifest)
  t.same(await verifyAll(t, old), [], 'found in its old place')

  await db.admin`update fleet.hb_partitions set state = 'archive_failed' where partition_name = ${partition}`
  t.match(await moveOldObjects(worker, () => {}), {
    moved: 0,
    faults: Array<RegExp>(3).fill(/date=2026-06-30\/.*: not moved, because .* is archive_failed; run reindex again/),
  })
  t.ok((await stat(paths.oldManifest)).isFile())
  await db.admin`update fleet.hb_partitions set state = 'dropped' where partition_name = ${partition}`
  t.same(await moveOldObjects(worker, () => {}), { moved: 3, faults: [] })
  t.same(
    (await treeOf(archive)).filter(path => !path.endsWith('index.json')),
    [
      `device_heartbeats/date=${OLD_DAY}/${OLD_FILE.replace('.parquet', '_r2.parquet')}`,
      `manifests/date=${OLD_DAY}/manifest.json`,
      `superseded/date=${OLD_DAY}/${OLD_FILE.replace('.parquet', '.manifest.json')}`,
      `superseded/date=${OLD_DAY}/${OLD_FILE}`,
    ],
  )
  t.same(await verifyAll(t, old), [])
})

t.test('reindex deletes the manifest that a proven one replaced, and keeps both if none is proven', async t => {
  const old = await withOldStore(t)
  const { db, directory, worker, paths } = old
  const first = await readFile(paths.oldManifest)
  await archiveAgain(t, old)
  // Killed between the proof and the deletion.
  await writeFile(paths.oldManifest, first)
  t.match(await verifyAll(t, old), [
    /date=2026-06-30\/manifest.json: superseded by .*\/manifests\/date=2026-06-30\/manifest.json; run .* reindex/,
    String,
  ])
  const second = await readFile(paths.manifest, 'utf8')
  await writeFile(paths.manifest, second.replace(/"sha256": ".{64}"/, `"sha256": "${'0'.repeat(64)}"`))
  t.match(await moveOldObjects(worker, () => {}), { moved: 0, faults: [/kept, because .* is another manifest of this day/] })
  await writeFile(paths.manifest, second)
  t.equal((await runCli(t, db, directory, 'reindex')).code, 0)
  t.same(await readdir(paths.folder), [OLD_FILE.replace('.parquet', '_r2.parquet')])
  t.same(await readFile(paths.manifest, 'utf8'), second)
})

t.test('a bucket with old archives becomes a readable folder, too', { skip: withoutStore }, async t => {
  const bucket = await withObjectStore(t)
  const store = openWith(t, bucket)
  const source = join(repository, 'archiver/archive/fixtures/archive-3')
  for (const path of await treeOf(source)) await store.putBytes(path, await readFile(join(source, path)))
  await store.putBytes(`device_heartbeats/superseded/date=${OLD_DAY}/x.parquet`, Buffer.from('PAR1'))
  const db = await withDatabase(t)
  const directory = await makeDirectory(t)
  const env = { ARCHIVE_URL: bucket.url, AWS_ENDPOINT_URL_S3: bucket.endpoint, ...bucket.env }
  const { code, output } = await runCliWith(t, db, directory, env, 'register')
  t.equal(code, 0, output)
  for (const args of [['reindex'], ['verify', OLD_DAY]]) {
    const { output } = await runCliWith(t, db, directory, env, ...args)
    t.notMatch(output, /could not|not moved|manifest is/, args.join(' '))
  }
  const keys: string[] = []
  for await (const { key } of store.list('')) keys.push(key)
  t.same(keys, [
    `device_heartbeats/date=${OLD_DAY}/${OLD_FILE}`,
    'index.json',
    `manifests/date=${OLD_DAY}/manifest.json`,
    `superseded/date=${OLD_DAY}/x.parquet`,
  ])
})
