import { gzipSync } from 'node:zlib'
import { connect } from 'node:net'
import fc from 'fast-check'
import t from 'tap'
import type { TestDatabase } from '../../testing/database.ts'
import { partitionOf } from '../../testing/archiver.ts'
import { ago, type Call, enroll, gatewayToken, intervalAsked, lastStatus, stored, withServer } from '../../testing/server.ts'
import { FIELDS } from './fields.ts'

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
  }
  const answer = await call('POST /v1/heartbeat', { token, body })
  t.equal(answer.status, 201)
  t.same(Object.keys(answer.body as object).sort(), ['next_interval_s', 'result', 'ts'])
  t.match(answer.body, { result: 'stored' })
  t.equal(intervalAsked(answer.body, device_id, 60), 60)
  t.equal(Date.parse((answer.body as { ts: string }).ts), Date.parse(ts))

  const want = {
    battery_pct: 80,
    network_type: 'wifi',
    unity_running: true,
    signal_dbm: -60,
    agent_version: '1.2.3',
    ip: '127.0.0.1',
  }
  const partition = await partitionOf(db.sql, ts)
  const [row] = await db.sql`select * from fleet.${db.sql(partition)} where device_id = ${device_id}`
  t.match(row, { ...want, ts: new Date(ts) })
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
  const duplicate = answers.find(answer => answer.status === 200)?.body
  t.match(duplicate, { result: 'duplicate', ts: String })
  t.equal(intervalAsked(duplicate, device_id, 60), 60)
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
  t.match(late.body, { result: 'quarantined', reason: 'too_late', ts: '2001-01-01T00:00:00Z' })
  t.equal(intervalAsked(late.body, device_id, 60), 60)
  for (const ts of [ago(-3600), '9999-12-31T23:59:59Z']) {
    t.match((await call('POST /v1/heartbeat', { token, body: { ts } })).body, { result: 'quarantined', reason: 'in_future' })
  }
  t.equal((await call('POST /v1/heartbeat', { token, body: { ts: '0001-01-01T00:00:00Z' } })).status, 202)
  t.equal((await stored(db, device_id)).length, 0)
})

t.test('a heartbeat for which the quarantine is full is answered as rejected, and the device is paced', async t => {
  const { db, call } = await withServer(t)
  const { device_id, token } = await enroll(db, 'tablet')
  await db.sql`update fleet.settings set quarantine_per_device = 1`
  t.equal((await call('POST /v1/heartbeat', { token, body: { ts: '2001-01-01T00:00:00Z' } })).status, 202)
  const answer = await call('POST /v1/heartbeat', { token, body: { ts: '2002-01-01T00:00:00Z' } })
  const want = { result: 'rejected', reason: 'quarantine_full', ts: '2002-01-01T00:00:00Z' }
  t.equal(answer.status, 200)
  t.match(answer.body, want)
  t.equal(intervalAsked(answer.body, device_id, 60), 60)
  t.match((await call('POST /v1/heartbeats', { token, body: [{ ts: '2003-01-01T00:00:00Z' }] })).body, {
    results: [{ ...want, ts: '2003-01-01T00:00:00Z' }],
    rejected: 1,
  })
})

/** Sends a heartbeat the three ways that there are; each answer with what was ignored. */
async function sendEachWay(db: TestDatabase, call: Call, beat: (n: number) => unknown) {
  const { device_id, token } = await enroll(db, `tablet ${sent++}`)
  const gateway = await gatewayToken(db, `hall ${sent}`)
  const answers = [
    await call('POST /v1/heartbeat', { token, body: beat(1) }),
    await call('POST /v1/heartbeats', { token, body: [beat(2)] }),
    await call('POST /v1/heartbeats', { token: gateway, body: [{ device_id, ...(beat(3) as object) }] }),
  ]
  return { device_id, answers }
}
let sent = 0

