import t from 'tap'
import { plainOnly } from '../../testing/distributed.ts'
import { ingestOnTime } from '../../testing/fleet.ts'
import { waitFor } from '../../testing/database.ts'
import { ago, enroll, intervalAsked, lastStatus, withServer } from '../../testing/server.ts'

interface Page {
  devices: { device_id: number; alias: string; status: string }[]
  next_cursor: string | null
}

t.test('enrolling returns an id and a token that works, and an alias can be used only once', async t => {
  const { db, call } = await withServer(t)
  const answer = await call('POST /admin/devices', { admin: true, body: { alias: 'lobby 7', cohort: 'lobby' } })
  t.equal(answer.status, 201)
  t.equal(answer.headers.get('cache-control'), 'no-store')
  const { device_id, token } = answer.body as { device_id: number; token: string }
  t.match(token, /^nxd_\d+_[0-9a-f]{64}$/)
  t.equal(typeof device_id, 'number')
  t.equal((await call('POST /v1/heartbeat', { token, body: {} })).status, 201)
  const [row] = await db.sql`select alias, cohort from fleet.devices where device_id = ${device_id}`
  t.same(row, { alias: 'lobby 7', cohort: 'lobby' })

  const again = await call('POST /admin/devices', { admin: true, body: { alias: 'lobby 7' } })
  t.match(again, {
    status: 409,
    body: { title: 'Conflict', detail: /lobby 7/, hint: new RegExp(`/admin/devices/${device_id}/token`) },
  })
})

t.test('an invalid enrolment is refused with the field named', async t => {
  const { db, call } = await withServer(t)
  for (const [path, body] of Object.entries({ alias: { alias: '' }, cohort: { alias: 'a', cohort: 5 }, '': [] })) {
    t.match(await call('POST /admin/devices', { admin: true, body }), { status: 422, body: { errors: [{ path }] } })
  }
  t.match(await call('POST /admin/devices', { admin: true, body: { alias: '  ' } }), { status: 422 }, 'refused by the database')
  t.match(await call('POST /admin/devices', { admin: true, body: { alias: 'a\0' } }), { status: 422 })
  t.equal((await call('POST /admin/devices', { admin: true, body: 'x' })).status, 400)
  const [row] = await db.sql`select count(*)::int from fleet.devices`
  t.equal(row!.count, 0)
})

t.test('revoking answers 204, also the second time, and 404 for an unknown device', async t => {
  const { db, call } = await withServer(t)
  const { device_id } = await enroll(db, 'a')
  for (let n = 0; n < 2; n++) t.equal((await call(`DELETE /admin/devices/${device_id}`, { admin: true })).status, 204)
  t.match(await call('DELETE /admin/devices/999', { admin: true }), { status: 404, body: { status: 404 } })
  t.equal((await call('DELETE /admin/devices/x', { admin: true })).status, 404)
})

t.test('without the admin key nothing is shown', async t => {
  const { db, call } = await withServer(t)
  const { device_id, token } = await enroll(db, 'a')
  const calls = [
    'GET /v1/devices',
    `GET /v1/devices/${device_id}`,
    'POST /admin/devices',
    `DELETE /admin/devices/${device_id}`,
    `PATCH /admin/devices/${device_id}`,
    `POST /admin/devices/${device_id}/token`,
    'POST /ops/nightly',
    'POST /ops/reconcile',
    'GET /ops/pool_health',
    'GET /metrics',
  ]
  for (const path of calls) {
    for (const headers of [{}, { 'x-admin': 'wrong' }, { authorization: `Bearer ${token}` }]) {
      const answer = await call(path, { headers: headers as Record<string, string> })
      t.match(answer, { status: 401, body: { status: 401 } }, path)
      t.ok(answer.headers.get('www-authenticate'))
    }
  }
  t.equal((await db.sql`select 1 from fleet.devices where revoked_at is null`).length, 1)
})

