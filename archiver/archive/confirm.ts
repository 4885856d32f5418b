import { mkdtemp, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { describeError } from '../../lib/errors.ts'
import { isoMicros } from './iso-micros.ts'
import { readBack } from './proof.ts'
import { hashRows } from './rows-csv.ts'
import { identifier } from '../duckdb.ts'
import type { Column } from './parquet.ts'
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
  return { confirmed, faults }
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