t.test('a heartbeat with a wrong clock counts, whichever way it is sent', async t => {
  const { db, call } = await withServer(t)
  const clocks = [
    { ts: (n: number) => `1970-01-01T00:0${n}:00Z`, result: 'quarantined' },
    { ts: (n: number) => ago(6 * 3600 + 60 * n), result: 'stored' },
    { ts: (n: number) => ago(-7200 - 60 * n), result: 'quarantined' },
  ]
  for (const { ts, result } of clocks) {
    const { device_id, answers } = await sendEachWay(db, call, n => ({
      ts: ts(4 - n),
      battery_pct: 40 + n,
      unity_running: false,
    }))
    t.match(answers[0], { body: { result } })
    t.equal(intervalAsked(answers[0]!.body, device_id, 60), 60)
    for (const answer of answers.slice(1)) {
      t.match(answer, { status: 200, body: { [result]: 1 } })
      t.equal(intervalAsked((answer.body as { results: unknown[] }).results[0], device_id, 60), 60)
    }
    const device = await call(`GET /v1/devices/${device_id}`, { admin: true })
    t.match(device.body, { status: 'clock_skewed', unity_running: false, battery_pct: 43 })
    t.ok((device.body as { seconds_since: number }).seconds_since < 60)
  }
})

t.test('an optional field that cannot be read costs only itself: alone, in a batch and by a gateway', async t => {
  const { db, call } = await withServer(t)
  const odd = {
    battery_pct: 87.5,
    signal_dbm: 40000,
    unity_running: 'yes',
    network_type: 'a\0b',
    agent_version: 'x'.repeat(65),
    extra: [1],
  }
  for (const [name, value] of Object.entries(odd)) {
    const { device_id, answers } = await sendEachWay(db, call, n => ({ ts: ago(100 * n), [name]: value }))
    t.match(answers[0], { status: 201, body: { result: 'stored', ignored: [name] } }, name)
    for (const answer of answers.slice(1)) t.match(answer, { status: 200, body: { stored: 1, ignored: [name] } }, name)
    const rows = await stored(db, device_id)
    t.same(
      rows.map(row => row[name] as unknown),
      [null, null, null],
      name,
    )
  }
})

t.test('what Android means by unknown is null, and what can be read without doubt is read', async t => {
  const { db, call } = await withServer(t)
  const { device_id, answers } = await sendEachWay(db, call, n => ({
    ts: ago(100 * n),
    battery_pct: '87',
    signal_dbm: 2147483647,
    unity_running: 1,
    network_type: 'UNKNOWN',
  }))
  for (const { body } of answers) t.notOk((body as { ignored?: unknown }).ignored)
  for (const row of await stored(db, device_id))
    t.match(row, { battery_pct: 87, signal_dbm: null, unity_running: true, network_type: null })
})

t.test('unknown fields are ignored, named once in the answer, and counted', async t => {
  const { db, call } = await withServer(t)
  const { answers } = await sendEachWay(db, call, n => ({ ts: ago(100 * n), batery_pct: 5, colour: 'red' }))
  for (const { body } of answers) t.same((body as { ignored?: unknown }).ignored, ['batery_pct', 'colour'])
  const { token } = await enroll(db, 'other')
  const body = [1, 2, 3].map(n => ({ ts: ago(100 * n), batery_pct: n }))
  t.same(((await call('POST /v1/heartbeats', { token, body })).body as { ignored: unknown }).ignored, ['batery_pct'])
  const metrics = (await call('GET /metrics', { admin: true })).body as string
  t.match(metrics, /^hb_unknown_fields_total 9$/m)
})

t.test("an agent's own values are stored with the heartbeat and shown with the device", async t => {
  const { db, call } = await withServer(t)
  const extra = { store: 12, kiosk: true, 'ä"': [null, 1.5, { deep: '😀' }] }
  const { device_id } = await sendEachWay(db, call, n => ({ ts: ago(100 * n), extra: { ...extra, n } }))
  const rows = await stored(db, device_id)
  t.same(
    rows.map(row => row.extra as unknown),
    [3, 2, 1].map(n => ({ ...extra, n })),
  )
  t.match(await lastStatus(db, device_id), { extra: { ...extra, n: 1 } })
  t.match(await call(`GET /v1/devices/${device_id}`, { admin: true }), { status: 200, body: { extra: { ...extra, n: 1 } } })
})

