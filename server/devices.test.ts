import t from 'tap'
import { ago, enroll, lastStatus, withServer } from './testing.ts'

interface Page {
  devices: { device_id: number, alias: string, status: string }[]
  next_cursor: string | null
}

t.test('enrolling gives an id and a token that works; an alias is taken once', async t => {
  const { db, call } = await withServer(t)
  const answer = await call('POST /admin/devices', { admin: true, body: { alias: 'lobby 7', cohort: 'lobby' } })
  t.equal(answer.status, 201)
  t.equal(answer.headers.get('cache-control'), 'no-store')
  const { device_id, token } = answer.body as { device_id: number, token: string }
  t.match(token, /^nxd_[0-9a-f]{64}$/)
  t.equal(typeof device_id, 'number')
  t.equal((await call('POST /v1/heartbeat', { token, body: {} })).status, 201)
  const [row] = await db.sql`select alias, cohort from fleet.devices where device_id = ${device_id}`
  t.same(row, { alias: 'lobby 7', cohort: 'lobby' })

  const again = await call('POST /admin/devices', { admin: true, body: { alias: 'lobby 7' } })
  t.match(again, { status: 409, body: { title: 'Conflict', detail: /lobby 7/, hint: String } })
})

t.test('an enrolment that is not valid names the field', async t => {
  const { db, call } = await withServer(t)
  for (const [path, body] of Object.entries({ 'alias': { alias: '' }, 'cohort': { alias: 'a', cohort: 5 }, '': [] })) {
    t.match(await call('POST /admin/devices', { admin: true, body }), { status: 422, body: { errors: [{ path }] } })
  }
  t.match(await call('POST /admin/devices', { admin: true, body: { alias: '  ' } }), { status: 422 }, 'by the database')
  t.match(await call('POST /admin/devices', { admin: true, body: { alias: 'a\0' } }), { status: 422 })
  t.equal((await call('POST /admin/devices', { admin: true, body: 'x' })).status, 400)
  const [row] = await db.sql`select count(*)::int from fleet.devices`
  t.equal(row!.count, 0)
})

t.test('revoking: 204, again too; an unknown device is 404', async t => {
  const { db, call } = await withServer(t)
  const { device_id } = await enroll(db, 'a')
  for (let n = 0; n < 2; n++) t.equal((await call(`DELETE /admin/devices/${device_id}`, { admin: true })).status, 204)
  t.match(await call('DELETE /admin/devices/999', { admin: true }), { status: 404, body: { status: 404 } })
  t.equal((await call('DELETE /admin/devices/x', { admin: true })).status, 404)
})

t.test('without the admin key there is nothing to see', async t => {
  const { db, call } = await withServer(t)
  const { device_id, token } = await enroll(db, 'a')
  const calls = [
    'GET /v1/devices', `GET /v1/devices/${device_id}`, 'POST /admin/devices', `DELETE /admin/devices/${device_id}`,
    'POST /ops/nightly', 'POST /ops/reconcile', 'GET /ops/pool_health', 'GET /metrics',
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
  const devices = []
  for (const alias of ['a', 'b', 'c', 'd', 'e']) devices.push(await enroll(db, alias))
  const beats = [{ ts: ago(5) }, { ts: ago(1200) }, { ts: ago(7200) }, { ts: ago(5), unity_running: false }]
  for (const [n, body] of beats.entries()) await call('POST /v1/heartbeat', { token: devices[n]!.token, body })
  const list = async (query: string) => (await call(`GET /v1/devices${query}`, { admin: true })).body as Page
  const aliases = ({ devices }: Page) => devices.map(device => device.alias)

  t.same(aliases(await list('')), ['a', 'b', 'c', 'd', 'e'])
  t.equal((await list('')).next_cursor, null)
  t.match((await list('')).devices[0], { device_id: devices[0]!.device_id, cohort: 'default', seconds_since: Number, last_ts: /Z$/ })
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

t.test('what has not changed is 304', async t => {
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
