import type { Context, Handler } from 'hono'
import { Counter, Gauge, Histogram, Registry } from 'prom-client'
import type { AppEnv, Parts } from './app.ts'
import type { Pool } from './database.ts'
import type { Log } from './log.ts'
import type { Reader } from './reader.ts'
import { shareMetrics } from './scrape.ts'

export type Metrics = ReturnType<typeof createMetrics>

const LATENCY_MS = [1, 2, 5, 10, 20, 50, 100, 150, 200, 300, 500, 1000, 2000, 5000]

/**
 * What this process counts; totals that outlive it are held by the database (fleet.metric_values). Over several
 * workers everything is summed; a gauge for which that is wrong names its `aggregator`.
 */
export function createMetrics(pool: Pool) {
  const registry = new Registry()
  const registers = [registry]
  const counter = (name: string, help: string) => new Counter({ name, help, registers })

  const gauge = (name: string, help: string, value: () => number) => new Gauge({
    name,
    help,
    registers,
    collect() {
      this.set(value())
    },
  })
  gauge('db_pool_in_use', 'Connections of the hot path that are running a statement.', () => pool.inUse)
  gauge('db_pool_max', 'Connections that the hot path may have.', () => pool.max)
  gauge('db_pool_waiting', 'Statements that wait for a connection.', () => pool.waiting)
  new Gauge({
    name: 'db_pool_utilization_pct',
    help: 'Share of the hot path\'s connections that are in use, in percent.',
    aggregator: 'average',
    registers,
    collect() {
      this.set(100 * pool.inUse / pool.max)
    },
  })
  new Counter({
    name: 'db_pool_statements_total',
    help: 'Statements of the hot path.',
    registers,
    collect() {
      this.reset()
      this.inc(pool.statements)
    },
  })
  new Counter({
    name: 'db_pool_waits_total',
    help: 'Statements that found no free connection.',
    registers,
    collect() {
      this.reset()
      this.inc(pool.waits)
    },
  })

  return {
    registry,
    ofAllWorkers: shareMetrics(registry),
    writes: counter('hb_writes_total', 'Heartbeats whose statement was committed, whatever became of each.'),
    writesFailed: counter('hb_writes_failed_total', 'Heartbeats that were not written: refused by the database, or it was away.'),
    writeLatency: new Histogram({
      name: 'hb_write_latency_ms',
      help: 'From a heartbeat entering the writer\'s queue to its commit, in milliseconds.',
      buckets: LATENCY_MS,
      registers,
    }),
    ingested: counter('heartbeats_ingested_total', 'Heartbeats stored.'),
    deduplicated: counter('hb_deduplicated_total', 'Heartbeats that found their device\'s 10-second bucket taken.'),
    quarantined: counter('hb_quarantined_total', 'Heartbeats kept aside because of their time.'),
    lastStatusUpserts: counter('last_status_upserts_total', 'Devices whose last status a statement upserted.'),
    readLatency: new Histogram({
      name: 'last_status_read_latency_ms',
      help: 'Reads of last status, in milliseconds.',
      labelNames: ['query'],
      buckets: LATENCY_MS,
      registers,
    }),
    fastList: new Histogram({
      name: 'query_latency_fast_list_devices_ms',
      help: 'Lists of devices read from last status, in milliseconds.',
      buckets: LATENCY_MS,
      registers,
    }),
    legacyList: new Histogram({
      name: 'query_latency_legacy_list_devices_ms',
      help: 'Lists of devices read from the heartbeats themselves, in milliseconds.',
      buckets: LATENCY_MS,
      registers,
    }),
    httpLatency: new Histogram({
      name: 'http_request_latency_ms',
      help: 'From the request\'s headers to its answer, in milliseconds.',
      labelNames: ['route'],
      buckets: LATENCY_MS,
      registers,
    }),
    cacheHits: counter('device_cache_hits_total', 'Tokens found in this process.'),
    cacheMisses: counter('device_cache_misses_total', 'Tokens that had to be asked of the database.'),
    dispatchLogWrites: counter('dispatch_log_writes_total', 'Entries of the dispatch log of commands that were written.'),
    dispatchLogWritesFailed: counter(
      'dispatch_log_writes_failed_total',
      'Statements on commands that failed, and with them their entries in the dispatch log.',
    ),
    shed: new Counter({
      name: 'low_priority_shed_total',
      help: 'Work left out so that heartbeats can be written.',
      labelNames: ['work'],
      registers,
    }),
    backpressure: new Gauge({
      name: 'backpressure',
      help: '1 while low-priority work is shed because heartbeats come faster than they can be written, else 0.',
      aggregator: 'max',
      registers,
    }),
  }
}

/** Only with a replica: without one there is no lag. */
export function measureReplica({ registry }: Metrics, reader: Reader) {
  if (reader.status === undefined) return
  const registers = [registry]
  new Gauge({
    name: 'replica_lag_seconds',
    help: 'How old the newest state of the primary is that the replica is known to have.',
    aggregator: 'max',
    registers,
    collect() {
      this.set(reader.status!.lag_seconds)
    },
  })
  new Gauge({
    name: 'replica_in_use',
    help: '1 while reads of the fleet go to the replica, 0 while they go to the primary.',
    aggregator: 'min',
    registers,
    collect() {
      this.set(reader.status!.in_use ? 1 : 0)
    },
  })
}

/** Measures a route under its own name; cheaper on the hot path than a middleware. */
export function timed(metrics: Metrics, route: string, handler: Handler<AppEnv>): Handler<AppEnv> {
  const latency = metrics.httpLatency.labels(route)
  return async (c, next) => {
    const start = performance.now()
    try {
      return await handler(c, next) as Response
    } finally {
      latency.observe(performance.now() - start)
    }
  }
}

interface MetricValue {
  metric: string
  labels: Record<string, string> | null
  value: number
}

/** The scrape: all workers first, then the database's totals, if it answers and has the time. */
export async function exposition(c: Context<AppEnv>, { pool, metrics, log, backpressure }: Parts) {
  const isShort = backpressure.sheds('database_metrics')
  let text = await (await metrics.ofAllWorkers()).metrics()
  if (!isShort) text += await databaseMetrics(pool, metrics, log)
  return c.text(text, 200, { 'content-type': metrics.registry.contentType, 'cache-control': 'no-store' })
}

async function databaseMetrics(pool: Pool, metrics: Metrics, log: Log) {
  try {
    const rows = await pool.run(sql => sql<MetricValue[]>`
      select metric, labels, value from fleet.metric_values() order by metric
    `)
    // A name may stand in the text only once; the workers' own count is the one that rates are made of.
    return render(rows.filter(row => metrics.registry.getSingleMetric(row.metric) === undefined))
  } catch (error) {
    log.warn({ event: 'metrics.database_failed', error }, 'The scrape leaves out what the database holds.')
    return ''
  }
}

/** Rows, ordered by metric, in Prometheus text format. */
export function render(rows: MetricValue[]) {
  let text = ''
  let family = ''
  for (const { metric, labels, value } of rows) {
    if (metric !== family) {
      family = metric
      text += `# TYPE ${metric} ${metric.endsWith('_total') ? 'counter' : 'gauge'}\n`
    }
    const pairs = Object.entries(labels ?? {}).map(([name, label]) => `${name}="${escapeLabel(String(label))}"`)
    text += `${metric}${pairs.length === 0 ? '' : `{${pairs.join(',')}}`} ${value}\n`
  }
  return text
}

function escapeLabel(label: string) {
  return label.replaceAll('\\', '\\\\').replaceAll('"', '\\"').replaceAll('\n', '\\n')
}
