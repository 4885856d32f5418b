import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import postgres from 'postgres'
import t from 'tap'
import { repository } from '../lib/repository.ts'
import { prometheus } from '../testing/prometheus.ts'
import { waitFor } from '../testing/database.ts'
import { topology } from '../testing/topology.ts'
import { metricNames, readAlerts, readDashboards, withMonitoring, type Dashboard, type Panel } from '../testing/monitoring.ts'

/** The Postgres types that Grafana accepts as a time, and those that it accepts as a number. */
const TIMES = [1114, 1184]
const NUMBERS = [20, 21, 23, 700, 701, 1700]

/** The panels that may be empty. */
const MAY_BE_EMPTY = ['NexMDM ingest: Alerts', 'NexMDM database: Replicas behind', 'NexMDM partitions and archive: Missing days']
/** Metrics of servers with TLS, and of a distributed store. server/certificate.test.ts and server/ingest/distributed.test.ts read them. */
const NOT_HERE = ['tls_certificate_expires_seconds', 'db_node_up']

t.test(
  'Prometheus and the dashboards watch a fleet',
  { skip: prometheus.without || topology.without, timeout: 300_000 },
  async t => {
    const { db, api, value, rules, known, withoutValue, servers, processes } = await withMonitoring(t)
    const dashboards = await readDashboards()

    await t.test('Prometheus scrapes both servers, the balancer and itself', async t => {
      t.same(await value('up{job="nexmdm"}'), [1, 1])
      t.same(await value('count by (__name__) (haproxy_server_status{proxy="servers", state="UP"} == 1)'), [2])
      t.same(await value('count(database_metrics_up == 1)'), [servers.length])
      t.ok((await value('fleet:partition_premake_runway_days:max'))[0]! >= 14)
      const [ratio = NaN] = await value('max(slo_error_ratio{slo="heartbeat_writes"})')
      t.ok(ratio > 0 && ratio <= 0.001)
      t.ok((await value('max(hb_partition_archived_total)'))[0]! > 0, 'with the metrics of what the archiver did')
      t.ok((await value('max(archiver_heartbeat_age_seconds)'))[0]! < 60)
    })

    await t.test('every rule is evaluated, and uses metrics that exist', async t => {
      const loaded = await rules()
      const names = (await readAlerts()).map(({ name }) => name)
      t.same(
        loaded
          .filter(({ type }) => type === 'alerting')
          .map(({ name }) => name)
          .toSorted(),
        names.toSorted(),
      )
      t.same(
        loaded.filter(({ health }) => health === 'err').map(({ name, lastError }) => [name, lastError]),
        [],
      )
      const metrics = await known()
      const documented = await readFile(join(repository, 'docs/metrics.md'), 'utf8')
      for (const metric of NOT_HERE) t.ok(documented.includes(`\`${metric}\``), metric)
      for (const { name, query } of loaded)
        t.same(
          metricNames(query).filter(metric => !metrics.has(metric) && !NOT_HERE.includes(metric)),
          [],
          name,
        )
      t.same(await withoutValue(loaded.filter(({ type }) => type === 'recording').map(({ name }) => name)), [])
    })

    await t.test('every Prometheus query of a dashboard has a result, and uses metrics that exist', async t => {
      const metrics = await known()
      const queries = dashboards.flatMap(dashboard =>
        queriesOf(dashboard)
          .filter(({ target }) => target.expr !== undefined)
          .map(({ name, target }) => ({
            name,
            written: target.expr!,
            query: filled(target.expr!, { __rate_interval: '1m', instance: '.*', cohort: '(all)' }),
          })),
      )
      t.ok(queries.length > 40)
      for (const { name, written } of queries)
        t.same(
          metricNames(written).filter(metric => !metrics.has(metric)),
          [],
          name,
        )
      const empty = await withoutValue(queries.filter(({ name }) => !MAY_BE_EMPTY.includes(name)).map(({ query }) => query))
      t.same(
        queries.filter(({ query }) => empty.includes(query)).map(({ name, query }) => [name, query]),
        [],
      )
      // The queries with an empty result must be correct too.
      for (const { name, query } of queries) await t.resolves(value(query), name)
      for (const { query } of dashboards
        .flatMap(({ templating }) => templating.list)
        .filter(({ datasource }) => datasource.type === 'prometheus')) {
        const [, match = '', label = ''] = /^label_values\((.*), (\w+)\)$/.exec(query) ?? []
        t.same((await api<string[]>(`label/${label}/values`, { 'match[]': match })).toSorted(), servers.toSorted(), query)
      }
    })

    await t.test('every Postgres query of a dashboard has a result, as fleet_reader', async t => {
      const sql = postgres(db.url('fleet_reader'), { max: 1, onnotice: () => {} })
      t.teardown(() => sql.end({ timeout: 1 }))
      const cohorts: string[] = []
      for (const { query } of dashboards
        .flatMap(({ templating }) => templating.list)
        .filter(({ datasource }) => datasource.type !== 'prometheus')) {
        cohorts.push(...((await sql.unsafe(query).values()).flat() as string[]))
      }
      t.same(cohorts, ['(all)', 'default'])
      let asked = 0
      for (const dashboard of dashboards) {
        for (const { name, panel, target } of queriesOf(dashboard)) {
          if (target.rawSql === undefined) continue
          const range = rangeOf(dashboard, panel)
          for (const cohort of cohorts) {
            const answer = await sql.unsafe(filled(timed(target.rawSql, range), { cohort }))
            t.ok(answer.length > 0 || MAY_BE_EMPTY.includes(name), `${name} shows something of ${cohort}`)
            if (target.format === 'time_series') {
              const [time, ...values] = answer.columns
              t.match(time, { name: 'time' }, name)
              t.ok(
                TIMES.includes(time!.type) && values.length > 0 && values.every(({ type }) => NUMBERS.includes(type)),
                `${name}: numbers by time`,
              )
            }
          }
          asked++
        }
      }
      t.ok(asked > 10)
    })

    await t.test('a server that has ended is missing', async t => {
      const { code } = await processes[1]!.server.stop()
      t.equal(code, 0)
      await waitFor(async () => (await value(`ALERTS{alertname="ServerDown", instance="${servers[1]}"}`)).length === 1)
      await waitFor(async () => (await value('ALERTS{alertname="BalancerServerDown", server="server-2"}')).length === 1)
      t.same(await value('count(up{job="nexmdm"} == 1)'), [1])
    })
  },
)

