import { openSession, type Database } from './database.ts'
import { isoMicros } from './manifest.ts'
import { CHECKSUM_VERSION, columnList, copyOptions, plainColumns, writeParquet, type Column, type Content } from './parquet.ts'

/**
 * Copies a table into a sorted Parquet file: the checksum that Postgres computes and the rows that COPY sends
 * are of one snapshot, and the file has exactly as many rows as each of them says.
 * @param table a qualified and quoted name
 */
export async function exportTable(
  database: Database, table: string, file: string, work: string,
  options: { signal?: AbortSignal, onRows?: (rows: number, bytes: number) => void } = {},
): Promise<{ columns: Column[], content: Content }> {
  const session = await openSession(database, options.signal)
  const { sql } = session
  try {
    // A plain begin is enough on a client of one connection; sql.begin() would throw outside of our reach if the backend died.
    await sql`begin isolation level repeatable read read only`
    const columns = await sql<Column[]>`
      select name, type from fleet.archive_columns(${table}::text::regclass) order by position`
    const [counted] = await sql<{ row_count: string, content_checksum: string, min_ts: string | null, max_ts: string | null }[]>`
      select row_count, content_checksum, min_ts, max_ts
      from fleet.content_checksum(${table}::text::regclass, ${sql.json(plainColumns(columns))}, ${CHECKSUM_VERSION})`
    if (!counted) throw new Error(`${table}: fleet.content_checksum returned nothing`)
    const content: Content = {
      row_count: Number(counted.row_count),
      content_checksum: counted.content_checksum,
      min_ts: counted.min_ts === null ? null : isoMicros(counted.min_ts),
      max_ts: counted.max_ts === null ? null : isoMicros(counted.max_ts),
    }
    const rows = await sql.unsafe(`copy ${table} (${columnList(columns)}) to stdout (${copyOptions(columns)})`).readable()
    let written
    try {
      written = await writeParquet(rows, columns, file, work, options.onRows)
    } catch (error) {
      await session.discard(rows)
      throw error
    }
    session.release(rows)
    // Fails when the server ended in the meantime, so nothing of a broken snapshot is believed.
    await sql`commit`
    if (written !== content.row_count) {
      throw new Error(`${table} has ${content.row_count} rows, its COPY sent ${written}; nothing was kept`)
    }
    options.signal?.throwIfAborted()
    return { columns, content }
  } finally {
    await session.close()
  }
}
