import { fileURLToPath } from 'node:url'
import { DuckDBInstance } from '@duckdb/node-api'
import { asyncBufferFromFile, parquetMetadataAsync, parquetReadObjects, type AsyncBuffer, type FileMetaData } from 'hyparquet'
import { compressors } from 'hyparquet-compressors'
import t, { type Test } from 'tap'
import { withRetiredDay, stateOf, workAll } from '../../testing/archiver.ts'
import { ROWS_IN_GROUP } from './parquet.ts'

// Programs other than ours read the archive by its statistics; see docs/decisions/0046.

const ROWS = 100_000

/** An archived day of 100 devices, in several row groups, and the rows of one device as Postgres had them. */
async function withArchive(t: Test, device: number) {
  const { db, directory, partition } = await withRetiredDay(t, ROWS)
  // Every column, as the reader gives it.
  const rows = await db.admin.unsafe<{ row: Record<string, unknown> }[]>(`
    select to_jsonb(h) || jsonb_build_object(
      'ts', (extract(epoch from ts) * 1000000)::bigint::text, 'device_id', device_id::text, 'ip', abbrev(ip),
      'received_at', (extract(epoch from received_at) * 1000000)::bigint::text
    ) as row
    from fleet_detached.${partition} h where device_id = ${device} order by ts`)
  t.same((await workAll(t, db, directory)).results, ['done'])
  return { file: fileURLToPath((await stateOf(db.sql, partition)).archive_url as string), rows: rows.map(({ row }) => row) }
}

/** The bytes of each row group of a file: [start, end). */
function extents({ row_groups }: FileMetaData) {
  return row_groups.map(({ columns }) => {
    const chunks = columns.map(({ meta_data }) => {
      const start = Number(meta_data?.dictionary_page_offset ?? meta_data?.data_page_offset)
      return [start, start + Number(meta_data?.total_compressed_size)] as const
    })
    return [Math.min(...chunks.map(([start]) => start)), Math.max(...chunks.map(([, end]) => end))] as const
  })
}

t.test('each row group has the smallest and the largest device_id and ts, in order', async t => {
  const { file } = await withArchive(t, 42)
  const duckdb = await (await DuckDBInstance.create()).connect()
  const rows = async (sql: string) => (await duckdb.runAndReadAll(sql)).getRowObjectsJson()
  const said = await rows(`
    select row_group_id::int as id, path_in_schema as name, row_group_num_rows::int as rows,
      stats_min_value as min, stats_max_value as max, stats_null_count::int as nulls
    from parquet_metadata('${file}') where path_in_schema in ('device_id', 'ts') order by name, id`)
  t.equal(said.length / 2, Math.ceil(ROWS / ROWS_IN_GROUP), 'there are several')
  // What the rows are, by their place in the file.
  const found = await rows(`
    with
      g as (
        select row_group_id as id, sum(row_group_num_rows) over (order by row_group_id) as until from parquet_metadata('${file}')
        where path_in_schema = 'ts'
      ),
      r as (
        select device_id, ts, (select min(id) from g where file_row_number < until) as id
        from read_parquet('${file}', file_row_number = true)
      )
    select id::int as id, 'device_id' as name, count(*)::int as rows, min(device_id)::varchar as min, max(device_id)::varchar as max, 0 as nulls
    from r group by all union all
    select id::int, 'ts', count(*)::int, min(ts)::varchar, max(ts)::varchar, 0 from r group by all order by name, id`)
  t.same(said, found)
  const devices = said.filter(({ name }) => name === 'device_id')
  for (const [n, { min }] of devices.slice(1).entries()) t.ok(Number(devices[n]?.max) <= Number(min), 'sorted')
  duckdb.closeSync()
})

t.test('another reader finds the rows of a device by the statistics alone, and they are those of Postgres', async t => {
  const { file, rows } = await withArchive(t, 42)
  t.equal(rows.length, ROWS / 100)
  const buffer = await asyncBufferFromFile(file)
  const metadata = await parquetMetadataAsync(buffer)
  const groups = metadata.row_groups.map(({ columns }, n) => {
    const { statistics } = columns.find(({ meta_data }) => meta_data?.path_in_schema[0] === 'device_id')?.meta_data ?? {}
    const holds = (statistics?.min_value as bigint) <= 42n && 42n <= (statistics?.max_value as bigint)
    return { holds, extent: extents(metadata)[n] ?? [0, 0] }
  })
  const needed = groups.filter(({ holds }) => holds)
  t.ok(needed.length >= 1 && needed.length < groups.length)

  const read: [number, number][] = []
  const watched: AsyncBuffer = {
    byteLength: buffer.byteLength,
    slice(start, end = buffer.byteLength) {
      read.push([start, end])
      return buffer.slice(start, end)
    },
  }
  const found = await parquetReadObjects({
    file: watched,
    metadata,
    compressors,
    filter: { device_id: { $eq: 42n } },
    parsers: { timestampFromMicroseconds: (micros: bigint) => micros },
  })
  t.same(
    found.map(row => ({ ...row, ts: String(row.ts), received_at: String(row.received_at), device_id: String(row.device_id) })),
    rows,
  )
  t.ok(read.length > 0)
  for (const [start, end] of read) {
    t.ok(
      needed.some(({ extent }) => start >= extent[0] && end <= extent[1]),
      `bytes ${start} to ${end} are of a row group that has the device`,
    )
  }
})
