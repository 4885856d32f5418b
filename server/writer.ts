import postgres from 'postgres'
import type { Backpressure } from './backpressure.ts'
import { toRfc3339, type Pool } from './database.ts'
import type { IngestItem } from './heartbeat.ts'
import type { Log } from './log.ts'
import type { Metrics } from './metrics.ts'
import { Problem, toProblem, unavailable } from './problem.ts'

/** What became of one heartbeat, after its commit. */
export interface Outcome {
  result: 'stored' | 'duplicate' | 'quarantined' | 'rejected'
  reason: string | null
  ts: string
}

/** What waits for a statement: the heartbeat, and its place in the request that brought it. */
interface Entry {
  item: IngestItem
  since: number
  request: Arrival
  position: number
}

/** The heartbeats that came together. One promise for all of them: with one for each, a batch of 1,000 took longer. */
class Arrival {
  readonly #outcomes: (Outcome | Problem)[]
  #left: number

  constructor(count: number, readonly done: (outcomes: (Outcome | Problem)[]) => void) {
    this.#outcomes = new Array<Outcome | Problem>(count)
    this.#left = count
  }

  settle(position: number, outcome: Outcome | Problem) {
    this.#outcomes[position] = outcome
    if (--this.#left === 0) this.done(this.#outcomes)
  }
}

/** Design 6: also the most that one request may bring. */
const MAX_BATCH = 1_000

/**
 * The second statement is for full batches only: at any size it halves them, and Postgres took 15 % more CPU for each
 * heartbeat (measured side by side with 2 workers and 256 connections).
 */
const CONCURRENCY = 2

// Nothing of the statement was committed, and the cause may be gone: deadlock, serialization,
// a route to a partition that was detached meanwhile.
const ONCE_MORE = new Set(['40P01', '40001', '23514'])

/**
 * Gathers heartbeats into few statements. One that finds the writer idle is sent in the same turn of the event loop;
 * those that arrive while statements run wait for the next one, so that batches grow with the load and no timer is
 * needed. Nothing is settled as stored before its statement's commit.
 */
export class Writer {
  #queue: Entry[] = []
  #inFlight = 0
  #scheduled = false
  #idle: (() => void)[] = []

  constructor(
    readonly pool: Pool,
    readonly metrics: Metrics,
    readonly log: Log,
    readonly backpressure: Backpressure,
    readonly limits = { concurrency: CONCURRENCY, maxBatch: MAX_BATCH },
  ) {}

  /**
   * @returns the outcome, or the Problem of this heartbeat alone
   * @throws Problem 503 when the queue is full
   */
  async store(item: IngestItem): Promise<Outcome | Problem> {
    const [outcome] = await this.storeAll([item])
    return outcome!
  }

  /**
   * Like store() for many: one outcome or Problem each, in their order.
   * @throws Problem 503 when the queue cannot take them all; then none was taken
   */
  async storeAll(items: IngestItem[]): Promise<(Outcome | Problem)[]> {
    this.backpressure.admit(this.#queue.length, items.length)
    if (items.length === 0) return []
    return await new Promise(done => {
      const since = performance.now()
      const request = new Arrival(items.length, done)
      for (const [position, item] of items.entries()) this.#queue.push({ item, since, request, position })
      this.#wake()
    })
  }

  /** Resolves when everything taken so far is settled. */
  async drained() {
    if (this.#queue.length === 0 && this.#inFlight === 0) return
    await new Promise<void>(resolve => this.#idle.push(resolve))
  }

  #wake() {
    if (this.#scheduled || !this.#maySend()) return
    this.#scheduled = true
    // After the sockets of this turn were read, so that what came together goes together.
    setImmediate(() => {
      this.#scheduled = false
      this.#send()
    })
  }

  #maySend() {
    const { concurrency, maxBatch } = this.limits
    return this.#queue.length > 0 && this.#inFlight < (this.#queue.length >= maxBatch ? concurrency : 1)
  }

  #send() {
    while (this.#maySend()) {
      const batch = this.#queue.splice(0, this.limits.maxBatch)
      this.#inFlight++
      void this.#write(batch).finally(() => {
        this.#inFlight--
        this.#send()
        if (this.#inFlight === 0) this.#idle.splice(0).forEach(resolve => resolve())
      })
    }
    this.backpressure.watch(this.#queue.length)
  }

  async #write(batch: Entry[], again = false): Promise<void> {
    // Rows in one order everywhere: unsorted batches of the same devices deadlocked.
    batch.sort((a, b) => a.item.device_id - b.item.device_id)
    let outcomes
    try {
      outcomes = await this.#ingest(batch)
    } catch (error) {
      const code = error instanceof postgres.PostgresError ? error.code : ''
      if (!again && ONCE_MORE.has(code)) return this.#write(batch, true)
      // A value that does not fit fails the whole statement: halve until it stands alone.
      if (/^2[23]/.test(code) && batch.length > 1) {
        const middle = batch.length >> 1
        await this.#write(batch.slice(0, middle))
        return this.#write(batch.slice(middle))
      }
      return this.#fail(batch, error, code)
    }
    this.#settle(batch, outcomes)
  }

