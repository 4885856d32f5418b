import { mkdtemp, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { describeError } from './log.ts'
import { differences, isoMicros, readManifest, root, type Claims } from './manifest.ts'
import { readBack } from './proof.ts'
import { locate } from './store.ts'
import type { Worker } from './worker.ts'

/** A row of fleet.archives. */
export interface Archive {
  partition_name: string
  range_start: string
  range_end: string
  state: string
  row_count: string
  min_ts: string | null
  max_ts: string | null
  archive_bytes: string
  checksum_sha256: string
  content_checksum: string
  archive_url: string
  proven_at: string
}

/** The proven archives, oldest first; with a date, those that hold this UTC day. */
export async function listArchives({ sql }: Worker, date?: string): Promise<Archive[]> {
  return await sql<Archive[]>`
    select partition_name, range_start, range_end, state, row_count, min_ts, max_ts, archive_bytes, checksum_sha256,
      content_checksum, archive_url, proven_at
    from fleet.archives
    where ${date ?? null}::date is null
      or (range_start < (${date ?? null}::date + 1)::timestamptz and range_end > ${date ?? null}::date::timestamptz)
    order by range_start`
}

/**
 * Checks one archive against its manifest and the database: every byte and row, or, when quick, the manifest and the
 * object's size.
 * @returns a sentence for each fault
 */
export async function verifyArchive(worker: Worker, archive: Archive, isQuick: boolean): Promise<string[]> {
  const { store, key } = locate(archive.archive_url, worker.store, worker.storeOptions)
  const keys = { parquet: key, manifest: `${key.slice(0, key.lastIndexOf('/') + 1)}manifest.json` }
  const expected: Claims = {
    range_start: isoMicros(archive.range_start),
    range_end: isoMicros(archive.range_end),
    min_ts: archive.min_ts === null ? null : isoMicros(archive.min_ts),
    max_ts: archive.max_ts === null ? null : isoMicros(archive.max_ts),
    row_count: Number(archive.row_count),
    bytes: Number(archive.archive_bytes),
    sha256: archive.checksum_sha256,
    content_checksum: archive.content_checksum,
  }
  try {
    if (isQuick) {
      const manifest = await readManifest(store, keys.manifest)
      if (!manifest) return [`${store.url}/${keys.manifest}: the manifest is missing`]
      const wrong = differences(expected, manifest)
      if (wrong) return [`${store.url}/${keys.manifest}: the manifest differs from the database: ${wrong}`]
      const found = await store.head(keys.parquet)
      if (!found) return [`${archive.archive_url}: the object is missing`]
      if (found.bytes !== manifest.bytes) {
        return [`${archive.archive_url}: the object has ${found.bytes} bytes, its manifest says ${manifest.bytes}`]
      }
      return []
    }
    const work = await mkdtemp(join(worker.directory, 'verify-'))
    try {
      await readBack(store, keys, expected, work, async () => {})
      return []
    } finally {
      await rm(work, { recursive: true, force: true })
    }
  } catch (error) {
    return [describeError(error)]
  }
}

/** Objects in the store that no proven archive of the database means. */
export async function findStrangers({ store }: Worker, archives: Archive[]): Promise<string[]> {
  const known = new Set(archives.flatMap(({ archive_url }) => [
    archive_url, `${archive_url.slice(0, archive_url.lastIndexOf('/') + 1)}manifest.json`,
  ]))
  const faults: string[] = []
  for await (const { key } of store.list(`${root}date=`)) {
    const url = `${store.url}/${key}`
    if (!known.has(url)) faults.push(`${url}: the database knows no proven archive of this name`)
  }
  return faults
}
