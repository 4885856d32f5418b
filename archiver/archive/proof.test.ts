// What the proof finds: the Parquet file in the store is changed by DuckDB, and its manifest says what the changed file is.
import { createHash } from 'node:crypto'
import { execFile } from 'node:child_process'
import { readFile, rename, stat, writeFile } from 'node:fs/promises'
import { promisify } from 'node:util'
import { DuckDBInstance } from '@duckdb/node-api'
import t, { type Test } from 'tap'
import { exportTable } from './export.ts'
import { hashFile } from './hash.ts'
import type { Manifest } from './manifest.ts'
import { asRole } from '../../testing/fleet.ts'
import { killAfter, makeDirectory, pathsOf, stateOf, withRetiredDay, workAll } from '../../testing/archiver.ts'
import { plainEnv } from '../../local/config.ts'
import { contentOf } from '../../testing/rows.ts'
import type { TestDatabase } from '../../testing/database.ts'

/** Rewrites a Parquet file with what a statement selects from `rows`, whose column n is the number of the row. */
async function rewrite(file: string, select: string) {
  const duckdb = await (await DuckDBInstance.create()).connect()
  await duckdb.run(`set TimeZone = 'UTC'`)
  await duckdb.run(
    `create table rows as select *, row_number() over () as n from read_parquet('${file}', hive_partitioning = false)`,
  )
  await duckdb.run(`copy (select * exclude (n) from (${select}) order by n) to '${file}.new' (format parquet, compression zstd)`)
  duckdb.closeSync()
  await rename(`${file}.new`, file)
}

/** Makes the manifest and the database say what the file is, so that only its rows are left to be compared. */
async function claimFile(db: TestDatabase, directory: string, partition: string) {
  const { parquet, manifest: path } = pathsOf(directory)
  const manifest = JSON.parse(await readFile(path, 'utf8')) as Manifest
  const [bytes, sha256] = [(await stat(parquet)).size, await hashFile(parquet)]
  await writeFile(path, JSON.stringify({ ...manifest, bytes, sha256 }))
  await db.admin`update fleet.hb_partitions set archive_bytes = ${bytes}, checksum_sha256 = ${sha256} where partition_name = ${partition}`
}

const mutations: Record<string, string> = {
  'two values exchanged between two rows': `
    select * replace (case n when 7 then (select battery_pct from rows where n = 8) when 8 then (select battery_pct from rows where n = 7)
      else battery_pct end as battery_pct) from rows`,
  'two columns exchanged': 'select * replace (battery_pct as signal_dbm, signal_dbm as battery_pct) from rows',
  'one row twice and another missing':
    'select * from rows where n <> 8 union all select * replace (8 as n) from rows where n = 7',
  'one microsecond': `select * replace (received_at + case n when 500 then interval 1 microsecond else interval 0 second end as received_at) from rows`,
  "one letter's case": `select * replace (case n when 7 then 'Wifi' else network_type end as network_type) from rows`,
  'a trailing blank': `select * replace (case n when 7 then agent_version || ' ' else agent_version end as agent_version) from rows`,
  'null for an empty string': `select * replace (nullif(agent_version, '') as agent_version) from rows`,
  'an empty string for null': `select * replace (coalesce(network_type, '') as network_type) from rows`,
  'the text \\N for null': `select * replace (coalesce(network_type, '\\N') as network_type) from rows`,
  'two rows in the other order': 'select * replace (case n when 7 then 8 when 8 then 7 else n end as n) from rows',
}

/** A day that is uploaded and not yet proven. Some agent versions are empty strings, and some network types are null. */
async function withUploaded(t: Test) {
  const retired = await withRetiredDay(t)
  const { db, directory, partition } = retired
  await db.admin.unsafe(`
    update fleet_detached.${partition} set agent_version = '' where device_id % 10 = 0;
    update fleet_detached.${partition} set network_type = null where device_id % 3 = 2;
    update fleet_detached.${partition} set network_type = 'wifi' where device_id = 0`)
  await killAfter(t, db, directory, partition, 'uploaded')
  return retired
}

t.test('a file that only has other rows than Postgres sent is never proven', async t => {
  const { db, directory, partition } = await withUploaded(t)
  const before = await contentOf(db.admin, `fleet_detached.${partition}`)
  const { parquet, manifest } = pathsOf(directory)
  const [bytes, text] = [await readFile(parquet), await readFile(manifest)]
  const set = (sha256: string) => db.admin`
    update fleet.hb_partitions set state = 'archiving', step = 'uploaded', attempts = 0, last_error = null, lease_owner = null,
      lease_until = null, archive_bytes = ${bytes.length}, checksum_sha256 = ${sha256} where partition_name = ${partition}`
  const sha256 = createHash('sha256').update(bytes).digest('hex')
  for (const [mutation, select] of Object.entries(mutations)) {
    await writeFile(parquet, bytes)
    await writeFile(manifest, text)
    await set(sha256)
    await rewrite(parquet, select)
    await claimFile(db, directory, partition)
    t.same((await workAll(t, db, directory)).results, ['failed'], mutation)
    t.match(
      await stateOf(db.sql, partition),
      { state: 'archive_failed', proven_at: null, last_error: /the rows differ from the manifest: rows_sha256 should be / },
      mutation,
    )
  }
  t.same(await contentOf(db.admin, `fleet_detached.${partition}`), before, 'the day is kept')

  await writeFile(parquet, bytes)
  await writeFile(manifest, text)
  await set(sha256)
  await rewrite(parquet, 'select * from rows')
  await claimFile(db, directory, partition)
  t.same((await workAll(t, db, directory)).results, ['done'], 'another file with the same rows is proven')
  t.match(await stateOf(db.sql, partition), { state: 'dropped', ...before })
})

