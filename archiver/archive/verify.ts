import { mkdtemp, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { recordColumns } from './columns.ts'
import { isoMicros } from './iso-micros.ts'
import {
  differences,
  findManifest,
  findSuperseded,
  keysOf,
  MANIFESTS,
  requireManifest,
  ROOT,
  SUPERSEDED_ROOTS,
  supersededKeys,
  type Claims,
  type Manifest,
  type Superseded,
} from './manifest.ts'
import type { Column } from './parquet.ts'
import { readBack } from './proof.ts'
import { locate } from '../store/open-store.ts'
import type { Store } from '../store/store.ts'
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
 * @param onManifest is given its manifest, if that is the one that was written
 * @returns a sentence for each fault
 */
export async function verifyArchive(
  worker: Worker,
  archive: Archive,
  isQuick: boolean,
  onManifest: (manifest: Manifest) => void = () => {},
): Promise<string[]> {
  const { store, key } = await locate(archive.archive_url, worker.store, worker.storeOptions)
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
    if (await isAhead(worker, archive, store, key)) return await verifyObject(archive, store, key, isQuick, worker)
    if (isQuick) {
      const { key: manifestKey, manifest } = await requireManifest(store, key)
      const wrong = differences(expected, manifest)
      if (wrong) return [`${store.url}/${manifestKey}: the manifest differs from the database: ${wrong}`]
      onManifest(manifest)
      const found = await store.head(key)
      if (!found) return [`${archive.archive_url}: the object is missing`]
      if (found.bytes !== manifest.bytes) {
        return [`${archive.archive_url}: the object has ${found.bytes} bytes, but its manifest says ${manifest.bytes}`]
      }
      const kept = await Promise.all((manifest.superseded ?? []).map(one => verifySuperseded(archive, manifest, one, worker)))
      return kept.flat()
    }
    const work = await mkdtemp(join(worker.directory, 'verify-'))
    try {
      return await readBack(store, key, expected, work, async ({ manifest }) => {
        onManifest(manifest)
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

/** Whether the manifest is that of a revision without an erased device that the database has not recorded yet. */
async function isAhead({ sql }: Worker, { partition_name, checksum_sha256 }: Archive, store: Store, key: string) {
  const [erased] = await sql`select from fleet.partitions_being_erased() where partition_name = ${partition_name}`
  if (!erased) return false
  const { manifest } = await requireManifest(store, key)
  return manifest.sha256 !== checksum_sha256 && manifest.replaces === checksum_sha256
}

/** Checks an object against what the database recorded, without its manifest. */
async function verifyObject(
  { archive_url, archive_bytes, checksum_sha256 }: Archive,
  store: Store,
  key: string,
  isQuick: boolean,
  worker: Worker,
) {
  const recorded = { bytes: Number(archive_bytes), sha256: checksum_sha256 }
  if (isQuick) {
    const found = await store.head(key)
    if (!found) return [`${archive_url}: the object is missing`]
    return found.bytes === recorded.bytes ? [] : [`${archive_url}: the object has ${found.bytes} bytes, not ${recorded.bytes}`]
  }
  const work = await mkdtemp(join(worker.directory, 'verify-'))
  try {
    const wrong = differences(recorded, await store.getToFile(key, join(work, 'object')))
    return wrong ? [`${archive_url}: the object differs from what the database recorded: ${wrong}`] : []
  } finally {
    await rm(work, { recursive: true, force: true })
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
  try {
    // It is in the same store as the archive, which may be an older one.
    const { store } = await locate(archive_url, worker.store, worker.storeOptions)
    const found = await findSuperseded(store, range_start, file)
    const key = found?.key ?? supersededKeys(range_start, file).parquet
    if (work !== undefined) {
      await readBack(store, key, { bytes, sha256 }, await mkdtemp(join(work, 'superseded-')), async () => {})
      return []
    }
    if (!found) return [`${store.url}/${key}: the object is missing; the manifest of ${archive_url} names it`]
    return found.bytes === bytes ? [] : [`${store.url}/${key}: the object has ${found.bytes} bytes, but ${bytes} were stored`]
  } catch (error) {
    return [describeError(error)]
  }
}

/**
 * Finds objects that belong to no proven archive, in the folders of one UTC day or in all folders: files that a newer
 * revision replaced, and unknown ones. Days that are being archived or lose a device at the moment are skipped.
 * @returns a sentence for each
 */
export async function findOrphans(worker: Worker, date?: string): Promise<string[]> {
  const { sql, store } = worker
  const prefixes =
    date === undefined
      ? [`${ROOT}date=`, `${MANIFESTS}date=`]
      : (await listArchives(worker, date)).flatMap(({ range_start, range_end }) => {
          const { folder, manifest } = keysOf(range_start, range_end)
          return [folder, manifest.slice(0, manifest.lastIndexOf('/') + 1)]
        })
  const found: string[] = []
  for (const prefix of prefixes) {
    for await (const { key } of store.list(prefix)) found.push(key)
  }
  // Read after the store was listed, so that what was archived meanwhile is known.
  const known = new Set((await listArchives(worker)).map(archive => archive.archive_url))
  const proven = new Map([...known].filter(url => url.startsWith(`${store.url}/`)).map(url => [dayOf(url), url]))
  const busy = await sql<{ range_start: string; range_end: string }[]>`
    select range_start, range_end from fleet.hb_partitions
    where state in ('detached', 'archiving') or lease_until > now()
      or partition_name in (select partition_name from fleet.partitions_being_erased())`
  const skipped = new Set(busy.map(({ range_start, range_end }) => dayOf(keysOf(range_start, range_end).folder)))
  const manifests = new Map(
    found.flatMap(key => (key.startsWith(MANIFESTS) && key.endsWith('/manifest.json') ? [[dayOf(key), key]] : [])),
  )

  const faults: string[] = []
  for (const key of found) {
    const url = `${store.url}/${key}`
    const day = dayOf(key)
    const current = proven.get(day)
    if (known.has(url) || skipped.has(day)) continue
    const isManifest = current !== undefined && /^\w+\/date=[^/]+\/manifest\.json$/.test(key)
    if (isManifest && (manifests.get(day) ?? key) === key) continue
    if (!(await store.head(key))) continue
    const isSuperseded = current !== undefined && revisionOf(url) < revisionOf(current) && nameOf(url) === nameOf(current)
    faults.push(
      isSuperseded
        ? `${url}: superseded by ${current.slice(folderOf(url).length)}; delete it, because readers of the folder see its rows twice`
        : isManifest
          ? `${url}: superseded by ${store.url}/${manifests.get(day)}; run npm run archive -- reindex, which deletes it`
          : `${url}: the database has no proven archive of this name`,
    )
  }
  return [...faults, ...(await findUnnamed(worker, skipped, date))]
}

/** Finds files under superseded/ that the manifest of their day does not name, for example after a run died. */
async function findUnnamed(worker: Worker, skipped: Set<string | undefined>, date?: string) {
  const { store } = worker
  const faults: string[] = []
  const named = new Map<string, Set<string>>()
  const found: string[] = []
  const folders =
    date === undefined
      ? SUPERSEDED_ROOTS
      : (await listArchives(worker, date)).flatMap(({ range_start }) =>
          SUPERSEDED_ROOTS.map(root => supersededKeys(range_start, '', root).folder),
        )
  for (const folder of folders) {
    for await (const { key } of store.list(folder)) found.push(key)
  }
  for (const key of found) {
    const folder = key.slice(0, key.lastIndexOf('/') + 1)
    if (skipped.has(dayOf(key))) continue
    let names = named.get(folder)
    if (!names) {
      const day = dayOf(folder)
      const found = day === undefined ? undefined : await findManifest(store, `${ROOT}${day}/any.parquet`)
      names = new Set(
        found?.manifest.superseded?.flatMap(({ file }) =>
          SUPERSEDED_ROOTS.flatMap(root => {
            const keys = supersededKeys(found.manifest.range_start, file, root)
            return [keys.parquet, keys.manifest]
          }),
        ),
      )
      named.set(folder, names)
    }
    if (!names.has(key)) faults.push(`${store.url}/${key}: no manifest of a later revision names it`)
  }
  return faults
}

/** `date=2026-08-15` of a key or a URL. */
function dayOf(url: string) {
  return /\/(date=\d{4}-\d\d-\d\d)\//.exec(url)?.[1]
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
