import { stat } from 'node:fs/promises'
import { join } from 'node:path'
import { openSession } from '../database.ts'
import { exportTable, type Exported } from './export.ts'
import { isoMicros } from './iso-micros.ts'
import { differences, findManifest, keysOf, FORMAT_VERSION, type Claims, type Manifest } from './manifest.ts'
import { recordColumns } from './columns.ts'
import { commitInTurn } from './index-lock.ts'
import { hashFile } from './hash.ts'
import { plainColumns, readContent, type Column } from './parquet.ts'
import { followCopy } from '../progress.ts'
import { upload } from './upload.ts'
import { readBack } from './proof.ts'
import { whenUnlocked } from '../retry.ts'
import { compareArchive, IF_NOT_NEEDED, keepSuperseded, removeSuperseded } from './revision.ts'
import type { Worker } from '../context.ts'

/** A row of fleet.claim_partition(). */
export interface ClaimedPartition {
  partition_name: string
  table_name: string
  range_start: string
  range_end: string
  state: 'archiving' | 'archived'
  step: 'claimed' | 'frozen' | 'exported' | 'uploaded' | 'proven'
  attempts: number
  row_count: string | null
  rows_sha256: string | null
  content_checksum: string | null
  checksum_sha256: string | null
  archive_url: string | null
  archive_bytes: string | null
  min_ts: string | null
  max_ts: string | null
}

export async function claimPartition({ sql, name, leaseSeconds }: Worker): Promise<ClaimedPartition | undefined> {
  const [claimed] = await sql<ClaimedPartition[]>`
    select partition_name, table_name, range_start, range_end, state, step, attempts, row_count, rows_sha256,
      content_checksum, checksum_sha256, archive_url, archive_bytes, min_ts, max_ts
    from fleet.claim_partition(${name}, make_interval(secs => ${leaseSeconds}))`
  return claimed
}

/**
 * Takes a claimed partition from its current step to the end: frozen, exported, uploaded, proven, dropped.
 * Each step is recorded when it is done and may be repeated, so the next run finishes what a dead one left.
 * @param work an empty directory for this partition alone
 * @param signal fires when the archiver is stopped or has lost the lease
 * @throws an error with a sentence; the partition is then as it was after its last recorded step
 */
export async function archivePartition(worker: Worker, claimed: ClaimedPartition, work: string, signal: AbortSignal) {
  let rows = Number(claimed.row_count)
  if (claimed.state === 'archiving') {
    const started = performance.now()
    await worker.store.check(signal)
    if (claimed.step === 'claimed') await worker.step('freeze', {}, () => freeze(worker, claimed, signal))
    // The Parquet file of a dead run is gone, but the same rows make the same file.
    const expected =
      claimed.step === 'uploaded' ? await recordedClaims(worker, claimed) : await exportAndUpload(worker, claimed, work, signal)
    await worker.step('prove', {}, () => prove(worker, claimed, expected, started, work, signal))
    rows = expected.row_count ?? rows
  } else {
    await finishRevision(worker, claimed, signal)
  }
  signal.throwIfAborted()
  await worker.step('drop', { 'fleet.rows': rows }, () => drop(worker, claimed, rows, signal))
}

async function freeze({ database, name }: Worker, { partition_name, table_name }: ClaimedPartition, signal: AbortSignal) {
  // Not in a transaction, and not on the connection that renews the lease.
  const session = await openSession(database, signal)
  try {
    // Before PostgreSQL 17 only the owner may VACUUM. The owner's jobs froze the partition before it was retired, or will do so.
    const [right] = await session.sql<{ may_vacuum: boolean }[]>`
      select case
        when current_setting('server_version_num')::int >= 170000
          then has_table_privilege(${table_name}::text::regclass, 'MAINTAIN')
        else false
      end as may_vacuum`
    // Another archiver that hangs may have the table locked. Its session is ended later, by fleet.lock_retired().
    if (right?.may_vacuum) await session.sql.unsafe(`vacuum (freeze, skip_locked) ${table_name}`)
    signal.throwIfAborted()
    // Rolls up the days that the nightly run has not, which may take equally long.
    await session.sql`select fleet.record_frozen(${partition_name}, ${name})`
  } finally {
    await session.close()
  }
  signal.throwIfAborted()
}

