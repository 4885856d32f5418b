import { once } from 'node:events'
import { connect } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { gzipSync } from 'node:zlib'
import t from 'tap'
import { type TestDatabase, waitFor, withDatabase } from '../../testing/database.ts'
import { ago, type Call, enroll, gatewayToken, intervalAsked, load, lost, stored, withServer } from '../../testing/server.ts'

const UNKNOWN = `nxd_${'0'.repeat(64)}`
const UNKNOWN_GATEWAY = `nxg_${'0'.repeat(64)}`

/** Every call that takes a token, with a body that it accepts. */
const CALLS: [target: string, body?: unknown][] = [
  ['POST /v1/heartbeat', {}],
  ['POST /v1/heartbeats', [{ device_id: 1 }]],
  ['POST /v1/heartbeats', []],
  ['GET /v1/commands'],
  ['POST /v1/commands/1/ack'],
  ['POST /v1/commands/x/ack'],
]

async function send(call: Call, token: string, seconds = 60) {
  return call('POST /v1/heartbeat', { token, body: { ts: ago(seconds) } })
}

async function revoke(db: TestDatabase, deviceId: number) {
  await db.sql`select fleet.revoke_device(${deviceId})`
}

/** Holds up every statement that stores heartbeats, until it is released. */
async function holdUp(db: TestDatabase) {
  const locker = await db.admin.reserve()
  await locker`begin`
  await locker`lock table fleet.device_heartbeats in share mode`
  return async () => {
    await locker`rollback`
    locker.release()
  }
}

async function waitForBlocked(db: TestDatabase) {
  await waitFor(async () => {
    const waiting = await db.admin`
      select from pg_stat_activity
      where datname = current_database() and application_name = 'nexmdm server' and wait_event_type = 'Lock'
    `
    return waiting.length > 0
  })
}

t.test('a missing, malformed, unknown or revoked token is 401 in every call, and nothing is kept', async t => {
  const { db, call } = await withServer(t)
  const { device_id, token } = await enroll(db, 'a')
  const revoked = await enroll(db, 'revoked')
  await revoke(db, revoked.device_id)
  const wrong = [undefined, 'x', token.slice(0, -1), `${token}0`, token.toUpperCase(), UNKNOWN, UNKNOWN_GATEWAY, revoked.token]
  for (const [target, body] of CALLS) {
    for (const token of wrong) {
      const answer = await call(target, { ...(token !== undefined && { token }), ...(body !== undefined && { body }) })
      t.match(answer, { status: 401, body: { status: 401, title: 'Unauthorized' } }, `${target} ${token}`)
      t.match(
        answer.body,
        { detail: token === undefined ? /^A token is required/ : 'The token is unknown or revoked.' },
        `${target} ${token}`,
      )
      t.equal(
        answer.headers.get('www-authenticate'),
        token === undefined ? 'Bearer realm="fleet"' : 'Bearer realm="fleet", error="invalid_token"',
      )
    }
  }
  for (const id of [device_id, revoked.device_id]) t.same(await stored(db, id), [])
  t.same([...(await db.sql`select device_id from fleet.device_last_status where last_received_at is not null`)], [])
})

t.test('a revocation holds from the next request on: of a device, of a gateway, and of a device behind a gateway', async t => {
  const { db, call } = await withServer(t)
  const [a, b] = [await enroll(db, 'a'), await enroll(db, 'b')]
  const gateway = await gatewayToken(db, 'hall')
  const batch = (seconds: number) =>
    call('POST /v1/heartbeats', {
      token: gateway,
      body: [a, b].map(({ device_id }) => ({ device_id, ts: ago(seconds) })),
    })
  t.equal((await send(call, a.token, 600)).status, 201)
  t.match(await batch(590), { status: 200, body: { stored: 2 } })
  t.equal((await call('GET /v1/commands', { token: a.token })).status, 200)
  t.equal((await call(`DELETE /admin/devices/${a.device_id}`, { admin: true })).status, 204)
  t.equal((await send(call, a.token, 580)).status, 401)
  t.equal((await call('POST /v1/heartbeats', { token: a.token, body: [{}] })).status, 401)
  t.equal((await call('GET /v1/commands', { token: a.token })).status, 401)
  t.match(await batch(570), {
    status: 200,
    body: {
      stored: 1,
      rejected: 1,
      results: [
        { result: 'rejected', errors: [{ path: 'device_id', message: 'is not an enrolled device' }] },
        { result: 'stored', next_interval_s: 60 },
      ],
    },
  })
  await db.sql`select fleet.revoke_gateway('hall')`
  t.equal((await batch(560)).status, 401)
  t.equal((await stored(db, a.device_id)).length, 2)
  t.equal((await stored(db, b.device_id)).length, 2)
})

