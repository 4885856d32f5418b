import t from 'tap'
import { waitFor } from '../../testing/database.ts'
import { ingestAndNote as ingest } from '../../testing/fleet.ts'
import { enroll, withServer } from '../../testing/server.ts'

interface Transition {
  transition_id: number
  device_id: number
  event: string
  reason: string | null
}
interface Feed {
  transitions: Transition[]
  next_after: string
}
interface Page {
  transitions: Transition[]
  next_cursor: string | null
}

const ago = (seconds: number) => new Date(Date.now() - seconds * 1000).toISOString()

t.test('the feed goes on from where a client stopped, and the history of a device is paged', async t => {
  const { db, call } = await withServer(t)
  const feed = async (query: string) => (await call(`GET /v1/transitions${query}`, { admin: true })).body as Feed
  const one = await enroll(db, 'one')
  const two = await enroll(db, 'two')
  t.same(await feed(''), { transitions: [], next_after: '0-0' }, 'a client may begin before anything happened')

  // Each heartbeat ends a silence: late, offline, back.
  for (const seconds of [7200, 5400, 3600]) await ingest(db.sql, [{ device_id: one.device_id, ts: ago(seconds) }], ago(seconds))
  await ingest(db.sql, [{ device_id: two.device_id, unity_running: false }])
  const expected = ['online', 'late', 'offline', 'back', 'late', 'offline', 'back', 'unity_down']
  const seen: Transition[] = []
  let after = ''
  // A transaction elsewhere in the cluster can delay the last ones.
  await waitFor(async () => {
    const { transitions, next_after } = await feed(`?limit=2${after === '' ? '' : `&after=${after}`}`)
    t.ok(transitions.length <= 2)
    seen.push(...transitions)
    after = next_after
    return seen.length >= expected.length
  })
  t.same(
    seen.map(({ event }) => event),
    expected,
  )
  t.match(seen[3], { device_id: one.device_id, alias: 'one', previous_status: 'offline', reason: 'unknown', cohort: 'default' })
  t.same(await feed(`?after=${after}`), { transitions: [], next_after: after })

  const page = async (query: string) =>
    (await call(`GET /v1/devices/${one.device_id}/transitions${query}`, { admin: true })).body as Page
  const first = await page('?limit=4')
  t.equal(first.transitions.length, 4)
  const second = await page(`?limit=4&cursor=${first.next_cursor}`)
  t.equal(second.next_cursor, null)
  t.same([...first.transitions, ...second.transitions].map(({ event }) => event).reverse(), expected.slice(0, 7))
  t.match((await call(`GET /v1/devices/${two.device_id}`, { admin: true })).body, { status: 'online', reason: null })
})

t.test('a client that asks for what is not there, or wrongly, is told so', async t => {
  const { db, call } = await withServer(t)
  const { device_id } = await enroll(db, 'a')
  t.equal((await call('GET /v1/transitions')).status, 401)
  t.equal((await call(`GET /v1/devices/${device_id}/transitions`)).status, 401)
  t.match(await call('GET /v1/devices/999/transitions', { admin: true }), { status: 404 })
  t.match(await call('GET /v1/devices/x/transitions', { admin: true }), { status: 404 })
  for (const query of ['after=x', 'after=1', 'limit=0', 'limit=1001', 'cohort=', 'until=now'])
    t.match(await call(`GET /v1/transitions?${query}`, { admin: true }), {
      status: 422,
      body: { errors: [{ path: query.split('=')[0] }] },
    })
  for (const query of ['cursor=x', 'limit=-1', 'after=0-0'])
    t.match(await call(`GET /v1/devices/${device_id}/transitions?${query}`, { admin: true }), {
      status: 422,
      body: { errors: [{ path: query.split('=')[0] }] },
    })
})

t.test('the feed of one cohort has only its devices', async t => {
  const { db, call } = await withServer(t)
  const { device_id } = await enroll(db, 'a')
  await db.sql`select fleet.move_device(${device_id}, 'lobby')`
  const other = await enroll(db, 'b')
  await ingest(db.sql, [{ device_id }, { device_id: other.device_id }])
  await waitFor(async () => {
    const { body } = await call('GET /v1/transitions', { admin: true })
    return (body as Feed).transitions.length === 2
  })
  const { body } = await call('GET /v1/transitions?cohort=lobby', { admin: true })
  t.same(
    (body as Feed).transitions.map(row => row.device_id),
    [device_id],
  )
})
