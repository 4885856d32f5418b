import type { Sql } from '../database.ts'
import { requireManifest, type Manifest } from './manifest.ts'
import { plainColumns, type Column } from './parquet.ts'
import { locate } from '../store/open-store.ts'
import type { Store, StoreOptions } from '../store/store.ts'

/** A column of an archive or a partition, and its name and type in fleet.device_heartbeats today; null if it was dropped. */
export interface MappedColumn extends Column {
  today_name: string | null
  today_type: string | null
}

/** The columns of an archive. `columns_at`: when the table had them; null means before the first known change. */
export interface Shape {
  columns: Column[]
  columns_at: string | null
}

/** Maps the columns of an archive, in their order, to today's columns; see fleet.map_columns(). */
export async function mapColumns(sql: Sql, { columns, columns_at }: Shape) {
  return await sql<MappedColumn[]>`
    select name, type, today_name, today_type
    from fleet.map_columns(${sql.json(plainColumns(columns))}, ${columns_at}::timestamptz)
    order by position`
}

/**
 * Reads the columns of an archive from its manifest and records them, for an archive that was made before the database
 * recorded columns.
 * @throws if the manifest is missing, cannot be read, or belongs to another file
 */
export async function learnColumns(
  { sql, store, storeOptions }: { sql: Sql; store: Store; storeOptions: StoreOptions },
  archive: { partition_name: string; archive_url: string; checksum_sha256: string },
) {
  const { store: found, key } = await locate(archive.archive_url, store, storeOptions)
  const { key: manifestKey, manifest } = await requireManifest(found, key)
  if (manifest.sha256 !== archive.checksum_sha256) {
    throw new Error(
      `${found.url}/${manifestKey}: the manifest differs from the database: ` +
        `sha256 should be ${archive.checksum_sha256} and is ${manifest.sha256}`,
    )
  }
  await recordColumns(sql, archive.partition_name, manifest)
  return manifest.columns
}

/** Records the columns of a proven archive if the database does not know them yet. */
export async function recordColumns(
  sql: Sql,
  partition: string,
  { sha256, columns, checksum_version, format_version }: Manifest,
) {
  await sql`
    select fleet.record_columns(
      ${partition}, ${sha256}, ${sql.json(plainColumns(columns))}, ${checksum_version ?? null}, ${format_version})`
}