t.test('the fleet is read in pages, by status and by age', async t => {
  const { db, call } = await withServer(t)
  const devices: Awaited<ReturnType<typeof enroll>>[] = []
  for (const alias of ['a', 'b', 'c', 'd', 'e']) devices.push(await enroll(db, alias))
  const beats = [{ ts: ago(5) }, { ts: ago(1200) }, { ts: ago(7200) }, { ts: ago(5), unity_running: false }]
  await ingestOnTime(
    db.sql,
    beats.map((beat, n) => ({ device_id: devices[n]!.device_id, ...beat })),
  )
  const list = async (query: string) => (await call(`GET /v1/devices${query}`, { admin: true })).body as Page
  const aliases = ({ devices }: Page) => devices.map(device => device.alias)

  t.same(aliases(await list('')), ['a', 'b', 'c', 'd', 'e'])
  t.equal((await list('')).next_cursor, null)
  t.match((await list('')).devices[0], {
    device_id: devices[0]!.device_id,
    cohort: 'default',
    seconds_since: Number,
    last_ts: /Z$/,
  })
  t.same(aliases(await list('?status=offline')), ['b', 'c'])
  t.same(aliases(await list('?status=new')), ['e'])
  t.same(aliases(await list('?older_than=12m')), ['b', 'c'])
  t.same(aliases(await list('?older_than=1h&status=offline')), ['c'])

  const pages = []
  let cursor = ''
  do {
    const page = await list(`?limit=2${cursor}`)
    pages.push(aliases(page))
    cursor = page.next_cursor === null ? '' : `&cursor=${page.next_cursor}`
  } while (cursor !== '')
  t.same(pages, [['a', 'b'], ['c', 'd'], ['e']])

  for (const query of ['status=gone', 'older_than=12', 'older_than=-1m', 'limit=0', 'limit=1001', 'limit=x', 'cursor=x']) {
    const answer = await call(`GET /v1/devices?${query}`, { admin: true })
    t.match(answer, { status: 422, body: { errors: [{ path: query.split('=')[0] }] } }, query)
  }
})

t.test('an answer that has not changed is 304', async t => {
  const { db, call } = await withServer(t)
  const { device_id, token } = await enroll(db, 'a')
  await call('POST /v1/heartbeat', { token, body: { ts: ago(30) } })
  for (const path of ['/v1/devices', `/v1/devices/${device_id}`]) {
    const first = await call(`GET ${path}`, { admin: true })
    t.equal(first.status, 200)
    t.equal(first.headers.get('cache-control'), 'private, no-cache')
    const etag = first.headers.get('etag')!
    const again = await call(`GET ${path}`, { admin: true, headers: { 'if-none-match': etag } })
    t.equal(again.status, 304)
    t.equal(again.headers.get('etag'), etag)
    await call('POST /v1/heartbeat', { token, body: { ts: ago(path === '/v1/devices' ? 15 : 1), battery_pct: 5 } })
    t.equal((await call(`GET ${path}`, { admin: true, headers: { 'if-none-match': etag } })).status, 200)
  }
  t.match((await call(`GET /v1/devices/${device_id}`, { admin: true })).body, { device_id, battery_pct: 5, status: 'online' })
  t.equal((await lastStatus(db, device_id)).battery_pct, 5)
  t.equal((await call('GET /v1/devices/999', { admin: true })).status, 404)
  t.equal((await call('GET /v1/devices/x', { admin: true })).status, 404)
})

