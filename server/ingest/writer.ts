import { setTimeout as sleep } from 'node:timers/promises'
import postgres from 'postgres'
import type { Backpressure } from './backpressure.ts'
import { toRfc3339, type Pool } from '../database.ts'
import type { Log } from '../../lib/log.ts'
import type { Metrics } from '../ops/metrics.ts'
import { Problem, toProblem, unavailable } from '../problem.ts'
import type { Tracing } from '../../lib/tracing.ts'

/** The outcome of one heartbeat, after its commit. */
export interface Outcome {
  /**
   * Nothing was kept of what is unauthorized, because its token is unknown or revoked, or unknown_device: a gateway's heartbeat of a
   * device that is not enrolled, or a device's of another device.
   */
  result: Kept | 'unauthorized' | 'unknown_device'
  reason: string | null
  ts: string
  /** The device of the token, or the one that a gateway named; null if unauthorized. */
  device_id: number | null
  /** The seconds to ask the device for; null if nothing was kept. */
  next_interval_s: number | null
}

/** What may become of a heartbeat whose sender and device are known. */
type Kept = 'stored' | 'duplicate' | 'quarantined' | 'rejected'

/**
 * The heartbeats of one request, as text. While they wait for a statement they are then one string, and not a thousand objects
 * that the garbage collector copies from one place to the next.
 */
export interface Chunk {
  /** The SHA-256 of the request's token, in hex. */
  token: string
  /** How many items there are, and of how many devices. */
  items: number
  devices: number
  /** The items of fleet.ingest_batch's JSON, with commas between them. */
  json: string
}

/** Where a writer writes, if there are several places: a node of a distributed store. */
export interface Place {
  /** Undefined in a plain store. */
  readonly label: string | undefined
  wrote(heartbeats: number): void
  failed(heartbeats: number): void
}

interface Waiting extends Chunk {
  since: number
  settle: (outcomes: (Outcome | Problem)[]) => void
  /** The span of its request, if tracing is on. */
  request?: ReturnType<Tracing['current']>
}

/** Also the most that one request may send (docs/design.md, section 6). */
const MAX_BATCH = 1_000

/**
 * The second statement is for full batches only. If it ran earlier, batches would be half as large, and Postgres took 15 % more
 * CPU for each heartbeat (measured side by side with 2 workers and 256 connections).
 */
const CONCURRENCY = 2

/**
 * How long the next statement may wait, after one has ended, for as many requests as that one had. Clients that were answered send
 * their next heartbeat a moment later; without the wait the first of them would go alone, and all others behind it.
 */
const GATHER_MS = 3

// After these errors nothing of the statement was committed, and the cause may be gone: a deadlock, a serialization failure, or a
// route to a partition that was detached in the meantime.
const ONCE_MORE = new Set(['40P01', '40001', '23514'])

/**
 * Attempts after a deadlock. A plain store has none, because each batch takes its locks in the same order. In a distributed store the
 * nodes of a batch take theirs at the same time, and of several batches with the same devices Citus ends all but one, one by one.
 */
const DEADLOCK = '40P01'
const DEADLOCK_ATTEMPTS = 5
/** The longest pause before an attempt after the second, in ms. It is random, so that such batches do not meet again. */
const PAUSE_MS = 200

/**
 * Gathers heartbeats into few statements. A heartbeat that comes alone is sent in the same turn of the event loop.
 * Those that arrive while statements run wait for the next one, so batches grow with the load. Nothing is reported as stored
 * before its statement was committed.
 */
export class Writer {
  #queue: Waiting[] = []
  /** Heartbeats in the queue. */
  #queued = 0
  #inFlight = 0
  #scheduled = false
  /** How many requests the next statement waits for; 1 if it does not wait. */
  #wanted = 1
  #gathering: NodeJS.Timeout | undefined
  #idle: (() => void)[] = []

  constructor(
    readonly pool: Pick<Pool, 'run' | 'max'>,
    readonly metrics: Metrics,
    readonly log: Log,
    readonly backpressure: Backpressure,
    readonly limits = { concurrency: CONCURRENCY, maxBatch: MAX_BATCH, gatherMs: GATHER_MS },
    readonly tracing?: Tracing,
    readonly place?: Place,
  ) {}

  /** Heartbeats that wait for a statement. */
  get queued() {
    return this.#queued
  }