t.test(
  'an erased device is refused from the next request on, alone and behind a gateway, and nothing of it is stored',
  async t => {
    const { db, call } = await withServer(t)
    const [a, b] = [await enroll(db, 'a'), await enroll(db, 'b')]
    const gateway = await gatewayToken(db, 'hall')
    t.equal((await send(call, a.token, 600)).status, 201)
    t.equal((await send(call, b.token, 600)).status, 201)
    await db.sql`select fleet.erase_device(${a.device_id}, 'a test')`
    await db.sql`call fleet.run_erasures()`
    t.equal((await send(call, a.token, 580)).status, 401)
    t.equal((await call('GET /v1/commands', { token: a.token })).status, 401)
    t.equal((await call(`GET /v1/devices/${a.device_id}`, { admin: true })).status, 404)
    t.match(
      await call('POST /v1/heartbeats', {
        token: gateway,
        body: [a, b].map(({ device_id }) => ({ device_id, ts: ago(570) })),
      }),
      {
        status: 200,
        body: { results: [{ result: 'rejected', errors: [{ message: 'is not an enrolled device' }] }, { result: 'stored' }] },
      },
    )
    t.equal((await stored(db, a.device_id)).length, 0)
    t.equal((await stored(db, b.device_id)).length, 2)
    t.match(await db.sql`select state from fleet.erasure_progress`, [{ state: 'done' }])
  },
)

t.test('an old token ends with its renewal, and the new one works at once', async t => {
  const { db, call } = await withServer(t)
  const { device_id, token } = await enroll(db, 'a')
  t.equal((await send(call, token, 60)).status, 201)
  const [renewed] = await db.sql<{ token: string }[]>`select fleet.renew_token(${device_id}) as token`
  t.equal((await send(call, token, 40)).status, 401)
  t.equal((await send(call, renewed!.token, 20)).status, 201)
})

t.test('a token names its device in clear; tokens of before have no id, and a changed id is refused', async t => {
  const { db, call } = await withServer(t)
  const { device_id, token } = await enroll(db, 'a')
  t.match(token, new RegExp(`^nxd_${device_id}_[0-9a-f]{64}$`))
  t.equal((await send(call, token, 60)).status, 201)
  const other = await enroll(db, 'other')
  const secret = token.slice(-64)
  for (const forged of [`nxd_${other.device_id}_${secret}`, `nxd_0${device_id}_${secret}`, `nxd_${secret}`, `nxd__${secret}`])
    t.equal((await send(call, forged, 40)).status, 401, forged)
  const old = `nxd_${'ab'.repeat(32)}`
  await db.admin`update fleet.devices set token_hash = fleet.hash_token(${old}) where device_id = ${other.device_id}`
  t.equal((await send(call, old, 60)).status, 201)
  t.match(await call('POST /v1/heartbeats', { token: old, body: [{ ts: ago(40) }] }), { status: 200, body: { stored: 1 } })
  t.equal((await call('GET /v1/commands', { token: old })).status, 200)
  t.equal((await stored(db, other.device_id)).length, 2)
  t.equal((await stored(db, device_id)).length, 1)
})

