import { connect } from 'node:net'
import t from 'tap'
import { waitFor, withCluster, withDatabase } from '../../testing/database.ts'
import { render } from './prometheus.ts'
import { ADMIN_KEY, ago, enroll, withProcess, withServer, type Call } from '../../testing/server.ts'

/** The metrics of docs/design.md, section 9, and those that the founding documents name in addition. */
const PROMISED = `
  hb_writes_total hb_writes_failed_total hb_write_latency_ms hb_deduplicated_total hb_quarantined_total heartbeats_ingested_total
  last_status_upserts_total last_status_upserts_failed_total last_status_read_latency_ms query_latency_fast_list_devices_ms
  query_latency_legacy_list_devices_ms http_request_latency_ms hb_partition_archived_total hb_partition_dropped_total
  partitions_created_total partitions_archived_total partition_create_failures_total archive_failures_total
  reconciliation_rows_updated_total db_pool_in_use db_pool_utilization_pct db_pool_waits_total
  partition_premake_runway_days retention_lag_days archive_backlog_partitions
  scheduler_last_run_age_seconds archiver_heartbeat_age_seconds archive_bytes_pushed_total backpressure
  replica_lag_seconds slo_error_ratio slo_budget_left_ratio cohort_silence_alarm cohort_gone_quiet_ratio
`
  .trim()
  .split(/\s+/)

async function scrape(call: Call) {
  const { status, body } = await call('GET /metrics', { admin: true })
  if (status !== 200) throw new Error(`/metrics answered ${status}`)
  return body as string
}

function value(text: string, series: string) {
  const line = text.split('\n').find(line => line.startsWith(`${series} `))
  return line === undefined ? undefined : Number(line.slice(series.length + 1))
}