  /**
   * Returns one outcome for each heartbeat, in order, or the Problem of that heartbeat alone.
   * @param chunk at most 1,000 heartbeats
   * @throws Problem 503 if the queue cannot take all of them; then it takes none
   */
  async store({ token, items, devices, json }: Chunk): Promise<(Outcome | Problem)[]> {
    this.backpressure.admit(this.#queued, items, this.place?.label)
    if (items === 0) return []
    return await new Promise(settle => {
      this.#queue.push({ token, items, devices, json, since: performance.now(), settle, request: this.tracing?.current() })
      this.#queued += items
      this.#wake()
    })
  }

  /** Resolves when everything that was accepted so far is settled. */
  async drained() {
    if (this.#queue.length === 0 && this.#inFlight === 0) return
    await new Promise<void>(resolve => this.#idle.push(resolve))
  }

  #wake() {
    if (this.#scheduled || !this.#maySend()) return
    this.#scheduled = true
    // This runs after the sockets of this turn were read, so that heartbeats that arrive together are sent together.
    setImmediate(() => {
      this.#scheduled = false
      this.#send()
    })
  }

  #maySend() {
    const { concurrency, maxBatch } = this.limits
    if (this.#queued >= maxBatch) return this.#inFlight < concurrency
    return this.#queue.length >= this.#wanted && this.#inFlight === 0
  }

  #send() {
    while (this.#maySend()) {
      this.#inFlight++
      const batch = this.#take()
      const written =
        this.tracing === undefined
          ? this.#write(batch)
          : this.tracing.batch(
              batch.map(({ request }) => request),
              { 'fleet.heartbeats': count(batch) },
              () => this.#write(batch),
            )
      void written.finally(() => {
        this.#inFlight--
        this.#gather(batch.length)
        this.#send()
        if (this.#inFlight === 0 && this.#queue.length === 0) this.#idle.splice(0).forEach(resolve => resolve())
      })
    }
    this.backpressure.watch(this.#queued, this.place?.label)
  }

  /** @param requests that the statement had which has just ended */
  #gather(requests: number) {
    clearTimeout(this.#gathering)
    this.#wanted = requests
    if (requests === 1) return
    this.#gathering = setTimeout(() => {
      this.#wanted = 1
      this.#send()
    }, this.limits.gatherMs)
  }

  /** The next chunks: as many as fit in one statement, and at least one. */
  #take() {
    let count = 0
    let items = 0
    for (const chunk of this.#queue) {
      if (count > 0 && items + chunk.items > this.limits.maxBatch) break
      count++
      items += chunk.items
    }
    this.#queued -= items
    return this.#queue.splice(0, count)
  }

  async #write(batch: Waiting[], attempt = 1): Promise<void> {
    let outcomes
    try {
      outcomes = await this.#ingest(batch)
    } catch (error) {
      const code = error instanceof postgres.PostgresError ? error.code : ''
      if (ONCE_MORE.has(code) && attempt < (code === DEADLOCK ? DEADLOCK_ATTEMPTS : 2)) {
        if (attempt > 1) await sleep(Math.random() * PAUSE_MS)
        return this.#write(batch, attempt + 1)
      }
      // A value that Postgres refuses fails the whole statement, so halve the batch until that value is alone.
      if (/^2[23]/.test(code) && count(batch) > 1) {
        for (const half of halve(batch)) await this.#write(half)
        return
      }
      return this.#fail(batch, error, code)
    }
    this.#settle(batch, outcomes)
  }

