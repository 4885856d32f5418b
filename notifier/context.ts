import { connectWorker, type Database } from '../lib/database.ts'
import type { Log } from '../lib/log.ts'
import { workerName } from '../lib/worker.ts'
import type { Allowed } from './addresses.ts'

export type Sql = ReturnType<typeof connectWorker>

/** What one notifier works with. */
export interface Notifier {
  /** Names it in leases. */
  name: string
  database: Database
  sql: Sql
  allowed: Allowed
  log: Log
  /** The messages that are on their way. */
  inFlight: Set<Promise<void>>
  /** How many messages could not be sent since it started. */
  failures: number
}

/** Connects nothing yet. End it with closeNotifier. */
export function openNotifier({ database, allowed }: { database: Database; allowed: Allowed }, log: Log): Notifier {
  return {
    name: workerName(),
    database,
    sql: connect(database, 'fleet-notifier', 4),
    allowed,
    log,
    inFlight: new Set(),
    failures: 0,
  }
}

export function connect(database: Database, application_name: string, max = 1) {
  return connectWorker(database, { max, connection: { application_name, statement_timeout: 30_000 } })
}

export async function closeNotifier({ sql }: Notifier) {
  await sql.end({ timeout: 5 })
}
