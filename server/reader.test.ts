import postgres from 'postgres'
import t from 'tap'
import { waitFor, withCluster, withReplica } from '../testing/database.ts'
import { readConfig } from './config.ts'
import { createLog } from '../lib/log.ts'
import { startServer } from './server.ts'
import { ago, client, enroll, serverEnv, withServer } from '../testing/server.ts'

interface Health {
  replica: { in_use: boolean; lag_seconds: number }
}

t.test('reads go to a replica while it follows, and to the primary when it does not', { timeout: 180_000 }, async t => {
  const db = await withCluster(t, { durable: true })
  const replica = await withReplica(t, db.cluster)
  const READ_DATABASE_URL = replica.url('fleet_server', 'fleet')
  const config = readConfig({ ...serverEnv(db), READ_DATABASE_URL, READ_MAX_LAG_S: '3', LOG_LEVEL: 'silent' })
  const server = await startServer(config, createLog('server', 'silent'))
  t.teardown(() => server.stop())
  const call = client(`http://127.0.0.1:${server.port}`)
  const health = async () => ((await call('GET /ops/pool_health', { admin: true })).body as Health).replica
  const follows = (inUse: boolean) =>
    waitFor(async () => (await health()).in_use === inUse, {
      timeoutMs: 60_000,
      what: () => `the replica to be ${inUse ? '' : 'no longer '}in use`,
    })
  const { device_id, token } = await enroll(db, 'a')
  let n = 0
  const write = async () => {
    n++
    const answer = await call('POST /v1/heartbeat', { token, body: { ts: ago(110 - n * 11), battery_pct: n } })
    t.equal(answer.status, 201)
    return n
  }
  const seen = async () =>
    ((await call(`GET /v1/devices/${device_id}`, { admin: true })).body as { battery_pct: number }).battery_pct
  const shows = (value: number) => waitFor(async () => (await seen()) === value, { what: () => `battery_pct ${value}` })

  await follows(true)
  await shows(await write())
  t.ok((await health()).lag_seconds < 3)

  // Replay is paused. Reads stay as they were until the lag is too large; then the primary answers.
  const onReplica = postgres(replica.url('postgres', 'fleet'), { max: 1, onnotice: () => {} })
  t.teardown(() => onReplica.end({ timeout: 1 }))
  await onReplica`select pg_wal_replay_pause()`
  await waitFor(
    async () => (await onReplica<{ state: string }[]>`select pg_get_wal_replay_pause_state() as state`)[0]!.state === 'paused',
  )
  const ahead = await write()
  await follows(false)
  t.equal(await seen(), ahead, 'from the primary')
  t.ok((await health()).lag_seconds >= 3)
  t.match((await call('GET /metrics', { admin: true })).body, /^replica_lag_seconds [3-9]/m)
  await onReplica`select pg_wal_replay_resume()`
  await follows(true)
  await shows(ahead)

  await replica.stop('immediate')
  t.equal(await seen(), ahead, 'the replica is gone, and the very next read is answered')
  await follows(false)
  const last = await write()
  t.equal(await seen(), last)
  await replica.start()
  await follows(true)
  await shows(n)
  t.match((await call('GET /v1/devices?status=online', { admin: true })).body, { devices: [{ alias: 'a' }] })
})

t.test('a URL that does not lead to a replica is not used', async t => {
  const { config, call } = await withServer(t)
  const server = await startServer({ ...config, read: config.hot }, createLog('server', 'silent'))
  t.teardown(() => server.stop())
  t.same(
    ((await call('GET /ops/pool_health', { admin: true })).body as Partial<Health>).replica,
    undefined,
    'without a replica nothing is reported about one',
  )
  const other = client(`http://127.0.0.1:${server.port}`)
  t.match((await other('GET /v1/devices', { admin: true })).body, { devices: [] })
  t.match((await other('GET /ops/pool_health', { admin: true })).body, { replica: { in_use: false } })
})
