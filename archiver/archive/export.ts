import { rm } from 'node:fs/promises'
import { endHolders, openSession } from '../database.ts'
import type { Database } from '../../lib/database.ts'
import { writeParquet, type Column } from './parquet.ts'
import { copyOfRows } from './rows-csv.ts'

/** What COPY sent: its columns, its rows, and their SHA-256 in hex. */
export interface Exported {
  columns: Column[]
  row_count: number
  rows_sha256: string
}

/**
 * Copies a table, sorted, into a Parquet file, and checks that the file has exactly as many rows as COPY sent.
 * @param table a qualified and quoted name
 * @param options.lock keeps writers out of the table: the retired partition, and the worker that has its lease
 * @param whileLocked is called when the file is complete; nobody has changed the table since before the COPY, if `lock` was given
 */
export async function exportTable<T = Exported>(
  database: Database,
  table: string,
  file: string,
  work: string,
  options: {
    signal?: AbortSignal
    onRows?: (rows: number, bytes: number) => void
    lock?: { partition: string; worker: string }
  } = {},
  whileLocked: (exported: Exported) => Promise<T> = exported => Promise.resolve(exported as T),
): Promise<T> {
  const session = await openSession(database, options.signal)
  const { sql } = session
  try {
    // On a client with one connection a plain begin is enough. sql.begin() would throw an uncaught error if the backend died.
    await sql`begin`
    // Nothing here is faster with a parallel plan, because DuckDB needs the processors at the same time.
    await sql`set local max_parallel_workers_per_gather = 0`
    if (options.lock) {
      // This worker has the lease. A session that still holds the lock belongs to an archiver that hangs, or whose host is gone.
      await endHolders(database, table)
      await sql`select fleet.lock_retired(${options.lock.partition}, ${options.lock.worker})`
    }
    const columns = await sql<Column[]>`
      select name, type from fleet.archive_columns(${table}::text::regclass) order by position`
    const rows = await sql.unsafe(copyOfRows(table, columns)).readable()
    let written
    try {
      written = await writeParquet(rows, columns, file, work, options.onRows)
      // The COPY may have ended before the abort reached it.
      options.signal?.throwIfAborted()
    } catch (error) {
      await rm(file, { force: true })
      await session.discard(rows)
      throw error
    }
    session.release(rows)
    const result = await whileLocked({ columns, ...written })
    // Fails if the server has ended meanwhile, and with it the lock.
    await sql`commit`
    options.signal?.throwIfAborted()
    return result
  } finally {
    await session.close()
  }
}
