import { rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { hashFile } from '../archive/hash.ts'
import { copyOptions, copyValues, hashParquet, writeParquet, type Column } from '../archive/parquet.ts'
import { upload } from '../archive/upload.ts'
import type { Worker } from '../context.ts'
import { openSession, type Session } from '../database.ts'

/** A month of fleet.audit_log, as its first day. */
export interface ClaimedMonth {
  month: string
  revision: number
}

export async function claimAuditMonth({ sql, name, leaseSeconds }: Worker): Promise<ClaimedMonth | undefined> {
  const [claimed] = await sql<ClaimedMonth[]>`
    select month::text, revision from fleet.claim_audit_month(${name}, make_interval(secs => ${leaseSeconds}))`
  return claimed
}

export async function renewAuditLease({ sql, name }: Worker, month: string, seconds: number) {
  const [row] = await sql<{ ok: boolean }[]>`
    select fleet.renew_audit_lease(${month}::text::date, ${name}, make_interval(secs => ${seconds})) as ok`
  return row?.ok === true
}

/**
 * Writes a month of the audit log into one Parquet file, reads it back from the store, and records it. The rows are compared as
 * CSV, as Postgres sent them and as DuckDB writes them from the file that was read back. An earlier file of the month is replaced.
 * @param work an empty directory for this month alone
 * @throws an error with a sentence that names the object; what is recorded of the month stays then
 */
export async function archiveAuditMonth(worker: Worker, claimed: ClaimedMonth, work: string, signal: AbortSignal) {
  const { store, sql, log, name } = worker
  const key = `audit_log/${claimed.month.slice(0, 7)}.parquet`
  const url = `${store.url}/${key}`
  await store.check(signal)
  const file = join(work, 'audit-log.parquet')
  const { columns, row_count, rows_sha256 } = await exportMonth(worker, claimed.month, file, work, signal)
  const { size: bytes } = await stat(file)
  const sha256 = await hashFile(file)
  await upload(store, key, file, { bytes, sha256 }, signal)
  await rm(file)

  const back = join(work, 'read-back.parquet')
  const got = await store.getToFile(key, back, signal)
  if (got.bytes !== bytes || got.sha256 !== sha256)
    throw new Error(`${url}: wrote ${bytes} bytes with sha256 ${sha256}, and read ${got.bytes} bytes with ${got.sha256}`)
  const found = await hashParquet(back, columns, work)
  if (found !== rows_sha256)
    throw new Error(`${url}: the rows of Postgres have the SHA-256 ${rows_sha256}, and those of the file ${found}`)
  signal.throwIfAborted()
  await sql`
    select fleet.record_audit_archive(
      ${claimed.month}::text::date, ${name}, ${claimed.revision}, ${url}, ${sha256}, ${bytes}, ${row_count}, ${rows_sha256}
    )`
  log.info({ event: 'audit.archived', rows: row_count, bytes, sha256, archive_url: url }, 'a month of the audit log is archived')
}

async function exportMonth({ database }: Worker, month: string, file: string, work: string, signal: AbortSignal) {
  const session = await openSession(database, signal)
  try {
    const columns = await session.sql<Column[]>`
      select name, type from fleet.archive_columns('fleet.audit_log'::regclass) order by position`
    const written = await copyMonth(session, month, columns, file, work)
    // Fails if the server ended the COPY too early.
    await session.sql`select 1`
    signal.throwIfAborted()
    return { columns, ...written }
  } finally {
    await session.close()
  }
}

async function copyMonth(session: Session, month: string, columns: Column[], file: string, work: string) {
  if (!/^\d{4}-\d\d-01$/.test(month)) throw new Error(`${month} is not the first day of a month`)
  const rows = await session.sql
    .unsafe(
      `copy (
        select ${copyValues(columns)} from fleet.audit_log
        where at >= '${month} 00:00Z' and at < (timestamp '${month}' + interval '1 month') at time zone 'UTC'
        order by audit_id
      ) to stdout (${copyOptions(columns)})`,
    )
    .readable()
  try {
    const written = await writeParquet(rows, columns, file, work)
    session.release(rows)
    return written
  } catch (error) {
    await session.discard(rows)
    throw error
  }
}
