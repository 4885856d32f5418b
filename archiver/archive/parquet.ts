import { rename, rm } from 'node:fs/promises'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import { createHash } from 'node:crypto'
import { confine, identifier, literal, withDuckDB } from '../duckdb.ts'
import { isoMicros } from './iso-micros.ts'
import { feed, makePipe, openForReading, openForWriting } from './pipe.ts'

/** A column as fleet.archive_columns() names it: `type` is Postgres's own name of the type. */
export interface Column {
  name: string
  type: string
}

/**
 * What a proof compares. Timestamps are in UTC with microseconds. Archives have `rows_sha256` (see rows-csv.ts); those of
 * manifest formats 1 and 2 have `content_checksum` instead, a decimal string.
 */
export interface Content {
  row_count: number
  rows_sha256?: string | undefined
  content_checksum?: string | undefined
  min_ts: string | null
  max_ts: string | null
}

/**
 * A type in Parquet. Postgres sends its own text of a value, or `send`; `read` converts that to the value in Parquet. `csv` is
 * the same text again, made by DuckDB. `write` is the text for COPY FROM, if Postgres does not read the text of `csv`.
 * `checksum` is the canonical text of fleet.archive_form(), for archives of manifest formats 1 and 2.
 */
interface Form {
  duckdb: string
  send?: (value: string) => string
  read?: (text: string) => string
  csv?: (value: string) => string
  write?: (value: string) => string
  /** What rows are sorted by, if the value itself does not say which of two comes first. */
  order?: (value: string) => string
  /** Quoted in CSV whenever it is not null, so that it does not matter which texts a program would quote. */
  isQuoted?: true
  checksum: (value: string) => string
}

const sized = (value: string) => `strlen(${value}) || ':' || ${value}`
const plain = (value: string) => `${value}::varchar`
const textOrder = (value: string) => `${value}::text collate "C"`
const moment = (value: string) => `case when isfinite(${value}) then epoch_us(${value})::varchar else ${value}::varchar end`
// DuckDB writes (BC) after the date, and Postgres writes BC at the end. Each ignores the other's notation without an error.
const dateOf = (text: string) =>
  `case when ends_with(${text}, ' BC') then (left(${text}, -3) || ' (BC)')::date else ${text}::date end`
const writeYears = (text: string, zone = '') =>
  `case when contains(${text}, ' (BC)') then replace(${text}, ' (BC)', '') || '${zone} BC' else ${text} || '${zone}' end`
const writeDate = (value: string) => writeYears(`${value}::varchar`)
// The first branch is for nearly all values, and only a fast way to do the same. It does not use DuckDB's time zones, which
// change the last years that Parquet can hold.
const writeMoment = (value: string, zone = '') => {
  const text = `make_timestamp(epoch_us(${value}))::varchar`
  return (
    `case when ${value} >= '0001-01-01' and ${value} < 'infinity' then ${zone === '' ? text : `${text} || '${zone}'`} ` +
    `when isfinite(${value}) then ${writeYears(text, zone)} else ${value}::varchar end`
  )
}
const momentOf = (type: string) => (text: string) => `
  case when ends_with(${text}, ' BC')
    then ((split_part(${text}, ' ', 1) || ' (BC)')::date + split_part(split_part(${text}, ' ', 2), '+', 1)::time)::${type}
    else ${text}::${type} end`

const types: Record<string, Form> = {
  'timestamp with time zone': {
    duckdb: 'timestamptz',
    checksum: moment,
    read: momentOf('timestamptz'),
    csv: value => writeMoment(value, '+00'),
  },
  'timestamp without time zone': { duckdb: 'timestamp', checksum: moment, read: momentOf('timestamp'), csv: writeMoment },
  date: {
    duckdb: 'date',
    checksum: value =>
      `case when isfinite(${value}) then date_diff('day', date '1970-01-01', ${value})::varchar else ${value}::varchar end`,
    read: dateOf,
    csv: writeDate,
  },
  smallint: { duckdb: 'smallint', checksum: plain },
  integer: { duckdb: 'integer', checksum: plain },
  bigint: { duckdb: 'bigint', checksum: plain },
  boolean: {
    duckdb: 'boolean',
    checksum: plain,
    csv: value => `case ${value} when true then 't' when false then 'f' end`,
  },
  // A decimal in Parquet has at most 38 digits and no NaN.
  numeric: { duckdb: 'varchar', order: textOrder, checksum: plain },
  'double precision': {
    duckdb: 'double',
    // The bits, because Postgres and DuckDB print different texts. NaN has many bit patterns, so it is written by name.
    send: value => `case when ${value} = 'NaN' then 'NaN' else ('x' || encode(float8send(${value}), 'hex'))::bit(64)::text end`,
    order: value => `float8send(${value})`,
    read: text => `case when ${text} = 'NaN' then 'NaN'::double else ${text}::bit::double end`,
    csv: value => `case when isnan(${value}) then 'NaN' else ${value}::bit::varchar end`,
    write: plain,
    checksum: value => `case when isnan(${value}) then 'NaN' else ${value}::bit::varchar end`,
  },
  uuid: { duckdb: 'uuid', checksum: plain },
  text: { duckdb: 'varchar', isQuoted: true, order: value => `${value} collate "C"`, checksum: sized },
  inet: { duckdb: 'varchar', checksum: sized },
  jsonb: { duckdb: 'varchar', isQuoted: true, checksum: sized },
  // Postgres's text, which has the bounds, the dimensions and the nulls of the array.
  'text[]': { duckdb: 'varchar', isQuoted: true, order: textOrder, checksum: sized },
}

