import { appendFile, readdir, readFile, truncate, writeFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import t from 'tap'
import { waitFor, withDatabase } from '../../testing/database.ts'
import { openSession } from '../database.ts'
import { killAfter, leftovers, pathsOf, stateOf, stepsOf, withRetiredDay, withWorker, workAll } from '../../testing/archiver.ts'
import { listArchives, verifyArchive } from './verify.ts'
import { refreshIndex, workOnce } from '../worker.ts'
import { contentOf } from '../../testing/rows.ts'

t.test('an archiver that hangs while it writes index.json does not block others', async t => {
  const { db, directory, partition } = await withRetiredDay(t)
  const { worker, events } = await withWorker(t, db, directory)
  const { signal } = new AbortController()
  t.equal(await workOnce(worker, signal), 'done')
  await db.admin.begin(async hanging => {
    await hanging`select pg_advisory_xact_lock(hashtext('fleet.archive_index'))`
    await refreshIndex(worker, signal)
    t.match(events().at(-1), {
      event: 'archive.index.failed',
      error: { message: /another archiver may be writing it/, cause: { message: /lock timeout/ } },
    })
    t.equal(await workOnce(worker, signal), 'idle', 'it continues')
  })
  await refreshIndex(worker, signal)
  t.match(events().at(-1), { event: 'archive.index' }, 'and writes the index when it can')
  t.match(await readFile(join(directory, 'archive/index.json'), 'utf8'), partition)
})

t.test('killed with -9 after any step, the next run archives the day once and loses nothing', async t => {
  for (const step of ['claimed', 'frozen', 'exported', 'uploaded', 'proven'] as const) {
    await t.test(`after ${step}`, async t => {
      const { db, directory, partition } = await withRetiredDay(t, 'awkward')
      const before = await contentOf(db.admin, `fleet_detached.${partition}`)
      await killAfter(t, db, directory, partition, step)
      t.equal((await stateOf(db.sql, partition)).step, step)
      const killed = await leftovers(directory)
      t.same((await workAll(t, db, directory)).results, ['done'])
      t.notOk(
        (await leftovers(directory)).some(name => killed.includes(name)),
        'the remains of the killed archiver are removed',
      )
      t.match(await stateOf(db.sql, partition), {
        state: 'dropped',
        ...before,
      })
      const { worker } = await withWorker(t, db, directory)
      const archives = await listArchives(worker)
      t.same(await Promise.all(archives.map(archive => verifyArchive(worker, archive, false))), [[]])
      const ends = (await stepsOf(db.sql, partition)).filter(event => event === 'partition.archive.end')
      t.equal(ends.length, 1, 'archived once')
      t.same((await readdir(pathsOf(directory).folder)).sort(), [basename(pathsOf(directory).parquet)])
    })
  }
})

t.test('a damaged archive is never proven', async t => {
  const damages: Record<string, (directory: string) => Promise<void>> = {
    'a flipped byte': async directory => {
      const bytes = await readFile(pathsOf(directory).parquet)
      bytes[100] = (bytes[100] ?? 0) ^ 1
      await writeFile(pathsOf(directory).parquet, bytes)
    },
    'a missing byte': async directory => {
      const bytes = await readFile(pathsOf(directory).parquet)
      await truncate(pathsOf(directory).parquet, bytes.length - 1)
    },
    'an extra byte': directory => appendFile(pathsOf(directory).parquet, '\0'),
    'a wrong row count in the manifest': async directory => {
      const manifest = await readFile(pathsOf(directory).manifest, 'utf8')
      await writeFile(pathsOf(directory).manifest, manifest.replace('"row_count": 1000', '"row_count": 1001'))
    },
    'a manifest that is cut off': directory => truncate(pathsOf(directory).manifest, 40),
  }
  for (const [name, damage] of Object.entries(damages)) {
    await t.test(name, async t => {
      const { db, directory, partition } = await withRetiredDay(t)
      // Stopped after the upload: record_upload() waits while the test holds the row.
      await killAfter(t, db, directory, partition, 'uploaded')
      await damage(directory)
      const { results, events } = await workAll(t, db, directory)
      t.same(results, ['failed'])
      const failure = events.find(line => line.event === 'partition.archive.failed')
      t.match(failure, { partition, error: { message: /(parquet|manifest\.json): / } }, 'the log names the object')
      const state = await stateOf(db.sql, partition)
      t.match(state, { state: 'archive_failed', proven_at: null, attempts: 1, last_error: (failure?.error as Error).message })
      const [rows] = await db.admin`select count(*)::int as count from fleet_detached.${db.admin(partition)}`
      t.same(rows, { count: 1000 }, 'its rows are kept')
    })
  }
})

t.test('an archive of other rows is not overwritten', async t => {
  const { db, directory, partition } = await withRetiredDay(t)
  const other = await withRetiredDay(t, 500)
  t.same((await workAll(t, other.db, directory)).results, ['done'])
  const before = await readFile(pathsOf(directory).parquet)
  t.same((await workAll(t, db, directory)).results, ['failed'])
  t.match(await stateOf(db.sql, partition), { state: 'archive_failed', last_error: /other content/ })
  t.same(await readFile(pathsOf(directory).parquet), before)
})

t.test('an archiver that lost its lease stops and records nothing', async t => {
  const { db, directory, partition } = await withRetiredDay(t)
  const { worker } = await withWorker(t, db, directory)
  worker.leaseSeconds = 1
  await db.admin.begin(async blocking => {
    await blocking`lock table fleet_detached.${blocking(partition)} in share update exclusive mode`
    const working = workOnce(worker, new AbortController().signal)
    await waitFor(async () => (await stateOf(db.sql, partition)).state === 'archiving')
    await db.admin`update fleet.hb_partitions set lease_owner = 'another' where partition_name = ${partition}`
    t.equal(await working, 'failed')
  })
  t.match(await stateOf(db.sql, partition), { state: 'archiving', lease_owner: 'another', attempts: 0, last_error: null })
})

t.test('a session that loses its lease while it connects ends before its first statement', async t => {
  const db = await withDatabase(t)
  const lost = new AbortController()
  const opening = openSession({ url: db.url('fleet_archiver') }, lost.signal)
  lost.abort(new Error('the lease was lost'))
  await t.rejects(opening, { message: 'the lease was lost' })
})

t.test('a store that cannot be written to is reported, and the partition is kept', async t => {
  const { db, directory, partition } = await withRetiredDay(t)
  await writeFile(join(directory, 'archive'), 'a file where the directory should be')
  t.same((await workAll(t, db, directory)).results, ['failed'])
  t.match(await stateOf(db.sql, partition), {
    state: 'archive_failed',
    last_error: /archive: this process cannot write to this directory/,
  })
})
