import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { freePort } from '../../local/cluster.ts'
import { waitFor, withDatabase } from '../../testing/database.ts'
import { ADMIN_KEY, ago, enroll, living, withProcess, withServer } from '../../testing/server.ts'
import { version } from '../../lib/version.ts'
import { textOf, visitor } from '../../testing/page.ts'

t.test('the page asks for the admin key, and keeps a user who has it logged in', async t => {
  const { url } = await withServer(t)
  const { get, post } = visitor(url)
  const form = await get('/devices/7?x=1')
  t.match(form, { status: 200, html: /<input id="key" name="key" type="password"/ })
  t.match(form.html, 'name="next" value="/devices/7?x=1"')
  t.notMatch(form.html, 'data-live')

  t.match(await post('/login', { key: 'wrong' }), { status: 403, html: /That is not a valid key/ })
  t.match(await post('/login', {}), { status: 403 })
  const entered = await post('/login', { key: ADMIN_KEY, next: '/?status=late&q=a%20b' })
  t.equal(entered.status, 303)
  t.equal(entered.headers.get('location'), '/?status=late&q=a%20b')
  const [said = ''] = entered.headers.getSetCookie()
  t.match(said, /^fleet_session=\d+\.[\w-]{16}\.[\w-]{43}; Max-Age=43200; Path=\/; HttpOnly; SameSite=Strict$/)
  t.notMatch(said, ADMIN_KEY)
  const cookie = said.split(';')[0]!
  const page = await get('/', { cookie })
  t.match(page, { status: 200, html: /id="headline" data-live/ })
  t.match(page.html, `<footer class="bottom">NexMDM fleet heartbeats ${version}</footer>`)
  t.match(await get('/', { cookie: `${cookie}A` }), { html: /name="key"/ })
  t.match(await get('/', { 'x-live': '1' }), { status: 401 }, 'a poll is not answered with a form')

  const left = await post('/logout', {}, { cookie })
  t.equal(left.status, 303)
  t.match(left.headers.getSetCookie()[0], /^fleet_session=; Max-Age=0; Path=\/; HttpOnly; SameSite=Strict$/)
})

t.test('a login never leads to another site, and a login form of another site is refused', async t => {
  const { url } = await withServer(t)
  const { get, post } = visitor(url)
  for (const next of [
    '//evil.example',
    'https://evil.example/',
    '/\\evil.example',
    '/v1/devices',
    '/devices/7/../..',
    '/?a=\r\nset-cookie: b=c',
    '',
  ]) {
    const { headers } = await post('/login', { key: ADMIN_KEY, next })
    t.equal(headers.get('location'), '/', JSON.stringify(next))
  }
  const form = { key: ADMIN_KEY }
  const { host } = new URL(url)
  const others: Record<string, string>[] = [
    { origin: 'https://evil.example' },
    { origin: 'null' },
    { 'sec-fetch-site': 'cross-site' },
    { 'sec-fetch-site': 'same-site' },
    { 'sec-fetch-site': 'cross-site', origin: `http://${host}` },
    { origin: `http://${host}.evil.example` },
    { origin: 'http://' },
  ]
  for (const headers of others) {
    t.match(await post('/login', form, headers), { status: 403, html: /sent by another site/ }, JSON.stringify(headers))
    t.match(await post('/logout', {}, headers), { status: 403 }, JSON.stringify(headers))
  }
  const bare = await fetch(`${url}/login`, { method: 'POST', body: new URLSearchParams(form) })
  t.equal(bare.status, 403, 'without a header that says where it comes from')
  t.match(await post('/login', form, { 'sec-fetch-site': 'same-origin', origin: 'https://behind.a.proxy' }), { status: 303 })
  t.match(await post('/login', form, { 'content-type': 'application/json' }), { status: 415 })
  t.match(await post('/login', { key: 'x'.repeat(5_000) }), { status: 413 })
  t.match(await get('/login'), { status: 405 })
  t.match(
    await get('/', { 'sec-fetch-site': 'cross-site' }),
    { html: /http-equiv="refresh" content="0"/ },
    'a link from another site is loaded again, with the cookie',
  )
})

