import { mkdtemp, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { recordColumns } from './columns.ts'
import { isoMicros } from './iso-micros.ts'
import {
  differences,
  keysOf,
  readManifest,
  ROOT,
  supersededKeys,
  type Claims,
  type Manifest,
  type Superseded,
} from './manifest.ts'
import type { Column } from './parquet.ts'
import { readBack } from './proof.ts'
import { locate, locateInStore } from '../store/open-store.ts'
import type { Worker } from '../context.ts'
import { describeError } from '../../lib/errors.ts'

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
  rows_sha256: string | null
  content_checksum: string | null
  archive_url: string
  proven_at: string
  confirmed_at: string | null
  columns: Column[] | null
}

/** The proven archives, oldest first. With a date: those that contain this UTC day. */
export async function listArchives({ sql }: Worker, date?: string): Promise<Archive[]> {
  return await sql<Archive[]>`
    select partition_name, range_start, range_end, state, row_count, min_ts, max_ts, archive_bytes, checksum_sha256,
      rows_sha256, content_checksum, archive_url, proven_at, columns, confirmed_at
    from fleet.archives
    where ${date ?? null}::date is null
      or (range_start < (${date ?? null}::date + 1)::timestamptz and range_end > ${date ?? null}::date::timestamptz)
    order by range_start`
}

/**
 * Checks one archive against its manifest and the database: every byte and row, or, if quick, only the manifest and the
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
    // If a day was restored, gained rows and is retired again, row_count includes these rows until it is archived again.
    ...(archive.state === 'dropped' || archive.state === 'archived' ? { row_count: Number(archive.row_count) } : {}),
    bytes: Number(archive.archive_bytes),
    sha256: archive.checksum_sha256,
    rows_sha256: archive.rows_sha256 ?? undefined,
    content_checksum: archive.content_checksum ?? undefined,
    ...(archive.columns ? { columns: archive.columns } : {}),
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
        return [`${archive.archive_url}: the object has ${found.bytes} bytes, but its manifest says ${manifest.bytes}`]
      }
      const kept = await Promise.all((manifest.superseded ?? []).map(one => verifySuperseded(archive, manifest, one, worker)))
      return kept.flat()
    }
    const work = await mkdtemp(join(worker.directory, 'verify-'))
    try {
      return await readBack(store, keys, expected, work, async ({ manifest }) => {
        await recordColumns(worker.sql, archive.partition_name, manifest)
        const faults: string[] = []
        for (const kept of manifest.superseded ?? [])
          faults.push(...(await verifySuperseded(archive, manifest, kept, worker, work)))
        return faults
      })
    } finally {
      await rm(work, { recursive: true, force: true })
    }
  } catch (error) {
    return [describeError(error)]
  }
}

/** Checks a kept file of an earlier revision that the archive's manifest names. With `work`: every byte and row. */
async function verifySuperseded(
  { archive_url }: Archive,
  { range_start }: Manifest,
  { file, bytes, sha256 }: Superseded,
  worker: Worker,
  work?: string,
): Promise<string[]> {
  const keys = supersededKeys(range_start, file)
  try {
    // It is in the same store as the archive, which may be an older one.
    const { store } = await locateInStore(archive_url, ROOT, worker.store, worker.storeOptions)
    if (work !== undefined) {
      await readBack(store, keys, { bytes, sha256 }, await mkdtemp(join(work, 'superseded-')), async () => {})
      return []
    }
    const found = await store.head(keys.parquet)
    if (!found) return [`${store.url}/${keys.parquet}: the object is missing; the manifest of ${archive_url} names it`]
    return found.bytes === bytes
      ? []
      : [`${store.url}/${keys.parquet}: the object has ${found.bytes} bytes, but ${bytes} were stored`]
  } catch (error) {
    return [describeError(error)]
  }
}

/**
 * Finds objects that belong to no proven archive, in the folders of one UTC day or in all folders: files that a newer
 * revision replaced, and unknown ones. Days that are being archived at the moment are skipped.
 * @returns a sentence for each
 */
export async function findOrphans(worker: Worker, date?: string): Promise<string[]> {
  const { sql, store } = worker
  const prefixes =
    date === undefined
      ? [`${ROOT}date=`]
      : (await listArchives(worker, date)).map(({ range_start, range_end }) => keysOf(range_start, range_end).folder)
  const found: string[] = []
  for (const prefix of prefixes) {
    for await (const { key } of store.list(prefix)) found.push(key)
  }
  // Read after the store was listed, so that what was archived meanwhile is known.
  const known = new Set((await listArchives(worker)).map(archive => archive.archive_url))
  const proven = new Map([...known].map(url => [folderOf(url), url]))
  const busy = await sql<{ range_start: string; range_end: string }[]>`
    select range_start, range_end from fleet.hb_partitions where state in ('detached', 'archiving') or lease_until > now()`
  const skipped = new Set(busy.map(({ range_start, range_end }) => `${store.url}/${keysOf(range_start, range_end).folder}`))

  const faults: string[] = []
  for (const key of found) {
    const url = `${store.url}/${key}`
    const folder = folderOf(url)
    const current = proven.get(folder)
    if (known.has(url) || skipped.has(folder) || (current !== undefined && url === `${folder}manifest.json`)) continue
    if (!(await store.head(key))) continue
    const isSuperseded = current !== undefined && revisionOf(url) < revisionOf(current) && nameOf(url) === nameOf(current)
    faults.push(
      isSuperseded
        ? `${url}: superseded by ${current.slice(folder.length)}; delete it, because readers of *.parquet see its rows twice`
        : `${url}: the database has no proven archive of this name`,
    )
  }
  return [...faults, ...(await findUnnamed(worker, date))]
}

/** Finds files under superseded/ that the manifest of their day does not name, for example after a run died. */
async function findUnnamed(worker: Worker, date?: string) {
  const { store } = worker
  const faults: string[] = []
  const named = new Map<string, Set<string>>()
  const found: string[] = []
  const folders =
    date === undefined
      ? [`${ROOT}superseded/`]
      : (await listArchives(worker, date)).map(({ range_start }) => supersededKeys(range_start, '').folder)
  for (const folder of folders) {
    for await (const { key } of store.list(folder)) found.push(key)
  }
  for (const key of found) {
    const folder = key.slice(0, key.lastIndexOf('/') + 1)
    let names = named.get(folder)
    if (!names) {
      const manifest = await readManifest(store, `${folder.replace(`${ROOT}superseded/`, ROOT)}manifest.json`)
      names = new Set(
        manifest?.superseded?.flatMap(({ file }) => {
          const keys = supersededKeys(manifest.range_start, file)
          return [keys.parquet, keys.manifest]
        }),
      )
      named.set(folder, names)
    }
    if (!names.has(key)) faults.push(`${store.url}/${key}: no manifest of a later revision names it`)
  }
  return faults
}

function folderOf(url: string) {
  return url.slice(0, url.lastIndexOf('/') + 1)
}

/** `…/device_heartbeats_20260815_r2.parquet` has the name `…/device_heartbeats_20260815` and the revision 2. */
const REVISION_URL = /^(.*?)(?:_r(\d+))?\.parquet$/

function nameOf(url: string) {
  return REVISION_URL.exec(url)?.[1]
}

/** The number of the revision of a file of an archive, from its name: 1 without a suffix. */
export function revisionOf(url: string) {
  return Number(REVISION_URL.exec(url)?.[2] ?? 1)
}