t.test('anybody can repeat the proof with the SQL of the manifest', async t => {
  const { db, directory, partition } = await withRetiredDay(t, 'awkward')
  await db.admin`update fleet.settings set archive_grace = '1 day'`
  // Nothing that a role or a database sets may change a text.
  await db.admin.unsafe(
    `alter database ${db.name} set datestyle = 'German, DMY'; alter database ${db.name} set timezone = 'Asia/Kathmandu'`,
  )
  await workAll(t, db, directory)
  const { rows_sha256, rows_csv, file } = JSON.parse(await readFile(pathsOf(directory).manifest, 'utf8')) as Manifest
  t.equal((await contentOf(db.admin, `fleet_detached.${partition}`)).rows_sha256, rows_sha256, 'by SQL functions')

  const psql = await promisify(execFile)('psql', ['-qX', db.url('fleet_reader'), '-c', rows_csv!.postgres], {
    encoding: 'buffer',
    maxBuffer: 1 << 28,
    env: { ...plainEnv(), PGCLIENTENCODING: 'LATIN1' },
  })
  t.equal(createHash('sha256').update(psql.stdout).digest('hex'), rows_sha256, 'by psql')

  const work = await makeDirectory(t)
  await writeFile(`${work}/${file}`, await readFile(pathsOf(directory).parquet))
  const duckdb = await (await DuckDBInstance.create()).connect()
  // In the directory of the file, as a person would.
  const home = process.cwd()
  process.chdir(work)
  try {
    await duckdb.run(rows_csv!.duckdb)
  } finally {
    process.chdir(home)
    duckdb.closeSync()
  }
  t.equal(await hashFile(`${work}/rows.csv`), rows_sha256, 'by DuckDB')
  t.same(await readFile(`${work}/rows.csv`), psql.stdout, 'byte by byte')
})

t.test('two rows of one device and ts have a place, and keep it', async t => {
  const { db, directory, partition } = await withRetiredDay(t, 100)
  await db.admin.unsafe(`
    do $$ declare i regclass; begin
      for i in select indexrelid from pg_index where indrelid = 'fleet_detached.${partition}'::regclass and indisunique loop
        execute format('drop index %s', i); end loop; end $$;
    insert into fleet_detached.${partition} (ts, received_at, device_id, battery_pct)
    select ts, received_at, device_id, n from fleet_detached.${partition}, unnest(array[3, 1, 2]) n where device_id < 20`)
  const before = await contentOf(db.admin, `fleet_detached.${partition}`)
  t.same((await workAll(t, db, directory)).results, ['done'])
  t.match(await stateOf(db.sql, partition), { state: 'dropped', ...before })
})

t.test('from the COPY until Postgres has counted, nobody can change the day', async t => {
  const { db, directory, partition } = await withRetiredDay(t, 300)
  const archiver = asRole(t, db, 'fleet_archiver')
  await archiver`select * from fleet.claim_partition('a')`
  const table = `fleet_detached.${partition}`
  const change = () =>
    db.admin.begin(async sql => {
      await sql`set local lock_timeout = '50ms'`
      await sql.unsafe(`update ${table} set battery_pct = 1 where device_id = 1`)
    })
  const lock = { partition, worker: 'a' }
  await exportTable({ url: db.url('fleet_archiver') }, table, `${directory}/x.parquet`, directory, { lock }, async exported => {
    t.equal(exported.row_count, 300)
    await t.rejects(change(), { code: '55P03' })
    t.match(await db.admin.unsafe(`select count(*)::int from ${table}`), [{ count: 300 }], 'readers can read')
    t.match(await archiver`select fleet.renew_lease(${partition}, 'a') as renewed`, [{ renewed: true }])
  })
  await change()
  await t.rejects(archiver`select fleet.lock_retired(${partition}, 'b')`, { code: 'FL404', message: /that b may archive/ })
})

t.test('an archiver that hangs with the lock, after it lost its lease, does not stop the next one', async t => {
  const { db, directory, partition } = await withRetiredDay(t, 300)
  const hanging = asRole(t, db, 'fleet_archiver')
  await hanging`select * from fleet.claim_partition('hanging')`
  await hanging`begin`
  await hanging`select fleet.lock_retired(${partition}, 'hanging')`
  await db.admin`update fleet.hb_partitions set lease_until = now() - interval '1 second' where partition_name = ${partition}`
  t.same((await workAll(t, db, directory)).results, ['done'])
  t.match(await stateOf(db.sql, partition), { state: 'dropped' })
})
