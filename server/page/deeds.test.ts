import t from 'tap'
import { withDatabase, type TestDatabase } from '../../testing/database.ts'
import { archive, asRole, partitionAt, daysAgo, value } from '../../testing/fleet.ts'
import { enroll, withServer } from '../../testing/server.ts'
import { visitor } from '../../testing/page.ts'
import { DEEDS, sqlOf } from './deeds.tsx'

async function session(db: TestDatabase, url: string, name: string, scopes: string[]) {
  const [row] = await db.sql<{ key: string }[]>`select fleet.create_api_key(${name}, ${scopes}) as key`
  const { headers } = await visitor(url).post('/login', { key: row!.key })
  return { cookie: headers.getSetCookie()[0]!.split(';')[0]! }
}

t.test('an operator does what the page offers, after a confirmation that shows the SQL', async t => {
  const { db, url, call } = await withServer(t)
  const { get, post } = visitor(url)
  const { device_id, token } = await enroll(db, 'a')
  const who = await session(db, url, 'ops', ['read', 'enroll', 'command', 'operate'])
  const partition = await partitionAt(db.sql, daysAgo(1))
  await db.sql`select fleet.create_webhook('on-call', 'https://example.com/hook')`
  const page = (await get('/', who)).html
  t.match(page, `href="/do/hold?partition=${partition}"`)
  t.match(page, 'href="/do/pause?webhook=on-call"')

  const asked = await get(`/do/hold?partition=${partition}`, who)
  t.match(asked.html, `select fleet.hold_partition(&#39;${partition}&#39;, &#39;&lt;reason&gt;&#39;);`)
  t.match(asked.html, 'recorded as done by ops')
  t.equal((await post('/do/hold', { partition, reason: "it's evidence" }, who)).status, 303)
  t.match(await db.sql`select held_reason, held_by from fleet.hb_partitions where partition_name = ${partition}`, [
    { held_reason: "it's evidence", held_by: 'ops' },
  ])
  t.match((await get('/', who)).html, `href="/do/release?partition=${partition}"`)
  t.equal((await post('/do/release', { partition }, who)).status, 303)
  t.equal((await post('/do/pause', { webhook: 'on-call' }, who)).status, 303)
  t.match((await get('/', who)).html, 'href="/do/resume?webhook=on-call"')
  t.equal((await post('/do/resume', { webhook: 'on-call' }, who)).status, 303)
  t.match((await get(`/devices/${device_id}`, who)).html, `href="/do/token?device=${device_id}"`)
  const renewed = await post('/do/token', { device: String(device_id) }, who)
  const [found] = /nxd_\d+_[0-9a-f]{64}/.exec(renewed.html)!
  t.equal((await call('POST /v1/heartbeat', { token: found, body: {} })).status, 201)
  t.equal((await call('POST /v1/heartbeat', { token, body: {} })).status, 401)
  const sent = await post('/do/command', { device: String(device_id), command: 'x', payload: '{"a":1}' }, who)
  t.match(sent.html, 'Command 1 waits for the device.')
  t.match(await db.sql`select command, payload, created_by from fleet.device_commands`, [
    { command: 'x', payload: { a: 1 }, created_by: 'ops' },
  ])
  const actions =
    await db.sql`select action, actor, how from fleet.audit_log where how = 'session' and action not like 'session.%' order by audit_id`
  for (const row of actions) t.match(row, { actor: 'ops', how: 'session' })
  const names = actions.map(({ action }) => action as string)
  t.same(names, [
    'partition.held',
    'partition.released',
    'webhook.paused',
    'webhook.resumed',
    'device.token_renewed',
    'command.sent',
  ])
  t.match((await get('/audit?q=ops', who)).html, /device\.token_renewed/)
  t.notMatch((await get('/audit', who)).html, /nxd_\d+_|nxk_/)
})

t.test('a day that is only in the archive can be asked for', async t => {
  const { db, url } = await withServer(t)
  const { get, post } = visitor(url)
  const who = await session(db, url, 'ops', ['read', 'operate'])
  await db.sql`select fleet.create_partitions((current_date - 95)::date, (current_date - 95)::date)`
  const name = await partitionAt(db.sql, daysAgo(95))
  await db.sql`call fleet.nightly()`
  t.match(await db.sql`select state from fleet.hb_partitions where partition_name = ${name}`, [{ state: 'detached' }])
  await archive(asRole(t, db, 'fleet_archiver'))
  const day = String(
    await value(
      db.sql`select (range_start at time zone 'UTC')::date::text from fleet.hb_partitions where partition_name = ${name}`,
    ),
  )
  t.match((await get('/', who)).html, `href="/do/restore?day=${day}"`)
  t.match(
    (await get(`/do/restore?day=${day}`, who)).html,
    `select fleet.request_restore(&#39;${day}&#39;::date, &#39;${day}&#39;::date);`,
  )
  t.match(await post('/do/restore', { day }, who), { status: 200, html: /Request 1 waits for the archiver/ })
  t.equal((await db.sql`select from fleet.restore_items`).length, 1)
})

