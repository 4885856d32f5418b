import type { Handler } from 'hono'
import { type Aggregator, Counter, Gauge, Histogram, Registry } from 'prom-client'
import type { AppEnv, Parts } from '../app.ts'
import type { Pool } from '../database.ts'
import type { Reader } from '../reader.ts'
import { shareMetrics } from './scrape.ts'
import { Source } from '../cache.ts'
import { within } from '../../lib/timeout.ts'

export type Metrics = ReturnType<typeof createMetrics>

/** Prometheus gives a scrape 10 s by default. */
const DATABASE_PATIENCE_MS = 1_000
/** It takes a look at each device: 10 ms for 10,000 of them. */
const SILENCE_KEPT_MS = 60_000

const LATENCY_MS = [1, 2, 5, 10, 20, 50, 100, 150, 200, 300, 500, 1000, 2000, 5000]

/**
 * What this process counts. Totals that have to outlive it are held by the database (fleet.metric_values). Over several workers
 * everything is summed; a gauge for which that is wrong names its `aggregator`. Each help text ends with the unit.
 */
export function createMetrics(pool: Pool) {
  const registry = new Registry()
  const registers = [registry]
  const counter = (name: string, help: string, unit: string) => new Counter({ name, help: described(help, unit), registers })
  const gauge = (name: string, help: string, unit: string, value: () => number, aggregator: Aggregator = 'sum') =>
    new Gauge({
      name,
      help: described(help, unit),
      aggregator,
      registers,
      collect() {
        this.set(value())
      },
    })
  /** A total that is counted elsewhere. */
  const total = (name: string, help: string, unit: string, value: () => number) =>
    new Counter({
      name,
      help: described(help, unit),
      registers,
      collect() {
        this.reset()
        this.inc(value())
      },
    })
  const latency = (name: string, help: string) =>
    new Histogram({
      name,
      help: described(help, 'milliseconds'),
      buckets: LATENCY_MS,
      registers,
    })
  const latencies = <T extends string>(name: string, help: string, label: T) =>
    new Histogram({
      name,
      help: described(help, 'milliseconds'),
      labelNames: [label],
      buckets: LATENCY_MS,
      registers,
    })

  gauge('workers', 'Processes of this server that answer requests', 'processes', () => 1)
  gauge('process_resident_memory_bytes', 'Resident memory of these processes', 'bytes', () => process.memoryUsage.rss())
  total('process_cpu_seconds_total', 'CPU time of these processes', 'seconds', () => {
    const { user, system } = process.cpuUsage()
    return (user + system) / 1e6
  })
  gauge('db_pool_in_use', 'Connections of the hot path that are running a statement', 'connections', () => pool.inUse)
  gauge('db_pool_max', 'Connections that the hot path may have', 'connections', () => pool.max)
  gauge('db_pool_waiting', 'Statements that wait for a connection', 'statements', () => pool.waiting)
  gauge(
    'db_pool_utilization_pct',
    "Share of the hot path's connections that are in use",
    'percent',
    () => (100 * pool.inUse) / pool.max,
    'average',
  )
  total('db_pool_statements_total', 'Statements that the hot path has run', 'statements', () => pool.statements)
  total('db_pool_waits_total', 'Statements that found no free connection', 'statements', () => pool.waits)

  return {
    registry,
    ofAllWorkers: shareMetrics(registry),
    writes: counter(
      'hb_writes_total',
      'Heartbeats whose statement was committed: stored, duplicate, quarantined or rejected',
      'heartbeats',
    ),
    writesFailed: counter(
      'hb_writes_failed_total',
      'Heartbeats that were not written, because the database failed or could not be reached, or because the queue was full',
      'heartbeats',
    ),
    writeLatency: latency('hb_write_latency_ms', 'Time from the queue of the writer to the commit of a heartbeat'),
    ingested: counter('heartbeats_ingested_total', 'Heartbeats stored', 'heartbeats'),
    deduplicated: counter(
      'hb_deduplicated_total',
      'Heartbeats whose device already had one in the same 10 seconds',
      'heartbeats',
    ),
    quarantined: counter('hb_quarantined_total', 'Heartbeats that were quarantined because of their time', 'heartbeats'),
    lastStatusUpserts: counter(
      'last_status_upserts_total',
      'Devices whose last status was written with their heartbeats',
      'devices',
    ),
    lastStatusUpsertsFailed: counter(
      'last_status_upserts_failed_total',
      'Devices whose last status was not written, because the statement of their heartbeats failed',
      'devices',
    ),
    readLatency: latencies('last_status_read_latency_ms', 'Time of the reads of last status', 'query'),
    fastList: latency('query_latency_fast_list_devices_ms', 'Time of the device lists that are read from last status'),
    legacyList: latency(
      'query_latency_legacy_list_devices_ms',
      'Time of the device lists that are read from the heartbeats themselves',
    ),
    httpLatency: latencies('http_request_latency_ms', 'Time from the headers of a request to its answer', 'route'),
    cacheHits: counter('device_cache_hits_total', 'Tokens that were found in the cache of this process', 'tokens'),
    cacheMisses: counter('device_cache_misses_total', 'Tokens that had to be looked up in the database', 'tokens'),
    authRefused: counter(
      'auth_refused_total',
      'Requests that were refused because too many wrong tokens or keys came from their address',
      'requests',
    ),
    dispatchLogStatements: counter(
      'dispatch_log_statements_total',
      'Statements on commands that were committed, with their entries in the dispatch log',
      'statements',
    ),
    dispatchLogWrites: counter(
      'dispatch_log_writes_total',
      'Entries that were written to the dispatch log of commands',
      'entries',
    ),
    dispatchLogWritesFailed: counter(
      'dispatch_log_writes_failed_total',
      'Statements on commands that failed, so that their entries in the dispatch log are missing',
      'statements',
    ),
    shed: new Counter({
      name: 'low_priority_shed_total',
      help: described('Requests whose low-priority work was left out so that heartbeats can be written', 'requests'),
      labelNames: ['work'],
      registers,
    }),
    backpressure: new Gauge({
      name: 'backpressure',
      help: described(
        '1 while low-priority work is shed because heartbeats arrive faster than they are written, otherwise 0',
        'flag',
      ),
      aggregator: 'max',
      registers,
    }),
  }
}

