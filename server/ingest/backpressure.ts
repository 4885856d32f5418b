import type { Log } from '../../lib/log.ts'
import type { Metrics } from '../ops/metrics.ts'
import { unavailable } from '../problem.ts'

/** Design 6: about a second of a 2-core machine's full load; beyond it waiting would outlast the client's patience. */
const MAX_QUEUE = 20_000
/** The window of source document 000, section 5: shedding ends when the queue was short for so long. */
const CALM_MS = 10_000

/** What can wait while heartbeats cannot; RUNBOOK names each. */
export type LowPriority = 'device_list' | 'database_metrics' | 'perf_diff' | 'page'

/**
 * Watches the length of this worker's queue. Above `threshold` heartbeats within the last 10 s low-priority work is
 * shed; at `maxQueue` heartbeats are refused.
 */
export class Backpressure {
  #lastAbove = 0
  #since: number | undefined
  #shed = 0

  constructor(
    readonly metrics: Metrics,
    readonly log: Log,
    readonly threshold: number,
    readonly limits = { maxQueue: MAX_QUEUE, calmMs: CALM_MS },
  ) {}

  /**
   * Before `count` heartbeats join the `queued`.
   * @throws Problem 503 when that would be too many
   */
  admit(queued: number, count: number) {
    this.watch(queued + count)
    if (queued + count <= this.limits.maxQueue) return
    this.metrics.writesFailed.inc(count)
    throw unavailable('The server has more heartbeats than it can write; none of this request was taken.')
  }

  /** To be told whenever the queue has grown or shrunk. */
  watch(queued: number) {
    if (queued <= this.threshold) return
    this.#lastAbove = performance.now()
    if (this.#since !== undefined) return
    this.#since = this.#lastAbove
    this.#shed = 0
    this.metrics.backpressure.set(1)
    this.log.warn(
      { event: 'heartbeat.backpressure', backpressure: true, queued, threshold: this.threshold },
      'Heartbeats come faster than they can be written; low-priority work is shed.',
    )
    this.#endAfter(this.limits.calmMs)
  }

  /** True when this work is to be left out now; counts it. */
  sheds(work: LowPriority) {
    if (this.#since === undefined) return false
    this.#shed++
    this.metrics.shed.inc({ work })
    return true
  }

  #endAfter(pause: number) {
    setTimeout(() => {
      const calm = performance.now() - this.#lastAbove
      if (calm < this.limits.calmMs) return this.#endAfter(this.limits.calmMs - calm)
      const duration_ms = Math.round(performance.now() - this.#since!)
      this.#since = undefined
      this.metrics.backpressure.set(0)
      this.log.info({ event: 'heartbeat.backpressure', backpressure: false, duration_ms, shed: this.#shed })
    }, pause).unref()
  }
}