t.test("agent's own values that cannot be stored as they were sent cost only themselves", async t => {
  const { db, call, unreadable } = await withServer(t)
  // As text, because JavaScript could not send some of them.
  const odd = {
    array: '[1]',
    text: '"{}"',
    number: '5',
    'too large': `{"a":"${'x'.repeat(2041)}"}`,
    'too deep': '{"a":{"b":{"c":{"d":{}}}}}',
    'far too deep': `${'{"a":'.repeat(2_000)}1${'}'.repeat(2_000)}`,
    'a whole number that would be rounded': '{"id":9007199254740993}',
    'a number that would be infinite': '{"a":[1e400]}',
    NUL: '{"a":"\\u0000"}',
    'half a surrogate pair': '{"\\ud800":1}',
  }
  for (const [name, extra] of Object.entries(odd)) {
    const { device_id, token } = await enroll(db, name)
    const gateway = await gatewayToken(db, name)
    const fields = (n: number) => `"ts":"${ago(100 * n)}","battery_pct":${n},"extra":${extra}`
    t.match(await call('POST /v1/heartbeat', { token, body: `{${fields(1)}}` }), {
      status: 201,
      body: { result: 'stored', ignored: ['extra'] },
    })
    const batch = { status: 200, body: { stored: 1, ignored: ['extra'] } }
    t.match(await call('POST /v1/heartbeats', { token, body: `[{${fields(2)}}]` }), batch, name)
    t.match(await call('POST /v1/heartbeats', { token: gateway, body: `[{"device_id":${device_id},${fields(3)}}]` }), batch, name)
    t.match(
      await stored(db, device_id),
      [3, 2, 1].map(battery_pct => ({ battery_pct, extra: null })),
      name,
    )
    await unreadable.tell()
    t.match(await db.sql`select field, times::int from fleet.unreadable_fields where device_id = ${device_id}`, [
      { field: 'extra', times: 3 },
    ])
  }
  const { device_id, token } = await enroll(db, 'twice')
  t.match(await call('POST /v1/heartbeat', { token, body: '{"extra":{"a":1,"b":0.1,"a":{"c":1e-7}}}' }), { status: 201 })
  t.match(
    await db.sql`select extra::text from fleet.device_heartbeats where device_id = ${device_id}`,
    [{ extra: '{"a": {"c": 0.0000001}, "b": 0.1}' }],
    'of two equal names the last one counts',
  )
})

t.test('what cannot be read is counted by field and device, and named by check()', async t => {
  const { db, call, unreadable } = await withServer(t)
  const { device_id, answers } = await sendEachWay(db, call, n => ({ ts: ago(100 * n), battery_pct: 87.5 }))
  t.equal(answers.length, 3)
  const lost = await enroll(db, 'lost')
  for (const ts of ['2026-02-30T00:00:00Z', 1767225600])
    t.equal((await call('POST /v1/heartbeat', { token: lost.token, body: { ts } })).status, 422)
  t.equal((await call('POST /v1/heartbeat', { token: lost.token, body: '{"battery_pct":NaN}' })).status, 400)
  t.equal((await call('POST /v1/heartbeats', { token: lost.token, body: '[{]' })).status, 400)
  await call('POST /v1/heartbeats', { token: lost.token, body: [{ device_id: 999 }, { ts: 5 }] })
  await unreadable.tell()
  const rows = await db.sql`
    select device_id::int, field, times::int, example from fleet.unreadable_fields order by device_id, field
  `
  t.same(
    [...rows],
    [
      { device_id, field: 'battery_pct', times: 3, example: '87.5' },
      { device_id: lost.device_id, field: 'body', times: 2, example: '"The body is not JSON."' },
      { device_id: lost.device_id, field: 'device_id', times: 1, example: '999' },
      { device_id: lost.device_id, field: 'ts', times: 3, example: '5' },
    ],
  )
  const [check] = await db.sql`select * from fleet.check_fields()`
  t.match(check, {
    check_name: 'unreadable_fields',
    status: 'warn',
    detail: /battery_pct of 1 devices \(device \d+ sent 87\.5\)/,
  })
  const metrics = (await call('GET /metrics', { admin: true })).body as string
  t.match(metrics, /^hb_unreadable_fields_total\{field="battery_pct"\} 3$/m)
})

