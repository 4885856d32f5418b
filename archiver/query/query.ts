import { mkdtemp, rm } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { JSONValue } from 'postgres'
import { DuckDBTimestampTZValue, DuckDBTypeId, StatementType, type DuckDBConnection, type Json } from '@duckdb/node-api'
import { allowBounds, conditionOf, overlaps, readBounds, type Bounds } from './bounds.ts'
import { learnColumns, type MappedColumn } from '../archive/columns.ts'
import { openSession, type Session } from '../database.ts'
import { confine, identifier, literal, withDuckDB } from '../duckdb.ts'
import { copyOptions, copyValues, writeParquet, type Column } from '../archive/parquet.ts'
import { followCopy, followItems } from '../progress.ts'
import { relationColumns, unite, type RelationColumn, type Source } from './relations.ts'
import { locate } from '../store/open-store.ts'
import { verifyArchive, type Archive } from '../archive/verify.ts'
import type { Worker } from '../context.ts'

/** UTC days, both included. Without one of them there is no limit on that side. */
export interface Days {
  from?: string | undefined
  to?: string | undefined
}

/** The query cannot be run. The message is one line for the person who wrote it. */
export class QueryError extends Error {}

/** The rows of a query, as they arrive. Integers are numbers if that is exact, else strings. */
export interface Answer {
  columns: string[]
  rows: AsyncIterable<Json[][]>
}

const RELATIONS = ['archive', 'online', 'device_heartbeats'] as const
type Relation = (typeof RELATIONS)[number]

/** A row of hb_partitions whose rows are in the database. */
interface OnlinePartition {
  partition_name: string
  range_start: string
  range_end: string
  is_attached: boolean
  row_count: string | null
  columns: MappedColumn[]
}

/** A proven archive, with its columns mapped to today's. */
type MappedArchive = Archive & { mapped: MappedColumn[] | null }

/**
 * Runs one SELECT in DuckDB's SQL over the relations `archive` (the archived rows), `online` (the rows in the database, attached
 * or retired) and `device_heartbeats` (each day once: from the database if it is there, else from the archive). All have
 * today's columns of the table, followed by dropped columns that archives still have. inet, numeric, jsonb and text[] are
 * text. Only the relations that the query names are loaded, and of days in the database only the rows of the devices and times to
 * which the query is limited. The query can read nothing else and write nothing.
 * @param use is given the answer while the data exists
 * @throws {QueryError} for faults in the query; other errors come from the database or the store
 */
export async function queryArchive<T>(
  worker: Worker,
  query: string,
  days: Days,
  use: (answer: Answer) => Promise<T>,
): Promise<T> {
  const work = await mkdtemp(join(worker.directory, 'query-'))
  try {
    const wanted = new Set(RELATIONS.filter(name => new RegExp(`\\b${name}\\b`, 'i').test(query)))
    const learned = wanted.has('archive') || wanted.has('device_heartbeats') ? await learnAll(worker, days) : {}
    // Faults in the query are reported before anything is loaded.
    const known = await whileItLasts(worker, session => look(session, days, learned))
    const bounds = await check(query, columnsOf(known), work)

    const { sources, columns } = await load(worker, wanted, bounds, days, learned, work)
    return await withRelations(sources, columns, days, work, async duckdb => {
      const statement = await prepare(duckdb, query)
      DuckDBTimestampTZValue.timezoneOffsetInMinutes = 0
      try {
        const result = await statement.stream()
        const rows = exactly(
          result.yieldRowsJson(),
          result.columnTypes().map(({ typeId }) => typeId),
        )
        return await use({ columns: result.deduplicatedColumnNames(), rows })
      } catch (error) {
        throw queryError(error)
      }
    })
  } finally {
    await rm(work, { recursive: true, force: true })
  }
}

const INTEGER_TYPES = new Set([DuckDBTypeId.BIGINT, DuckDBTypeId.UBIGINT, DuckDBTypeId.HUGEINT, DuckDBTypeId.UHUGEINT])

/** How DuckDB's JSON prints the two infinite dates. */
const ENDLESS_DATES = new Map<Json, Json>([
  ['5881580-07-11', 'infinity'],
  ['5877642-06-24 (BC)', '-infinity'],
])

async function* exactly(chunks: AsyncIterable<Json[][]>, types: DuckDBTypeId[]) {
  for await (const rows of chunks) {
    yield rows.map(row =>
      row.map((value, column) => {
        const type = types[column] ?? DuckDBTypeId.INVALID
        if (type === DuckDBTypeId.DATE) return ENDLESS_DATES.get(value) ?? value
        const number = INTEGER_TYPES.has(type) && typeof value === 'string' ? Number(value) : NaN
        return Number.isSafeInteger(number) ? number : value
      }),
    )
  }
}

