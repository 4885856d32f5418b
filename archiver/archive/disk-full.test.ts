import { execFile } from 'node:child_process'
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { promisify } from 'node:util'
import t, { type Test } from 'tap'
import { leftovers, makeDirectory, runOnce, stateOf, withRetiredDay } from '../../testing/archiver.ts'
import { contentOf } from '../../testing/rows.ts'

const run = promisify(execFile)

/** A directory on its own disk. Undefined if this process may not mount one. */
async function makeDisk(t: Test, kilobytes: number) {
  const directory = join(await makeDirectory(t), 'disk')
  await mkdir(directory)
  try {
    await run('mount', ['-t', 'tmpfs', '-o', `size=${kilobytes}k`, 'tmpfs', directory])
  } catch {
    return undefined
  }
  t.teardown(() => run('umount', [directory]))
  return { directory, grow: () => run('mount', ['-o', 'remount,size=512m', directory]) }
}

const UNMOUNTABLE = 'only root may mount the small disk for this test'

t.test('a disk that fills up during the export fails one attempt and loses nothing', async t => {
  const { db, directory, partition } = await withRetiredDay(t, 100_000)
  const disk = await makeDisk(t, 64)
  if (!disk) return void t.pass(UNMOUNTABLE, { skip: true })
  const before = await contentOf(db.admin, `fleet_detached.${partition}`)
  const env = { TMPDIR: disk.directory }
  const full = await runOnce(t, db, directory, env)
  t.equal(full.code, 1, full.output)
  t.match(await stateOf(db.sql, partition), {
    state: 'archive_failed',
    last_error: /could not write the Parquet file: .*No space left on device/,
    attempts: 1,
  })
  t.same(await contentOf(db.admin, `fleet_detached.${partition}`), before, 'all rows are there')
  t.same(await leftovers(disk.directory), [], 'the space that it took is freed')

  await disk.grow()
  await db.sql`select fleet.retry_archive(${partition})`
  const { code, output } = await runOnce(t, db, directory, env)
  t.equal(code, 0, output)
  t.match(await stateOf(db.sql, partition), {
    state: 'dropped',
    ...before,
  })
})

t.test('so does the disk of a file:// store', async t => {
  const { db, directory, partition } = await withRetiredDay(t, 100_000)
  const disk = await makeDisk(t, 16)
  if (!disk) return void t.pass(UNMOUNTABLE, { skip: true })
  const before = await contentOf(db.admin, `fleet_detached.${partition}`)
  const env = { ARCHIVE_URL: pathToFileURL(join(disk.directory, 'archive')).href }
  const full = await runOnce(t, db, directory, env)
  t.equal(full.code, 1, full.output)
  t.match(await stateOf(db.sql, partition), {
    state: 'archive_failed',
    last_error: /\.parquet: could not be written: ENOSPC: no space left on device/,
    attempts: 1,
  })
  t.same(await contentOf(db.admin, `fleet_detached.${partition}`), before, 'all rows are there')
  const { stdout } = await run('find', [disk.directory, '-type', 'f'])
  t.equal(stdout, '', 'no partial file stays')

  await disk.grow()
  await db.sql`select fleet.retry_archive(${partition})`
  const { code, output } = await runOnce(t, db, directory, env)
  t.equal(code, 0, output)
  t.match(await stateOf(db.sql, partition), {
    state: 'dropped',
    ...before,
  })
})