t.test('behind TLS the cookie is only for TLS', async t => {
  const { url } = await withServer(t, { trustProxy: true })
  const { get, post } = visitor(url)
  const tls = { 'x-forwarded-proto': 'https' }
  const { headers } = await post('/login', { key: ADMIN_KEY }, tls)
  const [said = ''] = headers.getSetCookie()
  t.match(said, /^__Host-fleet_session=.*; Path=\/; HttpOnly; Secure; SameSite=Strict$/)
  const cookie = said.split(';')[0]!
  t.match(await get('/', { cookie, ...tls }), { html: /id="headline"/ })
  t.match(await get('/', { cookie }), { html: /name="key"/ })
  t.match(await get('/', { cookie: cookie.replace('__Host-', ''), ...tls }), { html: /name="key"/ })

  const plain = await withServer(t)
  const untrusted = await visitor(plain.url).post('/login', { key: ADMIN_KEY }, tls)
  t.match(untrusted.headers.getSetCookie()[0], /^fleet_session=/, 'but the word of a client does not count')
})

t.test('after wrong keys a client has to wait, even with the right key', async t => {
  const { url } = await withServer(t, { trustProxy: true })
  const { post } = visitor(url)
  const from = (address: string) => ({ 'x-forwarded-for': address })
  for (let n = 0; n < 3; n++) t.match(await post('/login', { key: `wrong ${n}` }, from('192.0.2.1')), { status: 403 })
  const refused = await post('/login', { key: ADMIN_KEY }, from('192.0.2.1'))
  t.match(refused, { status: 429, html: /Too many wrong keys from this address. Try again in 1 s/ })
  t.equal(refused.headers.get('retry-after'), '1')
  t.match(await post('/login', { key: ADMIN_KEY }, from('192.0.2.2')), { status: 303 })
  await sleep(1_000)
  t.match(await post('/login', { key: ADMIN_KEY }, from('192.0.2.1')), { status: 303 })
})

t.test('somebody with another key cannot guess the admin key faster', async t => {
  const { url, db } = await withServer(t)
  const { post } = visitor(url)
  const [row] = await db.sql<{ key: string }[]>`select fleet.create_api_key('other', '{read}') as key`
  const statuses = []
  for (let n = 0; n < 6; n++) {
    statuses.push((await post('/login', { key: `wrong ${n}` })).status)
    await post('/login', { key: row!.key })
  }
  t.same(statuses, [403, 403, 403, 429, 429, 429])
})

