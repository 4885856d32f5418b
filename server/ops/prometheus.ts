import type { Handler } from 'hono'
import { withTimeout } from '../../lib/timeout.ts'
import { Cache } from '../cache.ts'
import type { AppEnv, ServerContext } from '../context.ts'
import type { Pool } from '../database.ts'
import { described } from './metrics.ts'

/** Prometheus gives a scrape 10 s by default. */
const DATABASE_TIMEOUT_MS = 1_000
/** In a small fleet the query reads each device: 10 ms for 10,000 of them. A large one is counted once a minute, too. */
const SILENCE_KEPT_MS = 60_000

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
 * The scrape: what all workers counted, and what the database holds, if it answers in time and low-priority work is not being shed.
 * Never an error, because people need it most when the database is unreachable.
 */
export function getMetrics({
  pool,
  metrics,
  log,
  backpressure,
}: Pick<ServerContext, 'pool' | 'metrics' | 'log' | 'backpressure'>): Handler<AppEnv> {
  const valuesCache = new Cache(0, () => readDatabase(pool, 'metric_values'))
  const silenceCache = new Cache(SILENCE_KEPT_MS, () => readDatabase(pool, 'silence_metrics'))
  const inTime = (rows: Promise<MetricValue[]>) =>
    withTimeout(DATABASE_TIMEOUT_MS, rows).catch((error: unknown) => {
      log.warn({ event: 'metrics.database_failed', error }, 'The scrape leaves out what the database holds.')
      return undefined
    })

  return async c => {
    const isShed = backpressure.sheds('database_metrics')
    // This comes first, so that the scrape's own connection is not counted as in use.
    const counted = await (await metrics.ofAllWorkers()).metrics()
    const [values, silence] = isShed ? [] : await Promise.all([inTime(valuesCache.get()), inTime(silenceCache.get())])
    const isHeld: MetricValue = { ...DATABASE_METRICS_UP, labels: null, value: values === undefined ? 0 : 1 }
    const text = [counted, render([isHeld]), render(values ?? []), render(silence ?? [])].join('')
    return c.text(text, 200, { 'content-type': metrics.registry.contentType, 'cache-control': 'no-store' })
  }
}

function readDatabase(pool: Pool, from: 'metric_values' | 'silence_metrics') {
  return pool.run(
    sql => sql<MetricValue[]>`
    select v.metric, d.type, d.unit,
      d.help || '. The database holds it: each server reports the same value, so take max, not sum' as help,
      v.labels, v.value
    from ${from === 'metric_values' ? sql`fleet.metric_values()` : sql`fleet.silence_metrics()`} v
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
