import postgres from 'postgres'
import type { Login } from './config.ts'
import { withPassfile } from '../lib/database-url.ts'
import { describeError } from '../lib/errors.ts'
import type { Log } from '../lib/log.ts'
import { withTimeout } from '../lib/timeout.ts'
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

/**
 * Connections of each worker that stay open while nothing is sent. A worker that has none depends on Postgres having one left
 * at that moment.
 */
const KEPT = 2

/** When a connection was refused, the pool waits this long for its other connections before it asks for a new one. */
const REFUSED_MS = 1_000

/** How often a connection that is missing, or was refused, is tried again. */
const RETRY_MS = 5_000

/** How long a new connection may take until it is reported as refused. */
const PROBE_MS = 2_000

interface PoolOptions {
  /** Opens the connections that are kept, each with a client of its own. */
  kept?: { count: number; open: (onclose: () => void) => Sql }
  log?: Log
  /** When a kept connection is replaced. */
  lifetimeMs?: () => number
}

/** Room for one statement. The kept ones have a client with one connection, the others share a client. */
interface Slot {
  sql: Sql
  isBusy: boolean
  isKept: boolean
  isOpen: boolean
  /** An open connection that takes the place of this one as soon as no statement runs. */
  next?: Sql
  timer?: NodeJS.Timeout
}

/**
 * Runs statements on a limited number of connections, a few of which stay open. A statement whose connection is refused runs on
 * one of those instead. A kept connection is replaced only after its successor is open.
 */
export class Pool {
  #slots: Slot[] = []
  #waiting: ((slot: Slot) => void)[] = []
  #refusedUntil = 0
  #refusal: string | undefined
  #probing: Promise<string | undefined> | undefined
  #recheck: NodeJS.Timeout | undefined
  #isEnded = false
  readonly #options: PoolOptions
  /** Statements since the start, and how many of them found no free connection. */
  statements = 0
  waits = 0
  /** Whether one of the kept connections was ever open. */
  wasOpen = false

  /** @param sql opens the connections that are not kept */
  constructor(
    readonly sql: Sql,
    readonly max: number,
    options: PoolOptions = {},
  ) {
    this.#options = options
    const { kept } = options
    for (let n = 0; n < max; n++) {
      const slot: Slot = { sql, isBusy: false, isKept: kept !== undefined && n < kept.count, isOpen: false }
      this.#slots.push(slot)
      if (!slot.isKept) continue
      slot.sql = this.#client(slot)
      void this.#reopen(slot)
    }
  }

  get inUse() {
    return this.#slots.filter(slot => slot.isBusy).length
  }

  get waiting() {
    return this.#waiting.length
  }

  /** Whether one of the kept connections is open. */
  get isOpen() {
    return this.#hasOpen()
  }

  /** Whether no connection is open, and the last try to open one failed. It goes on trying. */
  get isAway() {
    return this.#refusal !== undefined && !this.#hasOpen()
  }

