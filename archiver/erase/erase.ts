import { rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import type { Worker } from '../context.ts'
import { recordColumns } from '../archive/columns.ts'
import { hashFile } from '../archive/hash.ts'
import { isoMicros } from '../archive/iso-micros.ts'
import { commitInTurn, withIndexLock } from '../archive/index-lock.ts'
import {
  differences,
  findManifest,
  findSuperseded,
  historyOf,
  keysOf,
  makeManifest,
  rebuildIndex,
  requireManifest,
  SUPERSEDED_ROOTS,
  supersededKeys,
  writeManifest,
  type ManifestInput,
  type Manifest,
  type Superseded,
} from '../archive/manifest.ts'
import { hashParquet, type Column } from '../archive/parquet.ts'
import { readBack } from '../archive/proof.ts'
import { upload } from '../archive/upload.ts'
import { revisionOf } from '../archive/verify.ts'
import { load } from '../restore/restore.ts'
import { whenUnlocked } from '../retry.ts'
import { locate } from '../store/open-store.ts'
import type { Store } from '../store/store.ts'
import { countDevices, isNotOf, splitParquet } from './filter.ts'

/** A row of fleet.claim_erasure(). */
export interface ClaimedErasure {
  partition_name: string
  range_start: string
  range_end: string
  device_ids: string[]
  /** The revision without the devices is recorded, and only `leftovers` are to be deleted. */
  is_recorded: boolean
  archive_url: string
  archive_bytes: string
  checksum_sha256: string
  columns: Column[] | null
  columns_at: string | null
  leftovers: string[] | null
}

export async function claimErasure({ sql, name, leaseSeconds }: Worker): Promise<ClaimedErasure | undefined> {
  const [claimed] = await sql<ClaimedErasure[]>`
    select partition_name, range_start, range_end, array_to_json(device_ids::text[]) as device_ids, is_recorded, archive_url,
      archive_bytes, checksum_sha256, columns, columns_at, array_to_json(leftovers) as leftovers
    from fleet.claim_erasure(${name}, make_interval(secs => ${leaseSeconds}))`
  return claimed
}

/**
 * Erases devices from one archive: writes a revision without them, proves it, has the database record it, and deletes every object
 * that still holds them. Each step may be repeated; until the record the old object is the archive.
 * @param work an empty directory for this archive alone
 * @throws an error with a sentence that names the archive; nothing that was proven is lost then
 */
export async function eraseFromArchive(worker: Worker, claimed: ClaimedErasure, work: string, signal: AbortSignal) {
  const { sql, log, name } = worker
  const { partition_name: partition, archive_url } = claimed
  const { store, key } = await locate(archive_url, worker.store, worker.storeOptions)
  const started = performance.now()
  let done = { key, leftovers: claimed.leftovers ?? [], mayDelete: true }
  if (!claimed.is_recorded) {
    await store.check(signal)
    const revised = await worker.step('rewrite', {}, () => rewrite(worker, store, key, claimed, work, signal))
    if (!revised) {
      await sql`
        select fleet.record_absence(${partition}, ${name}, ${idsOf(claimed)}::text::bigint[], ${claimed.checksum_sha256})`
      log.info({ event: 'partition.erase.absent', partition }, 'the archive has no row of the devices')
      return
    }
    done = revised
    worker.indexIsStale = true
  }
  if (!done.mayDelete) {
    log.info(
      { event: 'partition.erase.unconfirmed', partition, archive_url: `${store.url}/${done.key}` },
      'the new archive is recorded; what it replaces stays until a second login has confirmed it',
    )
    return
  }
  await requireLease(worker, claimed)
  await worker.step('delete', {}, () => deleteLeftovers(store, claimed, done, signal))
  if (store.url !== worker.store.url)
    await withIndexLock(worker.database, `${store.url}: no index`, () => rebuildIndex(store), signal)
  await sql`select fleet.finish_erasure(${partition}, ${name})`
  const duration_ms = Math.round(performance.now() - started)
  log.info(
    { event: 'partition.erase.end', partition, devices: claimed.device_ids.length, duration_ms },
    'the store has no row of the devices on this day',
  )
}

/** Everything up to the record. Undefined if neither the archive nor a file that is kept with it has a row of the devices. */
async function rewrite(
  worker: Worker,
  store: Store,
  key: string,
  claimed: ClaimedErasure,
  work: string,
  signal: AbortSignal,
): Promise<{ key: string; leftovers: string[]; mayDelete: boolean } | undefined> {
  const { sql, name } = worker
  const { partition_name: partition, range_start, range_end, device_ids, checksum_sha256 } = claimed
  const { folder, parquet, manifest: manifestKey, oldManifest } = keysOf(range_start, range_end)
  // `npm run archive -- reindex` moves nothing of this day any more; what it is moving now is done afterwards.
  await withIndexLock(worker.database, `${partition}: nothing is erased`, () => Promise.resolve(), signal)
  const stored = await findManifest(store, parquet, signal)
  if (!stored) throw new Error(`${store.url}/${manifestKey}: the manifest is missing, and nothing is erased`)
  const found = stored.manifest
  // A run that died after it wrote the new manifest has recorded nothing, so the old object, which is still there, is the archive.
  const isUnfinished = found.sha256 !== checksum_sha256
  if (isUnfinished && found.replaces !== checksum_sha256) {
    throw new Error(
      `${store.url}/${stored.key}: the manifest differs from the database: sha256 should be ${checksum_sha256} and is ` +
        `${found.sha256}; nothing is erased`,
    )
  }
  const columns = claimed.columns ?? found.columns
  if (!claimed.columns) await recordColumns(sql, partition, { ...found, sha256: checksum_sha256 })
  const file = join(work, 'archive.parquet')
  await fetchObject(store, key, { bytes: Number(claimed.archive_bytes), sha256: checksum_sha256 }, file, signal)
  const isThere = (await countDevices(file, device_ids, work)) > 0

  const kept: { entry: Superseded; key: string; file: string; isThere: boolean }[] = []
  for (const [nth, entry] of (found.superseded ?? []).entries()) {
    const copy = join(work, `superseded-${nth}.parquet`)
    const stored = await findSuperseded(store, range_start, entry.file, signal)
    const key = stored?.key ?? supersededKeys(range_start, entry.file).parquet
    await fetchObject(store, key, entry, copy, signal)
    kept.push({ entry, key, file: copy, isThere: (await countDevices(copy, device_ids, work)) > 0 })
  }
  if (!isThere && !isUnfinished && kept.every(({ isThere }) => !isThere)) return undefined

  const inStore: string[] = []
  const supersededFolders = SUPERSEDED_ROOTS.map(root => supersededKeys(range_start, '', root).folder)
  for (const prefix of [folder, ...supersededFolders]) {
    for await (const object of store.list(prefix, signal)) inStore.push(object.key)
  }
  // No object is written under a name that was in use, so what a run that died left can be told from what this one writes.
  let revision = Math.max(found.revision ?? 1, ...[key, ...inStore].map(revisionOf))

  const superseded: Superseded[] = []
  const named: string[] = []
  // In both places, because `npm run archive -- reindex` may have been killed between the two objects.
  const nameKeys = (file: string) => {
    for (const root of SUPERSEDED_ROOTS) {
      const { parquet, manifest } = supersededKeys(range_start, file, root)
      named.push(parquet, manifest)
    }
  }
  for (const { entry, key, file, isThere } of kept) {
    if (!isThere) {
      superseded.push(entry)
      nameKeys(entry.file)
      continue
    }
    const old = await requireManifest(store, key, signal)
    revision++
    const keys = supersededKeys(range_start, fileNameOf(keysOf(range_start, range_end, revision).parquet))
    const write = async (input: RevisionInput) => {
      const history = [...(old.manifest.history ?? []), historyOf(old, REASON)]
      await writeManifest(
        store,
        keys.manifest,
        makeManifest({ ...input, previous: old.manifest.previous ?? null, history }),
        signal,
      )
    }
    const base = { ...old.manifest, file, revision, superseded: [] }
    const made = await writeRevision(store, claimed, keys.parquet, base, write, work, signal)
    superseded.push({
      file: made.manifest.file,
      bytes: made.manifest.bytes,
      sha256: made.manifest.sha256,
      columns: entry.columns,
    })
    nameKeys(made.manifest.file)
    await rm(made.erased, { force: true })
  }
  revision++
  const newKey = keysOf(range_start, range_end, revision).parquet
  const columns_at = claimed.columns_at ?? found.columns_at
  const base = { partition, range_start, range_end, columns, columns_at, sha256: checksum_sha256, file, revision, superseded }
  const write = async (input: RevisionInput) => {
    await requireLease(worker, claimed)
    await commitInTurn(worker, store, input, stored, REASON, signal)
  }
  const { manifest, erased } = await writeRevision(store, claimed, newKey, base, write, work, signal)
  const leftovers = inStore.filter(
    old =>
      old !== newKey &&
      (supersededFolders.some(folder => old.startsWith(folder))
        ? !named.includes(old)
        : old === oldManifest || /\/device_heartbeats_\d+(_r\d+)?\.parquet$/.test(old)),
  )

  // Postgres sees the rows that go, and checks that the archive lost these and no others.
  const [staging] = await sql<{ table_name: string }[]>`select fleet.begin_erasure(${partition}, ${name}) as table_name`
  if (!staging) throw new Error(`${partition}: fleet.begin_erasure returned no table`)
  await load(worker, staging.table_name, columns, erased, work, signal, () => {})
  signal.throwIfAborted()
  const [recorded] = await whenUnlocked(
    () => sql<{ may_delete: boolean }[]>`
      select fleet.record_erasure(${partition}, ${name}, ${idsOf(claimed)}::text::bigint[], ${`${store.url}/${newKey}`},
        ${manifest.sha256}, ${manifest.bytes}, ${manifest.format_version}, ${manifest.rows_sha256 ?? null}, ${manifest.row_count},
        ${manifest.min_ts}, ${manifest.max_ts},
        array(select jsonb_array_elements_text(${sql.json(leftovers)}::jsonb))) as may_delete`,
    signal,
  )
  return { key: newKey, leftovers, mayDelete: recorded?.may_delete === true }
}

/** Why a manifest was replaced, in its history. */
const REASON = 'erased'

/** Extends the lease. Returns false if another archiver has it, or the day is held. */
export async function renewErasureLease({ sql, name }: Worker, partition: string, seconds: number) {
  const [row] = await sql<{ is_ours: boolean }[]>`
    select fleet.renew_erasure_lease(${partition}, ${name}, make_interval(secs => ${seconds})) as is_ours`
  return row?.is_ours === true
}

/** @throws if the lease was lost or the day is held; asked directly before what cannot be taken back */
async function requireLease(worker: Worker, { partition_name }: ClaimedErasure) {
  if (!(await renewErasureLease(worker, partition_name, worker.leaseSeconds)))
    throw new Error(`${partition_name}: the lease is lost, or the partition is held; its archive stays as it is`)
}

type RevisionInput = Omit<ManifestInput, 'previous' | 'history'>

/** An archive that is written again. `file` is its verified local copy. */
type Base = Pick<Manifest, 'partition' | 'range_start' | 'range_end' | 'columns' | 'columns_at' | 'sha256' | 'superseded'> & {
  file: string
  revision: number
}

/**
 * Writes a file without the devices and its manifest, reads both back, and proves them: its rows are those of the old file without
 * the devices, by the SHA-256 of their CSV.
 * @returns the manifest, and a local file with the rows that are gone
 */
async function writeRevision(
  store: Store,
  { device_ids }: ClaimedErasure,
  parquetKey: string,
  base: Base,
  write: (input: RevisionInput) => Promise<void>,
  work: string,
  signal: AbortSignal,
) {
  const { partition, range_start, range_end, columns, columns_at, file, revision, superseded } = base
  const made = { kept: join(work, 'kept.parquet'), erased: join(work, 'erased.parquet') }
  const { kept, min_ts, max_ts } = await splitParquet(file, made, device_ids, work)
  signal.throwIfAborted()
  // Of the old file. The proof compares the new one with it, as it is read back from the store.
  const rows_sha256 = await hashParquet(file, columns, work, isNotOf(device_ids))
  signal.throwIfAborted()
  const [bytes, sha256] = [(await stat(made.kept)).size, await hashFile(made.kept)]
  await upload(store, parquetKey, made.kept, { bytes, sha256 }, signal)
  await rm(made.kept, { force: true })
  const input = {
    partition,
    range_start,
    range_end,
    content: { row_count: kept, rows_sha256, min_ts, max_ts },
    columns,
    columns_at,
    parquetKey,
    bytes,
    sha256,
    revision,
    replaces: base.sha256,
    superseded,
  }
  await write(input)
  const expected = {
    range_start: isoMicros(range_start),
    range_end: isoMicros(range_end),
    columns,
    bytes,
    sha256,
    row_count: kept,
    rows_sha256,
    min_ts,
    max_ts,
  }
  const manifest = await readBack(store, parquetKey, expected, work, ({ manifest }) => Promise.resolve(manifest), signal)
  return { manifest, erased: made.erased }
}

async function fetchObject(
  store: Store,
  key: string,
  { bytes, sha256 }: { bytes: number; sha256: string },
  file: string,
  signal: AbortSignal,
) {
  await rm(file, { force: true })
  const wrong = differences({ bytes, sha256 }, await store.getToFile(key, file, signal))
  if (wrong) throw new Error(`${store.url}/${key}: the object differs from what was proven, and nothing is erased: ${wrong}`)
}

/** Deletes what the recorded revision replaces, and looks whether it is gone. */
async function deleteLeftovers(
  store: Store,
  { range_start, range_end }: ClaimedErasure,
  { key: current, leftovers }: { key: string; leftovers: string[] },
  signal: AbortSignal,
) {
  const { folder, manifest } = keysOf(range_start, range_end)
  if (!(await store.head(current, signal)))
    throw new Error(`${store.url}/${current}: the archive is missing, so what it replaced is kept`)
  for (const key of leftovers) {
    const isOfDay = [folder, ...SUPERSEDED_ROOTS.map(root => supersededKeys(range_start, '', root).folder)].some(
      place => key.startsWith(place) && !key.slice(place.length).includes('/'),
    )
    if (!isOfDay || key === current || key === manifest)
      throw new Error(`${store.url}/${key}: this is not an object that the archive replaced; it is kept`)
    await store.delete(key, signal)
    if (await store.head(key, signal)) throw new Error(`${store.url}/${key}: the object is still there after it was deleted`)
  }
}

/** The devices as the text of a bigint[]. */
function idsOf({ device_ids }: ClaimedErasure) {
  return `{${device_ids.join(',')}}`
}

function fileNameOf(key: string) {
  return key.slice(key.lastIndexOf('/') + 1)
}
