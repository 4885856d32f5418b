import { readdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import t, { type Test } from 'tap'
import { leftToCi } from '../../local/config.ts'
import type { TestDatabase } from '../../testing/database.ts'
import type { Manifest } from './manifest.ts'
import { killAfter, pathsOf, retiredDay as day, runCli, stateOf, withRetiredDay, workAll } from '../../testing/archiver.ts'
import { contentOf } from '../../testing/rows.ts'

/** A day that was archived, came back, gained rows, and is waiting to be archived again. */
async function withGrownDay(t: Test) {
  const { db, directory, partition } = await withRetiredDay(t)
  t.same((await workAll(t, db, directory)).results, ['done'])
  await db.sql`select fleet.request_restore(${day}::date)`
  t.same((await workAll(t, db, directory)).results, ['done'])
  await grow(db, partition, 1)
  const paths = pathsOf(directory)
  const before = await contentOf(db.admin, `fleet_detached.${partition}`)
  return { db, directory, partition, before, paths, second: paths.parquet.replace('.parquet', '_r2.parquet') }
}

type Grown = Awaited<ReturnType<typeof withGrownDay>>

/** Adds 50 rows to a day that came back, and hands it to the archiver again. */
async function grow(db: TestDatabase, partition: string, device_id: number) {
  await db.sql`select fleet.unsettle_partition(${partition})`
  await db.admin`
    insert into fleet.device_heartbeats (ts, received_at, device_id)
    select (${day} || ' 12:00Z')::timestamptz + n * interval '1 minute', now(), 900 + ${device_id}::int from generate_series(1, 50) as n`
  await db.sql`select fleet.release_partition(${partition})`
  await db.sql`select fleet.archive_partition(${partition})`
}

async function filesOf(directory: string) {
  return (await readdir(pathsOf(directory).folder)).sort()
}

t.test('a day that came back and gained rows is archived as a new revision, and the old file is deleted', async t => {
  const { db, directory, partition, before, paths, second } = await withGrownDay(t)
  const first = JSON.parse(await readFile(paths.manifest, 'utf8')) as Manifest
  t.same((await workAll(t, db, directory)).results, ['done'])
  const state = await stateOf(db.sql, partition)
  t.match(state, { state: 'dropped', ...before })
  t.equal(fileURLToPath(state.archive_url as string), second)
  t.same(await filesOf(directory), [basename(second)])
  t.match(JSON.parse(await readFile(paths.manifest, 'utf8')) as Manifest, {
    format_version: 4,
    file: basename(second),
    revision: 2,
    replaces: first.sha256,
    row_count: 1050,
    sha256: state.checksum_sha256 as string,
  })
  t.equal((await runCli(t, db, directory, 'verify', '--all')).code, 0)

  // And again, from the revision.
  await db.sql`select fleet.request_restore(${day}::date)`
  t.same((await workAll(t, db, directory)).results, ['done'])
  await grow(db, partition, 2)
  t.same((await workAll(t, db, directory)).results, ['done'])
  t.match(await stateOf(db.sql, partition), { state: 'dropped', row_count: '1100', archive_url: /_r3\.parquet$/ })
  t.same(await filesOf(directory), [basename(second).replace('_r2', '_r3')])
})

t.test('killed with -9 after any step of a revision, the next run finishes it', { skip: leftToCi() }, async t => {
  // If no statement waits between two steps, the state after the kill is changed back to that of a moment earlier.
  type Earlier = (grown: Grown, first: { manifest: Buffer; parquet: Buffer }) => Promise<void>
  const moments: Record<string, [step: 'frozen' | 'exported' | 'uploaded' | 'proven', earlier: Earlier]> = {
    'before the new file': ['frozen', async () => {}],
    'between the new file and its manifest': ['exported', ({ paths }, first) => writeFile(paths.manifest, first.manifest)],
    'in the middle of the new file': [
      'exported',
      async ({ paths, second }, first) => {
        await writeFile(paths.manifest, first.manifest)
        await rename(second, join(paths.folder, `.${basename(second)}.0123456789ab.part`))
      },
    ],
    'after the manifest': ['exported', async () => {}],
    'after the upload was recorded': ['uploaded', async () => {}],
    'between the proof and the deletion of the old file': [
      'proven',
      ({ paths }, first) => writeFile(paths.parquet, first.parquet),
    ],
    'after the deletion of the old file': ['proven', async () => {}],
  }
  for (const [moment, [step, earlier]] of Object.entries(moments)) {
    await t.test(moment, async t => {
      const grown = await withGrownDay(t)
      const { db, directory, partition, before, paths, second } = grown
      const first = { manifest: await readFile(paths.manifest), parquet: await readFile(paths.parquet) }
      await killAfter(t, db, directory, partition, step)
      if (step !== 'proven')
        t.same(await readFile(paths.parquet), first.parquet, 'the old file is there until the new one is proven')
      await earlier(grown, first)
      if (moment.startsWith('between the proof')) {
        const { code, output } = await runCli(t, db, directory, 'verify')
        t.equal(code, 1)
        t.match(output, `${pathToFileURL(paths.parquet).href}: superseded by ${basename(second)}`)
      }
      t.same((await workAll(t, db, directory)).results, ['done'])
      t.match(await stateOf(db.sql, partition), {
        state: 'dropped',
        ...before,
        archive_url: /_r2\.parquet$/,
      })
      t.same(await filesOf(directory), [basename(second)])
      const verified = await runCli(t, db, directory, 'verify', '--all')
      t.equal(verified.code, 0, verified.output)
    })
  }
})

t.test('an archive is not superseded if its rows are missing from the day, or if it is damaged', async t => {
  const damages: Record<string, [RegExp, (grown: Grown) => Promise<void>]> = {
    'a row was changed since': [
      /is not overwritten: 1 of its 1000 rows are not in the partition/,
      async ({ db, partition }) => {
        const table = db.admin(`fleet_detached.${partition}`)
        const [first] = await db.admin`select min(ts)::text as ts from ${table} where device_id = 5`
        await db.admin`update ${table} set battery_pct = 101 where device_id = 5 and ts = ${first!.ts as string}`
      },
    ],
    'the old file has a changed byte': [
      /differs from its manifest, so it is unknown what it holds: sha256/,
      async ({ paths }) => {
        const bytes = await readFile(paths.parquet)
        bytes[100] = (bytes[100] ?? 0) ^ 1
        await writeFile(paths.parquet, bytes)
      },
    ],
    'the old file is gone': [
      /there is no such object in the store, but its manifest is there, so it is unknown .* move it and its manifest .* away/,
      ({ paths }) => rm(paths.parquet),
    ],
  }
  for (const [name, [error, damage]] of Object.entries(damages)) {
    await t.test(name, async t => {
      const grown = await withGrownDay(t)
      await damage(grown)
      const { db, directory, partition, paths } = grown
      const [manifest, files] = [await readFile(paths.manifest), await filesOf(directory)]
      t.same((await workAll(t, db, directory)).results, ['failed'])
      t.match(await stateOf(db.sql, partition), { state: 'archive_failed', last_error: error })
      t.same([await readFile(paths.manifest), await filesOf(directory)], [manifest, files], 'the store is unchanged')
      t.equal((await contentOf(db.admin, `fleet_detached.${partition}`)).row_count, '1050', 'its rows are kept')
    })
  }
})
