import { mkdir, mkdtemp, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { isAlive } from '../lib/process.ts'
import type { Tracing } from '../lib/tracing.ts'
import type { Database } from '../lib/database.ts'
import { workerName } from '../lib/worker.ts'
import { connect, type Sql } from './database.ts'
import type { Log } from '../lib/log.ts'
import type { Display } from './progress.ts'
import { openStore } from './store/open-store.ts'
import type { Store, StoreOptions } from './store/store.ts'

/** What one archiver works with. */
export interface Worker {
  /** Names it in leases. */
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
  bucketRules?: StoreOptions['bucketRules']
  signing?: StoreOptions['signing']
  /** Where its work directory is made; default TMPDIR. */
  temporary?: string
}

/** Connects nothing yet. End it with closeWorker. */
export async function openWorker(settings: WorkerSettings, log: Log, tracing?: Tracing): Promise<Worker> {
  const { s3Endpoint, olderStores, bucketRules, signing } = settings
  const storeOptions = { s3Endpoint, olderStores, bucketRules, signing }
  return {
    name: workerName(),
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

/** Makes this process's work directory, and removes those of archivers that were killed. */
async function makeDirectory(parent: string) {
  await mkdir(parent, { recursive: true })
  for (const name of await readdir(parent)) {
    const pid = Number(/^fleet-archiver-(\d+)-/.exec(name)?.[1] ?? 0)
    if (pid > 0 && !isAlive(pid)) await rm(join(parent, name), { recursive: true, force: true }).catch(() => {})
  }
  return await mkdtemp(join(parent, `fleet-archiver-${process.pid}-`))
}