function queriesOf({ title, panels }: Dashboard) {
  return panels.flatMap(panel => panel.targets.map(target => ({ name: `${title}: ${panel.title}`, panel, target })))
}

/**
 * The query with values for Grafana's variables.
 * @throws an Error for a variable that is not among them
 */
function filled(query: string, variables: Record<string, string>) {
  return query.replace(/\$(?:\{(\w+)\}|(\w+))/g, (_, braced?: string, bare?: string) => {
    const value = variables[braced ?? bare ?? '']
    if (value === undefined) throw new Error(`the variable $${braced ?? bare} does not exist: ${query}`)
    return value
  })
}

/** Replaces the time filter as Grafana does: `column BETWEEN from AND to`, in quotes. */
function timed(query: string, [from, to]: [string, string]) {
  return query.replace(/\$__timeFilter\(([\w.]+)\)/g, (_, column: string) => `${column} BETWEEN '${from}' AND '${to}'`)
}

function rangeOf({ time }: Dashboard, { timeFrom }: Panel): [string, string] {
  const [, count = '', unit = ''] = /^(\d+)([hd])$/.exec(timeFrom ?? time.from.replace('now-', '')) ?? []
  const now = Date.now()
  return [now - Number(count) * (unit === 'h' ? 3_600_000 : 86_400_000), now].map(at => new Date(at).toISOString()) as [
    string,
    string,
  ]
}
