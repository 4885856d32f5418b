import t, { type Test } from 'tap'
import { waitFor, withCluster, withDatabase } from '../../testing/database.ts'
import { readConfig } from '../config.ts'
import { connectHot } from '../database.ts'
import { createMetrics } from '../ops/metrics.ts'
import { toProblem } from '../problem.ts'
import { enroll, gatewayToken, serverEnv, withServer } from '../../testing/server.ts'
import { type Identity, Tokens } from './tokens.ts'

async function withTokens(t: Test) {
  const db = await withDatabase(t)
  const pool = connectHot(readConfig(serverEnv(db)).hot, 10)
  t.teardown(() => pool.end())
  const metrics = createMetrics(pool)
  const clock = { now: 0 }
  const tokens = new Tokens(pool, metrics, () => clock.now)
  const poll = () => tokens.poll(pool)
  const counts = async () => {
    const value = async (counter: typeof metrics.cacheHits) => (await counter.get()).values[0]!.value
    return { hits: await value(metrics.cacheHits), misses: await value(metrics.cacheMisses) }
  }
  return { db, pool, tokens, clock, poll, counts }
}

function isCached(tokens: Tokens, token: string) {
  return !(tokens.identify(token) instanceof Promise)
}

t.test('a token is looked up once, even for many requests at once, and again after a minute without a poll', async t => {
  const { db, tokens, clock, counts } = await withTokens(t)
  const { device_id, token } = await enroll(db, 'a')
  const found = await Promise.all(Array.from({ length: 20 }, async () => tokens.identify(token)))
  t.ok(found.every(identity => identity?.device_id === device_id))
  t.match(await counts(), { hits: 0, misses: 20 })
  t.ok(isCached(tokens, token), 'answered from the cache')
  t.match(await counts(), { hits: 1, misses: 20 })
  clock.now = 59_999
  t.ok(isCached(tokens, token))
  clock.now = 60_000
  t.notOk(isCached(tokens, token))
})

t.test('an old token ends when the device sends with its new one, even if the notification arrives later', async t => {
  const { db, tokens, poll } = await withTokens(t)
  await poll()
  const { device_id, token } = await enroll(db, 'a')
  t.match(await tokens.identify(token), { device_id })
  const [renewed] = await db.sql<{ token: string }[]>`select fleet.renew_token(${device_id}) as token`
  t.match(await tokens.identify(renewed!.token), { device_id })
  tokens.forget(`device:${device_id}`)
  t.equal(await tokens.identify(token), null)
  t.match(await tokens.identify(renewed!.token), { device_id })
})

t.test('while polls succeed, no known token is looked up again, not even by a worker that has just started', async t => {
  const { db, pool, tokens, clock, poll, counts } = await withTokens(t)
  const devices = await db.sql<{ device_id: string; token: string }[]>`
    select d.* from generate_series(1, 2000) n, fleet.create_device('d' || n) d
  `
  const gateway = await gatewayToken(db, 'hall')
  await poll()
  for (let round = 0; round < 30; round++) {
    clock.now += 10_000
    await poll()
    if (round % 6 === 0) for (const { token } of devices) void tokens.identify(token)
  }
  t.match(await counts(), { hits: 10_000, misses: 0 })
  t.match(tokens.identify(gateway), { kind: 'gateway', gateway_id: 1, next_interval_s: null })
  t.match(tokens.identify(devices[7]!.token), { kind: 'device', device_id: Number(devices[7]!.device_id), next_interval_s: 60 })
  const { token } = await enroll(db, 'new')
  t.notOk(isCached(tokens, token), 'enrolled after the start')

  // Another start, now without the revoked device.
  await db.sql`select fleet.revoke_device(${devices[0]!.device_id})`
  const restarted = new Tokens(pool, createMetrics(pool), () => clock.now)
  await restarted.poll(pool)
  t.ok(isCached(restarted, token))
  t.equal(await restarted.identify(devices[0]!.token), null)
})

t.test('text that is not a token is refused without a query, and an unknown token is remembered for seconds', async t => {
  const { tokens, clock } = await withTokens(t)
  for (const token of ['', 'x', 'nxd_', `nxd_${'A'.repeat(64)}`, `nxd_${'a'.repeat(65)}`]) t.equal(tokens.identify(token), null)
  const unknown = `nxd_${'a'.repeat(64)}`
  t.equal(await tokens.identify(unknown), null)
  t.equal(tokens.identify(unknown), null)
  clock.now = 5_000
  t.notOk(isCached(tokens, unknown))
})