t.test('a token of a gateway is told what to do instead where only devices may call', async t => {
  const { db, call } = await withServer(t)
  const token = await gatewayToken(db, 'hall')
  for (const body of [{}, '{', { ts: 5 }])
    t.match(await call('POST /v1/heartbeat', { token, body }), { status: 401, body: { detail: /^This call is for devices\./ } })
  for (const target of ['GET /v1/commands', 'POST /v1/commands/1/ack', 'POST /v1/commands/x/ack']) {
    const answer = await call(target, { token })
    t.match(answer, { status: 401, body: { detail: 'Commands are for devices; a gateway has none.' } }, target)
    t.equal(answer.headers.get('www-authenticate'), 'Bearer realm="fleet"')
  }
  // A prefix that says otherwise changes nothing.
  const disguised = `nxd_${'cd'.repeat(32)}`
  await db.admin`update fleet.gateways set token_hash = fleet.hash_token(${disguised})`
  const { device_id } = await enroll(db, 'a')
  t.match(await send(call, disguised), { status: 401, body: { detail: /^This call is for devices\./ } })
  t.match(await call('POST /v1/heartbeats', { token: disguised, body: [{ device_id }, {}] }), {
    status: 200,
    body: { stored: 1, rejected: 1 },
  })
})

t.test('only an authenticated sender learns what is wrong with its body, and only its fields are counted', async t => {
  const { db, call, unreadable } = await withServer(t)
  const { device_id, token } = await enroll(db, 'a')
  const gateway = await gatewayToken(db, 'hall')
  const gzip = { 'content-encoding': 'gzip' }
  const bodies: [target: string, status: number, body: unknown, headers?: Record<string, string>][] = [
    ['POST /v1/heartbeat', 400, '{"battery_pct":'],
    ['POST /v1/heartbeat', 413, JSON.stringify({ x: 'y'.repeat(20_000) })],
    ['POST /v1/heartbeat', 415, '{}', { 'content-type': 'text/plain' }],
    ['POST /v1/heartbeat', 415, gzipSync('{}'), gzip],
    ['POST /v1/heartbeat', 422, { ts: 'now' }],
    ['POST /v1/heartbeats', 400, '[{'],
    ['POST /v1/heartbeats', 400, 'no gzip', gzip],
    ['POST /v1/heartbeats', 413, '[{},'.repeat(300_000)],
    ['POST /v1/heartbeats', 413, JSON.stringify(Array(1_001).fill({}))],
    ['POST /v1/heartbeats', 415, '[]', { 'content-type': 'text/csv' }],
    ['POST /v1/heartbeats', 422, {}],
    ['POST /v1/heartbeats', 200, ['no object', { ts: 'now' }, { device_id: 'x', colour: 'red' }]],
    ['POST /v1/heartbeat', 201, { battery_pct: 'full', colour: 'red' }],
  ]
  for (const [target, , body, headers = {}] of bodies) {
    for (const wrong of [UNKNOWN, UNKNOWN_GATEWAY])
      t.equal((await call(target, { token: wrong, body, headers })).status, 401, `${target} ${JSON.stringify(body).slice(0, 20)}`)
  }
  await unreadable.tell()
  t.same([...(await db.sql`select from fleet.unreadable_fields`)], [])
  t.match((await call('GET /metrics', { admin: true })).body, /^hb_unknown_fields_total 0$/m)
  t.match((await call('GET /metrics', { admin: true })).body, /^hb_writes_total 0$/m)

  for (const [target, status, body, headers = {}] of bodies) {
    t.equal((await call(target, { token, body, headers })).status, status, `${target} ${JSON.stringify(body).slice(0, 20)}`)
    if (target.endsWith('heartbeats'))
      t.equal((await call(target, { token: gateway, body, headers })).status, status, `a gateway, ${status}`)
  }
  await unreadable.tell()
  const rows = await db.sql`select device_id::int, field, times::int from fleet.unreadable_fields order by field`
  t.same(
    [...rows],
    [
      { device_id, field: 'battery_pct', times: 1 },
      { device_id, field: 'body', times: 11 },
      { device_id, field: 'device_id', times: 1 },
      { device_id, field: 'ts', times: 2 },
    ],
  )
})

/** Sends the headers of a request, and its body only if asked to. Resolves with the first line of the answer. */
async function sendHeaders(url: string, target: string, token: string, headers: string[]) {
  const socket = connect(Number(new URL(url).port), '127.0.0.1')
  await once(socket, 'connect')
  const lines = [`POST ${target} HTTP/1.1`, 'Host: x', `Authorization: Bearer ${token}`, ...headers]
  socket.write(`${lines.join('\r\n')}\r\n\r\n`)
  const answer = once(socket, 'data').then(([data]) => String(data).split('\r\n')[0]!)
  return { socket, answer }
}

