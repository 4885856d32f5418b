import type { Registry } from 'prom-client'
import type { Metrics } from '../ops/metrics.ts'
import { type Budget, Budgets } from './budgets.tsx'
import { count, duration, short } from './format.ts'

/** Rates are over the last minute if there are samples for that, and never over less than this. */
const MIN_WINDOW_MS = 2_000
const WINDOW_MS = 60_000
const KEEP_MS = 5 * 60_000

/** The totals of all workers of this server at one moment. */
interface Sample {
  at: number
  writes: number
  failed: number
  deduplicated: number
  quarantined: number
  /** Observations of hb_write_latency_ms by upper bound, cumulative. */
  latency: [number, number][]
}

export interface Ingest {
  /** The period of the rates, in seconds. `isAll` is true if it began when the server started. */
  window_s: number
  isAll: boolean
  per_second: number
  p95: number | undefined
  p99: number | undefined
  writes: number
  failed: number
  deduplicated: number
  quarantined: number
  pool: { in_use: number; max: number; waiting: number }
  backpressure: boolean
}

/** How heartbeats arrive, from the metrics of all workers: the difference from an earlier sample, at first from the start. */
export class IngestRates {
  #samples: Sample[] = []
  readonly #start = performance.now() - process.uptime() * 1_000

  constructor(readonly metrics: Metrics) {}

  async read(): Promise<Ingest> {
    const registry = await this.metrics.ofAllWorkers()
    const total = (name: string) => totalOf(registry, name)
    const last: Sample = {
      at: performance.now(),
      writes: await total('hb_writes_total'),
      failed: await total('hb_writes_failed_total'),
      deduplicated: await total('hb_deduplicated_total'),
      quarantined: await total('hb_quarantined_total'),
      latency: await bucketsOf(registry, 'hb_write_latency_ms'),
    }
    const nothing: Sample = { at: this.#start, writes: 0, failed: 0, deduplicated: 0, quarantined: 0, latency: [] }
    this.#samples = this.#samples.filter(({ at, writes }) => last.at - at < KEEP_MS && writes <= last.writes)
    const old = this.#samples.filter(({ at }) => last.at - at >= MIN_WINDOW_MS)
    const base = old.find(({ at }) => last.at - at <= WINDOW_MS) ?? old.at(-1) ?? nothing
    // Percentiles of a few observations jump, so they use the longest period there is.
    const calm = old[0] ?? nothing
    this.#samples.push(last)
    const seconds = (last.at - base.at) / 1_000
    return {
      window_s: seconds,
      isAll: base === nothing,
      per_second: (last.writes - base.writes) / seconds,
      p95: quantile(0.95, difference(last.latency, calm.latency)) ?? quantile(0.95, last.latency),
      p99: quantile(0.99, difference(last.latency, calm.latency)) ?? quantile(0.99, last.latency),
      writes: last.writes,
      failed: last.failed,
      deduplicated: last.deduplicated,
      quarantined: last.quarantined,
      pool: { in_use: await total('db_pool_in_use'), max: await total('db_pool_max'), waiting: await total('db_pool_waiting') },
      backpressure: (await total('backpressure')) > 0,
    }
  }
}

async function totalOf(registry: Registry, name: string) {
  const { values } = await registry.getSingleMetric(name)!.get()
  return values.reduce((sum, { value }) => sum + value, 0)
}

async function bucketsOf(registry: Registry, name: string): Promise<[number, number][]> {
  const { values } = (await registry.getSingleMetric(name)!.get()) as {
    values: { labels: { le?: string | number }; value: number }[]
  }
  return values
    .filter(({ labels }) => labels.le !== undefined)
    .map(({ labels, value }): [number, number] => [labels.le === '+Inf' ? Infinity : Number(labels.le), value])
    .sort(([a], [b]) => a - b)
}

function difference(buckets: [number, number][], earlier: [number, number][]): [number, number][] {
  return buckets.map(([bound, observed], n) => [bound, observed - (earlier[n]?.[1] ?? 0)])
}

/** Like histogram_quantile of Prometheus: linear within a bucket, and a value above the last bound counts as that bound. */
function quantile(share: number, buckets: [number, number][]): number | undefined {
  const all = buckets.at(-1)?.[1] ?? 0
  if (all === 0) return undefined
  const rank = share * all
  let [below, bound] = [0, 0]
  for (const [upper, observed] of buckets) {
    if (observed >= rank) {
      return upper === Infinity ? bound : bound + ((upper - bound) * (rank - below)) / (observed - below)
    }
    ;[below, bound] = [observed, upper]
  }
  return bound
}

/** `budgets` is undefined if they could not be read. */
export function IngestRate({ ingest, budgets }: { ingest: Ingest; budgets: Budget[] | undefined }) {
  const { pool } = ingest
  const span = ingest.isAll
    ? `since the server started ${duration(ingest.window_s)} ago`
    : `in the last ${duration(ingest.window_s)}`
  return (
    <>
      {ingest.backpressure && (
        <p class="note warn">Heartbeats come faster than they are written, so low-priority work is shed.</p>
      )}
      <ul class="tiles">
        <li class="tile">
          <b>{short(ingest.per_second)}</b> <span>heartbeats a second, {span}</span>
        </li>
        <li class="tile">
          <b>{milliseconds(ingest.p95)}</b> <span>p95, from the queue to the commit</span>
        </li>
        <li class="tile">
          <b>{milliseconds(ingest.p99)}</b> <span>p99</span>
        </li>
      </ul>
      <dl class="facts">
        <div>
          <dt>Written</dt>
          <dd>{count(ingest.writes)}</dd>
        </div>
        <div>
          <dt>Duplicates</dt>
          <dd>{count(ingest.deduplicated)}</dd>
        </div>
        <div>
          <dt>Quarantined</dt>
          <dd>{count(ingest.quarantined)}</dd>
        </div>
        <div>
          <dt>Failed</dt>
          <dd>{count(ingest.failed)}</dd>
        </div>
        <div>
          <dt>Connections in use</dt>
          <dd>
            {count(pool.in_use)} of {count(pool.max)}
            {pool.waiting > 0 && `, ${count(pool.waiting)} waiting`}
          </dd>
        </div>
      </dl>
      <p class="muted">Totals of all workers of this server since it started.</p>
      {budgets === undefined ? <p class="unread">The error budgets could not be read.</p> : <Budgets budgets={budgets} />}
    </>
  )
}

function milliseconds(value: number | undefined) {
  return value === undefined ? '–' : `${short(value)} ms`
}
