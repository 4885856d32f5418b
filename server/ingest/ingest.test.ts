import { gzipSync } from 'node:zlib'
import { connect } from 'node:net'
import t from 'tap'
import { ago, enroll, gatewayToken, lastStatus, stored, withServer } from '../../testing/server.ts'

t.test('a heartbeat is in its partition and in last status before the 201', async t => {
  const { db, call } = await withServer(t)
  const { device_id, token } = await enroll(db, 'tablet')
  const ts = ago(3)
  const body = {
    ts,
    battery_pct: 80,
    network_type: 'wifi',
    unity_running: true,
    signal_dbm: -60,
    agent_version: '1.2.3',
    colour: 'red',
  }
  const answer = await call('POST /v1/heartbeat', { token, body })
  t.equal(answer.status, 201)
  t.same(Object.keys(answer.body as object).sort(), ['next_interval_s', 'result', 'ts'])
  t.match(answer.body, { result: 'stored', next_interval_s: 60 })
  t.equal(Date.parse((answer.body as { ts: string }).ts), Date.parse(ts))

  const want = {
    battery_pct: 80,
    network_type: 'wifi',
    unity_running: true,
    signal_dbm: -60,
    agent_version: '1.2.3',
    ip: '127.0.0.1',
  }
  const [row] = await db.sql`
    select h.*, p.range_start <= h.ts and h.ts < p.range_end as in_range
    from fleet.device_heartbeats h join fleet.hb_partitions p on p.relid = h.tableoid
    where device_id = ${device_id}
  `
  t.match(row, { ...want, ts: new Date(ts), in_range: true })
  t.match(await lastStatus(db, device_id), { ...want, last_ts: new Date(ts), status: 'ok' })
})

t.test("without ts the server's time counts, and null counts as absent", async t => {
  const { db, call } = await withServer(t)
  const { device_id, token } = await enroll(db, 'tablet')
  const answer = await call('POST /v1/heartbeat', { token, body: { ts: null, battery_pct: null } })
  t.equal(answer.status, 201)
  t.match((answer.body as { ts: string }).ts, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$/)
  t.equal((await stored(db, device_id)).length, 1)
})

t.test('50 parallel copies in one 10-second bucket leave one row', async t => {
  const { db, call } = await withServer(t)
  const { device_id, token } = await enroll(db, 'tablet')
  const ts = ago(60)
  const answers = await Promise.all(Array.from({ length: 50 }, () => call('POST /v1/heartbeat', { token, body: { ts } })))
  t.same(answers.map(answer => answer.status).sort(), [...Array<number>(49).fill(200), 201])
  t.equal(answers.filter(answer => (answer.body as { result: string }).result === 'duplicate').length, 49)
  t.match(answers.find(answer => answer.status === 200)?.body, { result: 'duplicate', next_interval_s: 60, ts: String })
  t.equal((await stored(db, device_id)).length, 1)
})

t.test('an older ts never rewinds last status', async t => {
  const { db, call } = await withServer(t)
  const { device_id, token } = await enroll(db, 'tablet')
  const newer = ago(10)
  t.equal((await call('POST /v1/heartbeat', { token, body: { ts: newer, battery_pct: 70 } })).status, 201)
  t.equal((await call('POST /v1/heartbeat', { token, body: { ts: ago(3600), battery_pct: 90 } })).status, 201)
  t.match(await lastStatus(db, device_id), { last_ts: new Date(newer), battery_pct: 70 })
  t.equal((await stored(db, device_id)).length, 2)
})

t.test('a heartbeat with a time outside the window is quarantined, with the reason', async t => {
  const { db, call } = await withServer(t)
  const { device_id, token } = await enroll(db, 'tablet')
  const late = await call('POST /v1/heartbeat', { token, body: { ts: '2001-01-01T00:00:00Z' } })
  t.equal(late.status, 202)
  t.same(late.body, { result: 'quarantined', reason: 'too_late', ts: '2001-01-01T00:00:00Z', next_interval_s: 60 })
  for (const ts of [ago(-3600), '9999-12-31T23:59:59Z']) {
    t.match((await call('POST /v1/heartbeat', { token, body: { ts } })).body, { result: 'quarantined', reason: 'in_future' })
  }
  t.equal((await call('POST /v1/heartbeat', { token, body: { ts: '0001-01-01T00:00:00Z' } })).status, 202)
  t.equal((await stored(db, device_id)).length, 0)
})