/** The columns in the form that fleet.hb_partitions.columns and manifests use. */
export function plainColumns(columns: readonly Column[]) {
  return columns.map(({ name, type }) => ({ name, type }))
}

/** DuckDB's name of the type that a column has in Parquet. @throws if the type has no form */
export function duckdbType({ name, type }: Column) {
  return normal(typeOf(name, type).duckdb)
}

/** memory_limit covers only DuckDB's buffers. With 128 MB and one thread the archiver takes 250 to 310 MB. */
const MEMORY_LIMIT = '128MB'

/** What readers skip or read as a whole, by the smallest and largest device_id and ts that the footer names for it. */
export const ROWS_IN_GROUP = 32_768

/** The columns whose texts are quoted in CSV: `"network_type", "agent_version"`. */
function quotedColumns(columns: Column[]) {
  return columns.filter(({ name, type }) => typeOf(name, type).isQuoted).map(({ name }) => identifier(name))
}

/** The CSV that COPY writes. A quoted \N is text and a bare one is null. */
export function copyOptions(columns: Column[]) {
  const quoted = quotedColumns(columns)
  return `format csv, null '\\N'${quoted.length > 0 ? `, force_quote (${quoted.join(', ')})` : ''}`
}

/** The columns of a COPY FROM: `"ts", "device_id"` … */
export function columnList(columns: Column[]) {
  return columns.map(column => identifier(column.name)).join(', ')
}

/** What a COPY TO selects, as texts that DuckDB writes in the same way. */
export function copyValues(columns: Column[]) {
  return columns.map(({ name, type }) => typeOf(name, type).send?.(identifier(name)) ?? identifier(name)).join(', ')
}

/**
 * The order of the rows of a COPY TO: by device_id and ts, then by the other columns, whatever the collations of the database.
 * Sorting by a column's text would cost as much as writing it, so two numbers in jsonb that differ only in trailing zeros count
 * as equal.
 */
export function copyOrder(columns: Column[]) {
  const others = columns.filter(({ name }) => name !== 'device_id' && name !== 'ts')
  return [
    'device_id',
    'ts',
    ...others.map(({ name, type }) => typeOf(name, type).order?.(identifier(name)) ?? identifier(name)),
  ].join(', ')
}

/** The CSV of DuckDB that is the same, byte for byte, as that of COPY with copyOptions. */
export function duckdbOptions(columns: Column[]) {
  const quoted = quotedColumns(columns)
  return (
    `format csv, header false, delimiter ',', quote '"', escape '"', nullstr '\\N'` +
    (quoted.length > 0 ? `, force_quote (${quoted.join(', ')})` : '')
  )
}

/** What DuckDB selects from a Parquet file for the texts of copyValues, or, with `isForCopyFrom`, for a COPY FROM. */
export function duckdbValues(columns: Column[], isForCopyFrom = false) {
  return columns
    .map(({ name, type }) => {
      const { csv, write } = typeOf(name, type)
      const form = (isForCopyFrom ? write : undefined) ?? csv
      return form ? form(identifier(name)) : identifier(name)
    })
    .join(', ')
}

