import { mkdtemp, rm } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { Readable } from 'node:stream'
import { fileURLToPath } from 'node:url'
import { DuckDBTimestampTZValue, DuckDBTypeId, StatementType, type DuckDBConnection, type Json } from '@duckdb/node-api'
import { openSession, type Session } from './database.ts'
import { confine, identifier, literal, withDuckDB } from './duckdb.ts'
import { columnList, copyOptions, writeParquet, type Column } from './parquet.ts'
import { followCopy, followItems } from './progress.ts'
import { locate } from './store.ts'
import { verifyArchive, type Archive } from './verify.ts'
import type { Worker } from './worker.ts'

/** UTC days, both included; without one there is no limit on that side. */
export interface Days { from?: string | undefined, to?: string | undefined }

/** The query cannot be run, and the message is one line for who wrote it. */
export class QueryError extends Error {}

/** The rows of a query, as they come. Integers are numbers while they are exact, else strings. */
export interface Answer { columns: string[], rows: AsyncIterable<Json[][]> }

const relations = ['archive', 'online', 'device_heartbeats'] as const
type Relation = typeof relations[number]

/** A row of hb_partitions whose rows are in the database. */
interface OnlinePartition {
  partition_name: string
  range_start: string
  range_end: string
  is_attached: boolean
  row_count: string | null
}

/**
 * Runs one SELECT of DuckDB's SQL over the relations `archive` (the archived rows), `online` (the database's, attached or
 * retired) and `device_heartbeats` (each day once: from the database while it is there, else from the archive), all
 * with the columns of the table; ip is text. Only the relations that the query names are loaded. The query can read
 * nothing else and write nothing.
 * @param use is given the answer while the data is there
 * @throws {QueryError} for faults of the query; other errors are of the database or the store
 */
export async function queryArchive<T>(worker: Worker, query: string, days: Days, use: (answer: Answer) => Promise<T>): Promise<T> {
  const work = await mkdtemp(join(worker.directory, 'query-'))
  try {
    const [columns, empty] = await writeEmpty(worker, work)
    const none = { archive: [empty], online: [empty], device_heartbeats: [empty] }
    // Told before anything is loaded.
    await withRelations(none, columns, days, work, async duckdb => void await prepare(duckdb, query))

    const wanted = new Set(relations.filter(name => new RegExp(`\\b${name}\\b`, 'i').test(query)))
    const files = await load(worker, wanted, columns, days, work)
    for (const name of relations) files[name].unshift(empty)
    return await withRelations(files, columns, days, work, async duckdb => {
      const statement = await prepare(duckdb, query)
      DuckDBTimestampTZValue.timezoneOffsetInMinutes = 0
      try {
        const result = await statement.stream()
        const integers = result.columnTypes().map(({ typeId }) => integerTypes.has(typeId))
        const rows = exactly(result.yieldRowsJson(), integers)
        return await use({ columns: result.deduplicatedColumnNames(), rows })
      } catch (error) {
        throw queryError(error)
      }
    })
  } finally {
    await rm(work, { recursive: true, force: true })
  }
}

const integerTypes = new Set([
  DuckDBTypeId.BIGINT, DuckDBTypeId.UBIGINT, DuckDBTypeId.HUGEINT, DuckDBTypeId.UHUGEINT,
])

async function* exactly(chunks: AsyncIterable<Json[][]>, integers: boolean[]) {
  for await (const rows of chunks) {
    yield rows.map(row => row.map((value, column) => {
      const number = integers[column] && typeof value === 'string' ? Number(value) : NaN
      return Number.isSafeInteger(number) ? number : value
    }))
  }
}

/** A Parquet file without rows: the columns and types that every relation has, also when nothing is archived. */
async function writeEmpty({ sql }: Worker, work: string): Promise<[Column[], string]> {
  const columns = await sql<Column[]>`
    select name, type from fleet.archive_columns('fleet.device_heartbeats'::regclass) order by position`
  const file = join(work, 'empty.parquet')
  await writeParquet(Readable.from([]), columns, file, work)
  return [columns, file]
}