  async #ingest(batch: Entry[]) {
    // As text, since the driver would make JSON of the JSON.
    const json = JSON.stringify(batch.map(entry => entry.item))
    // In one row of arrays: the driver takes a row for each heartbeat several times as long.
    const [row] = await this.pool.run(sql => sql<Answer[]>`
      select array_agg(result)::text as results, case when count(reason) > 0 then array_agg(reason)::text end as reasons,
        array_agg(ts)::text as tss
      from fleet.ingest(${json}::text::json)
    `)
    const outcomes = readAnswer(row!)
    if (outcomes.length !== batch.length) {
      throw new Error(`fleet.ingest answered ${outcomes.length} rows for ${batch.length} heartbeats; they may be stored`)
    }
    return outcomes
  }

  #settle(batch: Entry[], outcomes: readonly Outcome[]) {
    const now = performance.now()
    const count = { stored: 0, duplicate: 0, quarantined: 0, rejected: 0 }
    let devices = 0
    let lastDevice: number | undefined
    batch.forEach(({ item, since, request, position }, index) => {
      const outcome = outcomes[index]!
      count[outcome.result]++
      if (outcome.result === 'stored' && item.device_id !== lastDevice) {
        devices++
        lastDevice = item.device_id
      }
      this.metrics.writeLatency.observe(now - since)
      request.settle(position, outcome)
    })
    this.metrics.writes.inc(batch.length)
    this.metrics.ingested.inc(count.stored)
    this.metrics.deduplicated.inc(count.duplicate)
    this.metrics.quarantined.inc(count.quarantined)
    this.metrics.lastStatusUpserts.inc(devices)
  }

  #fail(batch: Entry[], error: unknown, code: string) {
    this.metrics.writesFailed.inc(batch.length)
    this.log.error({ event: 'heartbeat.write_failed', items: batch.length, error })
    const message = error instanceof Error ? error.message : String(error)
    const problem = code.startsWith('22')
      ? new Problem(422, 'The database refused a value of this heartbeat.', { errors: [{ path: '', message }], cause: error })
      : ONCE_MORE.has(code)
        ? unavailable('The database could not write now, also not at the second try; nothing was acknowledged.', error)
        : toProblem(error)
    for (const { request, position } of batch) request.settle(position, problem)
  }
}

interface Answer {
  results: string
  reasons: string | null
  tss: string
}

/**
 * Postgres's text of three arrays: words, which are never quoted, and timestamps, which always are for the space in them.
 */
function readAnswer({ results, reasons, tss }: Answer): Outcome[] {
  const reason = reasons?.slice(1, -1).split(',')
  const ts = tss.slice(2, -2).split('","')
  return results.slice(1, -1).split(',').map((result, index) => ({
    result: result as Outcome['result'],
    reason: reason === undefined || reason[index] === 'NULL' ? null : reason[index]!,
    ts: toRfc3339(ts[index]!),
  }))
}