t.test('each button needs operate and the scope of its deed; without these there is none, and nothing happens', async t => {
  const { db, url } = await withServer(t)
  const { get, post } = visitor(url)
  const { device_id } = await enroll(db, 'a')
  await db.sql`select fleet.create_webhook('on-call', 'https://example.com/hook')`
  const values = {
    partition: await partitionAt(db.sql, daysAgo(1)),
    reason: 'x',
    day: daysAgo(100).slice(0, 10),
    device: String(device_id),
    command: 'x',
    webhook: 'on-call',
    session: '1',
  }
  const before =
    await db.sql`select count(*) from fleet.audit_log where action <> 'session.opened' and action <> 'api_key.created'`
  for (const scopes of [['read'], ['read', 'enroll', 'command'], ['read', 'operate']]) {
    const who = await session(db, url, scopes.join('-'), scopes)
    const pages = (await get('/', who)).html + (await get(`/devices/${device_id}`, who)).html
    for (const [name, { scope }] of Object.entries(DEEDS)) {
      const isAllowed = scopes.includes('operate') && scopes.includes(scope)
      if (isAllowed) continue
      t.notMatch(pages, `href="/do/${name}`, `${scopes.join()} sees no button ${name}`)
      t.equal((await get(`/do/${name}?${new URLSearchParams(values).toString()}`, who)).status, 403, name)
      t.equal((await post(`/do/${name}`, values, who)).status, 403, name)
    }
    if (!scopes.includes('operate')) {
      t.equal((await get('/audit', who)).status, 403)
      t.equal((await get('/sessions', who)).status, 403)
    }
  }
  const after =
    await db.sql`select count(*) from fleet.audit_log where action <> 'session.opened' and action <> 'api_key.created'`
  t.same(after, before)
  // Without a session, and from another site.
  t.match(await post('/do/pause', values), { html: /name="key"/ })
  const who = await session(db, url, 'ops', ['read', 'operate'])
  t.equal((await post('/do/pause', values, { ...who, origin: 'https://evil.example' })).status, 403)
  for (const wrong of [{}, { webhook: '' }, { webhook: 'x\0' }] as Record<string, string>[])
    t.equal((await post('/do/pause', wrong, who)).status, 422)
  for (const name of ['nothing', 'constructor', '__proto__', 'toString']) {
    t.equal((await post(`/do/${name}`, values, who)).status, 404, name)
    t.equal((await get(`/do/${name}`, who)).status, 404, name)
  }
  t.match(await post('/do/pause', { webhook: 'none' }, who), { status: 404, html: /webhook/ })
  t.match(await db.sql`select state from fleet.webhook_health`, [{ state: 'ok' }])
})

t.test('a link fills in nothing that the person is asked for, and what the API refuses is refused here, too', async t => {
  const { db, url } = await withServer(t)
  const { get, post } = visitor(url)
  const { device_id } = await enroll(db, 'a')
  const device = String(device_id)
  const who = await session(db, url, 'ops', ['read', 'command', 'operate'])
  const form = (await get(`/do/command?device=${device}&command=factory_reset&payload=1`, who)).html
  t.notMatch(form, 'factory_reset')
  const twice = new URLSearchParams([
    ['device', device],
    ['command', 'factory_reset'],
    ['command', 'ping'],
  ])
  const { host } = new URL(url)
  const sent = await fetch(`${url}/do/command`, {
    method: 'POST',
    body: twice.toString(),
    headers: { ...who, 'content-type': 'application/x-www-form-urlencoded', origin: `http://${host}` },
  })
  t.equal(sent.status, 422)
  for (const payload of ['{bad', '{"a":"\\u0000"}', '{"n":9007199254740993}', '{"n":1e400}'])
    t.equal((await post('/do/command', { device, command: 'x', payload }, who)).status, 422, payload)
  for (const day of ['2026-02-30', '2026-99-99', '0000-00-00', 'now'])
    t.equal((await post('/do/restore', { day }, who)).status, 422, day)
  t.same(await db.sql`select from fleet.device_commands`, [])
  const large = JSON.stringify({ text: 'x'.repeat(50_000) })
  t.equal((await post('/do/command', { device, command: 'x', payload: large }, who)).status, 200, 'a large payload')
})

t.test('sessions are listed, and end when somebody ends them', async t => {
  const { db, url } = await withServer(t)
  const { get, post } = visitor(url)
  const ops = await session(db, url, 'ops', ['read', 'operate'])
  const left = await session(db, url, 'left', ['read'])
  const list = (await get('/sessions', ops)).html
  t.match(list, 'left')
  const [id] = /(?<=session=)\d+/.exec(list.slice(list.indexOf('left')))!
  t.equal((await post('/do/session', { session: id }, ops)).status, 303)
  t.match(await get('/', left), { html: /name="key"/ })
  t.match(await get('/', ops), { html: /id="headline"/ })
  t.match(await db.sql`select actor, how, action, target from fleet.audit_log where action = 'session.ended'`, [
    { actor: 'ops', how: 'session', target: `session:${id}` },
  ])
  const dba = asRole(t, db, 'fleet_dba')
  t.same(await dba`select actor, login from fleet.open_sessions`, [{ actor: 'ops', login: 'api_key' }])
  await dba`select fleet.close_session(session_id) from fleet.open_sessions`
  t.match(await get('/', ops), { html: /name="key"/ })
})

t.test('the SQL that is shown is the SQL of its literals', async t => {
  const { sql } = await withDatabase(t)
  for (const reason of ["it's", "a'; drop table x; --", '\\', 'ü', '$$', '"']) {
    const shown = sqlOf(DEEDS.hold, { partition: 'p', reason })
    const [row] = await sql.unsafe<{ echoed: string }[]>(
      shown.replace('fleet.hold_partition', 'concat_ws').replace(/^select (.*);$/s, 'select $1 as echoed'),
    )
    t.equal(row!.echoed, reason)
  }
  t.equal(sqlOf(DEEDS.command, { device: '7', command: 'x' }), "select fleet.send_command('7'::bigint, 'x', null::jsonb);")
})