  /**
   * Runs one statement.
   * @throws Problem 503 if it has not ended within 5 s. It may still take effect.
   */
  async run<T extends readonly (object | undefined)[]>(statement: (sql: Sql) => postgres.PendingQuery<T>) {
    this.statements++
    let query: postgres.PendingQuery<T> | undefined
    let slot: Slot | undefined
    let waiter: ((slot: Slot) => void) | undefined
    let isLate = false
    const wait = () => {
      this.waits++
      return new Promise<Slot>(resolve => this.#waiting.push((waiter = resolve)))
    }
    const attempt = async () => {
      for (;;) {
        slot = query = undefined
        slot = this.#free() ?? (await wait())
        slot.isBusy = true
        try {
          query = statement(slot.sql)
          const rows = await query
          slot.isOpen = true
          return rows
        } catch (error) {
          if (!isRefusal(error)) throw error
          slot.isOpen = false
          this.#refused(error)
          if (isLate || !this.#hasOpen()) throw error
        } finally {
          this.#release(slot)
        }
      }
    }
    let timer: NodeJS.Timeout | undefined
    const timeout = new Promise<never>((_, reject) => {
      timer = setTimeout(() => {
        isLate = true
        this.#waiting = this.#waiting.filter(other => other !== waiter)
        // Cancel it only while it waits for a connection. To cancel a running statement, postgres 3.4.9 opens a connection, and
        // if that fails, the rejection is not handled.
        if (query !== undefined && !(query as { state?: unknown }).state) query.cancel()
        // What is left of it may block a connection for as long as the network hangs.
        if (query !== undefined && slot?.isKept && slot.isBusy) this.#abandon(slot)
        reject(unavailable('The database did not answer in time; nothing was acknowledged.'))
      }, DEADLINE_MS)
    })
    try {
      return await Promise.race([attempt(), timeout])
    } finally {
      clearTimeout(timer)
    }
  }

  /**
   * Opens a new connection, as the next statement of a busy pool would, and closes it.
   * @returns why that failed; undefined if it did not
   */
  async probe(): Promise<string | undefined> {
    const { kept } = this.#options
    if (kept === undefined) return undefined
    this.#probing ??= (async () => {
      const sql = kept.open(() => {})
      try {
        await withTimeout(PROBE_MS, sql`select 1`)
        this.#accepted()
        return undefined
      } catch (error) {
        this.#refused(error)
        return describeError(error)
      } finally {
        this.#probing = undefined
        void end(sql)
      }
    })()
    return this.#probing
  }

  async end() {
    this.#isEnded = true
    clearTimeout(this.#recheck)
    for (const { timer } of this.#slots) clearTimeout(timer)
    const clients = this.#slots.flatMap(({ sql, next }) => (next === undefined ? [sql] : [sql, next]))
    await Promise.all([...new Set([...clients, this.sql])].map(end))
  }

  /** An open kept connection, another kept one, a further one; while connections are refused, only those that are open. */
  #free() {
    const free = this.#slots.filter(slot => !slot.isBusy)
    const open = free.find(slot => slot.isKept && slot.isOpen)
    if (open !== undefined || (performance.now() < this.#refusedUntil && this.#hasOpen())) return open
    return free[0]
  }

  #hasOpen() {
    return this.#slots.some(slot => slot.isKept && slot.isOpen)
  }

  #release(slot: Slot) {
    slot.isBusy = false
    if (slot.next !== undefined) this.#replace(slot, slot.next)
    while (this.#waiting.length > 0) {
      const free = this.#free()
      if (free === undefined) return
      free.isBusy = true
      this.#waiting.shift()!(free)
    }
  }

  #client(slot: Slot) {
    const sql = this.#options.kept!.open(() => {
      if (slot.sql !== sql || !slot.isOpen || this.#isEnded) return
      slot.isOpen = false
      void this.#reopen(slot)
    })
    return sql
  }

  /** Opens a kept connection, and tries until it is open. */
  async #reopen(slot: Slot) {
    clearTimeout(slot.timer)
    const { sql } = slot
    try {
      await sql`select 1`
      if (slot.sql !== sql) return
      slot.isOpen = true
      this.wasOpen = true
      this.#accepted()
      this.#later(slot, this.#options.lifetimeMs?.() ?? (30 + 30 * Math.random()) * 60_000, () => this.#renew(slot))
    } catch (error) {
      if (slot.sql !== sql || this.#isEnded) return
      this.#refused(error)
      this.#later(slot, RETRY_MS, () => this.#reopen(slot))
    }
  }

  /** A backend grows with the partitions that it has seen, so it does not live forever. */
  async #renew(slot: Slot) {
    const next = this.#client(slot)
    try {
      await withTimeout(PROBE_MS, next`select 1`)
    } catch (error) {
      void end(next)
      if (this.#isEnded) return
      this.#refused(error)
      this.#later(slot, RETRY_MS, () => this.#renew(slot))
      return
    }
    if (this.#isEnded) return void end(next)
    this.#accepted()
    if (slot.isBusy) slot.next = next
    else this.#replace(slot, next)
  }

  #replace(slot: Slot, next: Sql) {
    const old = slot.sql
    slot.sql = next
    slot.next = undefined
    void end(old)
    void this.#reopen(slot)
  }

  #abandon(slot: Slot) {
    slot.isOpen = false
    if (!this.#isEnded) this.#replace(slot, slot.next ?? this.#client(slot))
  }

  #later(slot: Slot, ms: number, work: () => Promise<void>) {
    if (this.#isEnded) return
    clearTimeout(slot.timer)
    slot.timer = setTimeout(() => void work(), ms)
    slot.timer.unref()
  }

  #refused(error: unknown) {
    this.#refusedUntil = performance.now() + REFUSED_MS
    if (this.#options.kept === undefined || this.#isEnded) return
    if (this.#refusal === undefined) {
      this.#options.log?.error({ event: 'pool.connection_refused', error }, 'No new connection to the database can be opened.')
    }
    this.#refusal = describeError(error)
    if (this.#recheck !== undefined) return
    this.#recheck = setTimeout(() => {
      this.#recheck = undefined
      if (this.#refusal !== undefined) void this.probe()
    }, RETRY_MS)
    this.#recheck.unref()
  }

  #accepted() {
    this.#refusedUntil = 0
    if (this.#refusal === undefined) return
    this.#refusal = undefined
    this.#options.log?.info({ event: 'pool.connection_accepted' })
  }
}