t.test('devices are found by cohort and by alias, in pages, each with its own ETag', async t => {
  const { db, call } = await withServer(t)
  for (const [n, alias] of ['a', 'b & c', 'd', 'é'].entries()) {
    await call('POST /admin/devices', { admin: true, body: { alias, cohort: n % 2 === 0 ? 'even' : 'odd' } })
  }
  const list = async (query: string) => {
    const answer = await call(`GET /v1/devices?${query}`, { admin: true })
    return (answer.body as Page).devices.map(device => device.alias)
  }
  t.same(await list('cohort=even'), ['a', 'd'])
  t.same(await list('cohort=odd&status=new'), ['b & c', 'é'])
  t.same(await list('cohort=odd&status=online'), [])
  t.same(await list('cohort=none'), [])
  t.same(await list(`alias=${encodeURIComponent('b & c')}`), ['b & c'])
  t.same(await list(`alias=${encodeURIComponent('é')}&cohort=odd`), ['é'])
  t.same(await list('alias=x'), [])
  const page = (await call('GET /v1/devices?cohort=odd&limit=1', { admin: true })).body as Page
  t.same(await list(`cohort=odd&limit=1&cursor=${page.next_cursor}`), ['é'])

  const { headers } = await call('GET /v1/devices?cohort=even', { admin: true })
  const known = { 'if-none-match': headers.get('etag')! }
  t.equal((await call('GET /v1/devices?cohort=even', { admin: true, headers: known })).status, 304)
  t.equal((await call('GET /v1/devices?cohort=odd', { admin: true, headers: known })).status, 200)
  await db.sql`select fleet.move_device(device_id, 'even') from fleet.devices where alias = 'b & c'`
  t.equal((await call('GET /v1/devices?cohort=even', { admin: true, headers: known })).status, 200)
  t.match(await call('GET /v1/devices?cohort=', { admin: true }), { status: 422, body: { errors: [{ path: 'cohort' }] } })
  t.match(await call(`GET /v1/devices?alias=${'x'.repeat(201)}`, { admin: true }), {
    status: 422,
    body: { errors: [{ path: 'alias' }] },
  })
})

const noLegacy = plainOnly('lists from the heartbeats are refused')
t.test('the same filters give the same answers from the heartbeats themselves', { skip: noLegacy }, async t => {
  const { call } = await withServer(t, { readFromLastStatus: 0 })
  for (const alias of ['a', 'b']) await call('POST /admin/devices', { admin: true, body: { alias, cohort: `cohort ${alias}` } })
  for (const query of ['alias=b', 'cohort=cohort%20b']) {
    t.match((await call(`GET /v1/devices?${query}`, { admin: true })).body, { devices: [{ alias: 'b' }] })
  }
})

t.test('a parameter that is unknown or repeated is 422 and named, and nothing is done', async t => {
  const { db, call } = await withServer(t)
  const { device_id, token } = await enroll(db, 'a')
  const calls = [
    'GET /v1/devices?cohrt=lobby',
    'GET /v1/devices?Status=offline',
    'GET /v1/devices?status=new&page=2',
    'GET /v1/devices?status=new&status=offline',
    `GET /v1/devices/${device_id}?fields=alias`,
    'GET /ops/pool_health?x',
    'POST /ops/nightly?dryrun=1',
    'POST /ops/nightly?dry_run=1&dry_run=0',
    'POST /ops/reconcile?dry_run=1',
    'POST /admin/devices?cohort=lobby',
    'POST /admin/command?device_id=1',
    `PATCH /admin/devices/${device_id}?alias=b`,
    `POST /admin/devices/${device_id}/token?dry_run=1`,
    `DELETE /admin/devices/${device_id}?dry_run=1`,
    'GET /v1/devices?__proto__=1',
    'GET /v1/devices?constructor=1',
  ]
  for (const line of calls) {
    const [path] = new URLSearchParams(line.split('?')[1]!.split('&').at(-1)).keys()
    const answer = await call(line, {
      admin: true,
      body: line.startsWith('GET') ? undefined : { alias: 'b', device_id, command: 'x' },
    })
    t.match(answer, { status: 422, body: { errors: [{ path }] } }, line)
  }
  const both = (await call('GET /v1/devices?cohrt=x&limit=0', { admin: true })).body
  t.match(both, { errors: [{ path: 'cohrt', message: /takes status, older_than/ }, { path: 'limit' }] }, 'all problems together')
  t.equal(
    (await call('POST /v1/heartbeat?source=boot', { token, body: {} })).status,
    201,
    'heartbeats of agents are still accepted',
  )
  t.same(await db.sql`select event from fleet.events where event ~ '^(device|nightly|reconcil)'`, [])
  t.same(await db.sql`select from fleet.device_commands`, [])
})

