import t, { type Test } from 'tap'
import { waitFor, withDatabase } from '../local/testing.ts'
import { readConfig } from './config.ts'
import { connectHot } from './database.ts'
import { createMetrics } from './metrics.ts'
import { enroll, gatewayToken, serverEnv, withServer } from './testing.ts'
import { Tokens } from './tokens.ts'

async function withTokens(t: Test) {
  const db = await withDatabase(t)
  const pool = connectHot(readConfig(serverEnv(db)).hot, 10)
  t.teardown(() => pool.end())
  const metrics = createMetrics(pool)
  const clock = { now: 0 }
  const tokens = new Tokens(pool, metrics, () => clock.now)
  const counts = async () => {
    const value = async (counter: typeof metrics.cacheHits) => (await counter.get()).values[0]!.value
    return { hits: await value(metrics.cacheHits), misses: await value(metrics.cacheMisses) }
  }
  return { db, tokens, clock, counts }
}

t.test('a token is asked for once, also by many at once, until it is a minute old', async t => {
  const { db, tokens, clock, counts } = await withTokens(t)
  const { device_id, token } = await enroll(db, 'a')
  const found = await Promise.all(Array.from({ length: 20 }, async () => tokens.identify(token)))
  t.ok(found.every(identity => identity?.device_id === device_id))
  t.match(await counts(), { hits: 0, misses: 20 })
  t.notOk(tokens.identify(token) instanceof Promise, 'from the cache at once')
  t.match(await counts(), { hits: 1, misses: 20 })
  clock.now = 59_999
  t.notOk(tokens.identify(token) instanceof Promise)
  clock.now = 60_000
  t.ok(tokens.identify(token) instanceof Promise)
})

t.test('what is not a token is refused without a query, an unknown one is remembered for seconds', async t => {
  const { tokens, clock } = await withTokens(t)
  for (const token of ['', 'x', 'nxd_', `nxd_${'A'.repeat(64)}`, `nxd_${'a'.repeat(65)}`]) t.equal(tokens.identify(token), null)
  const unknown = `nxd_${'a'.repeat(64)}`
  t.equal(await tokens.identify(unknown), null)
  t.equal(tokens.identify(unknown), null)
  clock.now = 5_000
  t.ok(tokens.identify(unknown) instanceof Promise)
})

t.test('a revocation forgets its device or gateway only', async t => {
  const { db, tokens } = await withTokens(t)
  const [a, b] = [await enroll(db, 'a'), await enroll(db, 'b')]
  const gateway = await gatewayToken(db, 'hall')
  for (const token of [a.token, b.token, gateway]) await tokens.identify(token)
  await db.sql`select fleet.revoke_device(${a.device_id})`
  tokens.forget(`device:${a.device_id}`)
  t.equal(await tokens.identify(a.token), null)
  t.notOk(tokens.identify(b.token) instanceof Promise)
  t.notOk(tokens.identify(gateway) instanceof Promise)
  tokens.clear()
  t.ok(tokens.identify(b.token) instanceof Promise)
})

t.test('an answer from before a revocation is asked for again', async t => {
  const { db, tokens } = await withTokens(t)
  const { device_id, token } = await enroll(db, 'a')
  // The lookup has its snapshot, waits for the table, and then sees the device as it was.
  const revoker = await db.sql.reserve()
  await revoker`begin`
  await revoker`lock table fleet.devices in access exclusive mode`
  const asked = tokens.identify(token)
  await waitFor(async () => {
    const waiting = await db.admin`
      select from pg_stat_activity
      where datname = current_database() and application_name = 'nexmdm server' and wait_event_type = 'Lock'
    `
    return waiting.length === 1
  })
  await revoker`select fleet.revoke_device(${device_id})`
  tokens.forget(`device:${device_id}`)
  await revoker`commit`
  revoker.release()
  t.equal(await asked, null)
  t.equal(await tokens.identify(token), null)
})

t.test('over HTTP: wrong and revoked tokens are 401, a revoked one by its notification', async t => {
  const { db, call } = await withServer(t)
  const { device_id, token } = await enroll(db, 'a')
  t.equal((await call('POST /v1/heartbeat', { token, body: {} })).status, 201)
  for (const path of ['/v1/heartbeat', '/v1/heartbeats']) {
    for (const wrong of [undefined, 'x', `nxd_${'0'.repeat(64)}`, token.slice(0, -1)]) {
      const answer = await call(`POST ${path}`, { ...(wrong === undefined ? {} : { token: wrong }), body: {} })
      t.match(answer, { status: 401, body: { status: 401 } })
      t.match(answer.headers.get('www-authenticate'), /^Bearer/)
    }
  }
  t.equal((await call(`DELETE /admin/devices/${device_id}`, { admin: true })).status, 204)
  // Far within the 60 s that it would take without the notification.
  await waitFor(async () => (await call('POST /v1/heartbeat', { token, body: {} })).status === 401, { patience: 20_000 })
})

t.test('a revocation while the listener was cut off is not missed', async t => {
  const { db, call } = await withServer(t)
  const { device_id, token } = await enroll(db, 'a')
  t.equal((await call('POST /v1/heartbeat', { token, body: {} })).status, 201)
  // Nobody gets in until the notification is over and lost.
  await db.admin.unsafe(`alter database ${db.name} connection limit 0`)
  const listeners = () => db.admin<{ gone: boolean }[]>`
    select pg_terminate_backend(pid) as gone from pg_stat_activity
    where datname = current_database() and application_name = 'nexmdm listen'
  `
  await waitFor(async () => (await listeners()).length === 0)
  await db.sql`select fleet.revoke_device(${device_id})`
  t.not((await call('POST /v1/heartbeat', { token, body: {} })).status, 401, 'not heard of yet')
  await db.admin.unsafe(`alter database ${db.name} connection limit -1`)
  await waitFor(async () => (await call('POST /v1/heartbeat', { token, body: {} })).status === 401, { patience: 20_000 })
})