/** What is in the store and has to be proven. */
interface Upload extends Claims {
  parquetKey: string
}

async function exportAndUpload(worker: Worker, claimed: ClaimedPartition, work: string, signal: AbortSignal): Promise<Upload> {
  const { sql, store, name } = worker
  const { partition_name, range_start, range_end } = claimed
  const { folder, parquet } = keysOf(range_start, range_end)
  const file = join(work, 'export.parquet')

  const total = claimed.row_count === null ? undefined : Number(claimed.row_count)
  const { columns, content } = await worker.step('export', {}, () =>
    exportTable(
      worker.database,
      claimed.table_name,
      file,
      work,
      {
        signal,
        onRows: followCopy(worker, 'partition.export.progress', partition_name, total),
        lock: { partition: partition_name, worker: name },
      },
      async copied => ({
        columns: copied.columns,
        content: await worker.step('count', {}, () => countRetired(worker, partition_name, copied, signal)),
      }),
    ),
  )
  const exported = {
    range_start: isoMicros(range_start),
    range_end: isoMicros(range_end),
    bytes: (await stat(file)).size,
    sha256: await hashFile(file),
    ...content,
    columns: plainColumns(columns),
  }
  const found = await findManifest(store, parquet, signal)
  const existing = found?.manifest
  const { revision, replaces, superseded } = await chooseRevision(
    worker,
    folder,
    existing,
    exported,
    { file, columns },
    work,
    signal,
  )
  // From here on the database forgets the earlier archive, so it must be certain by now that this export may replace it.
  await sql`select fleet.record_export(${partition_name}, ${name})`
  const { columns_at } = await recordedShape(worker, partition_name)
  const keys = keysOf(range_start, range_end, revision)
  // After a failure nothing in the store is trusted: the object is written again, with the same rows.
  const isKept =
    existing !== undefined &&
    claimed.attempts === 0 &&
    (store.signing?.signer === undefined || existing.format_version < FORMAT_VERSION || existing.signature !== undefined) &&
    existing.rows_sha256 === content.rows_sha256 &&
    differences({ columns: existing.columns }, exported) === '' &&
    (await store.head(`${folder}${existing.file}`, signal))?.bytes === existing.bytes
  if (!isKept) {
    await worker.step('upload', { 'fleet.bytes': exported.bytes }, () => upload(store, keys.parquet, file, exported, signal))
    const input = {
      partition: partition_name,
      range_start,
      range_end,
      content,
      columns,
      columns_at,
      parquetKey: keys.parquet,
      bytes: exported.bytes,
      sha256: exported.sha256,
      revision,
      replaces,
      superseded,
    }
    await commitInTurn(worker, store, input, found, reasonOf(existing, content, revision), signal)
  }
  const { bytes, sha256, format_version } = isKept ? existing : { ...exported, format_version: FORMAT_VERSION }
  const parquetKey = isKept ? `${folder}${existing.file}` : keys.parquet
  await sql`
    select fleet.record_upload(${partition_name}, ${name}, ${`${store.url}/${parquetKey}`}, ${sha256}, ${bytes},
      ${format_version})`
  return { ...exported, bytes, sha256, parquetKey }
}

/** Why the manifest of a day is replaced. */
function reasonOf(existing: Manifest | undefined, { row_count }: { row_count: number }, revision = 1) {
  if (existing !== undefined && row_count > existing.row_count) return 'gained rows'
  return revision === (existing?.revision ?? 1) ? 'written again' : 'columns changed'
}

