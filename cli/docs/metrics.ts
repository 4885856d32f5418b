// Makes docs/metrics.md: the metrics of GET /metrics, with the alerts that use them.
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Sql } from 'postgres'
import { parse } from 'yaml'
import { repository } from '../../lib/repository.ts'
import { Pool } from '../../server/database.ts'
import { createMetrics, measureCertificate, measureNodes, measureReplica } from '../../server/ops/metrics.ts'
import { DATABASE_METRICS_UP } from '../../server/ops/prometheus.ts'
import type { Reader } from '../../server/reader.ts'
import { code, generated, page, table } from './markdown.ts'

const RULES = 'docker/prometheus/rules'

interface Metric {
  metric: string
  type: string
  unit: string
  help: string
  labels: string[]
  /** How the values of the workers are combined. */
  workers?: string
}

/** A Prometheus rule: an alert or a recording. */
interface Rule {
  alert?: string
  record?: string
  expr: string
  for?: string
  /** An alert's severity, or the labels of a recording's series. */
  labels?: Record<string, string>
  annotations?: { summary: string; runbook_url: string }
}

export async function metricsPage(sql: Sql) {
  const rules = await readRules()
  const alerts = rules.filter(({ alert }) => alert !== undefined)
  const recordings = rules.filter(({ record }) => record !== undefined)
  const row = ({ metric, type, labels, unit, workers, help }: Metric) => [
    code(metric),
    type,
    labels.map(code).join(', '),
    unit,
    workers,
    `${help}.`,
    alerts
      .filter(({ expr }) => uses(expr, metric, rules))
      .map(({ alert }) => alert)
      .join(', '),
  ]
  const rows = (metrics: Metric[]) => metrics.sort((a, b) => (a.metric < b.metric ? -1 : 1)).map(row)
  const header = ['name', 'type', 'labels', 'unit', 'over workers', 'what it is', 'alerts']
  return page(
    '# Metrics',
    generated(`the server's registry, \`fleet.metric_definitions()\` and the [rules of Prometheus](../${RULES})`),
    'Each server answers `GET /metrics` with its ADMIN_KEY. The archiver has no port: it reports to the database, and the ' +
      'servers report what the database holds. A histogram has the series `_bucket` (with the label `le`), `_sum` and `_count`.',
    '## Counted by each server',
    'Counters and histograms start at 0 when the server starts. A server with several workers combines their values; ' +
      'over several servers, take `sum`.',
    table(header, rows(serverMetrics())),
    '## Held by the database',
    'These values survive a restart of the server. Each server reports the same value, so take `max`, not `sum`. ' +
      'A server that does not get them from the database within a second leaves them out.',
    table(header, rows(await databaseMetrics(sql))),
    '## Alerts',
    table(['alert', 'severity', 'summary', 'condition', 'for', 'runbook'], alerts.map(alertRow)),
    'Names with colons are recording rules:',
    table(
      ['name', 'expression'],
      recordings.map(rule => [code(series(rule)), code(rule.expr)]),
    ),
  )
}

function alertRow({ alert, labels, annotations, expr, for: delay }: Rule) {
  const { summary, runbook_url: url } = annotations!
  const [, place = ''] = url.split('#')
  return [
    alert,
    labels?.severity,
    summary.replaceAll(/\{\{ \$labels\.(\w+) \}\}/g, '`$1`'),
    code(expr),
    delay,
    `[${place.replaceAll('-', ' ')}](../${url})`,
  ]
}

/** What prom-client stores about a metric. Its types declare less. */
interface Registered {
  name: string
  help: string
  type: string
  aggregator?: string
  labelNames: string[]
}

/** The metrics in the registry of a server that has a replica and a certificate, of a plain store or a distributed one. */
function serverMetrics(): Metric[] {
  // No value is read.
  const metrics = createMetrics(new Pool(undefined as never, 1))
  measureNodes(metrics, { isDistributed: false, all: [] })
  measureReplica(metrics, { status: { lag_seconds: 0, in_use: true } } as Reader)
  measureCertificate(metrics, { expires: new Date(0) })
  const found = metrics.registry.getMetricsAsArray() as unknown as Registered[]
  const registered = found.map(({ name, help, type, aggregator = 'sum', labelNames }) => {
    const [, sentence, unit] = /^(.*)\. Unit: (.*)\.$/.exec(help) ?? []
    if (sentence === undefined || unit === undefined) throw new Error(`${name}: its help does not end with its unit`)
    return { metric: name, type, unit, help: sentence, labels: labelNames, workers: aggregator }
  })
  return [...registered, { ...DATABASE_METRICS_UP, labels: [] }]
}

/**
 * The metrics that fleet.metric_definitions() lists. Their labels come from the source of the functions that return the values.
 */
async function databaseMetrics(sql: Sql): Promise<Metric[]> {
  const definitions = await sql<Omit<Metric, 'labels'>[]>`select metric, type, unit, help from fleet.metric_definitions()`
  const sources = await sql<{ prosrc: string }[]>`
    select prosrc from pg_proc
    where pronamespace = 'fleet'::regnamespace and proname in ('metric_values', 'silence_metrics', 'postgres_metrics')`
  const parts = sources.flatMap(({ prosrc }) => prosrc.split('union all'))
  const metrics = definitions.map(definition => {
    const part = parts.find(text => text.includes(`'${definition.metric}'`)) ?? ''
    const [, own] = new RegExp(`'${definition.metric}', '\\{([^}]*)\\}'`).exec(part) ?? []
    const [, built] = /jsonb_build_object\(((?:[^()]|\([^()]*\))*)\)/.exec(part) ?? []
    const labels = own === undefined ? [...(built ?? '').matchAll(/'(\w+)', /g)] : [...own.matchAll(/"(\w+)":/g)]
    return { ...definition, labels: labels.map(([, label]) => label!) }
  })
  const values = await sql<{ metric: string; labels: string[] }[]>`
    select distinct v.metric, array(select jsonb_object_keys(v.labels)) as labels
    from (select * from fleet.metric_values() union all select * from fleet.silence_metrics()) v`
  for (const { metric, labels } of values) {
    const known = metrics.find(one => one.metric === metric)?.labels ?? []
    if (known.join() !== labels.join()) throw new Error(`${metric} has the labels [${labels.join()}], not [${known.join()}]`)
  }
  return metrics
}

async function readRules() {
  const files = (await readdir(join(repository, RULES))).filter(name => name.endsWith('.yml')).sort()
  const texts = await Promise.all(files.map(name => readFile(join(repository, RULES, name), 'utf8')))
  return texts.flatMap(text => (parse(text) as { groups: { rules: Rule[] }[] }).groups.flatMap(group => group.rules))
}

/** Whether an expression uses a metric, directly or through a recording rule. */
function uses(expr: string, metric: string, rules: Rule[]): boolean {
  const names = new Set((expr.match(/[a-zA-Z_:][\w:]*/g) ?? []).map(name => name.replace(/_(bucket|sum|count)$/, '')))
  return (
    names.has(metric) ||
    rules.some(
      rule =>
        rule.record !== undefined &&
        names.has(rule.record) &&
        (rule.labels === undefined || expr.includes(series(rule))) &&
        uses(rule.expr, metric, rules),
    )
  )
}

/** The series that a recording rule records, such as `fleet:slo_errors:ratio_rate5m{slo="dispatch_log"}`. */
function series({ record, labels = {} }: Rule) {
  const pairs = Object.entries(labels).map(([label, value]) => `${label}="${value}"`)
  return pairs.length === 0 ? record! : `${record}{${pairs.join(', ')}}`
}