t.test('a full quarantine answers 429', async t => {
  const { db, call } = await withServer(t)
  const { token } = await enroll(db, 'tablet')
  await db.sql`update fleet.settings set quarantine_per_device = 1`
  t.equal((await call('POST /v1/heartbeat', { token, body: { ts: '2001-01-01T00:00:00Z' } })).status, 202)
  const answer = await call('POST /v1/heartbeat', { token, body: { ts: '2002-01-01T00:00:00Z' } })
  t.match(answer, { status: 429, body: { status: 429, detail: /quarantine_full/ } })
})

t.test('each bad field is 422 and named, and nothing is written', async t => {
  const { db, call } = await withServer(t)
  const { device_id, token } = await enroll(db, 'tablet')
  const bad: Record<string, unknown[]> = {
    ts: ['2026-02-30T00:00:00Z', 'yesterday', 5],
    battery_pct: [50.5, 101, -1, '50'],
    signal_dbm: [-201, 51, 40000],
    network_type: ['x'.repeat(33), 'a\0', '\ud800', 7],
    agent_version: ['x'.repeat(65), '\0', '\udfff'],
    unity_running: ['yes', 1],
  }
  for (const [path, values] of Object.entries(bad)) {
    for (const value of values) {
      const answer = await call('POST /v1/heartbeat', { token, body: { [path]: value } })
      t.equal(answer.status, 422, `${path} ${JSON.stringify(value)}`)
      t.equal(answer.headers.get('content-type'), 'application/problem+json')
      t.match(answer.body, {
        type: 'about:blank',
        title: 'Unprocessable Entity',
        status: 422,
        errors: [{ path, message: String }],
      })
    }
  }
  t.match(await call('POST /v1/heartbeat', { token, body: [] }), { status: 422, body: { errors: [{ path: '' }] } })
  t.equal((await stored(db, device_id)).length, 0)
  const [{ count }] = (await db.sql`select count(*)::int from fleet.heartbeat_quarantine`) as unknown as [{ count: number }]
  t.equal(count, 0)
})

t.test('a body that is not a heartbeat at all is refused', async t => {
  const { db, call, url } = await withServer(t)
  const { device_id, token } = await enroll(db, 'tablet')
  const post = (body: unknown, headers = {}) => call('POST /v1/heartbeat', { token, body, headers })
  t.equal((await post('{"battery_pct":')).status, 400)
  t.equal((await post('')).status, 400)
  t.equal((await post(Buffer.from('{"network_type":"\xff"}', 'latin1'))).status, 400, 'not UTF-8')
  t.equal((await post('{}', { 'content-type': 'text/plain' })).status, 415)
  t.equal((await post(gzipSync('{}'), { 'content-encoding': 'gzip' })).status, 415)
  t.equal((await post(JSON.stringify({ x: 'y'.repeat(20_000) }))).status, 413)
  t.equal((await post('['.repeat(16_000))).status, 400)
  t.equal((await post('{}', { 'content-type': 'application/json; charset=utf-8' })).status, 201)
  t.match(await call('PUT /v1/heartbeat', { token }), { status: 405, body: { status: 405 } })
  t.equal((await call('PUT /v1/heartbeat', { token })).headers.get('allow'), 'POST')
  t.match(await call('GET /v2/heartbeat'), { status: 404, body: { status: 404 } })
  t.equal((await stored(db, device_id)).length, 1)

  const { port } = new URL(url)
  const answer = await new Promise<string>((resolve, reject) => {
    const socket = connect(Number(port), '127.0.0.1', () => {
      socket.write(
        `POST /v1/heartbeat HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${token}\r\nTransfer-Encoding: chunked\r\n\r\n`,
      )
      for (let i = 0; i < 20; i++) socket.write(`1000\r\n${' '.repeat(4096)}\r\n`)
    })
    socket.once('data', data => {
      resolve(data.toString())
      socket.destroy()
    })
    socket.once('error', reject)
  })
  t.match(answer, /^HTTP\/1.1 413 /, 'the limit holds without Content-Length')
})

t.test('the address comes from the socket, or from the last hop of a trusted proxy', async t => {
  const { db, call } = await withServer(t, { trustProxy: true })
  const { device_id, token } = await enroll(db, 'tablet')
  await call('POST /v1/heartbeat', { token, body: {}, headers: { 'x-forwarded-for': '198.51.100.1, 203.0.113.9' } })
  t.match(await lastStatus(db, device_id), { ip: '203.0.113.9' })
})

