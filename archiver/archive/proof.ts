import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { differences, requireManifest, type Claims, type Manifest } from './manifest.ts'
import { readContent, type Content } from './parquet.ts'
import type { Store } from '../store/store.ts'

/**
 * Reads an archive back from the store and checks all of it: the manifest against the database, the object's size and
 * SHA-256 against the manifest, and its rows, as DuckDB reads them and writes them as CSV again, against both.
 * @param parquet the key of the Parquet file; its manifest is in one of its places
 * @param expected what the database recorded
 * @param use is given the verified local copy before it is removed
 * @throws an error with a sentence that names the object and the difference
 */
export async function readBack<T>(
  store: Store,
  parquet: string,
  expected: Claims,
  work: string,
  use: (proof: { file: string; manifest: Manifest; content: Content }) => Promise<T>,
  signal?: AbortSignal,
): Promise<T> {
  const url = `${store.url}/${parquet}`
  const { key, manifest } = await requireManifest(store, parquet, signal)
  const manifestUrl = `${store.url}/${key}`
  if (!parquet.endsWith(`/${manifest.file}`)) {
    throw new Error(`${manifestUrl}: the manifest is for ${manifest.file}, but the database has ${parquet}`)
  }
  const wrongManifest = differences(expected, manifest)
  if (wrongManifest) throw new Error(`${manifestUrl}: the manifest differs from the database: ${wrongManifest}`)

  const file = join(work, 'read-back.parquet')
  await rm(file, { force: true })
  try {
    const got = await store.getToFile(parquet, file, signal)
    const wrongObject = differences({ bytes: manifest.bytes, sha256: manifest.sha256 }, got)
    if (wrongObject) throw new Error(`${url}: the object differs from its manifest: ${wrongObject}`)
    const content = await readContent(file, manifest.columns, work, {
      row_count: manifest.row_count,
      checksum: manifest.rows_sha256 === undefined ? 'content_checksum' : 'rows_sha256',
    })
    signal?.throwIfAborted()
    const { row_count, rows_sha256, content_checksum, min_ts, max_ts } = manifest
    const wrongContent = differences({ row_count, rows_sha256, content_checksum, min_ts, max_ts }, content)
    if (wrongContent) throw new Error(`${url}: the rows differ from the manifest: ${wrongContent}`)
    return await use({ file, manifest, content })
  } finally {
    await rm(file, { force: true })
  }
}