t.test("a browser is told to run and load nothing but the page's own files", async t => {
  const { url, db } = await withServer(t)
  const { device_id } = await enroll(db, 'a')
  const { get, post, login } = visitor(url)
  const session = await login()
  const answers = [
    await get('/'),
    await get('/', session),
    await get(`/devices/${device_id}`, session),
    await get('/devices/999', session),
    await post('/login', { key: 'wrong' }),
    await get('/', { 'x-live': '1' }),
  ]
  for (const { headers, html } of answers) {
    const policy = headers.get('content-security-policy') ?? ''
    t.match(policy, /^default-src 'none'; script-src 'self'; style-src 'self';.* base-uri 'none'; frame-ancestors 'none'$/)
    t.equal(headers.get('x-content-type-options'), 'nosniff')
    t.equal(headers.get('referrer-policy'), 'same-origin')
    t.equal(headers.get('cache-control'), 'no-store')
    t.notMatch(html, /\son\w+=|\sstyle=|<style|<script(?! src="\/assets\/live-[\w-]{12}\.js" defer)|javascript:|https?:\/\//)
  }
  const { html } = answers[1]!
  for (const [, path = ''] of html.matchAll(/(?:href|src)="(\/assets\/[^"]+)"/g)) {
    const asset = await get(path)
    t.match(asset, { status: 200 }, path)
    t.match(asset.headers.get('cache-control'), /immutable/)
    t.notMatch(asset.html, /url\(|@import|https?:\/\/(?!www\.w3\.org\/2000\/svg)/)
    if (path.endsWith('.js')) t.ok(asset.html.length < 2_048, `${asset.html.length} bytes of script`)
  }
  t.match(await get('/assets/page.css'), { status: 404 })
  t.match(await get('/assets/..%2fpage.tsx'), { status: 404 })
})

t.test('every field is shown as text', async t => {
  const { url, db, call } = await withServer(t)
  const evil = '"><script>alert(1)</script>\'&amp;'
  const shown = '&quot;&gt;&lt;script&gt;alert(1)&lt;/script&gt;&#39;&amp;amp;'
  const { device_id, token } = await enroll(db, `alias ${evil}`)
  const other = await enroll(db, 'other')
  await db.sql`update fleet.devices set cohort = ${`cohort ${evil}`} where device_id = ${device_id}`
  t.match(
    await call('POST /v1/heartbeat', {
      token,
      body: { network_type: evil.slice(0, 32), agent_version: `agent ${evil}`, unity_running: false },
    }),
    { status: 201 },
  )
  t.ok(other)
  await db.admin`
    update fleet.hb_partitions set held_reason = ${`held ${evil}`}, last_error = ${`error ${evil}`}, archive_url = ${`url ${evil}`},
      checksum_sha256 = repeat('a', 64), content_checksum = 1, proven_at = now(), row_count = 1, archive_bytes = 1
    where range_start = (select min(range_start) from fleet.hb_partitions)
  `
  const { get, login } = visitor(url)
  const session = await login()
  const page = await get(`/?status=any&q=${encodeURIComponent(evil.slice(0, 12))}`, session)
  const search = await get(
    `/?q=${encodeURIComponent(evil)}&status=${encodeURIComponent(evil)}&after=${encodeURIComponent(evil)}`,
    session,
  )
  const device = await get(`/devices/${device_id}`, session)
  const login_ = await get(`/?q=${encodeURIComponent(evil)}`)
  for (const { html, status } of [page, search, device, login_]) {
    t.equal(status, 200)
    t.notMatch(html, /<script>|alert\(1\)<\/script/)
  }
  for (const field of ['alias', 'cohort', 'agent', 'held', 'url']) t.match(page.html, `${field} ${shown}`, field)
  t.match(device.html, `<h1 class="device">alias ${shown}</h1>`)
  t.match(device.html, `<title>alias ${shown} `)
  t.match(search.html, `value="${shown}"`)
})

t.test('the page shows the state of the fleet', async t => {
  const { url, db, call } = await withServer(t)
  const [a, b, c, d] = [await enroll(db, 'a'), await enroll(db, 'b'), await enroll(db, 'c'), await enroll(db, 'd')]
  t.ok(d)
  await db.sql`update fleet.devices set cohort = 'lobby' where device_id = ${a.device_id}`
  await call('POST /v1/heartbeat', { token: a.token, body: { battery_pct: 81, signal_dbm: -61, unity_running: true } })
  await call('POST /v1/heartbeat', { token: b.token, body: {} })
  await db.admin`update fleet.device_last_status set last_received_at = now() - interval '700 seconds' where device_id = ${b.device_id}`
  await call('POST /v1/heartbeat', { token: c.token, body: { unity_running: false } })
  const { get, login } = visitor(url)
  const session = await login()
  const { html } = await get('/', session)
  t.match(textOf(html, 'headline'), '4 devices: 2 online, 0 late, 1 offline, 1 with Unity down.')
  t.match(textOf(html, 'fleet'), /2 online 0 late 1 offline 1 Unity down 0 clock skewed 1 new 2 devices online/)
  t.match(textOf(html, 'fleet'), /lobby 1 1 0 0 0 0 0/)
  t.match(textOf(html, 'ingest'), /p95.*Written 3 Duplicates 0 Quarantined 0 Failed 0 Connections in use \d+ of 10/)
  t.match(textOf(html, 'devices'), /b offline 11 min ago (\d{4}-\d\d-\d\d )?\d\d:\d\d UTC/)
  t.match(textOf((await get('/?status=unity_down', session)).html, 'devices-found'), /^Device .* Agent c online (now|\d+ s ago) /)
  t.match(textOf((await get('/?status=any&q=LOBB', session)).html, 'devices-found'), /Agent a online .* 81 % lobby/)
  t.match(textOf((await get('/?q=%25', session)).html, 'devices-found'), 'No offline devices match “%”.')
  t.match(textOf((await get(`/?status=any&q=${d.device_id}`, session)).html, 'devices-found'), 'd new never')

  t.match(textOf(html, 'fleet'), /Silence is not judged now: [a-z ]+\./)
  t.match(textOf(html, 'fleet'), /The trend appears once the fleet has been counted twice/)
  t.match(
    textOf(html, 'ingest'),
    /Error budget: heartbeat writes (idle 0|100 % left 0) of \d failed in 1 h, 0\.5 % may fail Error budget: dispatch log idle/,
  )

  const poll = await get('/', { ...session, 'x-live': '1' })
  t.match(poll.html, /^<!doctype html>\n<title>.*<\/title><section id="headline" data-live/)
  t.notMatch(poll.html, '<header')
})

t.test('the page shows what changed and why, and who is told', async t => {
  const { url, db, call } = await withServer(t)
  const { get, login } = visitor(url)
  const session = await login()
  const empty = (await get('/', session)).html
  t.match(textOf(empty, 'changes'), 'Nothing has changed in the last hour.')
  t.match(textOf(empty, 'webhooks'), 'Nobody is told of changes.')

  const a = await enroll(db, 'a')
  await call('POST /v1/heartbeat', { token: a.token, body: { stopping: 'shutdown' } })
  await db.admin`update fleet.device_last_status set last_received_at = now() - interval '700 seconds', noted_since = now() - interval '700 seconds'`
  await db.admin`select fleet.note_transitions(fleet.devices_to_note(), now())`
  await db.admin`select fleet.create_webhook('on-call', 'https://hooks.example/secret-path', p_cohort => 'lobby')`
  // The caches of another worker's time are a few seconds old.
  const { url: fresh } = await withServer(t, {}, db)
  const other = visitor(fresh)
  const { html } = await other.get('/', await other.login())
  t.match(textOf(html, 'changes'), /a offline .* late for 8 min it was shut down default/)
  t.match(textOf(html, 'devices'), /a offline 11 min ago .* it was shut down/)
  t.match(textOf(html, 'webhooks'), /on-call ok https:\/\/hooks\.example lobby 0 0 never/)
  t.notMatch(html, 'secret-path')
  const page = (await other.get(`/devices/${a.device_id}`, await other.login())).html
  t.match(textOf(page, 'now'), 'Reason it was shut down')
  t.match(textOf(page, 'history'), /offline .* late for 8 min it was shut down late .* online for .* it was shut down online/)
})

t.test('the page says when a large fleet was counted, and nothing of a small one', async t => {
  const { url, db } = await withServer(t)
  await enroll(db, 'a')
  const { get, login } = visitor(url)
  const session = await login()
  t.notMatch(textOf((await get('/', session)).html, 'fleet'), 'Counted')
  await db.sql`select fleet.count_fleet(1)`
  await enroll(db, 'b')
  // The page itself keeps what it read for two seconds.
  await waitFor(async () => /Counted (now|\d+ s ago)/.test(textOf((await get('/', session)).html, 'fleet')))
  t.match(textOf((await get('/', session)).html, 'fleet'), / 1 new/)
})

t.test('the page shows the trend of the fleet, and what is left of the error budgets', async t => {
  const { url, db, call } = await withServer(t)
  const { token } = await enroll(db, 'a')
  await call('POST /v1/heartbeat', { token, body: {} })
  await db.admin`
    insert into fleet.fleet_samples (sampled_at, devices, online, late, offline, new, clock_skewed, unity_down)
    select date_bin('10 minutes', now(), '2000-01-01Z') - n * interval '10 minutes', 9, n, 0, 9 - n, 0, 0, 0 from generate_series(0, 9) n
  `
  await db.sql`
    select fleet.record_slo('a', json_build_array(json_build_object('slo', 'heartbeat_writes', 'minute', now() - interval '5 minutes', 'good', 996, 'bad', 4)))
  `
  const { get, login } = visitor(url)
  const { html } = await get('/', await login())
  t.match(textOf(html, 'fleet'), /^Fleet 1 online −[45] in 1 h 0 late ±0 in 1 h 0 offline −[34] in 1 h 0 Unity down ±0 in 1 h/)
  t.match(textOf(html, 'fleet'), /online: from 9 to 0; late: from 0 to 0; offline: from 0 to 9/)
  t.match(textOf(html, 'ingest'), /heartbeat writes 20 % left 4 of 1,00[01] failed in 1 h, 0\.5 % may fail/)
  t.equal(html.match(/class="line-\d"/g)?.length, 4)
  t.match(html, /class="badge warn">20 % left/)
})

t.test('of many cohorts the page shows those with the most devices offline, and every alarm', async t => {
  const { url, db } = await withServer(t)
  await db.admin`
    insert into fleet.devices (alias, cohort, token_hash)
    select c || '-' || n, 'cohort-' || lpad(c::text, 3, '0'), sha256((c || '-' || n)::bytea)
    from generate_series(1, 80) c, generate_series(1, 3) n
  `
  // Cohorts 31 to 80 each have a device that is offline.
  const heard = (ago: string, cohorts: string) => db.admin`
    update fleet.device_last_status set status = 'ok', last_ts = now() - ${ago}::interval, last_received_at = now() - ${ago}::interval
    where device_id in (select device_id from fleet.devices where cohort ~ ${cohorts})
  `
  await heard('5 s', '.')
  await heard('1 day', '0(3[1-9]|[4-7].|80)$')
  const { get, login } = visitor(url)
  const { html } = await get('/', await login())
  const shown = [...html.matchAll(/<th scope="row">(cohort-\d{3})/g)].map(([, cohort]) => cohort)
  t.same(
    shown,
    Array.from({ length: 50 }, (_, n) => `cohort-0${n + 31}`),
  )
  t.match(textOf(html, 'fleet'), 'These 50 of 80 cohorts have the most devices offline.')
})

t.test('offline devices are read page by page, the longest silent first', async t => {
  const { url, db } = await withServer(t)
  await db.sql`
    select fleet.create_device('device-' || lpad(n::text, 3, '0')) from generate_series(1, 60) n
  `
  // Several devices have the same time, and it has microseconds.
  await db.admin`
    update fleet.device_last_status s set status = 'ok',
      last_ts = now(), last_received_at = now() - interval '1 day' - n.n / 7 * interval '1.000001 seconds'
    from (select d.device_id, row_number() over (order by d.device_id) as n from fleet.devices d) n
    where n.device_id = s.device_id
  `
  const { get, login } = visitor(url)
  const session = await login()
  for (const status of ['offline', 'any']) {
    const seen: string[] = []
    let path: string | undefined = `/?status=${status}`
    let pages = 0
    for (; path !== undefined; pages++) {
      const { html } = await get(path, session)
      seen.push(...[...html.matchAll(/>(device-\d{3})</g)].map(match => match[1]!))
      path = /<a href="([^"]+)">Next page/.exec(html)?.[1]?.replaceAll('&amp;', '&').split('#')[0]
    }
    t.equal(pages, 3, status)
    t.equal(new Set(seen).size, 60, status)
    t.equal(seen.length, 60, status)
    if (status === 'offline') t.equal(seen[0], 'device-056', 'the one that is silent for longest')
  }
})

