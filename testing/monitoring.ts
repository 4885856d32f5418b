// Helpers for the tests of docker/prometheus and docker/grafana: two servers, a balancer, an archiver, and a Prometheus that
// scrapes them.
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Test } from 'tap'
import { archiverEnv, daysAgo, fillDay, makeDirectory, partitionOf } from './archiver.ts'
import { freePort } from '../local/cluster.ts'
import { withPrometheus } from './prometheus.ts'
import { spawnNode, waitFor, withDatabase, type TestDatabase } from './database.ts'
import { withHaproxy } from './topology.ts'
import { ADMIN_KEY, ago, client, enroll, withProcess } from './server.ts'
import { repository } from '../lib/repository.ts'

export interface Rule {
  name: string
  type: 'alerting' | 'recording'
  query: string
  health: string
  lastError?: string
}

export interface Panel {
  id: number
  title: string
  type: string
  description?: string
  /** A range such as 90d, instead of the dashboard's own. */
  timeFrom?: string
  gridPos: { x: number; y: number; w: number; h: number }
  datasource: { type: string; uid: string }
  fieldConfig: { defaults: { unit?: string } }
  targets: { refId: string; expr?: string; rawSql?: string; format?: string }[]
}

export interface Dashboard {
  uid: string
  title: string
  time: { from: string; to: string }
  templating: { list: { name: string; datasource: { type: string; uid: string }; query: string }[] }
  panels: Panel[]
}

/** The alerts in docker/prometheus/rules: name and text of each. */
export async function readAlerts() {
  const dir = join(repository, 'docker/prometheus/rules')
  const texts = await Promise.all((await readdir(dir)).map(file => readFile(join(dir, file), 'utf8')))
  return texts
    .flatMap(text => text.split(/^ {6}- (?=alert: |record: )/m).slice(1))
    .flatMap(body => {
      const name = /^alert: (\w+)$/m.exec(body)?.[1]
      return name === undefined ? [] : [{ name, body }]
    })
}

export async function readDashboards() {
  const dir = join(repository, 'docker/grafana/dashboards')
  return Promise.all((await readdir(dir)).map(async file => JSON.parse(await readFile(join(dir, file), 'utf8')) as Dashboard))
}

/** Starts all of it and sends traffic. The store has something for each panel. */
export async function withMonitoring(t: Test) {
  const db = await withDatabase(t)
  const ports: [number, number] = [await freePort(true), await freePort(true)]
  // READ_DATABASE_URL is not a replica here, but it makes the server export a replica's gauges.
  const start = (port: number) =>
    withProcess(t, db, { PORT: String(port), WORKERS: '2', READ_DATABASE_URL: db.url('fleet_server') })
  const [token, ...processes] = await Promise.all([fillStore(t, db), ...ports.map(start)])
  const balancer = await withHaproxy(t, ports)
  await balancer.start()
  const call = client(balancer.url)
  const operator = client(balancer.operators)
  await waitFor(async () => (await balancer.states()).join() === 'UP,UP')

  const servers = ports.map(port => `127.0.0.1:${port}`)
  const prometheus = await withPrometheus(t, { adminKey: ADMIN_KEY, servers, haproxy: [new URL(balancer.stats).host] })
  let seconds = 0
  const traffic = async () => {
    await call('POST /v1/heartbeat', { token, body: { ts: ago(10 * ++seconds), battery_pct: 80 } })
    for (const path of ['/v1/devices', '/v1/devices/1']) await operator(`GET ${path}`, { admin: true })
    await operator('POST /admin/command', { admin: true, body: { device_id: 1, command: 'ping' } })
  }
  const value = async (query: string) => {
    const { result } = await prometheus.api<{ result: { value: [number, string] }[] }>('query', { query })
    return result.map(({ value: [, value] }) => Number(value))
  }
  await waitFor(
    async () => {
      await traffic()
      const [rate = NaN] = await value('fleet:hb_writes:rate5m')
      const up = await value('up')
      return rate > 0 && up.length === 4 && up.every(value => value === 1)
    },
    { timeoutMs: 60_000, what: () => prometheus.server.output() },
  )

  const rules = async () => {
    const { groups } = await prometheus.api<{ groups: { rules: Rule[] }[] }>('rules')
    return groups.flatMap(group => group.rules)
  }
  /**
   * The metrics that an expression may name: those that were scraped or recorded, and those that are exported only in some cases,
   * for example for a replica.
   */
  const known = async () =>
    new Set([
      'ALERTS',
      ...(await prometheus.api<string[]>('label/__name__/values')),
      ...(await db.sql<{ metric: string }[]>`select metric from fleet.metric_definitions()`).map(({ metric }) => metric),
      ...(await rules()).filter(({ type }) => type === 'recording').map(({ name }) => name),
    ])
  /** The expressions that still have no value after 10 s. */
  const withoutValue = async (expressions: string[]) => {
    let left = expressions
    await waitFor(
      async () => {
        await traffic()
        const counts = await Promise.all(left.map(async expression => (await value(expression)).length))
        left = left.filter((_, i) => counts[i] === 0)
        return left.length === 0
      },
      { timeoutMs: 10_000 },
    ).catch(() => {})
    return left
  }
  return { db, api: prometheus.api, value, rules, known, withoutValue, servers, processes }
}

/**
 * Makes a device that will send, one that is silent, and one whose Unity is down; some history; a day that is archived and one
 * that is held.
 */
async function fillStore(t: Test, db: TestDatabase) {
  const { token } = await enroll(db, 'a')
  for (const alias of ['silent', 'unity-down']) await enroll(db, alias)
  await db.admin`update fleet.devices set enrolled_at = now() - interval '3 days'`
  // fillDay's devices are 0 to 99.
  for (const day of [1, 70]) await fillDay(db.admin, daysAgo(day), 500)
  await db.sql`
    select fleet.ingest(json_build_array(json_build_object('device_id', 2)), now() - interval '20 minutes'),
      fleet.ingest(json_build_array(json_build_object('device_id', 3, 'unity_running', false)))
  `
  await db.sql`insert into fleet.silence_usual (cohort, usual_share, samples, days, computed_at) values ('(all)', 0.01, 1000, 7, now())`
  await db.sql`select fleet.record_slo('a', json_build_array(
    json_build_object('slo', 'heartbeat_writes', 'minute', date_trunc('minute', now()), 'good', 999, 'bad', 1),
    json_build_object('slo', 'dispatch_log', 'minute', date_trunc('minute', now()), 'good', 1, 'bad', 0)
  ))`
  await db.sql`select fleet.hold_partition(${await partitionOf(db.sql, daysAgo(60))}, 'a test')`
  await db.sql`select fleet.archive_partition(${await partitionOf(db.sql, daysAgo(70))})`
  await db.sql`call fleet.nightly()`
  const archiver = await spawnNode(t, 'archiver/main.ts', { env: archiverEnv(db, await makeDirectory(t)) })
  await waitFor(async () => (await db.sql`select from fleet.archives`).length > 0, { what: archiver.output })
  return token
}

/** The metrics that an expression of PromQL names. */
export function metricNames(expression: string) {
  const bare = expression
    .replace(/"[^"]*"|'[^']*'/g, '')
    .replace(/\{[^}]*\}|\[[^\]]*\]/g, '')
    .replace(/\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)/g, '')
  const words = [...bare.matchAll(/(?<![\w.:])[a-zA-Z_:][\w:]*(?!\s*\()(?![\w:])/g)].map(match => match[0])
  return [...new Set(words)].filter(word => !['and', 'or', 'unless', 'offset', 'bool'].includes(word))
}
