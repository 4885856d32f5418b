import t from 'tap'
import { spawnNode, waitFor, withDatabase } from '../../testing/database.ts'
import { ago, client, enroll, gatewayToken, serverEnv, withWriter } from '../../testing/server.ts'

t.test('a queue above the threshold sheds low-priority work, and ten calm seconds end that', async t => {
  const { metrics, backpressure } = await withWriter(t)
  const gauge = async () => (await metrics.backpressure.get()).values[0]?.value
  backpressure.admit(9_999, 1)
  t.equal(backpressure.sheds('device_list'), false, 'at the threshold nothing is shed')
  backpressure.admit(10_000, 1)
  t.equal(backpressure.sheds('device_list'), true)
  t.equal(await gauge(), 1)
  t.same((await metrics.shed.get()).values, [{ value: 1, labels: { work: 'device_list' } }])
  backpressure.watch(0)
  t.equal(await gauge(), 1, 'one short moment does not end it')
  await waitFor(async () => (await gauge()) === 0)
  t.equal(backpressure.sheds('device_list'), false)
})

t.test('at the limit a request is refused as a whole', async t => {
  const { metrics, backpressure } = await withWriter(t)
  backpressure.admit(19_000, 1_000)
  const refused = t.throws(() => backpressure.admit(19_001, 1_000))
  t.match(refused, { status: 503, headers: { 'retry-after': /^([1-9]|10)$/ } })
  t.equal((await metrics.writesFailed.get()).values[0]?.value, 1_000)
})

t.test('while the database is held up, lists are shed, heartbeats wait, and this is logged and shown', async t => {
  const db = await withDatabase(t)
  const device = await enroll(db, 'a')
  const gateway = await gatewayToken(db, 'g')
  const server = await spawnNode(t, 'server/main.ts', {
    env: { ...serverEnv(db), BACKPRESSURE_QUEUE: '100' },
    ready: /"server.listening"/,
  })
  const call = client(`http://127.0.0.1:${/"port":(\d+)/.exec(server.output())![1]}`)
  t.equal((await call('GET /v1/devices', { admin: true })).status, 200)
  t.equal((await call('POST /v1/heartbeat', { token: device.token, body: {} })).status, 201)

  const locker = await db.admin.reserve()
  await locker`begin`
  await locker`lock table fleet.device_heartbeats in share mode`
  // Two statements run, and the third batch waits.
  const waiting = [1, 2, 3].map(batch =>
    call('POST /v1/heartbeats', {
      token: gateway,
      body: Array.from({ length: 900 }, (_, n) => ({ device_id: device.device_id, ts: ago(100_000 * batch + 20 * n) })),
    }),
  )
  await waitFor(async () => server.output().includes('"backpressure":true'))
  t.match(await call('GET /v1/devices', { admin: true }), { status: 503, body: { detail: /sends no lists of devices/ } })
  t.equal((await call(`GET /v1/devices/${device.device_id}`, { admin: true })).status, 200, 'one device is not low-priority')
  const { body } = await call('GET /metrics', { admin: true })
  t.match(body, /^backpressure 1$/m)
  t.match(body, /^low_priority_shed_total\{work="device_list"\} 1$/m)
  t.notMatch(body, /^partition_premake_runway_days/m, 'what the database holds is left out')
  await locker`rollback`
  locker.release()
  for (const answer of await Promise.all(waiting)) t.ok([200, 503].includes(answer.status))
  await waitFor(async () => server.output().includes('"backpressure":false'), { what: () => server.output() })
  t.equal((await call('GET /v1/devices', { admin: true })).status, 200)
  t.match((await call('GET /metrics', { admin: true })).body, /^backpressure 0$/m)
})