t.test('a device has a page with its last day', async t => {
  const { url, db, call } = await withServer(t)
  const { device_id, token } = await enroll(db, 'lobby-7')
  const beats = Array.from({ length: 60 }, (_, n) => ({
    ts: ago(3_600 + 60 * n),
    battery_pct: 50 + (n % 10),
    signal_dbm: -70,
    unity_running: n !== 3,
    ...(n === 0 && { extra: { store: 12, '<b>': ['<i>'] }, next_in_s: 7_500, stopping: 'update' }),
  }))
  t.match(await call('POST /v1/heartbeats', { token, body: beats }), { body: { stored: 60 } })
  const { get, login } = visitor(url)
  const session = await login()
  t.match(
    textOf((await get(`/devices/${device_id}`, session)).html, 'now'),
    /Status clock skewed Last heartbeat now .* Next heartbeat announced: in 2 h .* Stopping update Clock lags by 60 min /,
  )
  await db.admin`update fleet.device_last_status set last_received_at = now() - interval '4 hours'`
  const { html } = await get(`/devices/${device_id}`, session)
  t.match(
    textOf(html, 'now'),
    /Status offline Last heartbeat 4 h ago .* Next heartbeat announced: 1 h ago .* Battery 50 % Signal -70 dBm/,
  )
  t.match(
    html,
    '<dt>Own values</dt><dd><code>{&quot;&lt;b&gt;&quot;: [&quot;&lt;i&gt;&quot;], &quot;store&quot;: 12}</code></dd>',
  )
  t.match(
    textOf(html, 'day'),
    /^The last 24 hours 60 heartbeats, 1 of them with Unity down, 13[678] spans of ten minutes without one\./,
  )
  t.match(textOf(html, 'day'), /Between \d\d and \d\d %, most recently \d\d %\./)
  t.equal(html.match(/<svg role="img"/g)?.length, 3)
  t.match(await get('/devices/999999', session), { status: 404, html: /There is no device 999999/ })
  const refused = await get('/devices/abc', { ...session, 'x-request-id': 'the-proxy-1' })
  t.match(refused, { status: 404, html: /Request the-proxy-1/ })
  t.equal(refused.headers.get('x-request-id'), 'the-proxy-1')
})

