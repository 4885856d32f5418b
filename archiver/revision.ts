import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { confine, identifier, literal, withDuckDB } from './duckdb.ts'
import { describeError, type Log } from './log.ts'
import { differences, keysOf, type Manifest } from './manifest.ts'
import { ObjectMissing } from './object-missing.ts'
import type { Column } from './parquet.ts'
import type { Store } from './store.ts'

/** What to do about an archive that keeps another from being written. */
export const ifNotNeeded = 'If it is not needed, move its folder away, then run select fleet.retry_archive(...)'

/**
 * How many rows of an archive are not in a new export of its day. The archive is read from the store and checked
 * against its manifest first: of a damaged one nobody can say what it holds.
 * @param folder the key of the archive's folder, with a slash at its end
 * @returns 0 when every row of it is in the export, as often as in the archive
 * @throws a sentence that names the object
 */
export async function countMissingRows(
  store: Store, folder: string, existing: Manifest, exported: { file: string, columns: Column[] }, work: string, signal?: AbortSignal,
) {
  const key = `${folder}${existing.file}`
  const url = `${store.url}/${key}`
  const lost = existing.columns.filter(({ name }) => !exported.columns.some(column => column.name === name))
  if (lost.length > 0) {
    throw new Error(`${url}: the archive of this day has columns that its rows have no more: ${lost.map(({ name }) => name).join(', ')}`)
  }
  const columns = existing.columns.map(({ name }) => identifier(name)).join(', ')
  const old = join(work, 'existing.parquet')
  await rm(old, { force: true })
  try {
    const got = await store.getToFile(key, old, signal).catch((error: unknown) => {
      throw error instanceof ObjectMissing ? new Error(`${error.message}, but a manifest of it; what it held cannot be told. ${ifNotNeeded}`, { cause: error }) : error
    })
    const wrong = differences({ bytes: existing.bytes, sha256: existing.sha256 }, got)
    if (wrong) throw new Error(`${url}: the object differs from its manifest, and what it holds cannot be told: ${wrong}. ${ifNotNeeded}`)
    // Measured: 2.88M rows on each side take 2 s, with a peak of 674 MB for the process.
    return await withDuckDB(work, '350MB', async duckdb => {
      await confine(duckdb, { directories: [work] })
      const result = await duckdb.runAndReadAll(`
        select count(*)::varchar
        from (
          select ${columns} from read_parquet(${literal(old)})
          except all
          select ${columns} from read_parquet(${literal(exported.file)})
        )`)
      signal?.throwIfAborted()
      return Number(result.getRows()[0]?.[0])
    })
  } finally {
    await rm(old, { force: true })
  }
}

/**
 * Deletes the files that an archive's earlier revisions left in its folder. Call it when the manifest in the store is
 * that of the proven revision. A file that cannot be deleted is logged, and named by verify.
 */
export async function removeSuperseded(store: Store, manifest: Manifest, log: Log, signal?: AbortSignal) {
  for (let revision = (manifest.revision ?? 1) - 1; revision >= 1; revision--) {
    const { parquet } = keysOf(manifest.range_start, manifest.range_end, revision)
    try {
      if (!await store.head(parquet, signal)) continue
      await store.delete(parquet, signal)
      log.info({ event: 'partition.archive.superseded', partition: manifest.partition, archive_url: `${store.url}/${parquet}` }, 'superseded file deleted')
    } catch (error) {
      signal?.throwIfAborted()
      log.warn({ event: 'partition.archive.superseded', partition: manifest.partition, error: describeError(error) }, 'a superseded file is left')
    }
  }
}