/**
 * An archive may be the only copy of its rows. Other content replaces it only if that contains every one of its rows, as
 * for a day that was restored and gained rows. The new archive then gets its own file, so that the existing one stays
 * whole until the new one is proven.
 * @throws if rows of the existing archive would be lost
 */
async function chooseRevision(
  worker: Worker,
  folder: string,
  existing: Manifest | undefined,
  exported: Claims,
  made: { file: string; columns: Column[] },
  work: string,
  signal: AbortSignal,
): Promise<Pick<Manifest, 'revision' | 'replaces' | 'superseded'>> {
  if (!existing) return {}
  const { range_start, range_end, row_count, rows_sha256, min_ts, max_ts, columns } = exported
  let other = differences({ range_start, range_end, row_count, min_ts, max_ts, columns }, existing)
  if (other === '') {
    // An archive of an older format has only the older checksum of its rows.
    other =
      existing.rows_sha256 === undefined
        ? differences(await readContent(made.file, made.columns, work, { checksum: 'content_checksum' }), existing)
        : differences({ rows_sha256 }, existing)
  }
  // An archive without rows has nothing to lose: its day may have been created again and filled since.
  if (other === '' || existing.row_count === 0) {
    return { revision: existing.revision, replaces: existing.replaces, superseded: existing.superseded }
  }
  const refuse = (missing: number) => {
    throw new Error(
      `${worker.store.url}/${folder}${existing.file}: there is already an archive of this day with other content, ` +
        `and it is not overwritten: ${missing} of its ${existing.row_count} rows are not in the partition (${other}). ` +
        `${IF_NOT_NEEDED}. ` +
        "If the archive is right and the table is wrong, run select fleet.accept_archive(..., 'why')",
    )
  }
  if (existing.range_start !== range_start || existing.range_end !== range_end) return refuse(existing.row_count)
  return await compareArchive(
    worker,
    folder,
    existing,
    made,
    work,
    async ({ missing, lost, file }) => {
      if (missing > 0) return refuse(missing)
      const kept = lost.length > 0 ? [await keepSuperseded(worker, existing, lost, file, signal)] : []
      return {
        revision: (existing.revision ?? 1) + 1,
        replaces: existing.sha256,
        superseded: [...(existing.superseded ?? []), ...kept],
      }
    },
    signal,
  )
}

/**
 * Lets Postgres count and hash the retired table, with its owner's rights, while nobody can write to it. The proof is compared
 * with this count, and the drop with both.
 * @throws if COPY sent another number of rows or other columns
 */
async function countRetired(
  { database, name }: Worker,
  partition: string,
  { row_count, columns, rows_sha256 }: Exported,
  signal: AbortSignal,
) {
  // This takes seconds for a large day, so it does not use the connection that renews the lease.
  const session = await openSession(database, signal)
  try {
    const [counted] = await session.sql<{ row_count: string; min_ts: string | null; max_ts: string | null }[]>`
      select row_count, min_ts, max_ts
      from fleet.count_retired(${partition}, ${name}, ${row_count}, ${rows_sha256}, ${session.sql.json(plainColumns(columns))})`
    signal.throwIfAborted()
    if (!counted) throw new Error(`${partition}: fleet.count_retired returned nothing`)
    return {
      row_count: Number(counted.row_count),
      rows_sha256,
      min_ts: counted.min_ts === null ? null : isoMicros(counted.min_ts),
      max_ts: counted.max_ts === null ? null : isoMicros(counted.max_ts),
    }
  } finally {
    await session.close()
  }
}

/** The columns that the database recorded with the export, and when the table had them. */
async function recordedShape({ sql }: Worker, partition: string) {
  const [shape] = await sql<{ columns: Column[]; columns_at: string }[]>`
    select columns, columns_at from fleet.hb_partitions where partition_name = ${partition}`
  if (!shape) throw new Error(`${partition}: fleet.hb_partitions has no such partition`)
  return shape
}