/**
 * Writes the rows of a COPY (see copyValues and copyOptions) as a Parquet file, in their order. The same rows give the same
 * bytes. The file appears only once every row that COPY sent is in it.
 * @param work a directory for the pipe and for data that does not fit into memory
 * @returns the number of rows, and the SHA-256 of what COPY sent, in hex
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
    return await withDuckDB(
      work,
      MEMORY_LIMIT,
      async duckdb => {
        await confine(duckdb, { directories: [work] })
        const forms = columns.map(({ name, type }) => ({ name, ...typeOf(name, type) }))
        const spec = forms.map(({ name, duckdb, read }) => `${literal(name)}: ${literal(read ? 'varchar' : duckdb)}`)
        const values = forms.map(({ name, read }) =>
          read ? `${read(identifier(name))} as ${identifier(name)}` : identifier(name),
        )
        const parquet = duckdb.run(`
        copy (
          select ${values.join(', ')} from read_csv(
            ${literal(pipe)}, auto_detect = false, header = false, delim = ',', quote = '"', escape = '"',
            new_line = '\\n', nullstr = '\\N', allow_quoted_nulls = false, columns = {${spec.join(', ')}}
          )
        ) to ${literal(partial)} (format parquet, compression zstd, row_group_size ${ROWS_IN_GROUP})`)
        parquet.catch(() => {})
        const socket = await openForWriting(pipe, parquet)
        let fault: Error | undefined
        let sent = 0
        const hash = createHash('sha256')
        if (socket)
          sent = await feed(rows, socket, { hash, onRows }).catch((error: Error) => {
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
        if (written !== sent)
          throw new Error(`COPY sent ${sent} rows, but the Parquet file has ${written}; the file was not kept`)
        await rename(partial, file)
        return { row_count: written, rows_sha256: hash.digest('hex') }
      },
      1,
    )
  } finally {
    await rm(partial, { force: true })
    await rm(pipe, { force: true })
  }
}

/**
 * Reads a whole Parquet file and returns what is in it, computed by DuckDB alone.
 * @param expected which checksum to compute, and the number of rows that the file's footer must state, which is checked before
 * any row is read
 * @throws if it has other columns or another number of rows
 */
export async function readContent(
  file: string,
  columns: Column[],
  work: string,
  expected: { row_count?: number; checksum: 'rows_sha256' | 'content_checksum' },
): Promise<Content> {
  const content = await withDuckDB(work, MEMORY_LIMIT, async duckdb => {
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
      if (expected.row_count !== undefined && rows !== expected.row_count)
        throw new Error(`expected ${expected.row_count} rows; the file says that it has ${rows}`)
      const result = await duckdb.runAndReadAll(`
        select count(*)::varchar, min(ts)::varchar, max(ts)::varchar,
          ${expected.checksum === 'content_checksum' ? contentChecksum(columns) : 'null'}
        from read_parquet(${literal(file)})`)
      const [count, min, max, checksum] = result.getRows()[0] as [string, string | null, string | null, string | null]
      return {
        row_count: Number(count),
        min_ts: min === null ? null : isoMicros(min),
        max_ts: max === null ? null : isoMicros(max),
        ...(checksum === null ? {} : { content_checksum: checksum }),
      }
    } catch (cause) {
      throw new Error(`${file}: DuckDB cannot read it as an archive`, { cause })
    }
  })
  if (expected.checksum === 'content_checksum') return content
  return { ...content, rows_sha256: await hashParquet(file, columns, work) }
}

/**
 * The `rows_sha256` of a Parquet file, in hex.
 * @param where a condition in DuckDB's SQL, if not all rows are wanted
 */
export async function hashParquet(file: string, columns: Column[], work: string, where?: string) {
  const hash = createHash('sha256')
  await streamParquet(
    file,
    columns,
    work,
    async (rows, done) => {
      for await (const chunk of rows as AsyncIterable<Buffer>) hash.update(chunk)
      await done
    },
    false,
    where,
  )
  return hash.digest('hex')
}

/** The same sum as fleet.content_checksum(), in DuckDB. */
function contentChecksum(columns: Column[]) {
  const texts = columns.map(({ name, type }) => `coalesce(${typeOf(name, type).checksum(identifier(name))}, '~')`)
  return `coalesce(sum(('0x' || substr(md5(concat_ws('|', ${texts.join(', ')})), 1, 15))::bigint), 0)::varchar`
}

/**
 * Streams the rows of a Parquet file as CSV, in their order: the bytes of copyValues and copyOptions, or, with `isForCopyFrom`,
 * what COPY FROM with copyOptions([]) reads. `rows` must be read to its end. `done` resolves to the number of rows, or rejects
 * with the reason why there are fewer, and must be awaited before the rows are used.
 * @param where a condition in DuckDB's SQL, if not all rows are wanted
 */
export async function streamParquet<T>(
  file: string,
  columns: Column[],
  work: string,
  consume: (rows: Readable, done: Promise<number>) => Promise<T>,
  isForCopyFrom = false,
  where = 'true',
): Promise<T> {
  const pipe = join(work, 'rows.csv')
  await rm(pipe, { force: true })
  await makePipe(pipe)
  try {
    return await withDuckDB(
      work,
      MEMORY_LIMIT,
      async duckdb => {
        await confine(duckdb, { directories: [work] })
        const { stream, release } = openForReading(pipe)
        const done = duckdb
          .run(
            `copy (select ${duckdbValues(columns, isForCopyFrom)} from read_parquet(${literal(file)}) where ${where})
          to ${literal(pipe)} (${duckdbOptions(columns)}, use_tmp_file false)`,
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
      },
      1,
    )
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
