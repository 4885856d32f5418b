import type { Log } from '../../lib/log.ts'
import type { Metrics } from '../ops/metrics.ts'
import { unavailable } from '../problem.ts'

/** A 2-core machine at full load writes this many in about a second. With more, clients would give up before their turn. */
const MAX_QUEUE = 20_000
/** Shedding ends when the queue was short for this long (founding document 000, section 5). */
const CALM_MS = 10_000

/** Low-priority work, which can wait while heartbeats cannot. RUNBOOK.md describes each. */
export type LowPriority = 'device_list' | 'database_metrics' | 'perf_diff' | 'page'

/**
 * Watches the length of this worker's queues, one for each node of the store. If one of them had more than `threshold` heartbeats in
 * the last 10 s, low-priority work is shed. At `maxQueue`, heartbeats are refused.
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
   * Call this before `count` heartbeats join the `queued` ones. In a distributed store each node has a queue with these limits.
   * @throws Problem 503 if that would be too many
   */
  admit(queued: number, count: number, node?: string) {
    this.watch(queued + count, node)
    if (queued + count <= this.limits.maxQueue) return
    this.metrics.writesFailed.inc(count)
    throw unavailable('The server has more heartbeats than it can write; none of this request was stored.')
  }

  /** Call this whenever a queue has grown or shrunk. */
  watch(queued: number, node?: string) {
    if (queued <= this.threshold) return
    this.#lastAbove = performance.now()
    if (this.#since !== undefined) return
    this.#since = this.#lastAbove
    this.#shed = 0
    this.metrics.backpressure.set(1)
    this.log.warn(
      { event: 'heartbeat.backpressure', backpressure: true, node, queued, threshold: this.threshold },
      'Heartbeats come faster than they are written, so low-priority work is shed.',
    )
    this.#endAfter(this.limits.calmMs)
  }

  /** Whether this work has to be left out now. If so, it is counted. */
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
