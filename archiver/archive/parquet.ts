import { rename, rm } from 'node:fs/promises'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import { confine, identifier, literal, withDuckDB } from '../duckdb.ts'
import { isoMicros } from './iso-micros.ts'
import { feed, makePipe, openForReading, openForWriting } from './pipe.ts'

/** A column as fleet.archive_columns() names it: `type` is Postgres's own name of the type. */
export interface Column {
  name: string
  type: string
}

/** What a proof compares. Timestamps are in UTC with microseconds; the checksum is a decimal string. */
export interface Content {
  row_count: number
  content_checksum: string
  min_ts: string | null
  max_ts: string | null
}

/** The newest definition of fleet.content_checksum(); see fleet.checksum_expression(). */
export const CHECKSUM_VERSION = 2

/** A type in Parquet. `read` and `write` convert Postgres's text to a value and back if DuckDB's own text is different. */
interface Form {
  duckdb: string
  canonical: (value: string) => string
  read?: (text: string) => string
  write?: (value: string) => string
}

const sized = (value: string) => `strlen(${value}) || ':' || ${value}`
const plain = (value: string) => `${value}::varchar`
const moment = (value: string) => `case when isfinite(${value}) then epoch_us(${value})::varchar else ${value}::varchar end`
// DuckDB writes (BC) after the date, and Postgres writes BC at the end. Each ignores the other's notation without an error.
const dateOf = (text: string) =>
  `case when ends_with(${text}, ' BC') then (left(${text}, -3) || ' (BC)')::date else ${text}::date end`
const writeYears = (text: string, zone = '') => `
  case when contains(${text}, ' (BC)') then replace(${text}, ' (BC)', '') || '${zone} BC' else ${text} || '${zone}' end`
const writeDate = (value: string) => writeYears(`${value}::varchar`)
// Does not use DuckDB's time zones, which change the last years that Parquet can hold.
const writeZoned = (value: string) => `
  case when isfinite(${value})
    then ${writeYears(`make_timestamp(epoch_us(${value}))::varchar`, '+00')} else ${value}::varchar end`
const momentOf = (type: string) => (text: string) => `
  case when ends_with(${text}, ' BC')
    then ((split_part(${text}, ' ', 1) || ' (BC)')::date + split_part(split_part(${text}, ' ', 2), '+', 1)::time)::${type}
    else ${text}::${type} end`

/** The form of each type: in Parquet, and the canonical text of fleet.archive_form() for a value that is not null. */
const types: Record<string, Form> = {
  'timestamp with time zone': { duckdb: 'timestamptz', canonical: moment, read: momentOf('timestamptz'), write: writeZoned },
  'timestamp without time zone': { duckdb: 'timestamp', canonical: moment, read: momentOf('timestamp'), write: writeDate },
  date: {
    duckdb: 'date',
    canonical: value =>
      `case when isfinite(${value}) then date_diff('day', date '1970-01-01', ${value})::varchar else ${value}::varchar end`,
    read: dateOf,
    write: writeDate,
  },
  smallint: { duckdb: 'smallint', canonical: plain },
  integer: { duckdb: 'integer', canonical: plain },
  bigint: { duckdb: 'bigint', canonical: plain },
  boolean: { duckdb: 'boolean', canonical: plain },
  // A decimal in Parquet has at most 38 digits and no NaN.
  numeric: { duckdb: 'varchar', canonical: plain },
  'double precision': {
    duckdb: 'double',
    canonical: value => `case when isnan(${value}) then 'NaN' else ${value}::bit::varchar end`,
  },
  uuid: { duckdb: 'uuid', canonical: plain },
  text: { duckdb: 'varchar', canonical: sized },
  inet: { duckdb: 'varchar', canonical: sized },
  jsonb: { duckdb: 'varchar', canonical: sized },
  // Postgres's text, which has the bounds, the dimensions and the nulls of the array.
  'text[]': { duckdb: 'varchar', canonical: sized },
}

/** The columns in the form that fleet.hb_partitions.columns and manifests use. */
export function plainColumns(columns: readonly Column[]) {
  return columns.map(({ name, type }) => ({ name, type }))
}

/** DuckDB's name of the type that a column has in Parquet. @throws if the type has no form */
export function duckdbType({ name, type }: Column) {
  return normal(typeOf(name, type).duckdb)
}