t.test('a revocation removes only its device or gateway from the cache', async t => {
  const { db, tokens } = await withTokens(t)
  const [a, b] = [await enroll(db, 'a'), await enroll(db, 'b')]
  const gateway = await gatewayToken(db, 'hall')
  for (const token of [a.token, b.token, gateway]) await tokens.identify(token)
  await db.sql`select fleet.revoke_device(${a.device_id})`
  tokens.forget(`device:${a.device_id}`)
  t.equal(await tokens.identify(a.token), null)
  t.ok(isCached(tokens, b.token))
  t.ok(isCached(tokens, gateway))
  await db.sql`select fleet.revoke_gateway('hall')`
  tokens.forget('gateway:1')
  t.equal(await tokens.identify(gateway), null)
  tokens.clear()
  t.notOk(isCached(tokens, b.token))
})

t.test('after a lost notification the next poll finds what was revoked, deleted or slowed, and removes nothing else', async t => {
  const { db, tokens, poll } = await withTokens(t)
  const [a, b, c, d] = [await enroll(db, 'a'), await enroll(db, 'b'), await enroll(db, 'c'), await enroll(db, 'd')]
  const gateway = await gatewayToken(db, 'hall')
  await poll()
  await db.sql`select fleet.revoke_device(${a.device_id})`
  await db.sql`delete from fleet.devices where device_id = ${b.device_id}`
  await db.sql`update fleet.devices set heartbeat_interval = '90 seconds' where device_id = ${c.device_id}`
  await db.sql`select fleet.revoke_gateway('hall')`
  t.ok(isCached(tokens, a.token), 'the server does not know yet')
  await poll()
  for (const token of [a.token, b.token, gateway]) t.equal(await tokens.identify(token), null)
  t.match(await tokens.identify(c.token), { next_interval_s: 90 })
  t.ok(isCached(tokens, d.token))
})

t.test('a revocation in a long transaction is found after its commit, whatever was polled before', async t => {
  const { db, tokens, clock, poll } = await withTokens(t)
  const [a, b, c] = [await enroll(db, 'a'), await enroll(db, 'b'), await enroll(db, 'c')]
  await poll()
  const long = await db.sql.reserve()
  await long`begin`
  await long`select fleet.revoke_device(${a.device_id})`
  for (let n = 0; n < 3; n++) {
    // This one begins later and is committed earlier.
    if (n === 0) await db.sql`select fleet.revoke_device(${b.device_id})`
    else await db.sql`update fleet.devices set cohort = ${`cohort ${n}`} where device_id = ${c.device_id}`
    clock.now += 10_000
    await poll()
    t.equal(await tokens.identify(b.token), null)
    await tokens.identify(c.token)
    t.ok(isCached(tokens, a.token), 'still valid')
  }
  await poll()
  t.ok(isCached(tokens, c.token), 'a change that is reported again is not applied again')
  await long`commit`
  long.release()
  await poll()
  t.equal(await tokens.identify(a.token), null)
})

t.test('after an outage of more than a minute the cache is not trusted, and the answer is 503, not 401', async t => {
  const { db, tokens, clock, poll } = await withTokens(t)
  const { token } = await enroll(db, 'a')
  await poll()
  await db.admin.unsafe(`alter database ${db.name} connection limit 0`)
  const connections = () => db.admin`
    select pg_terminate_backend(pid) from pg_stat_activity
    where datname = current_database() and application_name like 'nexmdm %'
  `
  await waitFor(async () => (await connections()).length === 0)
  await t.rejects(poll())
  clock.now = 59_999
  t.ok(isCached(tokens, token), 'for a minute nothing changes')
  clock.now = 60_000
  const error: unknown = await Promise.resolve(tokens.identify(token)).catch((caught: unknown) => caught)
  t.equal(toProblem(error).status, 503)
  await db.sql`select fleet.revoke_device((select device_id from fleet.devices))`
  await db.admin.unsafe(`alter database ${db.name} connection limit -1`)
  await poll()
  t.equal(await tokens.identify(token), null)
})

