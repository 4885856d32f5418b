import type { Handler } from 'hono'
import { withTimeout } from '../../lib/timeout.ts'
import { Cache } from '../cache.ts'
import type { ServerContext } from '../context.ts'
import type { AppEnv } from '../env.ts'
import type { Pool, Sql } from '../database.ts'
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
  const valuesCache = new Cache(0, async () => render(await readValues(pool)))
  // Kept as text: with thousands of cohorts it has megabytes, and writing it blocks this process.
  const silenceCache = new Cache(SILENCE_KEPT_MS, async () => renderCohorts(await readSilence(pool)))
  const inTime = (text: Promise<string>) =>
    withTimeout(DATABASE_TIMEOUT_MS, text).catch((error: unknown) => {
      log.warn({ event: 'metrics.database_failed', error }, 'The scrape leaves out what the database holds.')
      return undefined
    })

  return async c => {
    const isShed = backpressure.sheds('database_metrics')
    // This comes first, so that the scrape's own connection is not counted as in use.
    const counted = await (await metrics.ofAllWorkers()).metrics()
    const [values, silence] = isShed ? [] : await Promise.all([inTime(valuesCache.get()), inTime(silenceCache.get())])
    const isHeld: MetricValue = { ...DATABASE_METRICS_UP, labels: null, value: values === undefined ? 0 : 1 }
    const text = [counted, render([isHeld]), values ?? '', silence ?? ''].join('')
    return c.text(text, 200, { 'content-type': metrics.registry.contentType, 'cache-control': 'no-store' })
  }
}

function readValues(pool: Pool) {
  return pool.run(
    sql => sql<MetricValue[]>`
    select v.metric, d.type, d.unit, ${help(sql)} as help, v.labels, v.value
    from fleet.metric_values() v
    join fleet.metric_definitions() d using (metric)
    order by v.metric, v.labels
  `,
  )
}

/** A metric with a series for each cohort. Both arrays have the same length. */
export interface CohortMetric {
  metric: string
  type: 'gauge'
  unit: string
  help: string
  cohorts: string[]
  values: number[]
}

/** In arrays, because 10,000 cohorts have 70,000 series: rows of their own would take ten times as long to sort, send and read. */
function readSilence(pool: Pool) {
  return pool.run(
    sql => sql<CohortMetric[]>`
    select v.metric, d.type, d.unit, ${help(sql)} as help, v.cohorts, v.values
    from (
      select m.metric, json_agg(m.labels ->> 'cohort') as cohorts, json_agg(m.value) as values
      from fleet.silence_metrics() m
      group by m.metric
    ) v
    join fleet.metric_definitions() d using (metric)
    order by v.metric
  `,
  )
}

function help(sql: Sql) {
  return sql`d.help || '. The database holds it: each server reports the same value, so take max, not sum'`
}

/** Rows, ordered by metric, in Prometheus text format. */
export function render(rows: MetricValue[]) {
  let text = ''
  let family = ''
  for (const { metric, type, unit, help, labels, value } of rows) {
    if (metric !== family) {
      family = metric
      text += header({ metric, type, unit, help })
    }
    const pairs = Object.entries(labels ?? {}).map(([name, label]) => `${name}="${escapeLabel(String(label))}"`)
    text += `${metric}${pairs.length === 0 ? '' : `{${pairs.join(',')}}`} ${value}\n`
  }
  return text
}

/** Metrics of cohorts, in the same format. */
export function renderCohorts(metrics: CohortMetric[]) {
  let text = ''
  for (const { cohorts, values, ...about } of metrics) {
    text += header(about)
    for (const [n, cohort] of cohorts.entries()) text += `${about.metric}{cohort="${escapeLabel(cohort)}"} ${values[n]}\n`
  }
  return text
}

function header({ metric, type, unit, help }: Pick<MetricValue, 'metric' | 'type' | 'unit' | 'help'>) {
  return `# HELP ${metric} ${described(help, unit)}\n# TYPE ${metric} ${type}\n`
}

function escapeLabel(label: string) {
  if (!/[\\"\n]/.test(label)) return label
  return label.replaceAll('\\', '\\\\').replaceAll('"', '\\"').replaceAll('\n', '\\n')
}