/** Only the lines of metrics that the database holds, which their HELP says. */
function held(text: string) {
  const families = [...text.matchAll(/^# HELP (\S+) .*The database holds it/gm)].map(match => match[1]!)
  // Not those that change by themselves.
  const still = families.filter(name => !/_age_seconds$|^postgres_|^cohort_|_runway_/.test(name))
  return text.split('\n').filter(line => still.some(name => line.startsWith(`${name} `) || line.startsWith(`${name}{`)))
}

t.test('every promised metric is there, and every metric has HELP, a unit and TYPE', async t => {
  const db = await withDatabase(t)
  await db.sql`select fleet.record_slo('x', ${JSON.stringify([{ slo: 'heartbeat_writes', minute: new Date(), good: 1, bad: 0 }])}::text::json)`
  await db.sql`select fleet.archiver_heartbeat('a', '1')`
  // So that a cohort has a device.
  await db.sql`select fleet.ingest(json_build_array(json_build_object('device_id', ${(await enroll(db, 'a')).device_id}::bigint)))`
  // The gauges of a replica need a URL for one. It does not matter here that this is no replica.
  const { call } = await withServer(t, { read: { url: db.url('fleet_server') } }, db)
  const text = await scrape(call)
  const types = new Map([...text.matchAll(/^# TYPE (\S+) (\S+)$/gm)].map(([, name, type]) => [name!, type!]))
  t.same(
    PROMISED.filter(name => !types.has(name)),
    [],
  )
  const described = new Set([...text.matchAll(/^# HELP (\S+) \S.* Unit: [a-z]+\.$/gm)].map(match => match[1]))
  t.same(
    [...types.keys()].filter(name => !described.has(name)),
    [],
    'each has a description and a unit',
  )
  for (const [name, type] of types) t.equal(type === 'counter', name.endsWith('_total'), `${name} is a ${type}`)
  const names = text
    .split('\n')
    .filter(line => /^[a-z]/.test(line))
    .map(line => /^[a-z_0-9]+/.exec(line)![0])
  t.same(
    names.filter(name => !types.has(name) && !types.has(name.replace(/_(bucket|sum|count)$/, ''))),
    [],
  )
  t.equal([...text.matchAll(/^# TYPE/gm)].length, types.size, 'each family once')
})

t.test('metrics that the database holds are defined there, and are the same on every instance', async t => {
  const db = await withDatabase(t)
  t.same(
    await db.sql`
    select v.metric from fleet.metric_values() v where not exists (select from fleet.metric_definitions() d where d.metric = v.metric)
    union all select v.metric from fleet.silence_metrics() v where not exists (select from fleet.metric_definitions() d where d.metric = v.metric)
  `,
    [],
  )
  const [a, b] = [await withServer(t, {}, db), await withServer(t, {}, db)]
  const { token } = await enroll(db, 'a')
  t.equal((await a.call('POST /v1/heartbeat', { token, body: {} })).status, 201)
  const [one, other] = [await scrape(a.call), await scrape(b.call)]
  t.ok(held(one).length > 20)
  t.same(held(one), held(other))
  t.same([value(one, 'heartbeats_ingested_total'), value(other, 'heartbeats_ingested_total')], [1, 0])
})

t.test(
  'a scrape works without the database, and what the database holds is the same after Postgres or the server restarts',
  async t => {
    const db = await withCluster(t)
    await db.sql`select fleet.increment_counter('archive_failures_total', 41)`
    await db.sql`call fleet.maintain()`
    const { call, server } = await withProcess(t, db)
    const before = await scrape(call)
    t.equal(value(before, 'archive_failures_total'), 41)
    t.equal(value(before, 'partitions_created_total')! >= 105, true)
    t.equal(value(before, 'database_metrics_up'), 1)
    for (const how of ['fast', 'immediate'] as const) {
      await db.cluster.stop(how)
      const without = await scrape(call)
      t.equal(value(without, 'database_metrics_up'), 0)
      t.equal(value(without, 'hb_writes_total'), 0)
      t.same(held(without), [])
      await db.cluster.start()
      let after = ''
      await waitFor(async () => value((after = await scrape(call)), 'database_metrics_up') === 1)
      t.same(held(after), held(before), `after ${how}`)
    }
    t.equal((await server.stop()).code, 0)
    t.same(held(await scrape((await withProcess(t, db)).call)), held(before), 'another process')
  },
)

t.test('a slow database and scrapers that hang hold up neither heartbeats nor other scrapes', async t => {
  const { db, call, url } = await withServer(t)
  const { token } = await enroll(db, 'a')
  const locker = await db.admin.reserve()
  await locker`begin`
  await locker`lock table fleet.counters in access exclusive mode`
  const sockets = Array.from({ length: 50 }, () => {
    // Half of them never end their request, none reads its answer.
    const socket = connect(Number(new URL(url).port), '127.0.0.1')
      .on('error', () => {})
      .pause()
    socket.write(`GET /metrics HTTP/1.1\r\nhost: x\r\nx-admin: ${ADMIN_KEY}\r\n${Math.random() < 0.5 ? '' : '\r\n'}`)
    return socket
  })
  t.teardown(() => {
    for (const socket of sockets) socket.destroy()
  })
  const text = await scrape(call)
  t.equal(value(text, 'database_metrics_up'), 0)
  t.equal(value(text, 'hb_writes_total'), 0)
  t.equal((await call('POST /v1/heartbeat', { token, body: { ts: ago(30) } })).status, 201)
  const asking = await db.admin`
    select from pg_stat_activity where datname = current_database() and query like '%fleet.metric_values()%' and state = 'active' and pid <> pg_backend_pid()
  `
  t.ok(asking.length <= 1, 'one statement for all of them')
  await locker`rollback`
  locker.release()
  await waitFor(async () => value(await scrape(call), 'database_metrics_up') === 1)
  t.equal(value(await scrape(call), 'hb_writes_total'), 1)
})

t.test('without the functions of the database a scrape still has the other metrics', async t => {
  const { db, call } = await withServer(t)
  await db.admin`drop function fleet.silence_metrics()`
  let text = await scrape(call)
  t.equal(value(text, 'database_metrics_up'), 1)
  t.equal(value(text, 'cohort_devices{cohort="(all)"}'), undefined)
  await db.admin`drop function fleet.metric_values()`
  text = await scrape(call)
  t.equal(value(text, 'hb_writes_total'), 0)
  t.equal(value(text, 'database_metrics_up'), 0)
})

t.test('the series of cohorts are those of fleet.silence_metrics()', async t => {
  const { db, call } = await withServer(t)
  const names = ['lobby', 'a "quoted"\\\nname', 'ünï']
  for (const [n, cohort] of names.entries())
    await db.admin`insert into fleet.devices (alias, cohort, token_hash) values (${cohort}, ${cohort}, sha256(${String(n)}::bytea))`
  const text = await scrape(call)
  const series = await db.sql<{ metric: string; cohort: string; value: number }[]>`
    select metric, labels ->> 'cohort' as cohort, value from fleet.silence_metrics()`
  t.equal(series.length, 4 * 5, 'the two shares are null')
  t.equal(text.match(/^cohort_\w+\{/gm)?.length, series.length)
  for (const { metric, cohort, value: expected } of series) {
    const label = cohort.replaceAll('\\', '\\\\').replaceAll('"', '\\"').replaceAll('\n', '\\n')
    t.equal(value(text, `${metric}{cohort="${label}"}`), expected)
  }
  t.equal(text.match(/^# TYPE cohort_devices gauge$/gm)?.length, 1)
})

t.test('database metrics become Prometheus text, with one HELP and one TYPE for each family', async t => {
  const age = { type: 'gauge', unit: 'seconds', help: 'An age' } as const
  const text = render([
    { metric: 'archive_backlog_partitions', type: 'gauge', unit: 'partitions', help: 'Waiting', labels: null, value: 2 },
    { metric: 'scheduler_last_run_age_seconds', ...age, labels: { job: 'a "quoted"\\\nname' }, value: 1.5 },
    { metric: 'scheduler_last_run_age_seconds', ...age, labels: { job: 'b' }, value: 3 },
    { metric: 'partitions_created_total', type: 'counter', unit: 'partitions', help: 'Made', labels: {}, value: 105 },
  ])
  t.equal(
    text,
    [
      '# HELP archive_backlog_partitions Waiting. Unit: partitions.',
      '# TYPE archive_backlog_partitions gauge',
      'archive_backlog_partitions 2',
      '# HELP scheduler_last_run_age_seconds An age. Unit: seconds.',
      '# TYPE scheduler_last_run_age_seconds gauge',
      'scheduler_last_run_age_seconds{job="a \\"quoted\\"\\\\\\nname"} 1.5',
      'scheduler_last_run_age_seconds{job="b"} 3',
      '# HELP partitions_created_total Made. Unit: partitions.',
      '# TYPE partitions_created_total counter',
      'partitions_created_total 105',
      '',
    ].join('\n'),
  )
})
