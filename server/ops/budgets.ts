import { randomUUID } from 'node:crypto'
import type { Counter } from 'prom-client'
import { Pool, type Sql } from '../database.ts'
import type { Log } from '../../lib/log.ts'
import type { Metrics } from './metrics.ts'
import { withTimeout } from '../../lib/timeout.ts'

const EVERY_MS = 10_000
/** How long a server that ends waits for its last counts to be taken. */
const LAST_MS = 2_000
/** Of a day's outage; beyond it the oldest minutes are forgotten. */
const MAX_COUNTS = 2 * 24 * 60

interface Count {
  slo: string
  minute: string
  good: number
  bad: number
  isTold: boolean
}

/**
 * The error budgets (view fleet.slo): what this process has counted anyway, read every 10 s and told to the database as totals
 * of a minute. A database that is away cannot count its own failures; here they wait until it is back. Killed, a process
 * takes the last 10 s with it.
 */
export class Budgets {
  readonly #server = randomUUID()
  /** By budget and minute, oldest first; those of past minutes go once they are told. */
  readonly #counts = new Map<string, Count>()
  readonly #seen = new Map<Counter, number>()
  readonly #budgets: Record<string, { good: Counter; bad: Counter }>
  #timer: NodeJS.Timeout | undefined
  #turn = Promise.resolve()
  #isFailing = false

  readonly #pool: Pool

  constructor(
    metrics: Metrics,
    sql: Sql,
    readonly log: Log,
    readonly now: () => number = Date.now,
  ) {
    this.#pool = new Pool(sql, 1)
    this.#budgets = {
      heartbeat_writes: { good: metrics.writes, bad: metrics.writesFailed },
      dispatch_log: { good: metrics.dispatchLogStatements, bad: metrics.dispatchLogWritesFailed },
    }
  }

  follow() {
    this.#timer = setInterval(() => void this.tell(), EVERY_MS)
    this.#timer.unref()
  }

  /** Counts, and tells the database what it does not know yet; one after the other, however often it is called. */
  tell() {
    this.#turn = this.#turn.then(() => this.#count()).then(() => this.#send())
    return this.#turn
  }

  async end() {
    clearInterval(this.#timer)
    await withTimeout(LAST_MS, this.tell()).catch(() => {})
    const lost = [...this.#counts.values()].filter(({ isTold }) => !isTold)
    if (lost.length > 0) this.log.warn({ event: 'slo.lost', lost }, 'The error budgets lack what this process counted last.')
  }

  async #count() {
    const minute = new Date(Math.floor(this.now() / 60_000) * 60_000).toISOString()
    for (const [slo, { good, bad }] of Object.entries(this.#budgets)) {
      const more = { good: await this.#grown(good), bad: await this.#grown(bad) }
      if (more.good + more.bad === 0) continue
      const key = `${slo} ${minute}`
      const before = this.#counts.get(key) ?? { good: 0, bad: 0 }
      this.#counts.set(key, { slo, minute, good: before.good + more.good, bad: before.bad + more.bad, isTold: false })
    }
    for (const key of this.#counts.keys()) {
      if (this.#counts.size <= MAX_COUNTS) break
      this.#counts.delete(key)
    }
  }

  async #grown(counter: Counter) {
    const value = (await counter.get()).values[0]?.value ?? 0
    const grown = value - (this.#seen.get(counter) ?? 0)
    this.#seen.set(counter, value)
    return grown
  }

  async #send() {
    const untold = [...this.#counts.values()].filter(({ isTold }) => !isTold)
    if (untold.length === 0) return
    try {
      const json = JSON.stringify(untold)
      await this.#pool.run(sql => sql`select fleet.record_slo(${this.#server}, ${json}::text::json)`)
      for (const count of untold) count.isTold = true
      // The last minute may still grow, and its totals are told again.
      const last = untold.at(-1)!.minute
      for (const [key, { minute }] of this.#counts) {
        if (minute < last) this.#counts.delete(key)
      }
      this.#isFailing = false
    } catch (error) {
      if (!this.#isFailing) this.log.warn({ event: 'slo.not_told', error }, 'The error budgets will be told later.')
      this.#isFailing = true
    }
  }
}