// 28 and 3D are a login or database that does not exist (yet), 53300 too many connections, 57P03 starting up or shutting down.
const REFUSAL = /^(28|3D|53300|57P03)/

/** Whether the connection could not be opened, so that the statement was never sent. */
function isRefusal(error: unknown) {
  if (error instanceof postgres.PostgresError) return REFUSAL.test(error.code)
  if (!(error instanceof Error)) return false
  const { code, syscall } = error as NodeJS.ErrnoException
  return code === 'CONNECT_TIMEOUT' || syscall === 'connect' || syscall === 'getaddrinfo'
}

/** The hot path: short statements, prepared, never inside begin() or reserve() (see docs/decisions). */
export function connectHot(login: Login, max: number, { log, lifetimeMs }: Pick<PoolOptions, 'log' | 'lifetimeMs'> = {}) {
  const open = (options: object) => connect(login, 'server', 1, { statement_timeout: STATEMENT_TIMEOUT_MS }, options)
  const count = Math.min(KEPT, max)
  return new Pool(open({ max: Math.max(1, max - count) }), max, {
    kept: { count, open: onclose => open({ onclose, idle_timeout: null, max_lifetime: null }) },
    log,
    lifetimeMs,
  })
}

/** Device reads on a replica, under the rules of the hot path. */
export function connectReplica(login: Login, max: number) {
  return new Pool(connect(login, 'read', max, { statement_timeout: STATEMENT_TIMEOUT_MS }), max)
}

/** Calls without a time limit. */
export function connectOps(login: Login, max = 2) {
  return connect(login, 'ops', max, { statement_timeout: NEVER, ...NAMES })
}

/** What this process has counted. It does not wait for the hot path; fleet.check() counts the workers by these connections. */
export function connectReporter(login: Login) {
  return connect(login, 'report', 1, { statement_timeout: DEADLINE_MS, ...NAMES })
}

/**
 * For a client with nothing in flight. Without the timeout, postgres 3.4.9 waits forever for a connection whose backend was
 * killed.
 */
export function end(sql: Sql) {
  return sql.end({ timeout: 1 })
}

function connect(
  { url, role }: Login,
  name: string,
  max: number,
  parameters: Record<string, string | number>,
  options: object = {},
): Sql {
  const from = withPassfile(url)
  return postgres(from.url, {
    password: from.password,
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
    ...options,
  } as postgres.Options<{ timestamp: postgres.PostgresType<string>; bigint: postgres.PostgresType<number> }>) as Sql
}

/** `2026-01-02 03:04:05.678901+00` → `2026-01-02T03:04:05.678901Z`. */
export function toRfc3339(text: string) {
  const iso = text.replace(' ', 'T')
  if (iso.endsWith('+00')) return `${iso.slice(0, -3)}Z`
  return /[+-]\d\d$/.test(iso) ? `${iso}:00` : iso
}
