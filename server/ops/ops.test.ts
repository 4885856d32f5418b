import t from 'tap'
import { waitFor, withDatabase } from '../../testing/database.ts'
import { ADMIN_KEY, ago, enroll, lastStatus, living, withProcess, withServer } from '../../testing/server.ts'
import { version } from '../../lib/version.ts'

interface Steps {
  steps: { step: string; partition_name: string | null; ok?: boolean }[]
}

t.test('POST /ops/nightly: first the plan, then the steps', async t => {
  const { db, call } = await withServer(t)
  // Partitions ahead are left out: after noon pg_partman makes one more.
  const attached = async () =>
    (await db.sql`select from fleet.hb_partitions where state = 'active' and range_start <= now()`).length
  const before = await attached()

  const plan = await call('POST /ops/nightly?dry_run=1&retention_days=60', { admin: true })
  t.equal(plan.status, 200, JSON.stringify(plan.body))
  const retired = (plan.body as Steps).steps.filter(({ step }) => step === 'retire')
  t.ok(retired.length >= 29, `${retired.length} days from 60 to 90`)
  t.equal(await attached(), before, 'a dry run changes nothing')

  const run = await call('POST /ops/nightly?retention_days=60', { admin: true })
  t.equal(run.status, 200, JSON.stringify(run.body))
  const { steps } = run.body as Steps
  t.ok(steps.length > 0)
  t.ok(
    steps.every(({ ok }) => ok),
    JSON.stringify(steps.filter(({ ok }) => !ok)),
  )
  t.equal(await attached(), before - retired.length)

  for (const query of ['dry_run=maybe', 'retention_days=0', 'retention_days=x']) {
    t.match(await call(`POST /ops/nightly?${query}`, { admin: true }), {
      status: 422,
      body: { errors: [{ path: query.split('=')[0] }] },
    })
  }
})

t.test('a nightly run during another one is 409, with a hint', async t => {
  const { db, call } = await withServer(t)
  const other = await db.sql.reserve()
  await other`select fleet.begin_run('nightly')`
  t.match(await call('POST /ops/nightly', { admin: true }), { status: 409, body: { detail: /already running/, hint: String } })
  await other`select pg_advisory_unlock_all()`
  other.release()
  t.equal((await call('POST /ops/nightly', { admin: true })).status, 200)
})

t.test('reconcile repairs a last status that is behind', async t => {
  const { db, call } = await withServer(t)
  const { device_id, token } = await enroll(db, 'a')
  await call('POST /v1/heartbeat', { token, body: { ts: ago(60), battery_pct: 40 } })
  await db.sql`update fleet.device_last_status set last_ts = last_ts - interval '1 hour', battery_pct = 1 where device_id = ${device_id}`
  const answer = await call('POST /ops/reconcile', { admin: true })
  t.match(answer, { status: 200, body: { checked: Number, updated: 1, elapsed_ms: Number } })
  t.match(await lastStatus(db, device_id), { battery_pct: 40 })
})

t.test('pool health', async t => {
  const { call } = await withServer(t)
  t.same((await call('GET /ops/pool_health', { admin: true })).body, {
    status: 'ok',
    pool: { in_use: 0, max: 10, utilization_pct: 0, waiting: 0 },
  })
})

t.test('a pool that is full is critical, and readers wait their turn', async t => {
  const { db, call } = await withServer(t, { poolMax: 1 })
  const locker = await db.admin.reserve()
  await locker`begin`
  await locker`lock table fleet.devices in access exclusive mode`
  const reads = [1, 2, 3].map(() => call('GET /v1/devices', { admin: true }))
  let health: unknown
  await waitFor(async () => {
    health = (await call('GET /ops/pool_health', { admin: true })).body
    return (health as { pool: { waiting: number } }).pool.waiting === 2
  })
  t.same(health, { status: 'critical', pool: { in_use: 1, max: 1, utilization_pct: 100, waiting: 2 } })
  await locker`rollback`
  locker.release()
  t.same(
    (await Promise.all(reads)).map(({ status }) => status),
    [200, 200, 200],
  )
  t.match((await call('GET /metrics', { admin: true })).body, /^db_pool_waits_total [2-9]$/m)
})

