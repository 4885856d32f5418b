import type { Pool, Sql } from '../database.ts'
import type { Log } from '../../lib/log.ts'
import type { Metrics } from '../ops/metrics.ts'
import { Reporter } from '../ops/reporter.ts'

/** Pairs of a device and a field in one report, so that a fleet that only sends nonsense costs ingest nothing. */
const MAX_REPORTED = 1_000
/** Pairs that wait, in about 20 MB. Beyond that only the metrics count. */
const MAX_WAITING = 100_000
/** Characters of the value that is kept as an example. */
const MAX_EXAMPLE = 64

interface Count {
  device_id: number
  field: string
  times: number
  example: string
}

/** Counts fields that could not be read: by field in the metrics, and by device and field in fleet.unreadable_fields. */
export class UnreadableFields extends Reporter {
  /** By device and field, the oldest first. */
  readonly #waiting = new Map<string, Count>()

  constructor(
    readonly metrics: Metrics,
    sql: Sql,
    log: Log,
  ) {
    super(sql, log, {
      event: 'unreadable_fields.not_told',
      message: 'The counts of unreadable fields could not be reported. The server will try again.',
    })
  }

  countUnknown(fields: number) {
    this.metrics.unknownFields.inc(fields)
  }

  /**
   * @param field a name from the table of fields, or `ts`, `body` or `device_id` if the heartbeat was refused because of it
   * @param example what exampleOf() made of its value
   */
  add(deviceId: number, field: string, example: string) {
    this.metrics.unreadableFields.inc({ field })
    const key = `${deviceId} ${field}`
    const times = (this.#waiting.get(key)?.times ?? 0) + 1
    if (times > 1 || this.#waiting.size < MAX_WAITING) this.#waiting.set(key, { device_id: deviceId, field, times, example })
  }

  protected override async report(pool: Pool) {
    const counts = [...this.#waiting].slice(0, MAX_REPORTED)
    if (counts.length === 0) return
    for (const [key] of counts) this.#waiting.delete(key)
    const json = JSON.stringify(counts.map(([, count]) => count))
    try {
      await pool.run(sql => sql`select fleet.record_unreadable_fields(${json}::text::json)`)
    } catch (error) {
      for (const [key, count] of counts) this.#putBack(key, count)
      throw error
    }
  }

  #putBack(key: string, count: Count) {
    const since = this.#waiting.get(key)
    this.#waiting.set(key, since === undefined ? count : { ...since, times: since.times + count.times })
  }
}

/** The value as JSON, cut to a few characters that Postgres can store. */
export function exampleOf(value: unknown) {
  if (typeof value === 'object' && value !== null) return Array.isArray(value) ? '[…]' : '{…}'
  const json = JSON.stringify(typeof value === 'string' ? value.slice(0, MAX_EXAMPLE) : value)
  // A lone surrogate, which a cut can leave, is replaced.
  return Buffer.from(json.slice(0, MAX_EXAMPLE)).toString()
}