/** Runs `use` with a DuckDB that has these relations, can reach nothing else, and cannot change its own settings. */
async function withRelations<T>(
  sources: Record<Relation, Source[]>,
  columns: RelationColumn[],
  { from, to }: Days,
  work: string,
  use: (duckdb: DuckDBConnection) => Promise<T>,
) {
  return await withDuckDB(work, '1GB', async duckdb => {
    const limits = [
      ...(from === undefined ? [] : [`ts >= ${literal(`${from} 00:00:00Z`)}::timestamptz`]),
      ...(to === undefined ? [] : [`ts < ${literal(`${to} 00:00:00Z`)}::timestamptz + interval 1 day`]),
    ]
    for (const name of RELATIONS) {
      await duckdb.run(`
        create view ${name} as
        select * from (${unite(columns, sources[name])})
        ${limits.length > 0 ? `where ${limits.join(' and ')}` : ''}`)
    }
    const all = [
      ...new Set(
        Object.values(sources)
          .flat()
          .map(({ file }) => file),
      ),
    ]
    await confine(duckdb, { files: all })
    return await use(duckdb)
  })
}

/**
 * Checks the query against empty relations with these columns.
 * @returns which rows of each relation it needs
 * @throws {QueryError} if it has a fault
 */
async function check(query: string, columns: RelationColumn[], work: string) {
  return await withDuckDB(work, '1GB', async duckdb => {
    for (const name of RELATIONS) {
      await duckdb.run(`create table ${name} (${columns.map(({ name, type }) => `${identifier(name)} ${type}`).join(', ')})`)
    }
    await allowBounds(duckdb)
    await confine(duckdb, {})
    await prepare(duckdb, query)
    return await readBounds(duckdb, query, RELATIONS)
  })
}

/** @throws {QueryError} unless the query is one SELECT that fits the relations */
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
  // COPY could overwrite the files that may be read.
  if (statement.statementType !== StatementType.SELECT) {
    throw new QueryError(`expected a SELECT, got ${StatementType[statement.statementType]}; the archive is only read here`)
  }
  if (statement.parameterCount > 0) throw new QueryError('the query has parameters ($1 or ?), which have no values here')
  return statement
}

/** DuckDB's message in one line, without the lines that point at the fault in the query. */
function queryError(error: unknown) {
  if (error instanceof QueryError) return error
  const message = error instanceof Error ? error.message : String(error)
  const lines = message
    .replace(/^Failed to extract statements: /, '')
    .replace(/\n+LINE \d+:[\s\S]*$/, '')
    .split('\n')
  return new QueryError(
    lines
      .map(line => line.trim())
      .filter(line => line !== '')
      .join(' '),
    { cause: error },
  )
}

/**
 * Reads the columns of archives that were made before the database recorded columns, and returns them by the SHA-256 of the
 * file. The database records them too, unless it is a replica.
 */
async function learnAll(worker: Worker, days: Days) {
  const learned: Record<string, Column[]> = {}
  const unknown = await worker.sql<{ partition_name: string; archive_url: string; checksum_sha256: string }[]>`
    select partition_name, archive_url, checksum_sha256 from fleet.archives
    where columns is null and ${isWanted(worker.sql, days)} order by range_start`
  const read = async () => {
    for (let archive = unknown.shift(); archive !== undefined; archive = unknown.shift()) {
      learned[archive.checksum_sha256] = await learnColumns(worker, archive)
    }
  }
  await Promise.all(Array.from({ length: 8 }, read))
  return learned
}

/** Makes the rows that are wanted available as local Parquet files. */
async function load(
  worker: Worker,
  wanted: Set<Relation>,
  bounds: Record<Relation, Bounds>,
  days: Days,
  learned: Record<string, Column[]>,
  work: string,
) {
  const boundsOf = (...relations: Relation[]) => {
    const found = relations.filter(name => wanted.has(name)).map(name => bounds[name])
    return found.every(bounds => bounds !== undefined) ? found.flat() : undefined
  }
  return await whileItLasts(worker, async session => {
    const sources: Record<Relation, Source[]> = { archive: [], online: [], device_heartbeats: [] }
    const known = await look(session, days, learned)
    const { partitions, archives } = known
    const isOnline = new Set(partitions.map(partition => partition.partition_name))
    if (wanted.has('online') || wanted.has('device_heartbeats')) {
      const needed = boundsOf('online', 'device_heartbeats')
      for (const partition of partitions) {
        if (!overlaps(needed, { start: partition.range_start, end: partition.range_end })) continue
        const file = await exportOnline(worker, session, partition, conditionOf(needed), days, work)
        if (file !== undefined) sources.online.push({ file, columns: partition.columns })
      }
    }
    await session.sql`commit`
    const say = followItems(worker.display)
    for (const [index, archive] of archives.entries()) {
      const isOnlyHere = !isOnline.has(archive.partition_name)
      if (!wanted.has('archive') && !(wanted.has('device_heartbeats') && isOnlyHere)) continue
      const needed = isOnlyHere ? boundsOf('archive', 'device_heartbeats') : boundsOf('archive')
      if (!overlaps(needed, { start: archive.range_start, end: archive.range_end })) continue
      say(`${archive.partition_name}: ${index + 1} of ${archives.length} archives`)
      if (!archive.mapped)
        throw new Error(`${archive.archive_url}: the columns of this archive were unknown when the query began; run it again`)
      const source = { file: await fetchArchive(worker, archive, work), columns: archive.mapped }
      sources.archive.push(source)
      if (isOnlyHere) sources.device_heartbeats.push(source)
    }
    sources.device_heartbeats.push(...sources.online)
    worker.display?.show('')
    return { sources, columns: columnsOf(known) }
  })
}