t.test('counts that the database did not take are reported later', async t => {
  const { db, call, unreadable } = await withServer(t)
  const { device_id, token } = await enroll(db, 'tablet')
  const send = (n: number) => call('POST /v1/heartbeat', { token, body: { ts: ago(100 * n), battery_pct: 'full' } })
  await db.sql`alter table fleet.device_unreadable_fields rename to away`
  await send(1)
  await unreadable.tell()
  await send(2)
  await db.sql`alter table fleet.away rename to device_unreadable_fields`
  await unreadable.tell()
  await unreadable.tell()
  const [row] = await db.sql`select times::int from fleet.unreadable_fields where device_id = ${device_id}`
  t.same(row, { times: 2 })
})

t.test('no optional field, whatever it holds, costs a heartbeat whose ts and device are good', async t => {
  const { db, call } = await withServer(t)
  const { device_id, token } = await enroll(db, 'tablet')
  const gateway = await gatewayToken(db, 'hall')
  const odd = fc.oneof(
    fc.jsonValue({ maxDepth: 6 }),
    fc.string({ unit: 'binary', maxLength: 80 }),
    fc.integer(),
    fc.double(),
    fc.constantFrom('\0', '\ud800', 'NaN', '1e400', 2 ** 53, -1, true, {}, []),
  )
  const beat = fc.dictionary(fc.oneof(fc.constantFrom(...FIELDS.keys()), fc.string({ unit: 'binary', maxLength: 8 })), odd, {
    maxKeys: 10,
  })
  const now = Date.now()
  let sent = 0
  await fc.assert(
    fc.asyncProperty(fc.array(beat, { minLength: 3, maxLength: 60 }), async beats => {
      const timed = beats.map(fields => ({ ...fields, device_id, ts: new Date(now - 20_000 * ++sent).toISOString() }))
      const [single, ...rest] = timed
      const half = rest.length >> 1
      const answers = [
        await call('POST /v1/heartbeat', { token, body: single }),
        await call('POST /v1/heartbeats', { token, body: rest.slice(0, half) }),
        await call('POST /v1/heartbeats', { token: gateway, body: rest.slice(half) }),
      ]
      if (answers[0]!.status !== 201) throw new Error(JSON.stringify(answers[0]!.body))
      const stored = answers.slice(1).map(({ body }) => (body as { stored: number }).stored)
      if (stored[0]! + stored[1]! !== rest.length) throw new Error(JSON.stringify(answers.map(({ body }) => body)))
    }),
    { numRuns: 60, endOnFailure: true },
  )
  t.equal((await stored(db, device_id)).length, sent)
})

t.test('a bad ts is 422 and named, and nothing is written', async t => {
  const { db, call } = await withServer(t)
  const { device_id, token } = await enroll(db, 'tablet')
  for (const ts of ['2026-02-30T00:00:00Z', 'yesterday', 5]) {
    const answer = await call('POST /v1/heartbeat', { token, body: { ts, battery_pct: 50 } })
    t.equal(answer.status, 422, JSON.stringify(ts))
    t.equal(answer.headers.get('content-type'), 'application/problem+json')
    t.match(answer.body, {
      type: 'about:blank',
      title: 'Unprocessable Entity',
      status: 422,
      errors: [{ path: 'ts', message: String }],
    })
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
      { ts: 'now' },
    ],
  })
  t.equal(answer.status, 200)
  t.match(answer.body, {
    results: [
      { result: 'stored', next_interval_s: Number },
      { result: 'duplicate', next_interval_s: Number },
      { result: 'quarantined', reason: 'too_late' },
      { result: 'stored' },
      { result: 'rejected', errors: [{ path: 'device_id' }] },
      { result: 'rejected', errors: [{ path: '' }] },
      { result: 'rejected', errors: [{ path: 'ts' }] },
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
  const bad = ['{"ts":"a\\u0000b"}', '{"ts":5}', '[]', '{"ts":"2026-02-30T00:00:00Z"}', '{"ts":']
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
