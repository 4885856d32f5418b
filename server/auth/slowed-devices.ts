import type { Pool, Sql } from '../database.ts'
import type { Log } from '../../lib/log.ts'
import type { Metrics } from '../ops/metrics.ts'
import { Reporter } from '../ops/reporter.ts'

/** Devices in one report. */
const MAX_REPORTED = 1_000
/** Devices that wait, in about 2 MB. Beyond that only the metric counts. */
const MAX_WAITING = 10_000

/** Counts the requests that were refused because their device sent too many: in the metrics, and by device in Postgres. */
export class SlowedDevices extends Reporter {
  /** By the SHA-256 of the token, the oldest first. Whose it is, only Postgres knows. */
  readonly #waiting = new Map<string, number>()

  constructor(
    readonly metrics: Metrics,
    sql: Sql,
    log: Log,
  ) {
    super(sql, log, {
      event: 'slowed_devices.not_told',
      message: 'The devices that send too much could not be reported. The server will try again.',
    })
  }

  /** A request of the device with this token was refused. */
  add(hash: string) {
    this.metrics.slowed.inc()
    this.#wait(hash, 1)
  }

  protected override async report(pool: Pool) {
    const counts = [...this.#waiting].slice(0, MAX_REPORTED)
    if (counts.length === 0) return
    for (const [hash] of counts) this.#waiting.delete(hash)
    const json = JSON.stringify(counts.map(([token_hash, times]) => ({ token_hash, times })))
    try {
      await pool.run(sql => sql`select fleet.record_slowed(${json}::text::json)`)
    } catch (error) {
      for (const [hash, times] of counts) this.#wait(hash, times)
      throw error
    }
  }

  #wait(hash: string, times: number) {
    const before = this.#waiting.get(hash)
    if (before !== undefined || this.#waiting.size < MAX_WAITING) this.#waiting.set(hash, (before ?? 0) + times)
  }
}
