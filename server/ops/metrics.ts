import type { Env, Handler } from 'hono'
import { type Aggregator, Counter, Gauge, Histogram, Registry } from 'prom-client'
import type { Certificate } from '../certificate.ts'
import type { Pool } from '../database.ts'
import type { Reader } from '../reader.ts'
import { shareMetrics } from './scrape.ts'

export type Metrics = ReturnType<typeof createMetrics>

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
    nodeWrites: new Counter({
      name: 'hb_node_writes_total',
      help: described('As hb_writes_total, by node; only of a distributed store', 'heartbeats'),
      labelNames: ['node'],
      registers,
    }),
    nodeWritesFailed: new Counter({
      name: 'hb_node_writes_failed_total',
      help: described(
        'As hb_writes_failed_total, by node; only of a distributed store, and without what was refused because the queue was full',
        'heartbeats',
      ),
      labelNames: ['node'],
      registers,
    }),
    writeLatency: latency('hb_write_latency_ms', 'Time from the queue of the writer to the commit of a heartbeat'),
    ingested: counter('heartbeats_ingested_total', 'Heartbeats stored', 'heartbeats'),
    deduplicated: counter(
      'hb_deduplicated_total',
      'Heartbeats whose device already had one in the same 10 seconds',
      'heartbeats',
    ),
    quarantined: counter('hb_quarantined_total', 'Heartbeats that were quarantined because of their time', 'heartbeats'),
    unknownFields: counter(
      'hb_unknown_fields_total',
      'Fields of heartbeats that have no such field, most often a typing error; they are ignored',
      'fields',
    ),
    unreadableFields: new Counter({
      name: 'hb_unreadable_fields_total',
      help: described(
        'Fields of heartbeats whose value could not be read; the view fleet.unreadable_fields has them by device',
        'fields',
      ),
      labelNames: ['field'],
      registers,
    }),
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
    authRefused: counter(
      'auth_refused_total',
      'Requests that were refused because too many wrong tokens or keys came from their address',
      'requests',
    ),
    keyRequests: new Counter({
      name: 'key_requests_total',
      help: described(
        'Requests with a valid key by its name: an API key, or ADMIN_KEY; after 100 names a worker counts the others as (other)',
        'requests',
      ),
      labelNames: ['key'],
      registers,
    }),
    slowed: counter(
      'hb_slowed_total',
      'Requests that were refused because their device sent too many; the view fleet.slowed_devices has them by device',
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

export function described(help: string, unit: string) {
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

interface MeasuredNode {
  name: string
  shards: number
  pool: Pool
  writer: { queued: number }
}

/** By node of a distributed store. A plain store has no series of them. */
export function measureNodes({ registry }: Metrics, nodes: { isDistributed: boolean; all: MeasuredNode[] }) {
  const registers = [registry]
  const gauge = (
    name: string,
    help: string,
    unit: string,
    value: (node: MeasuredNode) => number,
    aggregator: Aggregator = 'sum',
  ) =>
    new Gauge({
      name,
      help: described(help, unit),
      labelNames: ['node'],
      aggregator,
      registers,
      collect() {
        this.reset()
        if (nodes.isDistributed) for (const node of nodes.all) this.set({ node: node.name }, value(node))
      },
    })
  gauge(
    'db_node_up',
    '1 if the server has an open connection to this node of a distributed store, otherwise 0',
    'flag',
    ({ pool }) => (pool.isOpen ? 1 : 0),
    'min',
  )
  gauge(
    'db_node_shards',
    'Shards whose heartbeats the server sends to this node of a distributed store',
    'shards',
    ({ shards }) => shards,
    'max',
  )
  gauge('db_node_pool_in_use', 'As db_pool_in_use, by node of a distributed store', 'connections', ({ pool }) => pool.inUse)
  gauge('db_node_pool_max', 'As db_pool_max, by node of a distributed store', 'connections', ({ pool }) => pool.max)
  gauge('db_node_pool_waiting', 'As db_pool_waiting, by node of a distributed store', 'statements', ({ pool }) => pool.waiting)
  gauge(
    'hb_node_queue',
    'Heartbeats that wait for a statement, by node of a distributed store',
    'heartbeats',
    ({ writer }) => writer.queued,
  )
}

/** Only if the server itself has a certificate. */
export function measureCertificate({ registry }: Metrics, certificate: Pick<Certificate, 'expires'> | undefined) {
  if (certificate === undefined) return
  new Gauge({
    name: 'tls_certificate_expires_seconds',
    help: described('When the certificate of TLS_CERT expires, or the first of its chain, in seconds since 1970', 'seconds'),
    aggregator: 'min',
    registers: [registry],
    collect() {
      this.set(certificate.expires.getTime() / 1_000)
    },
  })
}

/** Measures a route under its own name. On the hot path this is cheaper than a middleware. */
export function timed<E extends Env>(metrics: Metrics, route: string, handler: Handler<E>): Handler<E> {
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
