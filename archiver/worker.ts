import { mkdtemp, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { archiveAuditMonth, claimAuditMonth, renewAuditLease } from './audit/audit.ts'
import { withIndexLock } from './archive/index-lock.ts'
import { rebuildIndex } from './archive/manifest.ts'
import { archivePartition, claimPartition } from './archive/partition.ts'
import type { Worker } from './context.ts'
import { claimErasure, eraseFromArchive, renewErasureLease } from './erase/erase.ts'
import { holdLease } from './lease.ts'
import { claimRestore, restorePartition } from './restore/restore.ts'
import { describeError } from '../lib/errors.ts'

export type Result = 'idle' | 'done' | 'failed' | 'stopped'

/**
 * Does one piece of work: a requested restore, because somebody waits for it, or else an archive from which devices are to be
 * erased, or else the oldest partition, or else a month of the audit log.
 * A failure is recorded in the database and logged, not thrown.
 * @param signal stops the work: the piece is given back, with the steps that were finished
 * @throws if the database cannot be asked for work
 */
export async function workOnce(worker: Worker, signal: AbortSignal): Promise<Result> {
  for (const work of [restoreOnce, eraseOnce, archiveOnce, auditOnce]) {
    const result = await work(worker, signal)
    if (result !== 'idle') return result
  }
  return 'idle'
}

/** Restores one partition if one was requested. Otherwise like workOnce. */
export async function restoreOnce(worker: Worker, signal: AbortSignal): Promise<Result> {
  const { sql, log, name, leaseSeconds } = worker
  const claimed = await claimRestore(worker)
  if (!claimed) return 'idle'
  const partition = claimed.partition_name
  log.info({ event: 'partition.restore.start', partition }, 'restoring')
  return await attempt(worker, signal, {
    event: 'partition.restore.failed',
    span: 'restore partition',
    partition,
    renew: async () => {
      const [row] = await sql<{ ok: boolean }[]>`
        select fleet.renew_restore_lease(${partition}, ${name}, make_interval(secs => ${leaseSeconds})) as ok`
      return row?.ok === true
    },
    run: (work, signal) => restorePartition(worker, claimed, work, signal),
    // A lease of zero length: another archiver may take it at once.
    release: () => sql`select fleet.renew_restore_lease(${partition}, ${name}, interval '0')`,
    fail: error => sql`select fleet.fail_restore(${partition}, ${name}, ${error})`,
  })
}

async function eraseOnce(worker: Worker, signal: AbortSignal): Promise<Result> {
  const { sql, log, name, leaseSeconds } = worker
  const claimed = await claimErasure(worker)
  if (!claimed) return 'idle'
  const partition = claimed.partition_name
  log.info({ event: 'partition.erase.start', partition, devices: claimed.device_ids.length }, 'erasing devices from the archive')
  return await attempt(worker, signal, {
    event: 'partition.erase.failed',
    span: 'erase from archive',
    partition,
    renew: () => renewErasureLease(worker, partition, leaseSeconds),
    run: (work, signal) => eraseFromArchive(worker, claimed, work, signal),
    release: () => renewErasureLease(worker, partition, 0),
    fail: error => sql`select fleet.fail_erasure(${partition}, ${name}, ${error})`,
  })
}

async function archiveOnce(worker: Worker, signal: AbortSignal): Promise<Result> {
  const { sql, log, name, leaseSeconds } = worker
  const claimed = await claimPartition(worker)
  if (!claimed) return 'idle'
  const partition = claimed.partition_name
  if (claimed.state === 'archiving') {
    log.info({ event: 'partition.archive.start', partition, step: claimed.step, attempts: claimed.attempts }, 'archiving')
  }
  return await attempt(worker, signal, {
    event: 'partition.archive.failed',
    span: 'archive partition',
    partition,
    renew: async () => {
      const [row] = await sql<{ ok: boolean }[]>`
        select fleet.renew_lease(${partition}, ${name}, make_interval(secs => ${leaseSeconds})) as ok`
      return row?.ok === true
    },
    run: (work, signal) => archivePartition(worker, claimed, work, signal),
    release: () => sql`select fleet.release_lease(${partition}, ${name})`,
    fail: error => sql`select fleet.record_failure(${partition}, ${name}, ${error})`,
  })
}

async function auditOnce(worker: Worker, signal: AbortSignal): Promise<Result> {
  const { sql, name, leaseSeconds } = worker
  const claimed = await claimAuditMonth(worker)
  if (!claimed) return 'idle'
  const { month } = claimed
  return await attempt(worker, signal, {
    event: 'audit.archive.failed',
    span: 'archive audit log',
    partition: `audit_log ${month.slice(0, 7)}`,
    renew: () => renewAuditLease(worker, month, leaseSeconds),
    run: (work, signal) => archiveAuditMonth(worker, claimed, work, signal),
    release: () => renewAuditLease(worker, month, 0),
    fail: error => sql`select fleet.fail_audit_archive(${month}::text::date, ${name}, ${error})`,
  })
}

interface Piece {
  event: string
  span: string
  partition: string
  renew: () => Promise<boolean>
  run: (work: string, signal: AbortSignal) => Promise<void>
  release: () => PromiseLike<unknown>
  fail: (error: string) => PromiseLike<unknown>
}

async function attempt(worker: Worker, stop: AbortSignal, piece: Piece): Promise<'done' | 'failed' | 'stopped'> {
  const { log } = worker
  const { partition } = piece
  const lease = holdLease(worker.leaseSeconds, piece.renew, log)
  const work = await mkdtemp(join(worker.directory, 'work-'))
  try {
    await worker.step(piece.span, { 'fleet.partition': partition }, () => piece.run(work, AbortSignal.any([stop, lease.signal])))
    return 'done'
  } catch (error) {
    if (lease.signal.aborted) {
      log.warn(
        { event: 'archiver.lease.lost', partition, error: lease.signal.reason as unknown },
        'stopped; nothing more is recorded',
      )
      return 'failed'
    }
    try {
      if (stop.aborted) {
        await piece.release()
        log.info({ event: 'archiver.lease.released', partition }, 'stopped; the partition is given back')
        return 'stopped'
      }
      log.error({ event: piece.event, partition, error }, 'failed; the partition is kept')
      await piece.fail(describeError(error))
    } catch (cause) {
      log.error(
        { event: 'archiver.unrecorded', partition },
        `the failure could not be recorded, so the partition waits until its lease ends: ${describeError(cause)}`,
      )
    }
    return stop.aborted ? 'stopped' : 'failed'
  } finally {
    lease.end()
    await rm(work, { recursive: true, force: true })
  }
}

/** Writes index.json if archives were made since the last time. A failure is only logged, because the index can be rebuilt. */
export async function refreshIndex(worker: Worker, signal: AbortSignal) {
  if (!worker.indexIsStale || signal.aborted) return
  try {
    const { count, faults } = await writeIndex(worker, signal)
    for (const fault of faults) worker.log.warn({ event: 'archive.manifest.invalid' }, fault)
    worker.log.info({ event: 'archive.index', archives: count }, 'index.json written')
  } catch (error) {
    if (!signal.aborted)
      worker.log.warn({ event: 'archive.index.failed', error }, 'index.json is not written; it will be tried again')
  }
}

/**
 * Writes index.json again, one archiver at a time: of two, the later one also lists later.
 * @returns the same as rebuildIndex
 */
export async function writeIndex(worker: Worker, signal?: AbortSignal) {
  const write = () => rebuildIndex(worker.store, signal)
  const written = await withIndexLock(worker.database, 'index.json is not written', write, signal)
  worker.indexIsStale = false
  return written
}