t.test('an address that the proxy wrote with its port is stored, alone, in a batch and by a gateway', async t => {
  const { db, call } = await withServer(t, { trustProxy: true })
  const { device_id, token } = await enroll(db, 'tablet')
  const send = (path: string, token: string, body: unknown, forwarded: string) =>
    call(`POST ${path}`, { token, body, headers: { 'x-forwarded-for': forwarded } })
  await send('/v1/heartbeat', token, { ts: ago(60) }, '198.51.100.1, 203.0.113.7:51008')
  await send('/v1/heartbeats', token, [{ ts: ago(40) }], '"[2001:db8::1]:443"')
  await send('/v1/heartbeats', await gatewayToken(db, 'hall'), [{ device_id, ts: ago(20) }], '[fe80::7%25eth0]:443')
  t.same(
    (await stored(db, device_id)).map(row => row.ip as string),
    ['203.0.113.7', '2001:db8::1', 'fe80::7'],
  )
})

t.test('a batch is answered item by item, in order', async t => {
  const { db, call } = await withServer(t)
  const { device_id, token } = await enroll(db, 'tablet')
  const other = await enroll(db, 'other')
  const ts = ago(120)
  const answer = await call('POST /v1/heartbeats', {
    token,
    body: [
      { ts, battery_pct: 80 },
      { ts },
      { ts: '2001-01-01T00:00:00Z' },
      { ts: ago(60), device_id },
      { ts: ago(30), device_id: other.device_id },
      'no object',
      { battery_pct: 50.5 },
    ],
  })
  t.equal(answer.status, 200)
  t.match(answer.body, {
    results: [
      { result: 'stored', next_interval_s: 60 },
      { result: 'duplicate' },
      { result: 'quarantined', reason: 'too_late' },
      { result: 'stored' },
      { result: 'rejected', errors: [{ path: 'device_id' }] },
      { result: 'rejected', errors: [{ path: '' }] },
      { result: 'rejected', errors: [{ path: 'battery_pct' }] },
    ],
    stored: 2,
    duplicate: 1,
    quarantined: 1,
    rejected: 3,
  })
  t.equal((await stored(db, device_id)).length, 2)
  t.equal((await stored(db, other.device_id)).length, 0)
  t.same((await call('POST /v1/heartbeats', { token, body: [] })).body, {
    results: [],
    stored: 0,
    duplicate: 0,
    quarantined: 0,
    rejected: 0,
  })
})

t.test('one bad item never blocks the rest of its batch, nor its neighbours in the statement', async t => {
  const { db, call } = await withServer(t)
  const { device_id, token } = await enroll(db, 'tablet')
  const neighbour = await enroll(db, 'neighbour')
  const bad = [
    '{"network_type":"a\\u0000b"}',
    '{"network_type":"a\\ud800b"}',
    '{"battery_pct":50.5}',
    '{"ts":"2026-02-30T00:00:00Z"}',
    '{"ts":',
  ]
  for (const [index, line] of bad.entries()) {
    const good = (n: number) => JSON.stringify({ ts: ago(1000 * (index + 1) + 100 * n) })
    const [batch, single] = await Promise.all([
      call('POST /v1/heartbeats', {
        token,
        headers: { 'content-type': 'application/x-ndjson' },
        body: [good(1), line, good(2)].join('\n'),
      }),
      call('POST /v1/heartbeat', { token: neighbour.token, body: { ts: ago(1000 * (index + 1)) } }),
    ])
    t.match(
      batch,
      {
        status: 200,
        body: {
          results: [{ result: 'stored' }, { result: 'rejected', errors: [{}] }, { result: 'stored' }],
          stored: 2,
          rejected: 1,
        },
      },
      line,
    )
    t.equal(single.status, 201)
  }
  t.equal((await stored(db, device_id)).length, 2 * bad.length)
})

t.test('NDJSON: blank lines, CRLF, and bytes that are not UTF-8', async t => {
  const { db, call } = await withServer(t)
  const { token } = await enroll(db, 'tablet')
  const body = Buffer.concat([
    Buffer.from(`{"ts":"${ago(100)}"}\r\n\n   \n`),
    Buffer.from('{"network_type":"\xff"}\n', 'latin1'),
    Buffer.from(`{"ts":"${ago(50)}"}\n`),
  ])
  const answer = await call('POST /v1/heartbeats', {
    token,
    body,
    headers: { 'content-type': 'application/x-ndjson; charset=utf-8' },
  })
  t.match(answer.body, { results: [{ result: 'stored' }, { result: 'rejected', errors: [{ path: '' }] }, { result: 'stored' }] })
})