t.test("pool health: ok below 80 % of all workers' connections, warn from there, critical from 95 %", async t => {
  const db = await withDatabase(t)
  const { device_id } = await enroll(db, 'a')
  const { server, call } = await withProcess(t, db, { WORKERS: '2' })
  await waitFor(async () => living(server).length === 2)
  const health = async () => (await call('GET /ops/pool_health', { admin: true })).body as { pool: { in_use: number } }
  for (const [in_use, status, utilization_pct] of [
    [15, 'ok', 75],
    [16, 'warn', 80],
    [18, 'warn', 90],
    [19, 'critical', 95],
  ] as const) {
    const locker = await db.admin.reserve()
    let seen: Awaited<ReturnType<typeof health>> | undefined
    // So many requests on separate connections are not always shared out evenly, and each waits for at most 2 s. Then try again.
    for (let wave = 1; wave <= 20 && seen?.pool.in_use !== in_use; wave++) {
      await locker`begin`
      await locker`lock table fleet.devices in access exclusive mode`
      const reads = Array.from({ length: in_use }, () =>
        call(`GET /v1/devices/${device_id}`, { admin: true, headers: { connection: 'close' } }),
      )
      const until = Date.now() + 1_000
      do seen = await health()
      while (seen.pool.in_use !== in_use && Date.now() < until)
      await locker`rollback`
      await Promise.all(reads)
    }
    locker.release()
    t.same(seen, { status, pool: { in_use, max: 20, utilization_pct, waiting: 0 } })
  }
})

t.test('metrics count what happened, and accept the admin key in either header', async t => {
  const { db, call } = await withServer(t)
  const { token } = await enroll(db, 'a')
  const ts = ago(60)
  for (const body of [{ ts }, { ts }, { ts: '2001-01-01T00:00:00Z' }]) await call('POST /v1/heartbeat', { token, body })
  await call('GET /v1/devices', { admin: true })
  const { status, body, headers } = await call('GET /metrics', { headers: { authorization: `Bearer ${ADMIN_KEY}` } })
  t.equal(status, 200)
  t.match(headers.get('content-type'), /^text\/plain; version=0\.0\.4/)
  const text = body as string
  const lines = [
    'hb_writes_total 3',
    'hb_writes_failed_total 0',
    'hb_deduplicated_total 1',
    'hb_quarantined_total 1',
    'heartbeats_ingested_total 1',
    'last_status_upserts_total 1',
    'hb_write_latency_ms_count 3',
    'backpressure 0',
    'db_pool_in_use 0',
    'last_status_read_latency_ms_count{query="list"} 1',
    'http_request_latency_ms_count{route="POST /v1/heartbeat"} 3',
  ]
  for (const line of lines) t.ok(text.includes(`\n${line}\n`), line)
  t.match(text, /^partition_premake_runway_days 1[45]/m, 'and what the database holds is there')
  const families = [...text.matchAll(/^# TYPE (\S+)/gm)].map(match => match[1])
  t.equal(new Set(families).size, families.length, 'each family once')
})

t.test('health needs no key, and readiness asks the database', async t => {
  const { db, call } = await withServer(t)
  t.same((await call('GET /healthz')).body, { status: 'ok', version })
  t.same((await call('GET /readyz')).body, { status: 'ready' })
  await db.admin`alter function fleet.ingest_batch(json, timestamptz, bytea[], integer[]) rename to ingest_gone`
  t.match(await call('GET /readyz'), { status: 503, body: { status: 503 } })
  t.equal((await call('GET /healthz')).status, 200)
  const scrape = await call('GET /metrics', { admin: true })
  t.equal(scrape.status, 200)
})
