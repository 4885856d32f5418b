// Attacks with a copy of the cookie of a session that was ended.
import { createHash } from 'node:crypto'
import t from 'tap'
import { freePort } from '../../local/cluster.ts'
import { withDatabase } from '../../testing/database.ts'
import { asRole } from '../../testing/fleet.ts'
import { setTimeout as sleep } from 'node:timers/promises'
import { enroll, withProcess, withServer } from '../../testing/server.ts'
import { visitor } from '../../testing/page.ts'

const LOGGED_IN = /id="headline" data-live/
const LOGGED_OUT = /name="key"/

t.test('a logout ends the session on every server and worker, even for a copy of the cookie', async t => {
  const db = await withDatabase(t)
  const here = await withServer(t, {}, db)
  const { url: elsewhere } = await withProcess(t, db, { WORKERS: '2' })
  const servers = [here.url, elsewhere].map(visitor)
  const [one, two] = servers as [ReturnType<typeof visitor>, ReturnType<typeof visitor>]
  const stolen = await one.login()
  const other = await two.login()
  for (const { get } of servers) t.match(await get('/', stolen), { status: 200, html: LOGGED_IN })

  // The user logs out there, but the thief still has a copy of the cookie.
  t.equal((await two.post('/logout', {}, stolen)).status, 303)
  for (const { get } of servers) {
    for (let n = 0; n < 8; n++) t.match(await get('/', { ...stolen, connection: 'close' }), { status: 200, html: LOGGED_OUT })
    t.match(await get('/', { ...stolen, 'x-live': '1' }), { status: 401 })
    t.match(await get('/devices/1', stolen), { html: LOGGED_OUT })
    t.match(await get('/', other), { html: LOGGED_IN }, 'other sessions continue')
  }
  t.equal((await one.post('/logout', {}, stolen)).status, 303, 'once more changes nothing')
  t.match(await one.get('/', await one.login()), { html: LOGGED_IN }, 'anyone with the key can log in again')

  const kept = await db.admin<{ session_hash: Buffer; seconds: number }[]>`
    select session_hash, extract(epoch from ends_at - now())::float8 as seconds from fleet.sessions where ended_at is not null
  `
  t.equal(kept.length, 1)
  const [, said] = /=(\d+\.[\w-]{16})\./.exec(stolen.cookie)!
  t.same(kept[0]!.session_hash, createHash('sha256').update(said!).digest(), 'no cookie can be made from it')
  t.ok(kept[0]!.seconds > 0 && kept[0]!.seconds <= 12 * 3_600)
})

t.test('while a server cannot look sessions up, one that was logged out elsewhere does nothing', async t => {
  const db = await withDatabase(t)
  const [one, other] = [await withServer(t, {}, db), await withServer(t, {}, db)].map(({ url }) => visitor(url))
  const { device_id } = await enroll(db, 'a')
  const form = { device: String(device_id), command: 'x' }
  const stolen = await one!.login()
  t.equal((await other!.post('/do/command', form, stolen)).status, 200)
  await one!.post('/logout', {}, stolen)
  const held = await db.admin.reserve()
  await held`begin`
  await held`lock table fleet.sessions in access exclusive mode`
  const tried = other!.post('/do/command', form, stolen)
  // Longer than the server waits for the session, and shorter than it waits for the deed.
  await sleep(1_500)
  await held`commit`
  held.release()
  t.equal((await tried).status, 401)
  t.equal((await db.sql`select from fleet.device_commands`).length, 1)
})

t.test('a forged cookie ends no session, and ended sessions are forgotten after their expiry', async t => {
  const { db, url } = await withServer(t)
  const { login, post } = visitor(url)
  const { cookie } = await login()
  t.equal((await post('/logout', {}, { cookie: `${cookie.slice(0, -4)}AAAA` })).status, 303)
  t.equal((await post('/logout')).status, 303)
  t.same(await db.admin`select from fleet.sessions where ended_at is not null`, [])

  const server = asRole(t, db, 'fleet_server')
  const end = (session: string, ends: string, isAdmin = true) =>
    server`select fleet.end_session(sha256(${session}::text::bytea), ${ends}::timestamptz, ${isAdmin}, null, null)`
  await end('a', '2001-01-01')
  await end('b', '2999-01-01')
  await end('c', '2999-01-01', false)
  t.same(
    await db.admin`
      select session_hash = sha256('b') as is_b, ends_at <= now() + interval '1 day' as is_near
      from fleet.sessions where ended_at is not null order by session_id`,
    [
      { is_b: false, is_near: true },
      { is_b: true, is_near: true },
    ],
    'a session that is unknown and not of ADMIN_KEY is nothing',
  )
  await db.admin`update fleet.sessions set ends_at = now() - interval '8 days' where session_hash = sha256('a')`
  await db.sql`select fleet.prune()`
  t.equal((await db.admin`select from fleet.sessions where ended_at is not null`).length, 1)
  await t.rejects(server`delete from fleet.sessions`, { code: '42501' })
  for (const role of ['fleet_reader', 'fleet_dba', 'fleet_archiver'] as const) {
    await t.rejects(asRole(t, db, role)`select fleet.end_session(sha256('c'), now(), true, null, null)`, { code: '42501' }, role)
  }
})

t.test('without the database a logout says that it failed, and the page is still shown', async t => {
  const { url } = await withServer(t, { hot: { url: `postgres://fleet_server@127.0.0.1:${await freePort(true)}/fleet` } })
  const { get, login, post } = visitor(url)
  const session = await login()
  const left = await post('/logout', {}, session)
  t.match(left, { status: 503, html: /this session is still open\. Log out again/ })
  t.same(left.headers.getSetCookie(), [], 'and the cookie is kept, so that this is possible')
  t.match(await get('/', session), { html: LOGGED_IN })
})
