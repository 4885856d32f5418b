import { randomUUID } from 'node:crypto'
import type { Counter } from 'prom-client'
import type { Pool, Sql } from '../database.ts'
import type { Log } from '../../lib/log.ts'
import type { Metrics } from './metrics.ts'
import { Reporter } from './reporter.ts'

/** Enough for an outage of a day. Beyond that, the oldest minutes are dropped. */
const MAX_COUNTS = 2 * 24 * 60

interface Count {
  slo: string
  minute: string
  good: number
  bad: number
  isTold: boolean
}

/**
 * The error budgets (view fleet.slo). What this process counts anyway is reported to the database, as totals for each minute. A
 * database that is unreachable cannot count its own failures, so they wait here until it is back.
 */
export class Budgets extends Reporter {
  readonly #server = randomUUID()
  /** By budget and minute, oldest first. Past minutes are removed once they are reported. */
  readonly #counts = new Map<string, Count>()
  readonly #seen = new Map<Counter, number>()
  readonly #budgets: Record<string, { good: Counter; bad: Counter }>

  constructor(
    metrics: Metrics,
    sql: Sql,
    log: Log,
    readonly now: () => number = Date.now,
  ) {
    super(sql, log, {
      event: 'slo.not_told',
      message: 'The counts for the error budgets could not be reported. The server will try again.',
    })
    this.#budgets = {
      heartbeat_writes: { good: metrics.writes, bad: metrics.writesFailed },
      dispatch_log: { good: metrics.dispatchLogStatements, bad: metrics.dispatchLogWritesFailed },
    }
  }

  override async end() {
    await super.end()
    const lost = [...this.#counts.values()].filter(({ isTold }) => !isTold)
    if (lost.length > 0)
      this.log.warn({ event: 'slo.lost', lost }, 'The last counts of this process are missing from the error budgets.')
  }

  protected override async report(pool: Pool) {
    await this.#count()
    const untold = [...this.#counts.values()].filter(({ isTold }) => !isTold)
    if (untold.length === 0) return
    const json = JSON.stringify(untold)
    await pool.run(sql => sql`select fleet.record_slo(${this.#server}, ${json}::text::json)`)
    for (const count of untold) count.isTold = true
    // The last minute may still grow. Its totals are then reported again.
    const last = untold.at(-1)!.minute
    for (const [key, { minute }] of this.#counts) {
      if (minute < last) this.#counts.delete(key)
    }
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
}
