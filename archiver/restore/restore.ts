import type { Writable } from 'node:stream'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { recordColumns } from '../archive/columns.ts'
import { openSession, type Sql } from '../database.ts'
import { isoMicros } from '../archive/iso-micros.ts'
import type { Claims } from '../archive/manifest.ts'
import { columnList, copyOptions, streamParquet, type Column } from '../archive/parquet.ts'
import { followCopy } from '../progress.ts'
import { readBack } from '../archive/proof.ts'
import { hashRows } from '../archive/rows-csv.ts'
import { whenUnlocked } from '../retry.ts'
import { locate } from '../store/open-store.ts'
import type { Worker } from '../context.ts'

/** A row of fleet.claim_restore(). */
export interface ClaimedRestore {
  request_id: string
  partition_name: string
  range_start: string
  range_end: string
  archive_url: string
  checksum_sha256: string
  rows_sha256: string | null
  content_checksum: string | null
  row_count: string
}

export async function claimRestore({ sql, name, leaseSeconds }: Worker): Promise<ClaimedRestore | undefined> {
  const [claimed] = await sql<ClaimedRestore[]>`
    select request_id, partition_name, range_start, range_end, archive_url, checksum_sha256, rows_sha256, content_checksum, row_count
    from fleet.claim_restore(${name}, make_interval(secs => ${leaseSeconds}))`
  return claimed
}

/**
 * Brings one archived partition back. The archive is verified, then copied into a separate table, which the database
 * compares with what was archived before it attaches it. The archive stays as it is.
 * @throws an error with a sentence; nothing is attached then
 */
export async function restorePartition(worker: Worker, claimed: ClaimedRestore, work: string, signal: AbortSignal) {
  const { sql, log, name } = worker
  const { partition_name } = claimed
  const { store, key } = await locate(claimed.archive_url, worker.store, worker.storeOptions)
  const started = performance.now()
  const expected = {
    range_start: isoMicros(claimed.range_start),
    range_end: isoMicros(claimed.range_end),
    row_count: Number(claimed.row_count),
    rows_sha256: claimed.rows_sha256 ?? undefined,
    content_checksum: claimed.content_checksum ?? undefined,
    sha256: claimed.checksum_sha256,
    ...(await knownColumns(sql, partition_name)),
  }
  const rows_sha256 = await readBack(
    store,
    key,
    expected,
    work,
    async ({ file, manifest }) => {
      // The proof covers these columns. The database does not know them yet if the archive is from before 0.2.
      await recordColumns(sql, partition_name, manifest)
      const begin = () => sql<{ table_name: string }[]>`select fleet.begin_restore(${partition_name}, ${name}) as table_name`
      const [staging] = await whenUnlocked(begin, signal)
      if (!staging) throw new Error(`${partition_name}: fleet.begin_restore returned no table`)
      const onRows = followCopy(worker, 'partition.restore.progress', partition_name, manifest.row_count)
      await load(worker, staging.table_name, manifest.columns, file, work, signal, onRows)
      return claimed.rows_sha256 === null ? null : await hashRows(worker.database, staging.table_name, manifest.columns, signal)
    },
    signal,
  )
  signal.throwIfAborted()
  await whenUnlocked(() => sql`select fleet.finish_restore(${partition_name}, ${name}, ${rows_sha256})`, signal)
  const duration_ms = Math.round(performance.now() - started)
  log.info({ event: 'partition.restore', partition: partition_name, rows: expected.row_count, duration_ms }, 'restored')
}

/** The columns of the partition's archive, if the database has recorded them. */
async function knownColumns(sql: Sql, partition: string): Promise<Pick<Claims, 'columns'>> {
  const [known] = await sql<
    { columns: Column[] | null }[]
  >`select columns from fleet.hb_partitions where partition_name = ${partition}`
  return known?.columns ? { columns: known.columns } : {}
}

/** Copies the rows of a Parquet file into a table that has these columns. */
export async function load(
  { database }: Pick<Worker, 'database'>,
  table: string,
  columns: Column[],
  file: string,
  work: string,
  signal: AbortSignal,
  onRows: (rows: number, bytes: number) => void,
) {
  const session = await openSession(database, signal)
  try {
    const options = copyOptions([])
    await streamParquet(
      file,
      columns,
      work,
      async (rows, done) => {
        const copy = await session.sql.unsafe(`copy ${table} (${columnList(columns)}) from stdin (${options})`).writable()
        // The COPY may fail at any time; every wait below notices that.
        copy.on('error', () => {})
        try {
          let lines = 0
          let bytes = 0
          for await (const chunk of rows as AsyncIterable<Buffer>) {
            await write(copy, chunk)
            // A line break within a text counts as a row here. This is only for the progress; the database counts exactly.
            lines += countLines(chunk)
            bytes += chunk.length
            onRows(lines, bytes)
          }
          // The pipe ends in the same way whether DuckDB finished or failed, so wait for its result before COPY may commit.
          await done
          await write(copy, Buffer.alloc(0))
        } catch (error) {
          copy.destroy(error as Error)
          throw error
        }
        copy.end()
        await nextTurn()
        // postgres.js does not report a COPY that fails after its last byte, but the next statement waits for its end.
        await session.sql`select 1`
        await nextTurn()
        if (!copy.writableFinished) throw new Error(`${table}: the server refused the COPY at its end; see its log`)
      },
      true,
    )
  } finally {
    await session.close()
  }
}

function countLines(chunk: Buffer) {
  let lines = 0
  for (let at = chunk.indexOf(10); at !== -1; at = chunk.indexOf(10, at + 1)) lines++
  return lines
}

function write(to: Writable, chunk: Buffer) {
  return new Promise<void>((resolve, reject) => to.write(chunk, error => (error ? reject(error) : resolve())))
}