t.test('a body that may be large is not read for a sender that is not authenticated', async t => {
  const { db, url } = await withServer(t)
  const { token } = await enroll(db, 'a')
  const large = [['Content-Length: 1000000'], ['Transfer-Encoding: chunked'], ['Content-Length: 100', 'Content-Encoding: gzip']]
  for (const headers of large) {
    const wrong = await sendHeaders(url, '/v1/heartbeats', UNKNOWN, headers)
    t.match(await wrong.answer, /^HTTP\/1\.1 401 /, headers.join())
    wrong.socket.destroy()
    const good = await sendHeaders(url, '/v1/heartbeats', token, headers)
    t.equal(await Promise.race([good.answer, sleep(100, 'waits for the body')]), 'waits for the body')
    good.socket.destroy()
  }
})

t.test('senders that are not authenticated cannot hold more than a number of bodies open', async t => {
  const { db, url, call } = await withServer(t, { deviceRequestsPerMinute: 0 })
  const { token } = await enroll(db, 'a')
  const open = []
  for (let n = 0; n < 1_024; n++) open.push(sendHeaders(url, '/v1/heartbeat', UNKNOWN, ['Content-Length: 100']))
  const held = await Promise.all(open)
  const next = await sendHeaders(url, '/v1/heartbeat', UNKNOWN, ['Content-Length: 100'])
  t.match(await next.answer, /^HTTP\/1\.1 401 /, 'one more is authenticated first')
  t.equal((await send(call, token)).status, 201, 'a device works as before')
  for (const { socket } of [next, ...held]) socket.destroy()
  // Their places are free again.
  await waitFor(async () => {
    const { socket, answer } = await sendHeaders(url, '/v1/heartbeat', UNKNOWN, ['Content-Length: 100'])
    const first = await Promise.race([answer, sleep(100, 'waits for the body')])
    socket.destroy()
    return first === 'waits for the body'
  })
})

t.test(
  'while the database is away the answer is 503 and never 401, nothing is acknowledged, and what cannot be ours is 401',
  async t => {
    const { db, call } = await withServer(t)
    const { device_id, token } = await enroll(db, 'a')
    const gateway = await gatewayToken(db, 'hall')
    t.equal((await send(call, token, 600)).status, 201)
    await db.admin.unsafe(`alter database ${db.name} connection limit 0`)
    const connections = () => db.admin`
    select pg_terminate_backend(pid) from pg_stat_activity
    where datname = current_database() and application_name like 'nexmdm %'
  `
    await waitFor(async () => (await connections()).length === 0)
    for (const [target, body] of CALLS) {
      for (const each of [token, gateway, UNKNOWN, UNKNOWN_GATEWAY]) {
        const answer = await call(target, { token: each, ...(body !== undefined && { body }) })
        t.equal(answer.status, 503, `${target} ${each}`)
        t.match(answer.headers.get('retry-after'), /^\d+$/)
      }
      for (const each of ['x', `nxd_${'A'.repeat(64)}`, `nxd_${'a'.repeat(65)}`, `nxg_1_${'a'.repeat(64)}`])
        t.equal((await call(target, { token: each, ...(body !== undefined && { body }) })).status, 401, 'no query is needed')
    }
    t.equal((await call('POST /v1/heartbeat', { token: UNKNOWN, body: '{' })).status, 503, 'not 400 either')
    await revoke(db, device_id)
    await db.admin.unsafe(`alter database ${db.name} connection limit -1`)
    await waitFor(async () => (await send(call, token, 300)).status !== 503)
    t.equal((await send(call, token, 200)).status, 401)
    t.equal((await stored(db, device_id)).length, 1)
  },
)

t.test('a revocation in a long transaction holds from its commit on', async t => {
  const { db, call } = await withServer(t)
  const { device_id, token } = await enroll(db, 'a')
  const long = await db.sql.reserve()
  await long`begin`
  await long`select fleet.revoke_device(${device_id})`
  t.equal((await send(call, token, 600)).status, 201)
  t.equal((await send(call, token, 500)).status, 201)
  await long`commit`
  long.release()
  t.equal((await send(call, token, 400)).status, 401)
})