/** A DuckDB that has these relations and can reach nothing else, not even to change its own settings. */
async function withRelations<T>(
  files: Record<Relation, string[]>, columns: Column[], { from, to }: Days, work: string, use: (duckdb: DuckDBConnection) => Promise<T>,
) {
  return await withDuckDB(work, '1GB', async duckdb => {
    const limits = [
      ...(from === undefined ? [] : [`ts >= ${literal(`${from} 00:00:00Z`)}::timestamptz`]),
      ...(to === undefined ? [] : [`ts < ${literal(`${to} 00:00:00Z`)}::timestamptz + interval 1 day`]),
    ]
    for (const name of relations) {
      await duckdb.run(`
        create view ${name} as
        select ${columnList(columns)}
        from read_parquet([${files[name].map(literal).join(', ')}], union_by_name = true, hive_partitioning = false)
        ${limits.length > 0 ? `where ${limits.join(' and ')}` : ''}`)
    }
    const all = [...new Set(Object.values(files).flat())]
    await confine(duckdb, { files: all })
    return await use(duckdb)
  })
}

/** @throws {QueryError} unless it is one SELECT that fits the relations */
async function prepare(duckdb: DuckDBConnection, query: string) {
  if (query.replace(/--.*$|\/\*[\s\S]*?\*\/|;/gm, '').trim() === '') throw new QueryError('the query is empty')
  let statement
  try {
    const statements = await duckdb.extractStatements(query)
    // PIVOT as a statement counts as two.
    if (statements.count !== 1) throw new QueryError(`expected one SELECT, got ${statements.count} statements`)
    statement = await statements.prepare(0)
  } catch (error) {
    throw queryError(error)
  }
  // The files that may be read could be written over by COPY.
  if (statement.statementType !== StatementType.SELECT) {
    throw new QueryError(`expected a SELECT, got ${StatementType[statement.statementType]}; the archive is only read here`)
  }
  if (statement.parameterCount > 0) throw new QueryError('the query has parameters ($1 or ?), and nothing gives them values')
  return statement
}

/** DuckDB's message in one line, without its drawing of where in the query the fault is. */
function queryError(error: unknown) {
  if (error instanceof QueryError) return error
  const message = error instanceof Error ? error.message : String(error)
  const lines = message.replace(/^Failed to extract statements: /, '').replace(/\n+LINE \d+:[\s\S]*$/, '').split('\n')
  return new QueryError(lines.map(line => line.trim()).filter(line => line !== '').join(' '), { cause: error })
}

/** Makes the rows that are wanted available as local Parquet files. */
async function load(worker: Worker, wanted: Set<Relation>, columns: Column[], days: Days, work: string) {
  const files: Record<Relation, string[]> = { archive: [], online: [], device_heartbeats: [] }
  if (wanted.size === 0) return files
  const say = followItems(worker.display)
  // A partition may be archived and dropped between two looks at it; then all is looked at anew.
  for (let tried = 1; ; tried++) {
    const session = await openSession(worker.database)
    try {
      const { partitions, archives } = await look(session, days)
      const isOnline = new Set(partitions.map(partition => partition.partition_name))
      if (wanted.has('online') || wanted.has('device_heartbeats')) {
        files.online = []
        for (const partition of partitions) {
          const file = await exportOnline(worker, session, partition, columns, days, work)
          if (file !== undefined) files.online.push(file)
        }
      }
      await session.sql`commit`
      for (const [index, archive] of archives.entries()) {
        const isOnlyHere = !isOnline.has(archive.partition_name)
        if (!wanted.has('archive') && !(wanted.has('device_heartbeats') && isOnlyHere)) continue
        say(`${archive.partition_name}: ${index + 1} of ${archives.length} archives`)
        const file = await fetchArchive(worker, archive, work)
        files.archive.push(file)
        if (isOnlyHere) files.device_heartbeats.push(file)
      }
      files.device_heartbeats.push(...files.online)
      worker.display?.show('')
      return files
    } catch (error) {
      const isGone = error instanceof Error && 'code' in error && error.code === '42P01'
      if (!isGone || tried === 5) throw error
    } finally {
      await session.close()
    }
  }
}