/** What an earlier run recorded before it died. */
async function recordedClaims(worker: Worker, claimed: ClaimedPartition): Promise<Upload> {
  // Null if a version before 0.2 uploaded the archive. Then the columns in the manifest are accepted.
  const { columns } = (await recordedShape(worker, claimed.partition_name)) as { columns: Column[] | null }
  return {
    ...(columns ? { columns } : {}),
    parquetKey: `${keysOf(claimed.range_start, claimed.range_end).folder}${fileOf(claimed)}`,
    range_start: isoMicros(claimed.range_start),
    range_end: isoMicros(claimed.range_end),
    row_count: Number(claimed.row_count),
    rows_sha256: claimed.rows_sha256 ?? undefined,
    content_checksum: claimed.content_checksum ?? undefined,
    min_ts: claimed.min_ts === null ? null : isoMicros(claimed.min_ts),
    max_ts: claimed.max_ts === null ? null : isoMicros(claimed.max_ts),
    bytes: Number(claimed.archive_bytes),
    sha256: claimed.checksum_sha256 ?? '',
  }
}

/** The file name of the archive, as the database has it. */
function fileOf({ archive_url }: ClaimedPartition) {
  return archive_url?.slice(archive_url.lastIndexOf('/') + 1) ?? ''
}

async function prove(
  worker: Worker,
  claimed: ClaimedPartition,
  upload: Upload,
  started: number,
  work: string,
  signal: AbortSignal,
) {
  const { sql, store, name } = worker
  const { parquetKey, ...expected } = upload
  const proven = await readBack(
    store,
    parquetKey,
    expected,
    work,
    async ({ manifest, content }) => {
      // The database compares again with what it recorded, and alone decides.
      await sql`
      select fleet.record_proof(${claimed.partition_name}, ${name}, ${manifest.sha256},
        ${content.content_checksum ?? null}::text::numeric, ${content.row_count}, ${content.min_ts}, ${content.max_ts},
        ${content.rows_sha256 ?? null})`
      await recordColumns(sql, claimed.partition_name, manifest)
      return manifest
    },
    signal,
  )
  worker.indexIsStale = true
  worker.log.info(
    {
      event: 'partition.archive.end',
      partition: claimed.partition_name,
      rows: expected.row_count,
      bytes: expected.bytes,
      duration_ms: Math.round(performance.now() - started),
      sha256: expected.sha256,
      archive_url: `${store.url}/${parquetKey}`,
    },
    'archived and proven',
  )
  await removeSuperseded(store, proven, worker.log, signal)
}

/** Finishes what a run left undone that died after its proof: deletes what the archive replaces. */
async function finishRevision({ store, log }: Worker, claimed: ClaimedPartition, signal: AbortSignal) {
  const { parquet, oldManifest } = keysOf(claimed.range_start, claimed.range_end)
  if (!/_r\d+\.parquet$/.test(fileOf(claimed)) && !(await store.head(oldManifest, signal))) return
  const found = await findManifest(store, parquet, signal)
  if (found?.manifest.sha256 === claimed.checksum_sha256) await removeSuperseded(store, found.manifest, log, signal)
}

async function drop({ sql, log, name }: Worker, { partition_name }: ClaimedPartition, rows: number, signal: AbortSignal) {
  const started = performance.now()
  const [dropped] = await whenUnlocked(
    () => sql<{ is_dropped: boolean }[]>`
    select fleet.drop_partition(${partition_name}) as is_dropped`,
    signal,
  )
  const duration_ms = Math.round(performance.now() - started)
  if (dropped?.is_dropped) {
    log.info({ event: 'partition.drop', partition: partition_name, rows, duration_ms }, 'dropped')
    return
  }
  // An archiver drops it later, once it may be dropped.
  await sql`select fleet.release_lease(${partition_name}, ${name})`
  log.info(
    { event: 'partition.kept', partition: partition_name },
    'kept until archive_grace is over, and until a second proof where one is needed',
  )
}
