import postgres from 'postgres'
import type { Login } from './config.ts'
import { unavailable } from './problem.ts'

export type Sql = postgres.Sql<{ timestamp: string; bigint: number }>

/** Longer than the statement timeout, so it is reached only if the network or the pool hangs. */
const DEADLINE_MS = 5_000

/** The founding documents ask for 1 to 2 s on hot paths. */
const STATEMENT_TIMEOUT_MS = 2_000

/** As text: postgres.js leaves out a parameter that is 0, and then the limit of the role for the hot path would apply. */
const NEVER = '0'

/** Names resolve in pg_catalog only, so nothing that another role created is called instead. */
const NAMES = { search_path: 'pg_catalog, pg_temp' }

/** Counts the statements in flight, so that a full pool shows before it hurts. */
export class Pool {
  #inFlight = 0
  /** Statements since the start, and how many of them found no free connection. */
  statements = 0
  waits = 0

  constructor(
    readonly sql: Sql,
    readonly max: number,
  ) {}

  get inUse() {
    return Math.min(this.#inFlight, this.max)
  }

  get waiting() {
    return Math.max(0, this.#inFlight - this.max)
  }

  /**
   * Runs one statement.
   * @throws Problem 503 if it has not ended within 5 s. It may still take effect.
   */
  async run<T extends readonly (object | undefined)[]>(statement: (sql: Sql) => postgres.PendingQuery<T>) {
    this.#inFlight++
    this.statements++
    if (this.#inFlight > this.max) this.waits++
    let timer: NodeJS.Timeout | undefined
    try {
      const query = statement(this.sql)
      const timeout = new Promise<never>((_, reject) => {
        timer = setTimeout(() => {
          // Cancel it only while it waits for a connection. To cancel a running statement, postgres 3.4.9 opens a connection, and
          // if that fails, the rejection is not handled.
          if (!(query as { state?: unknown }).state) query.cancel()
          reject(unavailable('The database did not answer in time; nothing was acknowledged.'))
        }, DEADLINE_MS)
      })
      return await Promise.race([query, timeout])
    } finally {
      clearTimeout(timer)
      this.#inFlight--
    }
  }

  end() {
    return end(this.sql)
  }
}

/** The hot path: short statements, prepared, never inside begin() or reserve() (see docs/decisions). */
export function connectHot(login: Login, max: number) {
  return new Pool(connect(login, 'server', max, { statement_timeout: STATEMENT_TIMEOUT_MS }), max)
}

/** Device reads on a replica, under the rules of the hot path. */
export function connectReplica(login: Login, max: number) {
  return new Pool(connect(login, 'read', max, { statement_timeout: STATEMENT_TIMEOUT_MS }), max)
}

/** Calls without a time limit. */
export function connectOps(login: Login, max = 2) {
  return connect(login, 'ops', max, { statement_timeout: NEVER, ...NAMES })
}

export function connectListener(login: Login) {
  return connect(login, 'listen', 1, { statement_timeout: DEADLINE_MS, ...NAMES })
}

/**
 * For a client with nothing in flight. Without the timeout, postgres 3.4.9 waits forever for a connection whose backend was
 * killed.
 */
export function end(sql: Sql) {
  return sql.end({ timeout: 1 })
}

function connect({ url, role }: Login, name: string, max: number, parameters: Record<string, string | number>): Sql {
  return postgres(url, {
    max,
    // One statement at a time on each connection: a slow one must not hold up those queued behind it.
    max_pipeline: 0,
    connect_timeout: 5,
    // Workers and instances share Postgres's connections, so idle ones are given back.
    idle_timeout: 60,
    // By default the pause grows to 20 s, which ends long after the database is back.
    backoff: (retries: number) => Math.min(0.05 * 2 ** retries, 1),
    // Saves a statement per connection; no array is passed as a parameter here.
    fetch_types: false,
    onnotice: () => {},
    connection: {
      application_name: `nexmdm ${name}`,
      TimeZone: 'UTC',
      ...parameters,
      // pgBouncer refuses these parameters, so they are sent only if no login of its own was set. Such a login has a search_path
      // of its own, which sql/setup/roles.sql sets.
      ...(role === undefined ? {} : { role, ...NAMES }),
    },
    types: {
      // As text, because a Date would cut off microseconds.
      timestamp: { to: 1184, from: [1184], serialize: String, parse: toRfc3339 },
      // Device ids and counts are far below 2^53.
      bigint: { to: 20, from: [20], serialize: String, parse: Number },
    },
  } as postgres.Options<{ timestamp: postgres.PostgresType<string>; bigint: postgres.PostgresType<number> }>) as Sql
}

/** `2026-01-02 03:04:05.678901+00` → `2026-01-02T03:04:05.678901Z`. */
export function toRfc3339(text: string) {
  const iso = text.replace(' ', 'T')
  if (iso.endsWith('+00')) return `${iso.slice(0, -3)}Z`
  return /[+-]\d\d$/.test(iso) ? `${iso}:00` : iso
}