t.test('the page of a device says what it sends that cannot be read', async t => {
  const { url, db, call, unreadable } = await withServer(t)
  const { device_id, token } = await enroll(db, 'lobby-7')
  const { get, login } = visitor(url)
  const session = await login()
  await call('POST /v1/heartbeat', { token, body: { battery_pct: 50 } })
  t.notMatch((await get(`/devices/${device_id}`, session)).html, 'cannot be read')
  await call('POST /v1/heartbeat', { token, body: { battery_pct: '<b>87 %' } })
  await unreadable.tell()
  const { html } = await get(`/devices/${device_id}`, session)
  t.match(
    textOf(html, 'unreadable'),
    /What it sends that cannot be read Field Times Last Value battery_pct 1 .* &quot;&lt;b&gt;87 %&quot;/,
  )
})

t.test('a part that cannot be read says so, and the others are shown', async t => {
  const { url, db } = await withServer(t)
  await enroll(db, 'a')
  const { get, login } = visitor(url)
  const session = await login()
  await db.sql`revoke select on fleet.job_health from fleet_server`
  await db.admin`
    create or replace function fleet.check(p_now timestamptz default now())
    returns table (check_name text, status text, detail text, remedy text) language sql as
    'select ''a'', ''ok'', '''', '''' from pg_sleep(4)'
  `
  const { status, html } = await get('/', session)
  t.equal(status, 200)
  t.match(textOf(html, 'jobs'), 'This could not be read: An internal error occurred; it was logged.')
  t.match(textOf(html, 'checks'), /^Checks This could not be read: The database/)
  t.match(textOf(html, 'headline'), 'The checks could not be read')
  t.match(textOf(html, 'fleet'), '1 new')
})