t.test(
  'a byte order mark before the JSON is accepted: alone, in a batch, in each line of NDJSON, compressed, from a gateway',
  async t => {
    const { db, call } = await withServer(t)
    const { device_id, token } = await enroll(db, 'tablet')
    const gateway = await gatewayToken(db, 'hall')
    const mark = (body: unknown) => `\uFEFF${JSON.stringify(body)}`
    const lines = { 'content-type': 'application/x-ndjson' }
    t.equal((await call('POST /v1/heartbeat', { token, body: mark({ ts: ago(70) }) })).status, 201)
    t.match(await call('POST /v1/heartbeats', { token, body: mark([{ ts: ago(60) }]) }), { status: 200, body: { stored: 1 } })
    const packed = gzipSync(mark([{ ts: ago(50) }]))
    t.match(await call('POST /v1/heartbeats', { token, body: packed, headers: { 'content-encoding': 'gzip' } }), {
      status: 200,
      body: { stored: 1 },
    })
    const joined = `${mark({ ts: ago(40) })}\r\n${mark({ ts: ago(30) })}\n\uFEFF\n`
    t.match(await call('POST /v1/heartbeats', { token, body: joined, headers: lines }), {
      status: 200,
      body: { stored: 2, rejected: 0 },
    })
    t.match(await call('POST /v1/heartbeats', { token: gateway, body: mark([{ device_id, ts: ago(20) }]) }), {
      status: 200,
      body: { stored: 1 },
    })
    t.match(await call('POST /v1/heartbeats', { token: gateway, body: mark({ device_id, ts: ago(10) }), headers: lines }), {
      status: 200,
      body: { stored: 1 },
    })
    t.equal((await stored(db, device_id)).length, 7)

    for (const body of ['\uFEFF', '\uFEFF\uFEFF{}', '{}\uFEFF'])
      t.equal((await call('POST /v1/heartbeat', { token, body })).status, 400, JSON.stringify(body))
    const utf16 = Buffer.from('\uFEFF{}', 'utf16le')
    t.match(await call('POST /v1/heartbeat', { token, body: utf16 }), { status: 400, body: { detail: /not UTF-8/ } })
  },
)

t.test('a batch may be gzip, and its limits hold after inflation', async t => {
  const { db, call } = await withServer(t)
  const { device_id, token } = await enroll(db, 'tablet')
  const post = (body: unknown, headers = {}) => call('POST /v1/heartbeats', { token, body, headers })
  const gzip = { 'content-encoding': 'gzip' }
  t.match((await post(gzipSync(JSON.stringify([{ ts: ago(20) }])), gzip)).body, { stored: 1 })
  t.equal((await post(gzipSync(Buffer.alloc(50 * 1024 * 1024, ' ')), gzip)).status, 413, 'a gzip bomb')
  t.equal((await post('not gzip', gzip)).status, 400)
  t.equal((await post('[]', { 'content-encoding': 'br' })).status, 415)
  t.equal((await post('[]', { 'content-type': 'text/csv' })).status, 415)
  t.equal((await post(' '.repeat(1024 * 1024 + 1))).status, 413)
  t.equal((await post('{}')).status, 422, 'not an array')
  t.equal((await post('[{')).status, 400)
  t.equal((await post(JSON.stringify(Array(1001).fill({})))).status, 413)
  t.equal((await post('{}\n'.repeat(1001), { 'content-type': 'application/x-ndjson' })).status, 413)
  t.equal((await stored(db, device_id)).length, 1)

  const thousand = Array.from({ length: 1000 }, (_, n) => ({ ts: ago(60 + 10 * n) }))
  t.match(await post(gzipSync(JSON.stringify(thousand)), gzip), { status: 200, body: { stored: 1000 } })
})

t.test('a gateway sends for enrolled devices, item by item', async t => {
  const { db, call } = await withServer(t)
  const [a, b, revoked] = [await enroll(db, 'a'), await enroll(db, 'b'), await enroll(db, 'c')]
  await db.sql`select fleet.revoke_device(${revoked.device_id})`
  await db.sql`update fleet.devices set heartbeat_interval = '300 seconds' where device_id = ${b.device_id}`
  const token = await gatewayToken(db, 'hall 3')
  const answer = await call('POST /v1/heartbeats', {
    token,
    body: [
      { device_id: b.device_id, ts: ago(20) },
      { device_id: 999_999 },
      { device_id: a.device_id, ts: ago(20) },
      { ts: ago(20) },
      { device_id: revoked.device_id },
    ],
  })
  t.match(answer.body, {
    results: [
      { result: 'stored', next_interval_s: 300 },
      { result: 'rejected', errors: [{ path: 'device_id' }] },
      { result: 'stored', next_interval_s: 60 },
      { result: 'rejected', errors: [{ path: 'device_id' }] },
      { result: 'rejected', errors: [{ path: 'device_id' }] },
    ],
    stored: 2,
    rejected: 3,
  })
  t.equal((await stored(db, a.device_id)).length, 1)
  t.equal((await call('POST /v1/heartbeat', { token, body: {} })).status, 401, 'only a device sends a single heartbeat')
})
