import { mkdtemp, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { describeError } from '../../lib/errors.ts'
import { isoMicros } from './iso-micros.ts'
import { readBack } from './proof.ts'
import { hashRows } from './rows-csv.ts'
import { identifier } from '../duckdb.ts'
import { isNotOf } from '../erase/filter.ts'
import { hashParquet, type Column } from './parquet.ts'
import { locate } from '../store/open-store.ts'
import { listArchives, type Archive } from './verify.ts'
import type { Worker } from '../context.ts'

/**
 * Reads every byte and row of each archive that is waiting for its second proof, and of its table, which is still there, and
 * confirms what it found. The database compares both: neither the manifest nor the archiver is trusted.
 * @param worker has the login of a member of fleet_verifier
 * @param onArchive is called before each archive is read
 * @returns how many were confirmed, and a sentence for each archive that was not
 */
export async function confirmArchives(worker: Worker, onArchive: (archive: Archive) => void) {
  const faults: string[] = []
  let confirmed = 0
  for (const archive of await listArchives(worker)) {
    if (archive.state !== 'archived' || archive.confirmed_at !== null) continue
    onArchive(archive)
    try {
      await confirm(worker, archive)
      confirmed++
    } catch (error) {
      faults.push(describeError(error))
    }
  }
  for (const erasure of await waitingErasures(worker)) {
    try {
      if (await confirmErasure(worker, erasure)) confirmed++
    } catch (error) {
      faults.push(describeError(error))
    }
  }
  return { confirmed, faults }
}

/** A row of fleet.erasures_to_confirm(). */
interface WaitingErasure {
  partition_name: string
  range_start: string
  range_end: string
  device_ids: string[]
  archive_url: string
  checksum_sha256: string
  row_count: string
  columns: Column[]
  old_archive_url: string
}

async function waitingErasures({ sql }: Worker) {
  return await sql<WaitingErasure[]>`
    select partition_name, range_start, range_end, array_to_json(device_ids::text[]) as device_ids, archive_url,
      checksum_sha256, row_count, columns, old_archive_url
    from fleet.erasures_to_confirm()`
}

/** Reads an archive from which devices were erased and the one that it replaces, which is still there, and compares them. */
async function confirmErasure(worker: Worker, erasure: WaitingErasure) {
  const { sql } = worker
  const { partition_name, range_start, range_end, columns, device_ids } = erasure
  const [now, old] = await Promise.all(
    [erasure.archive_url, erasure.old_archive_url].map(url => locate(url, worker.store, worker.storeOptions)),
  )
  if (!now || !old) return false
  const expected = {
    range_start: isoMicros(range_start),
    range_end: isoMicros(range_end),
    row_count: Number(erasure.row_count),
    sha256: erasure.checksum_sha256,
    columns,
  }
  const work = await mkdtemp(join(worker.directory, 'confirm-'))
  try {
    const inNew = await readBack(now.store, now.key, expected, work, ({ content }) => Promise.resolve(content.rows_sha256))
    const file = join(work, 'old.parquet')
    const got = await old.store.getToFile(old.key, file)
    const inOld = await hashParquet(file, columns, work, isNotOf(device_ids))
    const [row] = await sql<{ is_new: boolean }[]>`
      select fleet.confirm_erasure(${partition_name}, ${got.sha256}, ${erasure.checksum_sha256}, ${inNew ?? null}, ${inOld}) as is_new`
    return row?.is_new === true
  } finally {
    await rm(work, { recursive: true, force: true })
  }
}

async function confirm(worker: Worker, archive: Archive) {
  const { sql } = worker
  const { store, key } = await locate(archive.archive_url, worker.store, worker.storeOptions)
  const expected = {
    range_start: isoMicros(archive.range_start),
    range_end: isoMicros(archive.range_end),
    bytes: Number(archive.archive_bytes),
    sha256: archive.checksum_sha256,
    ...(archive.columns ? { columns: archive.columns } : {}),
  }
  const work = await mkdtemp(join(worker.directory, 'confirm-'))
  try {
    await readBack(store, key, expected, work, async ({ manifest, content }) => {
      // The columns that the database recorded, not those of the manifest.
      const inTable = content.rows_sha256 === undefined ? null : await hashTable(worker, archive.partition_name, archive.columns)
      await sql`
        select fleet.confirm_archive(${archive.partition_name}, ${manifest.sha256},
          ${content.content_checksum ?? null}::text::numeric, ${content.row_count}, ${content.min_ts}, ${content.max_ts},
          ${content.rows_sha256 ?? null}, ${inTable})`
    })
  } finally {
    await rm(work, { recursive: true, force: true })
  }
}

/** The SHA-256 of the rows of a retired table. Null if the table is gone. */
async function hashTable({ sql, database }: Worker, partition: string, columns: Column[] | null) {
  const table = `fleet_detached.${identifier(partition)}`
  const [found] = await sql<{ is_there: boolean }[]>`select to_regclass(${table}) is not null as is_there`
  return found?.is_there && columns ? await hashRows(database, table, columns) : null
}