/**
 * memory_limit covers only DuckDB's buffers. Measured for the whole process, with sorting, on 2 cores: at 400 MB, a peak of
 * 623 MB for 2.88M rows and of 706 MB for 30M; at 350 MB, a peak of 654 MB for 30M.
 */
const MEMORY_LIMIT = '350MB'

/** The CSV that COPY writes and reads here. Text is always quoted, so a quoted \N is text and a bare one is null. */
export function copyOptions(columns: Column[]) {
  const text = columns.filter(column => column.type === 'text').map(column => identifier(column.name))
  return `format csv, null '\\N'${text.length > 0 ? `, force_quote (${text.join(', ')})` : ''}`
}

/** The columns of a COPY: `"ts", "device_id"` … */
export function columnList(columns: Column[]) {
  return columns.map(column => identifier(column.name)).join(', ')
}

/**
 * Writes the rows of a COPY (see copyOptions) as a Parquet file, sorted by device_id and ts. The same rows
 * give the same bytes. The file appears only once every row that COPY sent is in it.
 * @param work a directory for the pipe and for data that does not fit into memory
 * @returns the number of rows
 */
export async function writeParquet(
  rows: Readable,
  columns: Column[],
  file: string,
  work: string,
  onRows?: (rows: number, bytes: number) => void,
) {
  // feed() checks for the error when it begins. Until then the error must not be uncaught.
  rows.on('error', () => {})
  const pipe = join(work, 'rows.csv')
  const partial = `${file}.partial`
  await rm(pipe, { force: true })
  await makePipe(pipe)
  try {
    return await withDuckDB(work, MEMORY_LIMIT, async duckdb => {
      await confine(duckdb, { directories: [work] })
      const forms = columns.map(({ name, type }) => ({ name, ...typeOf(name, type) }))
      const spec = forms.map(({ name, duckdb, read }) => `${literal(name)}: ${literal(read ? 'varchar' : duckdb)}`)
      const values = forms.map(({ name, read }) => (read ? `${read(identifier(name))} as ${identifier(name)}` : identifier(name)))
      const parquet = duckdb.run(`
        copy (
          select ${values.join(', ')} from read_csv(
            ${literal(pipe)}, auto_detect = false, header = false, delim = ',', quote = '"', escape = '"',
            new_line = '\\n', nullstr = '\\N', allow_quoted_nulls = false, columns = {${spec.join(', ')}}
          )
          order by device_id, ts
        ) to ${literal(partial)} (format parquet, compression zstd)`)
      parquet.catch(() => {})
      const socket = await openForWriting(pipe, parquet)
      let fault: Error | undefined
      let sent = 0
      if (socket)
        sent = await feed(rows, socket, onRows).catch((error: Error) => {
          fault = error
          return 0
        })
      // DuckDB ends by itself now, because its pipe is closed. If it failed, that is why the pipe broke.
      let written
      try {
        written = (await parquet).rowsChanged
      } catch (cause) {
        // If the rows were cut off in the middle of a line, DuckDB reports that line.
        throw isBrokenPipe(fault) || fault === undefined
          ? new Error(`${file}: DuckDB could not write the Parquet file`, { cause })
          : fault
      }
      if (fault !== undefined) throw fault
      // If they were cut off between two lines, it reports nothing.
      if (written !== sent) throw new Error(`COPY sent ${sent} rows, but the Parquet file has ${written}; the file was not kept`)
      await rename(partial, file)
      return written
    })
  } finally {
    await rm(partial, { force: true })
    await rm(pipe, { force: true })
  }
}

/**
 * Reads a whole Parquet file and returns what is in it, computed by DuckDB alone.
 * @param expectedRows the number of rows that the file's footer must state, checked before any row is read
 * @throws if it has other columns or another number of rows
 */