  async #ingest(batch: Waiting[]) {
    // As text, because the driver would encode the JSON a second time. fleet.ingest_batch sorts the rows in the order in which locks
    // are taken.
    const json = `[${batch.map(chunk => chunk.json).join(',')}]`
    // Without quotes, an array takes the character after each backslash as it is.
    const tokens = `{${batch.map(chunk => `\\\\x${chunk.token}`).join(',')}}`
    const items = `{${batch.map(chunk => chunk.items).join(',')}}`
    // Arrays, because with a row for each heartbeat the driver takes several times as long.
    const ask = () =>
      this.pool.run(
        sql => sql<Answer[]>`
      select results::text, reasons::text, tss::text, device_ids::text, next_intervals::text
      from fleet.ingest_batch(
        ${json}::text::json, p_token_hashes => ${tokens}::text::bytea[], p_items => ${items}::text::integer[]
      )
    `,
      )
    const [row] = await (this.tracing === undefined
      ? ask()
      : this.tracing.statement('fleet.ingest_batch', { 'db.operation.batch.size': count(batch) }, ask))
    const outcomes = readAnswer(row!)
    if (outcomes.length !== count(batch)) {
      throw new Error(`fleet.ingest_batch answered for ${outcomes.length} of ${count(batch)} heartbeats; they may be stored`)
    }
    return outcomes
  }

  #settle(batch: Waiting[], outcomes: Outcome[]) {
    const now = performance.now()
    const counts = { stored: 0, duplicate: 0, quarantined: 0, rejected: 0, unauthorized: 0, unknown_device: 0 }
    const upserted = new Set<number | null>()
    let begin = 0
    for (const { items, since, settle } of batch) {
      const own = outcomes.slice(begin, begin + items)
      for (const { result, device_id, next_interval_s } of own) {
        counts[result]++
        if (result === 'stored') upserted.add(device_id)
        if (next_interval_s !== null) this.metrics.writeLatency.observe(now - since)
      }
      settle(own)
      begin += items
    }
    const written = outcomes.length - counts.unauthorized - counts.unknown_device
    this.metrics.writes.inc(written)
    this.place?.wrote(written)
    this.metrics.ingested.inc(counts.stored)
    this.metrics.deduplicated.inc(counts.duplicate)
    this.metrics.quarantined.inc(counts.quarantined)
    this.metrics.lastStatusUpserts.inc(upserted.size)
  }

  #fail(batch: Waiting[], error: unknown, code: string) {
    this.metrics.writesFailed.inc(count(batch))
    this.place?.failed(count(batch))
    this.metrics.lastStatusUpsertsFailed.inc(batch.reduce((sum, { devices }) => sum + devices, 0))
    this.log.error({ event: 'heartbeat.write_failed', node: this.place?.label, items: count(batch), error })
    const message = error instanceof Error ? error.message : String(error)
    const problem = code.startsWith('22')
      ? new Problem(422, 'The database refused a value of this heartbeat.', { errors: [{ path: '', message }], cause: error })
      : ONCE_MORE.has(code)
        ? unavailable('The database could not write now, although it was asked again; nothing was acknowledged.', error)
        : toProblem(error)
    for (const { items, settle } of batch) settle(Array<Problem>(items).fill(problem))
  }
}

function count(batch: Waiting[]) {
  return batch.reduce((sum, { items }) => sum + items, 0)
}

/** The two halves of a batch. A single chunk becomes two that settle it together. */
function halve(batch: Waiting[]): Waiting[][] {
  if (batch.length > 1) return [batch.slice(0, batch.length >> 1), batch.slice(batch.length >> 1)]
  const { token, items, devices, json, since, settle } = batch[0]!
  const middle = items >> 1
  const texts = (JSON.parse(`[${json}]`) as unknown[]).map(item => JSON.stringify(item))
  const half = (texts: string[]) => ({
    token,
    items: texts.length,
    devices: Math.min(devices, texts.length),
    json: texts.join(','),
    since,
  })
  let first: (Outcome | Problem)[] = []
  return [
    [
      {
        ...half(texts.slice(0, middle)),
        settle: outcomes => {
          first = outcomes
        },
      },
    ],
    [{ ...half(texts.slice(middle)), settle: outcomes => settle([...first, ...outcomes]) }],
  ]
}

interface Answer {
  results: string | null
  reasons: string | null
  tss: string
  device_ids: string
  next_intervals: string
}

/** Reads Postgres's text of the arrays. Words and numbers are never quoted; timestamps always are, because they contain a space. */
function readAnswer({ results, reasons, tss, device_ids, next_intervals }: Answer): Outcome[] {
  const result = results?.slice(1, -1).split(',')
  const reason = reasons?.slice(1, -1).split(',')
  const device = device_ids.slice(1, -1).split(',')
  const interval = next_intervals.slice(1, -1).split(',')
  return tss
    .slice(2, -2)
    .split('","')
    .map((ts, index) => ({
      result: (result === undefined ? 'stored' : result[index]!) as Outcome['result'],
      reason: reason === undefined || reason[index] === 'NULL' ? null : reason[index]!,
      ts: toRfc3339(ts),
      device_id: device[index] === 'NULL' ? null : Number(device[index]),
      next_interval_s: interval[index] === 'NULL' ? null : Number(interval[index]),
    }))
}
