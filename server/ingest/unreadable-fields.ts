import { Pool, type Sql } from '../database.ts'
import type { Log } from '../../lib/log.ts'
import { withTimeout } from '../../lib/timeout.ts'
import type { Metrics } from '../ops/metrics.ts'

const EVERY_MS = 10_000
/** How long a server that stops waits until its last counts are accepted. */
const LAST_MS = 2_000
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

/**
 * Counts fields that could not be read, by field in the metrics, and by device and field in the database (view
 * fleet.unreadable_fields), to which this process reports every 10 s. A process that is killed loses what it has not reported.
 */
export class UnreadableFields {
  /** By device and field, the oldest first. */
  readonly #waiting = new Map<string, Count>()
  #timer: NodeJS.Timeout | undefined
  #turn = Promise.resolve()
  #isFailing = false
  readonly #pool: Pool

  constructor(
    readonly metrics: Metrics,
    sql: Sql,
    readonly log: Log,
  ) {
    this.#pool = new Pool(sql, 1)
  }

  countUnknown() {
    this.metrics.unknownFields.inc()
  }

  /** @param field a name from the table of fields, or `ts`, `body` or `device_id` if the heartbeat was refused because of it */
  add(deviceId: number, field: string, value: unknown) {
    this.metrics.unreadableFields.inc({ field })
    const key = `${deviceId} ${field}`
    const times = (this.#waiting.get(key)?.times ?? 0) + 1
    if (times > 1 || this.#waiting.size < MAX_WAITING)
      this.#waiting.set(key, { device_id: deviceId, field, times, example: exampleOf(value) })
  }

  follow() {
    this.#timer = setInterval(() => void this.tell(), EVERY_MS)
    this.#timer.unref()
  }

  /** Reports what the database does not know yet, a part at a time. Calls run one after the other. */
  tell() {
    this.#turn = this.#turn.then(() => this.#send())
    return this.#turn
  }

  async end() {
    clearInterval(this.#timer)
    await withTimeout(LAST_MS, this.tell()).catch(() => {})
  }

  async #send() {
    const counts = [...this.#waiting].slice(0, MAX_REPORTED)
    if (counts.length === 0) return
    for (const [key] of counts) this.#waiting.delete(key)
    const json = JSON.stringify(counts.map(([, count]) => count))
    try {
      await this.#pool.run(sql => sql`select fleet.record_unreadable_fields(${json}::text::json)`)
      this.#isFailing = false
    } catch (error) {
      for (const [key, count] of counts) this.#putBack(key, count)
      if (!this.#isFailing)
        this.log.warn(
          { event: 'unreadable_fields.not_told', error },
          'The counts of unreadable fields could not be reported. The server will try again.',
        )
      this.#isFailing = true
    }
  }

  #putBack(key: string, count: Count) {
    const since = this.#waiting.get(key)
    this.#waiting.set(key, since === undefined ? count : { ...since, times: since.times + count.times })
  }
}

/** The value as JSON, cut to a few characters that Postgres can store. */
function exampleOf(value: unknown) {
  if (typeof value === 'object' && value !== null) return Array.isArray(value) ? '[…]' : '{…}'
  const json = JSON.stringify(typeof value === 'string' ? value.slice(0, MAX_EXAMPLE) : value)
  // A lone surrogate, which a cut can leave, is replaced.
  return Buffer.from(json.slice(0, MAX_EXAMPLE)).toString()
}