function described(help: string, unit: string) {
  return `${help}. Unit: ${unit}.`
}

/** Only with a replica, because without one there is no lag. */
export function measureReplica({ registry }: Metrics, reader: Reader) {
  if (reader.status === undefined) return
  const registers = [registry]
  new Gauge({
    name: 'replica_lag_seconds',
    help: described('Age of the newest state of the primary that the replica is known to have', 'seconds'),
    aggregator: 'max',
    registers,
    collect() {
      this.set(reader.status!.lag_seconds)
    },
  })
  new Gauge({
    name: 'replica_in_use',
    help: described('1 while device lists are read from the replica, 0 while they are read from the primary', 'flag'),
    aggregator: 'min',
    registers,
    collect() {
      this.set(reader.status!.in_use ? 1 : 0)
    },
  })
}

/** Measures a route under its own name. On the hot path this is cheaper than a middleware. */
export function timed(metrics: Metrics, route: string, handler: Handler<AppEnv>): Handler<AppEnv> {
  const latency = metrics.httpLatency.labels(route)
  return async (c, next) => {
    const start = performance.now()
    try {
      return (await handler(c, next)) as Response
    } finally {
      latency.observe(performance.now() - start)
    }
  }
}

export interface MetricValue {
  metric: string
  type: 'counter' | 'gauge'
  unit: string
  help: string
  labels: Record<string, string> | null
  value: number
}

/** Not in the registry: it is about the scrape that it is in. */
export const DATABASE_METRICS_UP = {
  metric: 'database_metrics_up',
  type: 'gauge',
  unit: 'flag',
  help: '1 if this scrape has the metrics that the database holds, 0 if the database cannot be reached, is slow or is spared',
} as const

/**
 * The scrape: what all workers counted, and what the database holds if it says so in time and low-priority work is not being
 * shed. Never an error: somebody wants to look just when the database is away.
 */
export function getMetrics({ pool, metrics, log, backpressure }: Parts): Handler<AppEnv> {
  const valuesSource = new Source(0, () => readDatabase(pool, 'metric_values'))
  const silenceSource = new Source(SILENCE_KEPT_MS, () => readDatabase(pool, 'silence_metrics'))
  const inTime = (rows: Promise<MetricValue[]>) =>
    within(DATABASE_PATIENCE_MS, rows).catch((error: unknown) => {
      log.warn({ event: 'metrics.database_failed', error }, 'The scrape leaves out what the database holds.')
      return undefined
    })

  return async c => {
    const isShed = backpressure.sheds('database_metrics')
    // First, so that the pool in use is not for this.
    const counted = await (await metrics.ofAllWorkers()).metrics()
    const [values, silence] = isShed ? [] : await Promise.all([inTime(valuesSource.get()), inTime(silenceSource.get())])
    const isHeld: MetricValue = { ...DATABASE_METRICS_UP, labels: null, value: values === undefined ? 0 : 1 }
    const text = [counted, render([isHeld]), render(values ?? []), render(silence ?? [])].join('')
    return c.text(text, 200, { 'content-type': metrics.registry.contentType, 'cache-control': 'no-store' })
  }
}

function readDatabase(pool: Pool, source: 'metric_values' | 'silence_metrics') {
  return pool.run(
    sql => sql<MetricValue[]>`
    select v.metric, d.type, d.unit,
      d.help || '. The database holds it: each server reports the same value, so take max, not sum' as help,
      v.labels, v.value
    from ${source === 'metric_values' ? sql`fleet.metric_values()` : sql`fleet.silence_metrics()`} v
    join fleet.metric_definitions() d using (metric)
    order by v.metric, v.labels
  `,
  )
}

/** Rows, ordered by metric, in Prometheus text format. */
export function render(rows: MetricValue[]) {
  let text = ''
  let family = ''
  for (const { metric, type, unit, help, labels, value } of rows) {
    if (metric !== family) {
      family = metric
      text += `# HELP ${metric} ${described(help, unit)}\n# TYPE ${metric} ${type}\n`
    }
    const pairs = Object.entries(labels ?? {}).map(([name, label]) => `${name}="${escapeLabel(String(label))}"`)
    text += `${metric}${pairs.length === 0 ? '' : `{${pairs.join(',')}}`} ${value}\n`
  }
  return text
}

function escapeLabel(label: string) {
  return label.replaceAll('\\', '\\\\').replaceAll('"', '\\"').replaceAll('\n', '\\n')
}
