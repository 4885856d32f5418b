// Attacks by somebody who may write to the store and knows how archives are made: forged files match their manifests and hashes.
import { readFile, stat, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { DuckDBInstance } from '@duckdb/node-api'
import t from 'tap'
import type { Test } from 'tap'
import { withDatabase } from '../../testing/database.ts'
import { hashFile } from './hash.ts'
import type { Manifest } from './manifest.ts'
import { readContent } from './parquet.ts'
import { fillDay, makeDirectory, pathsOf, retiredDay, runCli, stateOf, withRetiredDay, workAll } from '../../testing/archiver.ts'

async function readManifestFile(path: string) {
  return JSON.parse(await readFile(path, 'utf8')) as Manifest
}

/** Replaces the file of an archive with the result of `select` over it, and its manifest with one that matches. */
async function forge(
  t: Test,
  { parquet, manifest }: { parquet: string; manifest: string },
  select: string,
  claims: Partial<Manifest> = {},
) {
  const work = await makeDirectory(t)
  const forged = join(work, 'forged.parquet')
  const duckdb = await (await DuckDBInstance.create()).connect()
  await duckdb.run(`copy (${select.replace('{file}', `'${parquet}'`)}) to '${forged}' (format parquet, compression zstd)`)
  duckdb.closeSync()
  const former = await readManifestFile(manifest)
  const content =
    claims.row_count === undefined ? await readContent(forged, former.columns, work, { checksum: 'rows_sha256' }) : {}
  await writeFile(parquet, await readFile(forged))
  await writeFile(
    manifest,
    JSON.stringify({
      ...former,
      ...content,
      bytes: (await stat(parquet)).size,
      sha256: await hashFile(parquet),
      ...claims,
    }),
  )
}

async function withArchive(t: Test) {
  const archive = await withRetiredDay(t, 1000)
  t.same((await workAll(t, archive.db, archive.directory)).results, ['done'])
  t.match(await stateOf(archive.db.sql, archive.partition), { state: 'dropped' })
  return { ...archive, paths: pathsOf(archive.directory) }
}

t.test('forged rows with a matching manifest are not restored or queried, and are named', async t => {
  const { db, directory, partition, paths } = await withArchive(t)
  await forge(
    t,
    paths,
    'select * replace (99::smallint as battery_pct) from read_parquet({file}, hive_partitioning = false) order by device_id, ts',
  )
  t.match(await runCli(t, db, directory, 'verify'), { code: 1, output: /manifest differs from the database: .*sha256 should be/ })
  t.match(await runCli(t, db, directory, 'verify', '--all'), { code: 1, output: /sha256 should be/ })
  t.match(await runCli(t, db, directory, 'restore', retiredDay), { code: 1, output: /sha256 should be/ })
  t.match(await stateOf(db.sql, partition), { state: 'dropped' })
  t.match(await runCli(t, db, directory, 'query', 'select count(*) from archive'), { code: 1, output: /sha256 should be/ })
})

t.test('the archive of another day in the place of this one is not restored', async t => {
  const { db, directory, partition, paths } = await withArchive(t)
  const other = new Date(Date.parse(`${retiredDay}T00:00Z`) + 86_400_000).toISOString().slice(0, 10)
  await fillDay(db.sql, other, 500)
  await db.sql`select fleet.archive_partition(partition_name) from fleet.attached_partitions() where range_start = ${other}::date::timestamptz`
  t.same((await workAll(t, db, directory)).results, ['done'])
  const others = pathsOf(directory, other)
  await writeFile(paths.parquet, await readFile(others.parquet))
  await writeFile(paths.manifest, await readFile(others.manifest))
  t.match(await runCli(t, db, directory, 'verify'), {
    code: 1,
    output: /the manifest differs from the database: range_start should be/,
  })
  t.match(await runCli(t, db, directory, 'restore', retiredDay), {
    code: 1,
    output: /the manifest is for device_heartbeats_\d+\.parquet, but the database has/,
  })
  // With the old manifest, only the file differs.
  const { manifest } = paths
  await writeFile(
    manifest,
    JSON.stringify({
      ...(await readManifestFile(others.manifest)),
      range_start: `${retiredDay}T00:00:00.000000Z`,
      range_end: `${other}T00:00:00.000000Z`,
      partition,
      file: paths.parquet.slice(dirname(paths.parquet).length + 1),
    }),
  )
  t.match(await runCli(t, db, directory, 'restore', retiredDay), { code: 1, output: /row_count should be 1000 and is 500/ })
  t.match(await stateOf(db.sql, partition), { state: 'dropped' })
})

t.test('a small file with very many rows is refused by its footer, even if no database knows it', async t => {
  const { directory, paths } = await withArchive(t)
  // 20 million rows in a few kilobytes. The file is read only if its footer agrees with the manifest.
  await forge(
    t,
    paths,
    `select r.* from (select * from read_parquet({file}, hive_partitioning = false) limit 1) r cross join range(20000000)`,
    { row_count: 1000 },
  )
  t.ok((await stat(paths.parquet)).size < 1_000_000)
  const lost = await withDatabase(t)
  t.match(await runCli(t, lost, directory, 'register'), {
    code: 1,
    output: /expected 1000 rows; the file says that it has 20000000/,
  })
  t.same(await lost.sql`select * from fleet.archives`, [])
})
