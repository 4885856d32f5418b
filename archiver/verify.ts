import { mkdtemp, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { describeError } from './log.ts'
import { differences, isoMicros, keysOf, readManifest, root, type Claims } from './manifest.ts'
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
  const { store, key } = await locate(archive.archive_url, worker.store, worker.storeOptions)
  const keys = { parquet: key, manifest: `${key.slice(0, key.lastIndexOf('/') + 1)}manifest.json` }
  const expected: Claims = {
    range_start: isoMicros(archive.range_start),
    range_end: isoMicros(archive.range_end),
    min_ts: archive.min_ts === null ? null : isoMicros(archive.min_ts),
    max_ts: archive.max_ts === null ? null : isoMicros(archive.max_ts),
    // Of a day that came back, gained rows and is retired again, the database counts those too until it is archived anew.
    ...(archive.state === 'dropped' || archive.state === 'archived' ? { row_count: Number(archive.row_count) } : {}),
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

/**
 * Objects that no proven archive means, in the folders of one UTC day or in all: files that a newer revision took the
 * place of, and unknown ones. Days that are being archived at the moment are left out.
 * @returns a sentence for each
 */
export async function findStrangers(worker: Worker, date?: string): Promise<string[]> {
  const { sql, store } = worker
  const prefixes = date === undefined
    ? [`${root}date=`]
    : (await listArchives(worker, date)).map(({ range_start, range_end }) => keysOf(range_start, range_end).folder)
  const found: string[] = []
  for (const prefix of prefixes) {
    for await (const { key } of store.list(prefix)) found.push(key)
  }
  // Asked after the store, so that what was archived meanwhile is known.
  const known = new Set((await listArchives(worker)).map(archive => archive.archive_url))
  const proven = new Map([...known].map(url => [folderOf(url), url]))
  const busy = await sql<{ range_start: string, range_end: string }[]>`
    select range_start, range_end from fleet.hb_partitions where state in ('detached', 'archiving')`
  const skipped = new Set(busy.map(({ range_start, range_end }) => `${store.url}/${keysOf(range_start, range_end).folder}`))

  const faults: string[] = []
  for (const key of found) {
    const url = `${store.url}/${key}`
    const folder = folderOf(url)
    const current = proven.get(folder)
    if (known.has(url) || skipped.has(folder) || (current !== undefined && url === `${folder}manifest.json`)) continue
    if (!await store.head(key)) continue
    const isSuperseded = current !== undefined && revisionOf(url) < revisionOf(current) && nameOf(url) === nameOf(current)
    faults.push(isSuperseded
      ? `${url}: superseded by ${current.slice(folder.length)}; readers of *.parquet see its rows twice, delete it`
      : `${url}: the database knows no proven archive of this name`)
  }
  return faults
}

function folderOf(url: string) {
  return url.slice(0, url.lastIndexOf('/') + 1)
}

/** `…/device_heartbeats_20260815_r2.parquet` has the name `…/device_heartbeats_20260815` and the revision 2. */
const named = /^(.*?)(?:_r(\d+))?\.parquet$/

function nameOf(url: string) {
  return named.exec(url)?.[1]
}

function revisionOf(url: string) {
  return Number(named.exec(url)?.[2] ?? 1)
}