/**
 * Begins a transaction and says which rows are where. No partition can be detached while it lasts (that takes a lock
 * on the parent which this one is in the way of), so that each row is seen exactly once.
 */
async function look({ sql }: Session, { from, to }: Days) {
  await sql`begin isolation level repeatable read read only`
  await sql`lock table only fleet.device_heartbeats in access share mode`
  const isWanted = sql`
    (${from ?? null}::date is null or range_end > ${from ?? null}::date::timestamptz)
    and (${to ?? null}::date is null or range_start < (${to ?? null}::date + 1)::timestamptz)`
  const partitions = await sql<OnlinePartition[]>`
    select partition_name, range_start, range_end, state in ('active', 'restored') as is_attached, row_count
    from fleet.hb_partitions
    where relid is not null and ${isWanted}
    order by range_start`
  const archives = await sql<Archive[]>`
    select partition_name, range_start, range_end, state, row_count, min_ts, max_ts, archive_bytes, checksum_sha256,
      content_checksum, archive_url, proven_at
    from fleet.archives
    where ${isWanted}
    order by range_start`
  return { partitions, archives }
}

/** Copies the rows of one partition into a Parquet file; undefined when it has none. */
async function exportOnline(
  worker: Worker, session: Session, { partition_name, range_start, range_end, is_attached, row_count }: OnlinePartition,
  columns: Column[], { from, to }: Days, work: string,
) {
  // By way of the parent, on which the archiver's role may read: of a restored partition itself it may not.
  const table = is_attached ? 'fleet.device_heartbeats' : `fleet_detached.${identifier(partition_name)}`
  const limits = [
    `ts >= ${literal(range_start)}`, `ts < ${literal(range_end)}`,
    ...(from === undefined ? [] : [`ts >= ${literal(`${from} 00:00:00Z`)}`]),
    ...(to === undefined ? [] : [`ts < ${literal(`${to} 00:00:00Z`)}::timestamptz + interval '1 day'`]),
  ].join(' and ')
  const [some] = await session.sql.unsafe<{ has_rows: boolean }[]>(`select exists (select from ${table} where ${limits}) as has_rows`)
  if (!some?.has_rows) return undefined
  const file = join(work, `${partition_name}.online.parquet`)
  const total = row_count === null || Number(row_count) === 0 ? undefined : Number(row_count)
  const rows = await session.sql.unsafe(
    `copy (select ${columnList(columns)} from ${table} where ${limits}) to stdout (${copyOptions(columns)})`,
  ).readable()
  try {
    await writeParquet(rows, columns, file, work, followCopy(worker, 'query.export.progress', partition_name, total))
  } catch (error) {
    await session.discard(rows)
    throw error
  }
  session.release(rows)
  return file
}

/**
 * The local path of an archive: where it lies, in a directory, else a copy of it. Either way it is the one its manifest
 * and the database mean.
 */
async function fetchArchive(worker: Worker, archive: Archive, work: string) {
  const faults = await verifyArchive(worker, archive, true)
  if (faults.length > 0) throw new Error(faults.join('; '))
  const { store, key } = await locate(archive.archive_url, worker.store, worker.storeOptions)
  if (store.url.startsWith('file:')) return fileURLToPath(archive.archive_url)
  const file = join(work, basename(key))
  await rm(file, { force: true })
  const { sha256 } = await store.getToFile(key, file)
  if (sha256 !== archive.checksum_sha256) {
    throw new Error(`${archive.archive_url}: the object differs from its manifest: sha256 should be ${archive.checksum_sha256} and is ${sha256}`)
  }
  return file
}
