import t from 'tap'
import { waitFor, withCluster } from '../../testing/database.ts'
import { Budgets } from './budgets.ts'
import { connectReporter, end } from '../database.ts'
import { createLog } from '../../lib/log.ts'
import { ago, enroll, withProcess, withWriter } from '../../testing/server.ts'

const MINUTE = Date.parse('2026-03-01T12:00:00Z')

t.test('counts are reported once, whatever is lost on the way, and each for its own minute', async t => {
  const { db, metrics } = await withWriter(t)
  const sql = connectReporter({ url: db.url('fleet_server') })
  t.teardown(() => end(sql))
  let now = MINUTE
  const budgets = new Budgets(metrics, sql, createLog('server', 'silent'), () => now)
  const told = () => db.admin`
    select slo, to_char(minute at time zone 'UTC', 'HH24:MI') as minute, good::int, bad::int from fleet.slo_counts order by slo desc, minute
  `
  await budgets.tell()
  t.same(await told(), [], 'nothing happened')
  metrics.writes.inc(10)
  metrics.dispatchLogStatements.inc(3)
  await budgets.tell()
  now += 20_000
  metrics.writesFailed.inc(2)
  await budgets.tell()
  now += 20_000
  metrics.dispatchLogWritesFailed.inc(1)
  await budgets.tell()
  const first = [
    { slo: 'heartbeat_writes', minute: '12:00', good: 10, bad: 2 },
    { slo: 'dispatch_log', minute: '12:00', good: 3, bad: 1 },
  ]
  t.same(await told(), first)

  await db.admin`alter function fleet.record_slo(text, json) rename to record_slo_gone`
  for (let minute = 1; minute <= 3; minute++) {
    now = MINUTE + minute * 60_000
    metrics.writesFailed.inc(100)
    await budgets.tell()
  }
  t.same(await told(), first, 'the database does not accept them')
  await db.admin`alter function fleet.record_slo_gone(text, json) rename to record_slo`
  metrics.writes.inc(7)
  await budgets.end()
  t.same(
    (await told()).filter(({ slo }) => slo === 'heartbeat_writes'),
    [
      first[0],
      { slo: 'heartbeat_writes', minute: '12:01', good: 0, bad: 100 },
      { slo: 'heartbeat_writes', minute: '12:02', good: 0, bad: 100 },
      { slo: 'heartbeat_writes', minute: '12:03', good: 7, bad: 100 },
    ],
  )
})

t.test(
  'what failed while the database was unreachable is in fleet.slo afterwards, and stays when servers and Postgres restart',
  async t => {
    const db = await withCluster(t)
    const { token } = await enroll(db, 'a')
    const slo = async () => (await db.admin`select good::int, bad::int, status from fleet.slo where slo = 'heartbeat_writes'`)[0]
    const first = await withProcess(t, db)
    for (const seconds of [30, 60, 90]) {
      t.equal((await first.call('POST /v1/heartbeat', { token, body: { ts: ago(seconds) } })).status, 201)
    }
    await db.cluster.stop('immediate')
    for (let n = 1; n <= 2; n++) t.equal((await first.call('POST /v1/heartbeat', { token, body: {} })).status, 503)
    await db.cluster.start()
    await waitFor(async () => (await first.call('GET /readyz')).status === 200)
    t.equal((await first.server.stop()).code, 0)
    t.same(await slo(), { good: 3, bad: 2, status: 'fail' })

    const second = await withProcess(t, db)
    t.equal((await second.call('POST /v1/heartbeat', { token, body: { ts: ago(120) } })).status, 201)
    await waitFor(async () => (await slo())?.good === 4, { what: () => 'the server to report by itself' })
    await second.server.stop()
    await db.cluster.stop('immediate')
    await db.cluster.start()
    await waitFor(() =>
      slo().then(
        row => row?.good === 4,
        () => false,
      ),
    )
    const third = await withProcess(t, db)
    const { body } = await third.call('GET /metrics', { admin: true })
    t.match(body, /^slo_bad\{slo="heartbeat_writes"\} 2$/m)
    t.match(body, /^slo_error_ratio\{slo="heartbeat_writes"\} 0\.333333$/m)
  },
)

t.test('heartbeats that fail because the database is away count as failed, whoever sent them', async t => {
  const db = await withCluster(t)
  const { token } = await enroll(db, 'a')
  const { call } = await withProcess(t, db)
  await db.cluster.stop('immediate')
  const unknown = `nxd_${'0'.repeat(64)}`
  t.equal((await call('POST /v1/heartbeat', { token: unknown, body: {} })).status, 503)
  t.equal((await call('POST /v1/heartbeats', { token: unknown, body: [{}, {}] })).status, 503)
  t.equal((await call('POST /v1/heartbeat', { token, body: 'not JSON' })).status, 503)
  t.equal((await call('POST /v1/heartbeat', { token: 'none', body: {} })).status, 401)
  t.match((await call('GET /metrics', { admin: true })).body, /^hb_writes_failed_total 4$/m)
})