t.test('a slowed cohort learns its new interval with its next heartbeat, also through a gateway', async t => {
  const { db, call } = await withServer(t)
  const [{ device_id, token }] = (await db.sql`select * from fleet.create_device('a', 'lobby')`) as unknown as [
    { device_id: string; token: string },
  ]
  const other = await enroll(db, 'other')
  const gateway = await gatewayToken(db, 'hall')
  let seconds = 1_000
  const paces = async (interval: number) => {
    const single = await send(call, token, (seconds -= 20))
    const batch = await call('POST /v1/heartbeats', { token, body: [{ ts: ago((seconds -= 20)) }] })
    const body = [
      { device_id: Number(device_id), ts: ago((seconds -= 20)) },
      { device_id: other.device_id, ts: ago(seconds) },
    ]
    const hall = await call('POST /v1/heartbeats', { token: gateway, body })
    const results = ({ body }: { body: unknown }) => (body as { results: { next_interval_s: number }[] }).results
    return [
      ...[single.body, ...results(batch)].map(answer => intervalAsked(answer, Number(device_id), interval)),
      ...results(hall).map(({ next_interval_s }) => next_interval_s),
    ]
  }
  t.same(await paces(60), [60, 60, 60, 60])
  await db.sql`select fleet.set_cohort_interval('lobby', '5 minutes')`
  t.same(await paces(300), [300, 300, 300, 60])
  await db.sql`select fleet.set_cohort_interval('lobby', '10 seconds')`
  t.same(await paces(60), [60, 60, 60, 60], 'an interval can only slow devices down')
  await db.sql`update fleet.devices set heartbeat_interval = '10 minutes' where alias = 'a'`
  t.same(await paces(600), [600, 600, 600, 60])
})

t.test('requests of devices, of gateways and with wrong tokens share a statement, and each gets its own answer', async t => {
  const { db, call } = await withServer(t)
  const devices: { device_id: number; token: string }[] = []
  for (let n = 0; n < 20; n++) devices.push(await enroll(db, `device ${n}`))
  const [first, second, revoked, , , quarantined] = devices
  const gateways = [await gatewayToken(db, 'hall'), await gatewayToken(db, 'yard')] as const
  await revoke(db, revoked!.device_id)
  await db.sql`update fleet.devices set heartbeat_interval = '5 minutes' where device_id = ${second!.device_id}`
  const release = await holdUp(db)
  const blocked = send(call, first!.token, 900)
  await waitForBlocked(db)

  const ts = ago(300)
  const post = (path: string, token: string, body: unknown) => call(`POST ${path}`, { token, body })
  const answers = Promise.all([
    ...devices.map(({ token }) => post('/v1/heartbeat', token, { ts, battery_pct: 50, device_id: 0 })),
    post('/v1/heartbeat', UNKNOWN, { ts }),
    post('/v1/heartbeats', gateways[0], [
      { device_id: first!.device_id, ts: ago(200) },
      { device_id: revoked!.device_id, ts: ago(200) },
      { device_id: second!.device_id, ts: ago(200) },
      { device_id: 999_999, ts: '2001-01-01T00:00:00Z' },
      { device_id: quarantined!.device_id, ts: '2001-01-01T00:00:00Z' },
    ]),
    post('/v1/heartbeats', UNKNOWN_GATEWAY, [
      { device_id: first!.device_id, ts: ago(100) },
      { device_id: first!.device_id, ts: '2001-01-01T00:00:00Z' },
    ]),
    post('/v1/heartbeats', second!.token, [{ ts: ago(100) }, { ts: ago(80), device_id: first!.device_id }, { ts: ago(100) }]),
    post('/v1/heartbeats', gateways[1], [{ device_id: first!.device_id, ts }]),
  ])
  // They reach the server before these do, or with them.
  for (let n = 0; n < 10; n++) await call('GET /healthz')
  await release()
  t.equal((await blocked).status, 201)
  const all = await answers
  for (const [n, answer] of all.slice(0, 20).entries()) {
    if (n === 2) {
      t.equal(answer.status, 401)
      continue
    }
    t.match(answer, { status: 201, body: { result: 'stored', ignored: ['device_id'] } })
    const interval = n === 1 ? 300 : 60
    t.equal(intervalAsked(answer.body, devices[n]!.device_id, interval), interval)
  }
  const [unknown, hall, unknownGateway, own, yard] = all.slice(20)
  t.equal(unknown!.status, 401)
  t.equal(unknownGateway!.status, 401)
  t.match(hall, {
    status: 200,
    body: {
      stored: 2,
      quarantined: 1,
      rejected: 2,
      results: [
        { result: 'stored', next_interval_s: 60 },
        { result: 'rejected', errors: [{ message: 'is not an enrolled device' }] },
        { result: 'stored', next_interval_s: 300 },
        { result: 'rejected', errors: [{ message: 'is not an enrolled device' }] },
        { result: 'quarantined', reason: 'too_late', next_interval_s: 60 },
      ],
    },
  })
  t.match(own, {
    status: 200,
    body: {
      results: [
        { result: 'stored' },
        { result: 'rejected', errors: [{ message: 'is not the device of this token' }] },
        { result: 'duplicate' },
      ],
    },
  })
  const [stored300, refused, duplicate300] = (own!.body as { results: object[] }).results
  t.notOk('next_interval_s' in refused!)
  for (const result of [stored300, duplicate300]) t.equal(intervalAsked(result, second!.device_id, 300), 300)
  t.match(yard, { status: 200, body: { duplicate: 1 } })
  const [ofOne] = (yard!.body as { results: object[] }).results
  t.equal(intervalAsked(ofOne, first!.device_id, 60), 60)

  const count = async (id: number) => (await stored(db, id)).length
  t.same([await count(first!.device_id), await count(second!.device_id), await count(revoked!.device_id)], [3, 3, 0])
  t.match([...(await db.sql`select device_id::int from fleet.heartbeat_quarantine`)], [{ device_id: quarantined!.device_id }])
  const [row] = await db.sql`select last_received_at from fleet.device_last_status where device_id = ${revoked!.device_id}`
  t.equal(row!.last_received_at, null, 'and it was not heard from')
  t.match(
    (await call('GET /metrics', { admin: true })).body,
    /^hb_writes_total 26$/m,
    'what was refused is not counted as written',
  )
})