t.test('when nothing can be read, the answer is 503, and the page is shown all the same', async t => {
  const { url } = await withServer(t, { hot: { url: `postgres://fleet_server@127.0.0.1:${await freePort(true)}/fleet` } })
  const { get, login } = visitor(url)
  const session = await login()
  const { status, html, headers } = await get('/', session)
  t.equal(status, 503)
  t.equal(headers.get('retry-after'), '5')
  t.match(textOf(html, 'headline'), 'The database cannot be read')
  t.match(textOf(html, 'fleet'), 'This could not be read: The database cannot be reached or did not answer in time.')
  t.match(textOf(html, 'ingest'), 'Written 0')
})

t.test('several workers share the sessions, and the page shows their sum', async t => {
  const db = await withDatabase(t)
  const { server, url, call } = await withProcess(t, db, { WORKERS: '2' })
  await waitFor(async () => living(server).length === 2)
  const { token } = await enroll(db, 'a')
  const { get, login } = visitor(url)
  const session = await login()
  for (let n = 0; n < 6; n++) {
    t.equal(
      (await call('POST /v1/heartbeat', { token, body: { ts: ago(60 * n) }, headers: { connection: 'close' } })).status,
      201,
    )
  }
  for (let n = 0; n < 4; n++) {
    const { html } = await get('/', { ...session, connection: 'close' })
    t.match(textOf(html, 'ingest'), /Written 6 .* of 20 /)
  }
})

t.test('under backpressure the page does not refresh, and can still be opened', async t => {
  const { url, db, call } = await withServer(t, { backpressureQueue: 1 })
  const { token } = await enroll(db, 'a')
  const { get, login } = visitor(url)
  const session = await login()
  await call('POST /v1/heartbeats', { token, body: Array.from({ length: 50 }, (_, n) => ({ ts: ago(10 * n) })) })
  const poll = await get('/', { ...session, 'x-live': '1' })
  t.match(poll, { status: 503, html: /The server is busy with heartbeats, so this page is paused/ })
  t.match(poll.headers.get('retry-after'), /^\d+$/)
  const page = await get('/', session)
  t.equal(page.status, 200)
  t.match(textOf(page.html, 'ingest'), 'Heartbeats come faster than they are written')
})
