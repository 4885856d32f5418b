import { readdir, readFile, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { PassThrough } from 'node:stream'
import { DuckDBInstance } from '@duckdb/node-api'
import t from 'tap'
import { waitFor, withDatabase } from '../../testing/database.ts'
import { exportTable } from './export.ts'
import { hashFile } from './hash.ts'
import { readContent, writeParquet } from './parquet.ts'
import { exportCounted, fillAwkwardDay, makeDirectory } from '../../testing/archiver.ts'
import { NO_ROWS } from '../../testing/rows.ts'

const db = await withDatabase(t)
const database = { url: db.url('fleet_archiver') }
let tables = 0
const columns = [
  { name: 'ts', type: 'timestamp with time zone' },
  { name: 'device_id', type: 'bigint' },
  { name: 'note', type: 'text' },
]

/** A table as fleet.retire_partition() leaves it. Each has its own name, because the database does not allow it to be dropped. */
async function makeTable(count = 0) {
  const table = `fleet_detached.rows_${++tables}`
  await db.admin`create table ${db.admin(table)} (like fleet.device_heartbeats)`
  await db.admin`grant select on ${db.admin(table)} to fleet_archiver`
  await db.admin`
    insert into ${db.admin(table)} (ts, received_at, device_id, signal_dbm, battery_pct, unity_running, network_type, agent_version, ip)
    select '2026-08-15Z'::timestamptz + n * interval '400 milliseconds', '2026-08-15Z', (n * 7919::bigint) % 1000, -70, n % 100, true, 'wifi', '1.0', '10.0.0.1'
    from generate_series(1, ${count}::int) as n`
  return table
}

t.test('rows that break careless formats are unchanged in Parquet', async t => {
  const table = await makeTable()
  await fillAwkwardDay(db.admin, '2026-08-15', table)
  const work = await makeDirectory(t)
  const file = join(work, 'x.parquet')
  const exported = await exportCounted(db, table, file, work)
  t.equal(exported.content.row_count, 4000)
  t.equal(exported.content.min_ts, '2026-08-15T00:00:00.000000Z')
  t.equal(exported.content.max_ts, '2026-08-15T23:59:59.999999Z')
  t.same(
    await readContent(file, exported.columns, work, { checksum: 'rows_sha256' }),
    exported.content,
    'by the SHA-256 of the rows, count and bounds',
  )

  // Compared again without the checksum: row by row, as text.
  const duckdb = await (await DuckDBInstance.create()).connect()
  const parquet = await duckdb.runAndReadAll(`
    select epoch_us(ts)::varchar, epoch_us(received_at)::varchar, device_id::varchar, signal_dbm, battery_pct, unity_running,
      hex(encode(network_type)), hex(encode(agent_version)), ip, hex(encode(extra)) from '${file}' order by device_id`)
  const rows = await db.admin`
    select (extract(epoch from ts) * 1000000)::bigint::text, (extract(epoch from received_at) * 1000000)::bigint::text as received, device_id::text,
      signal_dbm, battery_pct, unity_running, upper(encode(convert_to(network_type, 'UTF8'), 'hex')) as network_type,
      upper(encode(convert_to(agent_version, 'UTF8'), 'hex')) as agent_version, abbrev(ip),
      upper(encode(convert_to(extra::text, 'UTF8'), 'hex')) as extra
    from ${db.admin(table)} as rows order by rows.device_id`.values()
  t.same(
    parquet.getRows(),
    rows.map(row => Array.from<unknown>(row)),
  )
  duckdb.closeSync()
})

t.test('a table without rows makes a Parquet file without rows', async t => {
  const table = await makeTable()
  const work = await makeDirectory(t)
  const file = join(work, 'x.parquet')
  const exported = await exportCounted(db, table, file, work)
  t.same(exported.content, { ...NO_ROWS, row_count: 0, min_ts: null, max_ts: null })
  t.same(await readContent(file, exported.columns, work, { checksum: 'rows_sha256' }), exported.content)
})

t.test('small tables of any size are exported', async t => {
  // postgres.js left the connection paused after a COPY that arrived completely before anyone read it.
  const work = await makeDirectory(t)
  for (const count of [1, 150, 300, 500, 700, 1500]) {
    const { content } = await exportCounted(db, await makeTable(count), join(work, `${count}.parquet`), work)
    t.equal(content.row_count, count)
  }
})

t.test('200,000 rows arrive sorted, compressed with zstd, and as the same bytes each time', async t => {
  const table = await makeTable(200_000)
  const work = await makeDirectory(t)
  const first = await exportCounted(db, table, join(work, 'first.parquet'), work)
  t.same(await readContent(join(work, 'first.parquet'), first.columns, work, { checksum: 'rows_sha256' }), first.content)
  await exportTable(database, table, join(work, 'second.parquet'), work)
  t.equal(await hashFile(join(work, 'first.parquet')), await hashFile(join(work, 'second.parquet')))

  const duckdb = await (await DuckDBInstance.create()).connect()
  const unsorted = await duckdb.runAndReadAll(`
    select count(*) from (
      select (device_id, ts) < lag((device_id, ts)) over (order by file_row_number) as is_wrong
      from read_parquet('${join(work, 'first.parquet')}', file_row_number = true)
    ) where is_wrong`)
  t.same(unsorted.getRows(), [[0n]])
  const codecs = await duckdb.runAndReadAll(`select distinct compression from parquet_metadata('${join(work, 'first.parquet')}')`)
  t.same(codecs.getRows(), [['ZSTD']])
  duckdb.closeSync()
  t.same((await readdir(work)).sort(), ['first.parquet', 'second.parquet'], 'neither a pipe nor a partial file is left')
})

t.test('a backend that dies during the COPY leaves no Parquet file', async t => {
  const table = await makeTable(1_000_000)
  const work = await makeDirectory(t)
  const file = join(work, 'x.parquet')
  let isKilled = false
  const exporting = exportTable(database, table, file, work, {
    onRows(rows) {
      if (isKilled || rows < 1000) return
      isKilled = true
      void db.admin`select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and query like 'copy%' and usename = 'fleet_archiver'`.execute()
    },
  })
  await t.rejects(exporting, { message: /terminating connection|ended|CONNECTION/ })
  t.ok(isKilled)
  t.same(await readdir(work), [])
})

t.test('an abort during the COPY ends it, here and on the server', async t => {
  const table = await makeTable(1_000_000)
  const work = await makeDirectory(t)
  const stopping = new AbortController()
  const exporting = exportTable(database, table, join(work, 'x.parquet'), work, {
    signal: stopping.signal,
    onRows: rows => void (rows > 1000 && stopping.abort(new Error('stopped'))),
  })
  await t.rejects(exporting)
  t.same(await readdir(work), [])
  await waitFor(async () => {
    const left =
      await db.admin`select from pg_stat_activity where datname = current_database() and query like 'copy%' and state <> 'idle'`
    return left.length === 0
  })
})

t.test('rows that are cut off at the end of a line are noticed', async t => {
  const work = await makeDirectory(t)
  const rows = new PassThrough()
  rows.write('2026-08-15 00:00:00+00,1,"a"\n')
  const writing = writeParquet(rows, columns, join(work, 'x.parquet'), work)
  setTimeout(() => rows.destroy(), 500)
  await t.rejects(writing, { message: 'the COPY ended before its last row' })
  t.same(await readdir(work), [])
})

t.test('a COPY that died before it was read is noticed', async t => {
  const work = await makeDirectory(t)
  const rows = new PassThrough()
  const writing = writeParquet(rows, columns, join(work, 'x.parquet'), work)
  rows.destroy(new Error('the server is gone'))
  await t.rejects(writing, { message: 'the server is gone' })
  t.same(await readdir(work), [])
})

t.test('a chunk with two rows, which COPY never sends, is noticed', async t => {
  const work = await makeDirectory(t)
  const rows = new PassThrough()
  rows.end('2026-08-15 00:00:00+00,1,"a"\n2026-08-15 00:00:00+00,1,"a"\n')
  await t.rejects(writeParquet(rows, columns, join(work, 'x.parquet'), work), {
    message: 'COPY sent 1 rows, but the Parquet file has 2; the file was not kept',
  })
})

t.test('a value that does not fit is an error that says so, and nothing hangs', async t => {
  const work = await makeDirectory(t)
  const rows = new PassThrough()
  for (let n = 0; n < 100_000; n++) rows.write('2026-08-15 00:00:00+00,not a number,"a"\n')
  rows.end()
  await t.rejects(writeParquet(rows, columns, join(work, 'x.parquet'), work), {
    message: /could not write the Parquet file/,
    cause: /not a number/,
  })
  t.same(await readdir(work), [])
})

t.test('a missing directory is an error, and nothing hangs', async t => {
  const work = await makeDirectory(t)
  const rows = new PassThrough()
  rows.end('2026-08-15 00:00:00+00,1,"a"\n')
  await t.rejects(writeParquet(rows, columns, join(work, 'missing', 'x.parquet'), work), {
    message: /could not write the Parquet file/,
  })
})

t.test('a file that is not Parquet or has other columns is not read as an archive', async t => {
  const work = await makeDirectory(t)
  const rows = new PassThrough()
  rows.end('2026-08-15 00:00:00+00,1,"a"\n')
  const file = join(work, 'x.parquet')
  await writeParquet(rows, columns, file, work)
  await t.rejects(readContent(file, columns.slice(0, 2), work, { checksum: 'rows_sha256' }), { cause: /expected the columns/ })
  const { size } = await stat(file)
  await writeFile(file, (await readFile(file)).subarray(0, size - 5))
  await t.rejects(readContent(file, columns, work, { checksum: 'rows_sha256' }), { message: /cannot read it as an archive/ })
})