t.test('a field of a body that is unknown is 422 and named, and nothing is done', async t => {
  const { db, call } = await withServer(t)
  const { device_id } = await enroll(db, 'a')
  const calls: [line: string, body: object][] = [
    ['POST /admin/devices', { alias: 'b', cohrt: 'lobby' }],
    ['POST /admin/devices', { alias: 'b', Cohort: 'lobby' }],
    ['POST /admin/command', { device_id, command: 'reboot', paylod: { when: 'now' } }],
    [`PATCH /admin/devices/${device_id}`, { alias: 'b', cohrt: 'lobby' }],
    [`PATCH /admin/devices/${device_id}`, { cohrt: 'lobby' }],
  ]
  for (const [line, body] of calls) {
    const path = Object.keys(body).find(key => ['cohrt', 'Cohort', 'paylod'].includes(key))
    t.match(
      await call(line, { admin: true, body }),
      { status: 422, body: { errors: [{ path, message: /is not a field of this call, which takes / }] } },
      `${line} ${JSON.stringify(body)}`,
    )
  }
  const two = await call('POST /admin/devices', { admin: true, body: { name: 'b', group: 'x' } })
  t.match(
    two.body,
    { errors: [{ path: 'alias' }, { path: 'name', message: /takes alias, cohort$/ }, { path: 'group' }] },
    'all together',
  )
  t.same(await db.sql`select alias from fleet.devices`, [{ alias: 'a' }])
  t.same(await db.sql`select from fleet.device_commands`, [])
})

t.test('a list as CSV has the same rows, quoted, a link to the next page, and no formulas', async t => {
  const { db, call } = await withServer(t)
  const list = (query = '', headers: Record<string, string> = {}) =>
    call(`GET /v1/devices${query}`, { admin: true, headers: { accept: 'text/csv', ...headers } })
  t.match((await list()).body, /^device_id,alias,cohort,status,[a-z_,]+\r\n$/, 'an empty list has the names of the columns')
  const aliases = ['plain', 'with, comma', 'with "quotes"', 'two\nlines', '=1+2', '@x']
  for (const alias of aliases) await call('POST /admin/devices', { admin: true, body: { alias } })
  const { token } = await enroll(db, 'last')
  await call('POST /v1/heartbeat', {
    token,
    body: { ts: ago(5), signal_dbm: -61, unity_running: true, network_type: '+wifi', agent_version: '-1' },
  })
  const answer = await list('', { accept: 'text/csv, */*;q=0.1' })
  t.match(answer.headers.get('content-type'), /^text\/csv/)
  t.equal(answer.headers.get('vary'), 'Accept')
  t.equal(answer.headers.get('link'), null)
  const text = answer.body as string
  const cells = [
    ',plain,',
    ',"with, comma",',
    ',"with ""quotes""",',
    ',"two\nlines",',
    ",'=1+2,",
    ",'@x,",
    ",'+wifi,true,-61,'-1,",
  ]
  for (const cell of cells) t.ok(text.includes(cell), cell, { text })
  t.equal(text.split('\r\n').length, 1 + 7 + 1)

  const first = await list('?limit=3&status=new')
  const next = /^<\/v1\/devices(\?.*)>; rel="next"$/.exec(first.headers.get('link')!)![1]!
  const names = (first.body as string).split('\r\n')[0]!
  const second = (await list(next)).body as string
  t.equal((first.body as string) + second.slice(names.length + 2), (await list('?status=new')).body)
  const etag = first.headers.get('etag')!
  t.equal((await list('?limit=3&status=new', { 'if-none-match': etag })).status, 304)
  t.equal((await list('?limit=3&status=new', { 'if-none-match': etag, accept: '*/*' })).status, 200, 'JSON is a different answer')
  for (const accept of ['*/*', 'application/json', 'text/html', 'text/csv;q=0.1, application/json', '']) {
    t.match((await list('', { accept })).headers.get('content-type'), /json/, accept)
  }
})