export async function readContent(file: string, columns: Column[], work: string, expectedRows?: number): Promise<Content> {
  const canonical = columns.map(({ name, type }) => `coalesce(${typeOf(name, type).canonical(identifier(name))}, '~')`)
  return await withDuckDB(work, MEMORY_LIMIT, async duckdb => {
    await confine(duckdb, { directories: [work] })
    try {
      const found = await duckdb.runAndReadAll(
        `select column_name, column_type from (describe from read_parquet(${literal(file)}))`,
      )
      const want = columns.map(({ name, type }) => `${name} ${normal(typeOf(name, type).duckdb)}`).join(', ')
      const got = found
        .getRows()
        .map(([name, type]) => `${String(name)} ${normal(String(type))}`)
        .join(', ')
      if (got !== want) throw new Error(`expected the columns ${want}; got ${got}`)
      // Read from the footer before any row is unpacked, because a few kilobytes can hold billions of rows.
      const footer = await duckdb.runAndReadAll(`select sum(num_rows)::varchar from parquet_file_metadata(${literal(file)})`)
      const rows = Number(footer.getRows()[0]?.[0])
      if (expectedRows !== undefined && rows !== expectedRows)
        throw new Error(`expected ${expectedRows} rows; the file says that it has ${rows}`)
      const result = await duckdb.runAndReadAll(`
        select
          count(*)::varchar,
          coalesce(sum(('0x' || substr(md5(concat_ws('|', ${canonical.join(', ')})), 1, 15))::bigint), 0)::varchar,
          min(ts)::varchar,
          max(ts)::varchar
        from read_parquet(${literal(file)})`)
      const [count, checksum, min, max] = result.getRows()[0] as [string, string, string | null, string | null]
      return {
        row_count: Number(count),
        content_checksum: checksum,
        min_ts: min === null ? null : isoMicros(min),
        max_ts: max === null ? null : isoMicros(max),
      }
    } catch (cause) {
      throw new Error(`${file}: DuckDB cannot read it as an archive`, { cause })
    }
  })
}

/**
 * Streams a Parquet file as CSV for a COPY FROM with copyOptions, but without force_quote. `rows` must be read to
 * its end. `done` resolves to the number of rows, or rejects with the reason why there are fewer, and must be awaited
 * before the COPY is ended.
 */
export async function streamParquet<T>(
  file: string,
  columns: Column[],
  work: string,
  consume: (rows: Readable, done: Promise<number>) => Promise<T>,
): Promise<T> {
  const pipe = join(work, 'rows.csv')
  await rm(pipe, { force: true })
  await makePipe(pipe)
  try {
    return await withDuckDB(work, MEMORY_LIMIT, async duckdb => {
      await confine(duckdb, { directories: [work] })
      const { stream, release } = openForReading(pipe)
      const text = columns.filter(column => column.type === 'text').map(column => identifier(column.name))
      const values = columns.map(({ name, type }) => typeOf(name, type).write?.(identifier(name)) ?? identifier(name))
      const done = duckdb
        .run(
          `
        copy (select ${values.join(', ')} from read_parquet(${literal(file)}))
        to ${literal(pipe)} (
          format csv, header false, delimiter ',', quote '"', escape '"', nullstr '\\N', use_tmp_file false
          ${text.length > 0 ? `, force_quote (${text.join(', ')})` : ''}
        )`,
        )
        .then(
          result => result.rowsChanged,
          (cause: unknown) => {
            throw new Error(`${file}: DuckDB could not read all of it`, { cause })
          },
        )
      const released = done.then(release, release)
      try {
        return await consume(stream, done)
      } catch (error) {
        // DuckDB may be about to open the pipe, or blocked in a write: keep reading until it has noticed.
        duckdb.interrupt()
        stream.on('error', () => {})
        stream.resume()
        throw error
      } finally {
        await released
        stream.destroy()
      }
    })
  } finally {
    await rm(pipe, { force: true })
  }
}

function typeOf(name: string, type: string) {
  // numeric(10,2), timestamp(3) with time zone
  const base = type.replace(/^(numeric|timestamp)\(\d+(,-?\d+)?\)/, '$1')
  const found = Object.hasOwn(types, base) ? types[base] : undefined
  if (!found) {
    throw new Error(
      `column ${name} has type ${type}, for which the archive has no form; to add one, edit archiver/archive/parquet.ts, ` +
        'sql/archive/archive_form.sql and sql/setup/shape-guard.sql',
    )
  }
  return found
}

/** DuckDB's own name of a type. */
function normal(type: string) {
  const upper = type.toUpperCase()
  return upper === 'TIMESTAMPTZ' ? 'TIMESTAMP WITH TIME ZONE' : upper
}

function isBrokenPipe(error: unknown) {
  return (
    error instanceof Error &&
    (error.message === 'the reader of the COPY went away' || ('code' in error && error.code === 'EPIPE'))
  )
}
