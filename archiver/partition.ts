import { stat } from 'node:fs/promises'
import { join } from 'node:path'
import { openSession } from './database.ts'
import { exportTable } from './export.ts'
import { differences, isoMicros, keysOf, makeManifest, readManifest, writeManifest, type Claims, type Manifest } from './manifest.ts'
import { hashFile } from './hash.ts'
import { readBack } from './proof.ts'
import { whenUnlocked } from './retry.ts'
import type { Worker } from './worker.ts'

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
  content_checksum: string | null
  checksum_sha256: string | null
  archive_bytes: string | null
  min_ts: string | null
  max_ts: string | null
}

export async function claimPartition({ sql, name, leaseSeconds }: Worker): Promise<ClaimedPartition | undefined> {
  const [claimed] = await sql<ClaimedPartition[]>`
    select partition_name, table_name, range_start, range_end, state, step, attempts, row_count, content_checksum,
      checksum_sha256, archive_bytes, min_ts, max_ts
    from fleet.claim_partition(${name}, make_interval(secs => ${leaseSeconds}))`
  return claimed
}

/**
 * Takes a claimed partition from the step where it stands to the end: frozen, exported, uploaded, proven, dropped.
 * Each step is recorded when it is done and may be repeated, so a run that died anywhere is finished by the next.
 * @param work an empty directory of its own
 * @param signal fires when the archiver is stopped or has lost the lease
 * @throws a sentence; the partition is then as it was after its last recorded step
 */
export async function archivePartition(worker: Worker, claimed: ClaimedPartition, work: string, signal: AbortSignal) {
  if (claimed.state === 'archiving') {
    await worker.store.check(signal)
    if (claimed.step === 'claimed') await freeze(worker, claimed, signal)
    // The Parquet file of a run that died is gone with it; the same rows make the same file.
    const expected = claimed.step === 'uploaded' ? recordedClaims(claimed) : await exportAndUpload(worker, claimed, work, signal)
    await prove(worker, claimed, expected, work, signal)
  }
  signal.throwIfAborted()
  await drop(worker, claimed, signal)
}

async function freeze({ sql, database, name }: Worker, { partition_name, table_name }: ClaimedPartition, signal: AbortSignal) {
  // Not in a transaction, and not on the connection that renews the lease.
  const session = await openSession(database, signal)
  try {
    await session.sql.unsafe(`vacuum (freeze) ${table_name}`)
  } finally {
    await session.close()
  }
  signal.throwIfAborted()
  await sql`select fleet.record_frozen(${partition_name}, ${name})`
}

async function exportAndUpload(worker: Worker, claimed: ClaimedPartition, work: string, signal: AbortSignal): Promise<Claims> {
  const { sql, store, log, name } = worker
  const { partition_name, range_start, range_end } = claimed
  const keys = keysOf(range_start, range_end)
  const file = join(work, 'export.parquet')

  let said = Date.now()
  let began: number | undefined
  const { columns, content } = await exportTable(worker.database, claimed.table_name, file, work, {
    signal,
    onRows(rows, bytes) {
      began ??= performance.now()
      if (Date.now() - said < 5000) return
      said = Date.now()
      const rows_per_second = Math.round(rows / (performance.now() - began) * 1000)
      log.info({ event: 'partition.export.progress', partition: partition_name, rows, bytes, rows_per_second }, 'exporting')
    },
  })
  await sql`
    select fleet.record_export(${partition_name}, ${name}, ${content.row_count}, ${content.content_checksum}::text::numeric,
      ${content.min_ts}, ${content.max_ts})`

  const exported = {
    range_start: isoMicros(range_start), range_end: isoMicros(range_end),
    bytes: (await stat(file)).size, sha256: await hashFile(file), ...content,
  }
  const existing = await readManifest(store, keys.manifest, signal)
  // An archive without rows holds nothing to lose: its day may have been made anew since, and filled.
  if (existing && existing.row_count > 0) refuseOtherContent(`${store.url}/${keys.manifest}`, existing, exported)
  // After a failure nothing that lies in the store is trusted: the object is written anew, with the same rows.
  const isKept = existing !== undefined && claimed.attempts === 0 && existing.content_checksum === content.content_checksum
    && (await store.head(keys.parquet, signal))?.bytes === existing.bytes
  if (!isKept) {
    await store.put(keys.parquet, file, exported.sha256, signal)
    await writeManifest(store, keys.manifest, makeManifest({
      partition: partition_name, range_start, range_end, content, columns,
      parquetKey: keys.parquet, bytes: exported.bytes, sha256: exported.sha256,
    }), signal)
  }
  const { bytes, sha256 } = isKept ? existing : exported
  await sql`
    select fleet.record_upload(${partition_name}, ${name}, ${`${store.url}/${keys.parquet}`}, ${sha256}, ${bytes})`
  return { ...exported, bytes, sha256 }
}

/** An archive may be the only copy of its rows: another content never takes its place. */
function refuseOtherContent(url: string, existing: Manifest, exported: Claims) {
  const { range_start, range_end, row_count, content_checksum, min_ts, max_ts } = exported
  const other = differences({ range_start, range_end, row_count, content_checksum, min_ts, max_ts }, existing)
  if (other) {
    throw new Error(
      `${url}: an archive of this day with other content is there already and is not overwritten (${other}). `
      + 'If it is not needed, move its folder away, then run select fleet.retry_archive(...)',
    )
  }
}

/** What an earlier run recorded before it died. */
function recordedClaims(claimed: ClaimedPartition): Claims {
  return {
    range_start: isoMicros(claimed.range_start),
    range_end: isoMicros(claimed.range_end),
    row_count: Number(claimed.row_count),
    content_checksum: claimed.content_checksum ?? '',
    min_ts: claimed.min_ts === null ? null : isoMicros(claimed.min_ts),
    max_ts: claimed.max_ts === null ? null : isoMicros(claimed.max_ts),
    bytes: Number(claimed.archive_bytes),
    sha256: claimed.checksum_sha256 ?? '',
  }
}

async function prove(worker: Worker, claimed: ClaimedPartition, expected: Claims, work: string, signal: AbortSignal) {
  const { sql, store, name } = worker
  const keys = keysOf(claimed.range_start, claimed.range_end)
  await readBack(store, keys, expected, work, async ({ manifest, content }) => {
    // The database compares once more with what it recorded, and alone decides.
    await sql`
      select fleet.record_proof(${claimed.partition_name}, ${name}, ${manifest.sha256},
        ${content.content_checksum}::text::numeric, ${content.row_count}, ${content.min_ts}, ${content.max_ts})`
  }, signal)
  worker.indexIsStale = true
  worker.log.info({
    event: 'partition.archive.end', partition: claimed.partition_name, rows: expected.row_count, bytes: expected.bytes,
    sha256: expected.sha256, archive_url: `${store.url}/${keys.parquet}`,
  }, 'archived and proven')
}

async function drop({ sql, log }: Worker, { partition_name }: ClaimedPartition, signal: AbortSignal) {
  const [dropped] = await whenUnlocked(() => sql<{ is_dropped: boolean }[]>`
    select fleet.drop_partition(${partition_name}) as is_dropped`, signal)
  if (dropped?.is_dropped) log.info({ event: 'partition.drop', partition: partition_name }, 'dropped')
  else log.info({ event: 'partition.kept', partition: partition_name }, 'kept until archive_grace is over')
}