/** A partition may be archived and dropped between two reads. In that case everything is read again. */
async function whileItLasts<T>(worker: Worker, use: (session: Session) => Promise<T>) {
  for (let tried = 1; ; tried++) {
    const session = await openSession(worker.database)
    try {
      return await use(session)
    } catch (error) {
      const isGone = error instanceof Error && 'code' in error && error.code === '42P01'
      if (!isGone || tried === 5) throw error
    } finally {
      await session.close()
    }
  }
}

function columnsOf({ today, partitions, archives }: Awaited<ReturnType<typeof look>>) {
  return relationColumns(today, [...partitions.map(({ columns }) => columns), ...archives.map(({ mapped }) => mapped ?? [])])
}

function isWanted(sql: Session['sql'], { from, to }: Days) {
  return sql`
    (${from ?? null}::date is null or range_end > ${from ?? null}::date::timestamptz)
    and (${to ?? null}::date is null or range_start < (${to ?? null}::date + 1)::timestamptz)`
}

/**
 * Begins a transaction and returns which rows are where. No partition can be detached during it (this needs a lock on the
 * parent that conflicts with the one taken here), so each row is seen exactly once.
 */
async function look({ sql }: Session, days: Days, learned: Record<string, Column[]>) {
  await sql`select fleet.note_columns()`
  await sql`begin isolation level repeatable read read only`
  await sql`lock table only fleet.device_heartbeats in access share mode`
  const today = await sql<Column[]>`
    select name, type from fleet.archive_columns('fleet.device_heartbeats'::regclass) order by position`
  const partitions = await sql<(Omit<OnlinePartition, 'columns'> & { columns: MappedColumn[] | null })[]>`
    select partition_name, range_start, range_end, state in ('active', 'restored') as is_attached, row_count,
      case when state not in ('active', 'restored') then (
        select jsonb_agg(to_jsonb(m) order by m.position)
        from (
          select jsonb_agg(jsonb_build_object('name', c.name, 'type', c.type) order by c.position) as own
          from fleet.archive_columns(format('fleet_detached.%I', partition_name)::regclass) c
        ) c
        cross join lateral fleet.map_columns(c.own, detached_at) m
      ) end as columns
    from fleet.hb_partitions
    where relid is not null and ${isWanted(sql, days)}
    order by range_start`
  const archives = await sql<MappedArchive[]>`
    select a.*, (select jsonb_agg(to_jsonb(m) order by m.position) from fleet.map_columns(p.columns, p.columns_at) m) as mapped
    from fleet.archives a
    join (
      select partition_name, columns_at,
        coalesce(columns, ${sql.json(learned as unknown as JSONValue)}::jsonb -> checksum_sha256) as columns
      from fleet.hb_partitions
    ) p using (partition_name)
    where ${isWanted(sql, days)}
    order by a.range_start`
  const asItIs = today.map(({ name, type }) => ({ name, type, today_name: name, today_type: type }))
  return { today, partitions: partitions.map(partition => ({ ...partition, columns: partition.columns ?? asItIs })), archives }
}

/**
 * Copies the rows of one partition into a Parquet file. Returns undefined if it has none.
 * @param condition which rows are needed, if not all
 */
async function exportOnline(
  worker: Worker,
  session: Session,
  { partition_name, range_start, range_end, is_attached, row_count, columns }: OnlinePartition,
  condition: string | undefined,
  { from, to }: Days,
  work: string,
) {
  // Read through the parent: the archiver's role may not read a restored partition itself.
  const table = is_attached ? 'fleet.device_heartbeats' : `fleet_detached.${identifier(partition_name)}`
  const limits = [
    `ts >= ${literal(range_start)}`,
    `ts < ${literal(range_end)}`,
    ...(from === undefined ? [] : [`ts >= ${literal(`${from} 00:00:00Z`)}`]),
    ...(to === undefined ? [] : [`ts < ${literal(`${to} 00:00:00Z`)}::timestamptz + interval '1 day'`]),
    ...(condition === undefined ? [] : [`(${condition})`]),
  ].join(' and ')
  const [some] = await session.sql.unsafe<{ has_rows: boolean }[]>(
    `select exists (select 1 from ${table} where ${limits}) as has_rows`,
  )
  if (!some?.has_rows) return undefined
  const file = join(work, `${partition_name}.online.parquet`)
  const total = row_count === null || Number(row_count) === 0 || condition !== undefined ? undefined : Number(row_count)
  const rows = await session.sql
    .unsafe(`copy (select ${copyValues(columns)} from ${table} where ${limits}) to stdout (${copyOptions(columns)})`)
    .readable()
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
 * The local path of an archive: its own path if the store is a directory, else that of a copy. In both cases it is checked
 * against its manifest and the database.
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
    throw new Error(
      `${archive.archive_url}: the object differs from its manifest: ` +
        `sha256 should be ${archive.checksum_sha256} and is ${sha256}`,
    )
  }
  return file
}