t.test('a heartbeat that is sent after a revocation has returned is never acknowledged', async t => {
  const db = await withDatabase(t)
  const noLimit = { deviceRequestsPerMinute: 0 }
  const servers = [await withServer(t, noLimit, db), await withServer(t, noLimit, db)]
  for (let round = 0; round < 5; round++) {
    const { device_id, token } = await enroll(db, `device ${round}`)
    const traffic = servers.map(({ url }, n) => load(url, token, 8, n * 100_000 + round * 1_000))
    await waitFor(async () => (await stored(db, device_id)).length > 20)
    await revoke(db, device_id)
    const late = await Promise.all(
      servers.flatMap(({ call }) => Array.from({ length: 20 }, (_, n) => send(call, token, 86_400 + 20 * n))),
    )
    t.ok(late.every(({ status }) => status === 401))
    await Promise.all(traffic.map(({ stop }) => stop()))
    const acknowledged = traffic.flatMap(each => each.acknowledged)
    t.same(await lost(db, device_id, acknowledged), [], 'what was acknowledged before is stored')
    const [{ after }] = (await db.sql`
      select count(*)::int as after from fleet.device_heartbeats h join fleet.devices d using (device_id)
      where device_id = ${device_id} and h.received_at > d.revoked_at + interval '1 minute'
    `) as unknown as [{ after: number }]
    t.equal(after, 0)
  }
})

t.test('a wrong token cannot fill the queue, however many heartbeats are in its requests', async t => {
  const { db, call } = await withServer(t)
  const { token } = await enroll(db, 'good')
  const release = await holdUp(db)
  const first = send(call, token)
  await waitForBlocked(db)
  // 30,000 heartbeats; the queue holds 20,000. They are refused while no heartbeat can be stored.
  const wrong = await Promise.all(
    Array.from({ length: 30 }, () => call('POST /v1/heartbeats', { token: UNKNOWN, body: Array<object>(1_000).fill({}) })),
  )
  t.same(new Set(wrong.map(({ status }) => status)), new Set([401]))
  const second = send(call, token, 30)
  await release()
  t.same([(await first).status, (await second).status], [201, 201])
})