t.test('after hours without a poll, or with a different Postgres, the cache is loaded again', async t => {
  const { db, tokens, clock, poll } = await withTokens(t)
  const { device_id, token } = await enroll(db, 'a')
  await poll()
  await db.sql`select fleet.revoke_device(${device_id})`
  await db.sql`delete from fleet.token_change_log`
  clock.now += 3_600_000
  await poll()
  t.equal(await tokens.identify(token), null, 'although its change is no longer in the log')

  const own = await withCluster(t)
  const pool = connectHot({ url: own.url('fleet_server') }, 2)
  t.teardown(() => pool.end())
  const other = new Tokens(pool, createMetrics(pool), () => 0)
  const b = await enroll(own, 'b')
  await other.poll(pool)
  // As if the standby that takes over had not received the change yet.
  await own.sql`select fleet.revoke_device(${b.device_id})`
  await own.sql`delete from fleet.token_change_log`
  await other.poll(pool)
  t.ok(isCached(other, b.token))
  await own.cluster.stop()
  await own.cluster.start()
  await waitFor(() =>
    other.poll(pool).then(
      () => true,
      () => false,
    ),
  )
  t.equal(await other.identify(b.token), null)
})

t.test('a slowed cohort gets its new interval from the next poll on, without a query for each device', async t => {
  const { db, tokens, poll, counts } = await withTokens(t)
  const a = await enroll(db, 'a')
  const [{ token: lobby }] = (await db.sql`select * from fleet.create_device('l', 'lobby')`) as unknown as [{ token: string }]
  const [{ token: odd }] = (await db.sql`select * from fleet.create_device('o', 'constructor')`) as unknown as [{ token: string }]
  await poll()
  const paces = () => [a.token, lobby, odd].map(token => (tokens.identify(token) as Identity).next_interval_s)
  t.same(paces(), [60, 60, 60])
  await db.sql`select fleet.set_cohort_interval('lobby', '5 minutes')`
  await poll()
  t.same(paces(), [60, 300, 60])
  await db.sql`select fleet.set_cohort_interval('lobby', '10 seconds')`
  await poll()
  t.same(paces(), [60, 60, 60], 'an interval can only slow devices down')
  await db.sql`select fleet.set_cohort_interval('lobby', '2 minutes')`
  tokens.clear()
  t.match(await tokens.identify(lobby), { own_interval_s: 60, next_interval_s: 120 }, 'looked up again')
  await db.sql`select fleet.set_cohort_interval('lobby', null)`
  await poll()
  t.match(await tokens.identify(lobby), { next_interval_s: 60 })
  t.equal((await counts()).misses, 1)
})

t.test('a lookup that began before a revocation is repeated', async t => {
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

t.test('over HTTP: a wrong token gets 401, and so does a revoked one as soon as its notification arrives', async t => {
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
  // Much sooner than the 60 s that it would take without the notification.
  await waitFor(async () => (await call('POST /v1/heartbeat', { token, body: {} })).status === 401, { timeoutMs: 20_000 })
})

t.test('a revocation while the listener was cut off is not missed', async t => {
  const { db, call } = await withServer(t)
  const { device_id, token } = await enroll(db, 'a')
  t.equal((await call('POST /v1/heartbeat', { token, body: {} })).status, 201)
  // Nobody can connect until the notification is lost. This keeps out the poll as well, which would find the change.
  await db.admin.unsafe(`alter database ${db.name} connection limit 0`)
  const listeners = () => db.admin<{ gone: boolean }[]>`
    select pg_terminate_backend(pid) as gone from pg_stat_activity
    where datname = current_database() and application_name = 'nexmdm listen'
  `
  await waitFor(async () => (await listeners()).length === 0)
  await db.sql`select fleet.revoke_device(${device_id})`
  t.not((await call('POST /v1/heartbeat', { token, body: {} })).status, 401, 'the server does not know yet')
  await db.admin.unsafe(`alter database ${db.name} connection limit -1`)
  await waitFor(async () => (await call('POST /v1/heartbeat', { token, body: {} })).status === 401, { timeoutMs: 20_000 })
})

t.test('over HTTP: a slowed cohort learns its new interval within seconds, also through a gateway', async t => {
  const { db, call } = await withServer(t)
  const { device_id, token } = await enroll(db, 'a')
  const gateway = await gatewayToken(db, 'hall')
  const pace = async () =>
    ((await call('POST /v1/heartbeat', { token, body: {} })).body as { next_interval_s: number }).next_interval_s
  t.equal(await pace(), 60)
  await db.sql`select fleet.set_cohort_interval('default', '5 minutes')`
  await waitFor(async () => (await pace()) === 300, { timeoutMs: 20_000 })
  t.match(await call('POST /v1/heartbeats', { token: gateway, body: [{ device_id }] }), {
    body: { results: [{ next_interval_s: 300 }] },
  })
  await db.sql`update fleet.devices set heartbeat_interval = '10 minutes'`
  await waitFor(async () => (await pace()) === 600, { timeoutMs: 20_000 })
})
