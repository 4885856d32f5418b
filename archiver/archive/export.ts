import { openSession, type Database } from '../database.ts'
import { columnList, copyOptions, writeParquet, type Column } from './parquet.ts'

/**
 * Copies one snapshot of a table into a sorted Parquet file, and checks that the file has exactly as many rows as COPY sent.
 * @param table a qualified and quoted name
 */
export async function exportTable(
  database: Database,
  table: string,
  file: string,
  work: string,
  options: { signal?: AbortSignal; onRows?: (rows: number, bytes: number) => void } = {},
): Promise<{ columns: Column[]; row_count: number }> {
  const session = await openSession(database, options.signal)
  const { sql } = session
  try {
    // On a client with one connection a plain begin is enough. sql.begin() would throw an uncaught error if the backend died.
    await sql`begin isolation level repeatable read read only`
    const columns = await sql<Column[]>`
      select name, type from fleet.archive_columns(${table}::text::regclass) order by position`
    const rows = await sql.unsafe(`copy ${table} (${columnList(columns)}) to stdout (${copyOptions(columns)})`).readable()
    let written
    try {
      written = await writeParquet(rows, columns, file, work, options.onRows)
    } catch (error) {
      await session.discard(rows)
      throw error
    }
    session.release(rows)
    // Fails if the server has ended meanwhile, so nothing from a broken snapshot is used.
    await sql`commit`
    options.signal?.throwIfAborted()
    return { columns, row_count: written }
  } finally {
    await session.close()
  }
}