t.test('a device is renamed and moved, together or separately, and a change that fails changes nothing', async t => {
  const { db, call } = await withServer(t)
  const { device_id, token } = await enroll(db, 'a')
  await enroll(db, 'taken')
  const change = (body: unknown, id: number | string = device_id) => call(`PATCH /admin/devices/${id}`, { admin: true, body })
  const now = async () => (await db.sql`select alias, cohort from fleet.devices where device_id = ${device_id}`)[0]!
  await db.sql`select fleet.set_cohort_interval('slow', '10 minutes')`
  const beat = async (seconds: number) => (await call('POST /v1/heartbeat', { token, body: { ts: ago(seconds) } })).body
  t.equal(intervalAsked(await beat(30), device_id, 60), 60)
  for (let n = 0; n < 2; n++) t.equal((await change({ alias: 'b', cohort: 'slow' })).status, 204)
  t.same(await now(), { alias: 'b', cohort: 'slow' })
  await waitFor(async () => intervalAsked(await beat(1), device_id, 600) === 600)
  t.equal((await change({ alias: 'c' })).status, 204)
  t.equal((await change({ cohort: 'hall' })).status, 204)
  t.match(await change({ alias: 'taken', cohort: 'lost' }), { status: 409, body: { detail: /taken/, hint: String } })
  t.match(await change({ alias: 'lost', cohort: ' ' }), { status: 422 })
  t.same(await now(), { alias: 'c', cohort: 'hall' })
  const wrong = [
    {},
    { colour: 1 },
    { alias: 'd', colour: 1 },
    { alias: null },
    { alias: '' },
    { alias: ' ' },
    { alias: 5 },
    { cohort: '' },
    { alias: 'd', cohort: 'x'.repeat(101) },
    [],
    { alias: 'a\0' },
  ]
  for (const body of wrong) t.match(await change(body), { status: 422 }, JSON.stringify(body))
  t.match((await change({ alias: 'd', colour: 1 })).body, { errors: [{ path: 'colour' }] })
  for (const id of [999, 'x', '1e3']) t.equal((await change({ alias: 'd' }, id)).status, 404)
  t.same(await now(), { alias: 'c', cohort: 'hall' })
  t.same(
    (await db.sql`select event from fleet.events where event like 'device.%' order by event_id`).map(row => row.event as string),
    ['device.renamed', 'device.moved', 'device.renamed', 'device.moved'],
  )
})

t.test('a new token after a factory reset stops the old one, brings a revoked device back, and is recorded', async t => {
  const { db, call } = await withServer(t)
  const { device_id, token } = await enroll(db, 'a')
  t.equal((await call('POST /v1/heartbeat', { token, body: { ts: ago(60) } })).status, 201)
  const conflict = await call('POST /admin/devices', { admin: true, body: { alias: 'a' } })
  const [path] = /\/admin\/devices\/\d+\/token/.exec((conflict.body as { hint: string }).hint)!
  const renew = async () => {
    const answer = await call(`POST ${path}`, { admin: true })
    t.match(answer, { status: 201, body: { device_id, token: /^nxd_\d+_[0-9a-f]{64}$/ } })
    t.equal(answer.headers.get('cache-control'), 'no-store')
    return (answer.body as { token: string }).token
  }
  const second = await renew()
  t.equal((await call('POST /v1/heartbeat', { token: second, body: { ts: ago(40) } })).status, 201)
  t.equal((await call('POST /v1/heartbeat', { token, body: {} })).status, 401)
  await call(`DELETE /admin/devices/${device_id}`, { admin: true })
  t.equal((await call('POST /v1/heartbeat', { token: second, body: {} })).status, 401)
  t.equal((await call('POST /v1/heartbeat', { token: await renew(), body: { ts: ago(20) } })).status, 201)
  for (const id of [999, 'x']) t.equal((await call(`POST /admin/devices/${id}/token`, { admin: true })).status, 404)
  t.same(
    (await db.sql`select event from fleet.events where event like 'device.%' order by event_id`).map(row => row.event as string),
    ['device.token_renewed', 'device.revoked', 'device.token_renewed'],
  )
})
