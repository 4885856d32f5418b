import { randomBytes } from 'node:crypto'
import { mkdir, mkdtemp, readdir, rm } from 'node:fs/promises'
import { hostname, tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Tracing } from '../lib/tracing.ts'
import { connect, openSession, type Database, type Sql } from './database.ts'
import { holdLease } from './lease.ts'
import { describeError, type Log } from './log.ts'
import { rebuildIndex } from './archive/manifest.ts'
import { archivePartition, claimPartition } from './archive/partition.ts'
import type { Display } from './progress.ts'
import { claimRestore, restorePartition } from './restore/restore.ts'
import { openStore, type Store, type StoreOptions } from './store/store.ts'

/** What one archiver works with. */
export interface Worker {
  /** Names it in leases: host, pid and a random part, so that no two processes ever share one. */
  name: string
  database: Database
  /** Short statements only: leases are renewed on it. */
  sql: Sql
  store: Store
  storeOptions: StoreOptions
  log: Log
  /** Where progress is shown; the log, when there is none. */
  display?: Display | undefined
  /** For pipes, exports and what was read back; empty between partitions. */
  directory: string
  leaseSeconds: number
  /** Does a part of the work, as a span when tracing is on. */
  step: Tracing['step']
  /** True when the archive has changed since index.json was written. */
  indexIsStale: boolean
}

export interface WorkerSettings {
  database: Database
  archiveUrl: string
  s3Endpoint?: string | undefined
  olderStores?: StoreOptions['olderStores']
  /** Where its work directory is made; default TMPDIR. */
  temporary?: string
}

/** Connects nothing yet. End it with closeWorker. */
export async function openWorker(settings: WorkerSettings, log: Log, tracing?: Tracing): Promise<Worker> {
  const storeOptions = { s3Endpoint: settings.s3Endpoint, olderStores: settings.olderStores }
  return {
    name: `${hostname()}:${process.pid}:${randomBytes(3).toString('hex')}`,
    database: settings.database,
    sql: connect(settings.database, { max: 2 }),
    store: await openStore(settings.archiveUrl, storeOptions),
    storeOptions,
    log,
    directory: await makeDirectory(settings.temporary ?? tmpdir()),
    leaseSeconds: 300,
    step: tracing?.step ?? ((_name, _attributes, work) => work()),
    indexIsStale: false,
  }
}

export async function closeWorker(worker: Worker) {
  await worker.sql.end({ timeout: 5 })
  await rm(worker.directory, { recursive: true, force: true })
}

export type Result = 'idle' | 'done' | 'failed' | 'stopped'

/**
 * Does one piece of work: a requested restore, because somebody waits for it, or else the oldest partition.
 * A failure is recorded in the database and logged, not thrown.
 * @param signal stops the work: the piece is given back, with the steps that were finished
 * @throws if the database cannot be asked for work
 */
export async function workOnce(worker: Worker, signal: AbortSignal): Promise<Result> {
  const result = await restoreOnce(worker, signal)
  return result === 'idle' ? await archiveOnce(worker, signal) : result
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
      log.warn({ event: 'archiver.lease.lost', partition }, describeError(lease.signal.reason))
      return 'failed'
    }
    try {
      if (stop.aborted) {
        await piece.release()
        log.info({ event: 'archiver.lease.released', partition }, 'stopped; the partition is given back')
        return 'stopped'
      }
      log.error({ event: piece.event, partition, error: describeError(error) }, 'failed; the partition is kept')
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
    if (!signal.aborted) worker.log.warn({ event: 'archive.index.failed' }, describeError(error))
  }
}

/**
 * Writes index.json again, one archiver at a time.
 * @returns the same as rebuildIndex
 * @throws if another archiver holds the lock for 10 s: one that hangs must not keep all others from their work
 */
export async function writeIndex(worker: Worker, signal?: AbortSignal) {
  const session = await openSession(worker.database, signal)
  try {
    // Of two archivers, the later one also lists later. The lock ends with its connection.
    await session.sql`select fleet.take_index_lock()`.catch((cause: unknown) => {
      throw new Error('index.json is not written: another archiver may be writing it', { cause })
    })
    const written = await rebuildIndex(worker.store, signal)
    worker.indexIsStale = false
    return written
  } finally {
    await session.close()
  }
}

/** Makes this process's work directory, and removes those of archivers that were killed. */
async function makeDirectory(parent: string) {
  await mkdir(parent, { recursive: true })
  for (const name of await readdir(parent)) {
    const pid = Number(/^fleet-archiver-(\d+)-/.exec(name)?.[1] ?? 0)
    if (pid > 0 && !isAlive(pid)) await rm(join(parent, name), { recursive: true, force: true }).catch(() => {})
  }
  return await mkdtemp(join(parent, `fleet-archiver-${process.pid}-`))
}

function isAlive(pid: number) {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return error instanceof Error && 'code' in error && error.code === 'EPERM'
  }
}
