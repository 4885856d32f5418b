import { createHash } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { type TestDatabase, waitFor, withCluster, withDatabase } from '../../testing/database.ts'
import { asRole } from '../../testing/fleet.ts'
import { ADMIN_KEY, ago, enroll, withProcess, withServer } from '../../testing/server.ts'
import { textOf, visitor } from '../../testing/page.ts'

async function makeKey(db: TestDatabase, name: string, scopes: string[], cohorts: string[] | null = null) {
  const [row] = await db.sql<{ key: string }[]>`select fleet.create_api_key(${name}, ${scopes}, ${cohorts}) as key`
  return row!.key
}

t.test('a key opens calls as a bearer token and in x-admin, and its use is noted', async t => {
  const { db, call } = await withServer(t)
  const key = await makeKey(db, 'grafana', ['read', 'metrics'])
  t.match(key, /^nxk_[0-9a-f]{64}$/)
  t.equal((await call('GET /v1/devices', { token: key })).status, 200)
  t.equal((await call('GET /v1/devices', { headers: { 'x-admin': key } })).status, 200)
  const metrics = await call('GET /metrics', { token: key })
  t.match(metrics.body, /key_requests_total\{key="grafana"\} 3/)
  t.match(
    await db.sql`select name, state, last_address, last_used_at > now() - interval '1 minute' as used from fleet.api_keys`,
    [{ name: 'grafana', state: 'valid', last_address: '127.0.0.1', used: true }],
  )
  const [kept] = await db.admin`select to_jsonb(c)::text as row from fleet.api_credentials c`
  t.notMatch(kept!.row, key.slice(4), 'only its hash is stored')
  t.match(kept!.row, createHash('sha256').update(key).digest('hex'))
})

t.test('a revoked or expired key stops at the next request, on every server and worker', async t => {
  const db = await withDatabase(t)
  const here = await withServer(t, {}, db)
  const { call: there } = await withProcess(t, db, { WORKERS: '2' })
  const key = await makeKey(db, 'short', ['read', 'enroll'])
  const askAll = async (expected: number) => {
    for (let n = 0; n < 6; n++)
      for (const call of [here.call, there])
        t.equal((await call('GET /v1/devices', { token: key, headers: { connection: 'close' } })).status, expected)
  }
  await askAll(200)
  await db.sql`select fleet.revoke_api_key('short')`
  await askAll(401)
  t.equal((await here.call('POST /admin/devices', { token: key, body: { alias: 'x' } })).status, 401)

  const [row] = await db.sql<{ key: string }[]>`
    select fleet.create_api_key('brief', '{read}', p_expires_at => now() + interval '2 seconds') as key`
  t.equal((await here.call('GET /v1/devices', { token: row!.key })).status, 200)
  await waitFor(async () => (await here.call('GET /v1/devices', { token: row!.key })).status === 401)
  t.match(await db.sql`select name, state from fleet.api_keys`, [
    { name: 'brief', state: 'expired' },
    { name: 'short', state: 'revoked' },
  ])
})

t.test('during the overlap of a rotation both keys are valid, and afterwards only the new one', async t => {
  const { db, call } = await withServer(t)
  const old = await makeKey(db, 'grafana', ['read'])
  const status = async (token: string) => (await call('GET /v1/devices', { token })).status
  const [first] = await db.sql<{ key: string }[]>`select fleet.rotate_api_key('grafana', '2 seconds') as key`
  t.same([await status(old), await status(first!.key)], [200, 200])
  await waitFor(async () => (await status(old)) === 401)
  t.equal(await status(first!.key), 200)
  const [second] = await db.sql<{ key: string }[]>`select fleet.rotate_api_key('grafana', '0') as key`
  t.same([await status(first!.key), await status(second!.key)], [401, 200], 'without an overlap the old one stops at once')
  const [third] = await db.sql<{ key: string }[]>`select fleet.rotate_api_key('grafana') as key`
  await db.sql`select fleet.rotate_api_key('grafana')`
  t.same([await status(second!.key), await status(third!.key)], [401, 200], 'one before the last stops at once')
  await db.sql`select fleet.revoke_api_key('grafana')`
  t.equal(await status(third!.key), 401, 'a revocation ends both')
})

t.test('a session that was opened with a key ends when the key is replaced', async t => {
  const { db, url } = await withServer(t)
  const { get, post } = visitor(url)
  const key = await makeKey(db, 'leaked', ['read', 'operate'])
  const session = async (key: string) => ({ cookie: (await post('/login', { key })).headers.getSetCookie()[0]!.split(';')[0]! })
  const isOpen = async (who: { cookie: string }) => /id="headline"/.test((await get('/', who)).html)
  const [stolen, slow] = [await session(key), await session(key)]
  const [next] = await db.sql<{ key: string }[]>`select fleet.rotate_api_key('leaked', '1 hour') as key`
  t.ok(await isOpen(slow), 'not before the overlap ends')
  t.ok(await isOpen(await session(next!.key)))
  await db.sql`select fleet.rotate_api_key('leaked', '0')`
  t.notOk(await isOpen(stolen))
  t.same(await db.sql`select from fleet.open_sessions`, [])
})

t.test('a name is recorded in full, and the use of a key from many addresses costs one write a minute', async t => {
  const { db, call } = await withServer(t, { trustProxy: true })
  const name = `k${'0123456789'.repeat(6)}xyz`
  const key = await makeKey(db, name, ['read', 'enroll'])
  await call('POST /admin/devices', { token: key, body: { alias: 'a' } })
  t.equal((await db.sql`select from fleet.audit_log where actor = ${name}`).length, 1)
  const version = async () => (await db.admin`select xmin::text from fleet.api_credentials`)[0]!.xmin as string
  const before = await version()
  for (let n = 0; n < 5; n++) await call('GET /v1/devices', { token: key, headers: { 'x-forwarded-for': `192.0.2.${n}` } })
  t.equal(await version(), before)
})

t.test('what is wrong with a key is told by its argument', async t => {
  const { sql } = await withDatabase(t)
  const refused: [string, RegExp][] = [
    [`fleet.create_api_key('', '{read}')`, /^name must have 1 to 64/],
    [`fleet.create_api_key(null, '{read}')`, /^name must have/],
    [`fleet.create_api_key('ADMIN_KEY', '{read}')`, /not be ADMIN_KEY/],
    [`fleet.create_api_key('a"b', '{read}')`, /^name must have/],
    [`fleet.create_api_key('a', null)`, /^scopes must be some of read, metrics, enroll, command, operate, not null/],
    [`fleet.create_api_key('a', '{}')`, /^scopes must be some of/],
    [`fleet.create_api_key('a', '{read,write}')`, /not \{read,write\}/],
    [`fleet.create_api_key('a', '{read,NULL}')`, /^scopes must be some of/],
    [`fleet.create_api_key('a', '{read}', '{}')`, /^cohorts must be null or at most 100 names/],
    [`fleet.create_api_key('a', '{read}', '{lobby,""}')`, /^cohorts must be null or at most 100 names/],
    [`fleet.create_api_key('a', '{read,metrics}', '{lobby}')`, /^a key with cohorts cannot have the scopes metrics and operate/],
    [`fleet.create_api_key('a', '{read}', null, now() - interval '1 second')`, /^expires_at must be in the future/],
    [`fleet.rotate_api_key('none')`, /^there is no API key named none/],
    [`fleet.revoke_api_key('none')`, /^there is no API key named none/],
  ]
  for (const [call, message] of refused) await t.rejects(sql.unsafe(`select ${call}`), { message }, call)
  await sql`select fleet.create_api_key('a', '{read}')`
  await t.rejects(sql`select fleet.create_api_key('a', '{read}')`, { code: 'FL409', message: /named a already exists/ })
  await t.rejects(sql`select fleet.rotate_api_key('a', '31 days')`, { message: /^overlap must be between 0 and 30 days/ })
  await sql`select fleet.revoke_api_key('a')`
  await t.rejects(sql`select fleet.rotate_api_key('a')`, { code: 'FL409', message: /was revoked/ })
})

t.test('without ADMIN_KEY the API keys open everything, and without a key nothing is open', async t => {
  const db = await withDatabase(t)
  const { call, url } = await withServer(t, { adminKey: undefined }, db)
  const key = await makeKey(db, 'all', ['read', 'metrics', 'enroll', 'command', 'operate'])
  t.match((await call('GET /v1/devices')).body, { detail: /^A key is required/ })
  for (const admin of [ADMIN_KEY, 'undefined', '']) {
    t.match(await call('GET /v1/devices', { headers: { 'x-admin': admin } }), {
      status: 401,
      body: { detail: /^The key is unknown/ },
    })
    t.equal((await call('GET /metrics', { headers: { authorization: `Bearer ${admin}` } })).status, 401)
    t.equal((await visitor(url).post('/login', { key: admin })).status, 403)
  }
  for (const target of ['GET /v1/devices', 'GET /metrics', 'GET /ops/pool_health', 'POST /ops/reconcile'])
    t.equal((await call(target, { token: key })).status, 200, target)
})

t.test('a key that is bound to cohorts knows nothing else', async t => {
  const { db, call, url } = await withServer(t)
  const [mine, theirs] = [await enroll(db, 'mine-1'), await enroll(db, 'theirs-1')]
  await db.sql`select fleet.move_device(${mine.device_id}, 'lobby'), fleet.move_device(${theirs.device_id}, 'secret-shop')`
  const more = await enroll(db, 'mine-2')
  await db.sql`select fleet.move_device(${more.device_id}, 'hall')`
  const beat = { ts: ago(5), battery_pct: 71, network_type: 'theirs-net', unity_running: false, agent_version: 'theirs-agent' }
  await call('POST /v1/heartbeat', { token: theirs.token, body: beat })
  await call('POST /v1/heartbeat', { token: mine.token, body: { battery_pct: 'x', unity_running: true } })
  await db.admin`select fleet.note_changed_devices()`
  for (const device of [mine, theirs]) {
    await db.admin`
      insert into fleet.device_transitions (
        position, device_id, cohort, at, since, event, status, previous_status, previous_since, reason
      )
      select 1, device_id, cohort, now(), now(), 'offline', 'offline', 'online', now() - interval '9 minutes', 'battery'
      from fleet.devices where device_id = ${device.device_id}`
  }
  const key = await makeKey(db, 'partner', ['read', 'enroll', 'command'], ['lobby', 'hall'])
  const ask = (target: string, body?: unknown) => call(target, { token: key, ...(body !== undefined && { body }) })
  const blind = (what: string, text: string) => {
    for (const word of ['theirs', 'secret-shop']) t.notOk(text.includes(word), `${what} does not show ${word}`)
  }

  const statuses = ['new', 'online', 'late', 'offline', 'clock_skewed', 'unity_down', 'revoked']
  const lists = [
    '/v1/devices',
    '/v1/devices?limit=1',
    '/v1/devices?cohort=secret-shop',
    '/v1/devices?alias=theirs-1',
    '/v1/devices?older_than=1s',
    ...statuses.map(status => `/v1/devices?status=${status}`),
    '/v1/transitions',
    '/v1/transitions?cohort=secret-shop',
    '/v1/transitions?after=0-0&limit=1',
  ]
  for (const target of lists) {
    const { status, body } = await ask(`GET ${target}`)
    t.equal(status, 200, target)
    blind(target, JSON.stringify(body))
  }
  const all = (await ask('GET /v1/devices')).body as { devices: { alias: string }[] }
  t.same(
    all.devices.map(({ alias }) => alias),
    ['mine-1', 'mine-2'],
    'but both cohorts of its own, in the order of their ids',
  )
  const first = (await ask('GET /v1/devices?limit=1')).body as { next_cursor: string }
  t.match((await ask(`GET /v1/devices?limit=1&cursor=${first.next_cursor}`)).body, {
    devices: [{ alias: 'mine-2' }],
    next_cursor: null,
  })
  t.match((await ask('GET /v1/transitions')).body, { transitions: [{ alias: 'mine-1' }] })
  t.equal((await ask(`GET /v1/devices/${mine.device_id}`)).status, 200)
  t.equal((await ask(`GET /v1/devices/${mine.device_id}/transitions`)).status, 200)

  // A device of another cohort is answered just as one that does not exist.
  const answers = async (id: number) =>
    Promise.all(
      [
        ask(`GET /v1/devices/${id}`),
        ask(`GET /v1/devices/${id}/transitions`),
        ask(`PATCH /admin/devices/${id}`, { alias: 'stolen' }),
        ask(`PATCH /admin/devices/${id}`, { cohort: 'lobby' }),
        ask(`POST /admin/devices/${id}/token`),
        ask(`DELETE /admin/devices/${id}`),
        ask('POST /admin/command', { device_id: id, command: 'x' }),
      ].map(async answer => {
        const { status, body } = await answer
        return {
          status,
          text: JSON.stringify(body)
            .replaceAll(String(id), 'N')
            .replace(/"request_id":"[^"]*"/, ''),
        }
      }),
    )
  const [other, none] = [await answers(theirs.device_id), await answers(999_999)]
  t.same(other, none)
  for (const { status, text } of other) {
    t.equal(status, 404)
    blind('a refusal', text)
  }
  t.match(await db.sql`select alias, cohort, revoked_at from fleet.devices where device_id = ${theirs.device_id}`, [
    { alias: 'theirs-1', cohort: 'secret-shop', revoked_at: null },
  ])

  for (const [target, body] of [
    ['POST /admin/devices', { alias: 'new', cohort: 'secret-shop' }],
    ['POST /admin/devices', { alias: 'new' }],
    [`PATCH /admin/devices/${mine.device_id}`, { cohort: 'secret-shop' }],
  ] as const) {
    const { status, body: problem } = await ask(target, body)
    t.equal(status, 403, target)
    t.match(problem, { detail: /is not one of those to which this key is bound/, hint: 'It is bound to: hall, lobby.' })
  }
  for (const [target, body] of [
    ['POST /admin/devices', { alias: 'theirs-1', cohort: 'lobby' }],
    [`PATCH /admin/devices/${mine.device_id}`, { alias: 'theirs-1' }],
  ] as const) {
    const { status, body: problem } = await ask(target, body)
    t.equal(status, 409, 'aliases are unique in the whole fleet')
    t.notMatch(JSON.stringify(problem), new RegExp(`device ${theirs.device_id}|renew_token`), 'but it does not say whose it is')
  }
  t.equal((await ask('POST /admin/devices', { alias: 'new', cohort: 'hall' })).status, 201)
  t.equal((await ask(`PATCH /admin/devices/${mine.device_id}`, { cohort: 'hall' })).status, 204)
  t.equal((await ask('POST /admin/command', { device_id: mine.device_id, command: 'x' })).status, 201)

  // The page.
  const { get, post } = visitor(url)
  const [cookie] = (await post('/login', { key })).headers.getSetCookie()
  const session = { cookie: cookie!.split(';')[0]! }
  for (const path of [
    '/',
    ...['any', 'offline', 'new', 'online'].map(status => `/?status=${status}`),
    '/?status=any&q=s',
    '/?status=any&q=the',
  ]) {
    const { status, html } = await get(path, session)
    t.equal(status, 200, path)
    blind(path, html.replace(/value="[^"]*"/g, '').replace(/match “.*?”/, ''))
    t.notMatch(html, /id="(checks|partitions|archives|storage|jobs|webhooks|ingest)"/, 'and nothing of the store')
  }
  t.match(textOf((await get('/?status=any', session)).html, 'headline'), /3 devices .* 2 cohorts: hall, lobby/)
  t.match(await get(`/devices/${mine.device_id}`, session), { status: 200, html: /mine-1/ })
  const hidden = await get(`/devices/${theirs.device_id}`, session)
  t.equal(hidden.status, 404)
  blind('a device', hidden.html)
  await db.sql`select fleet.revoke_api_key('partner')`
  t.match(await get('/', session), { html: /name="key"/ }, 'the session ends with its key')
})

t.test('an audit row is written in the transaction of its deed, and names who did it', async t => {
  const { db, call } = await withServer(t)
  const key = await makeKey(db, 'deploy', ['enroll', 'command'])
  const headers = { 'x-request-id': 'ticket-7' }
  const { body } = await call('POST /admin/devices', { token: key, headers, body: { alias: 'a' } })
  const { device_id } = body as { device_id: number }
  await call('PATCH /admin/devices/' + device_id, { token: key, body: { alias: 'b', cohort: 'lobby' } })
  await call('POST /admin/command', { admin: true, body: { device_id, command: 'x', payload: { a: 1 } } })
  await call(`DELETE /admin/devices/${device_id}`, { token: key })
  await call(`DELETE /admin/devices/${device_id}`, { token: key })
  await call('POST /admin/devices', { token: key, body: { alias: 'b' } })
  const dba = asRole(t, db, 'fleet_dba')
  await dba`select fleet.renew_token(${device_id})`
  const target = `device:${device_id}`
  t.match(
    await dba`select actor, how, action, target, before, after, request_id, address from fleet.audit_log where target = ${target} order by audit_id`,
    [
      {
        actor: 'deploy',
        how: 'key',
        action: 'device.enrolled',
        after: { alias: 'a', cohort: 'default' },
        request_id: 'ticket-7',
        address: '127.0.0.1',
      },
      { actor: 'deploy', action: 'device.renamed', before: 'a', after: 'b' },
      { actor: 'deploy', action: 'device.moved', before: 'default', after: 'lobby' },
      { actor: 'ADMIN_KEY', how: 'key', action: 'command.sent', after: { command: 'x', payload_sha256: /^[0-9a-f]{64}$/ } },
      { actor: 'deploy', action: 'device.revoked', before: { alias: 'b' } },
      { actor: 'fleet_dba', how: 'sql', action: 'device.token_renewed', request_id: null },
    ],
    'what changed nothing, or was refused, is not in it',
  )
  t.notMatch(JSON.stringify(await dba`select * from fleet.audit_log`), /nx[dgk]_/, 'no token and no key')
})

t.test('nobody can pretend to be somebody else in the audit log, or change it', async t => {
  const db = await withDatabase(t)
  const dba = asRole(t, db, 'fleet_dba')
  await dba`select set_config('fleet.actor', 'ann', false), set_config('fleet.how', 'key', false)`
  await dba`select fleet.enroll_device('a')`
  t.match(await dba`select actor, how from fleet.audit_log`, [{ actor: 'fleet_dba', how: 'sql' }])
  for (const statement of [
    'update fleet.audit_log set actor = $$x$$',
    'delete from fleet.audit_log',
    'truncate fleet.audit_log',
    `select fleet.audit('x')`,
    `select fleet.act('key', 'ann', null, 'read', null, null)`,
  ])
    await t.rejects(dba.unsafe(statement), { code: '42501' }, statement)
  for (const statement of ['update fleet.audit_log set actor = $$x$$', 'delete from fleet.audit_log', 'truncate fleet.audit_log'])
    await t.rejects(db.sql.unsafe(statement), { code: 'FL403', message: /rows can only be added/ }, `the owner: ${statement}`)
  await db.sql`update fleet.settings set audit_keep = '1 day'`
  await db.admin`insert into fleet.audit_log (at, actor, how, action) values (now() - interval '25 hours', 'old', 'sql', 'x')`
  await db.sql`select fleet.prune()`
  t.same(await db.sql`select action from fleet.audit_log order by audit_id`, [
    { action: 'device.enrolled' },
    { action: 'setting.changed' },
  ])
})

t.test('a deed whose transaction does not commit leaves no audit row', async t => {
  const { db, call } = await withServer(t)
  const key = await makeKey(db, 'deploy', ['enroll'])
  const { device_id } = await enroll(db, 'a')
  // Postgres ends the server's session in the middle of the deed.
  await db.admin.begin(async held => {
    await held`select from fleet.devices where device_id = ${device_id} for update`
    const deed = call(`DELETE /admin/devices/${device_id}`, { token: key })
    await waitFor(
      async () =>
        (
          await db.admin`select pg_terminate_backend(pid) from pg_stat_activity
        where datname = current_database() and wait_event_type = 'Lock' and query like '%revoke_device%'`
        ).length > 0,
    )
    t.equal((await deed).status, 503)
  })
  await sleep(100)
  const rows = await db.sql`select from fleet.audit_log where action = 'device.revoked'`
  const revoked = await db.sql`select from fleet.devices where revoked_at is not null`
  t.same([rows.length, revoked.length], [0, 0])
  t.equal((await call(`DELETE /admin/devices/${device_id}`, { token: key })).status, 204)
  t.equal((await db.sql`select from fleet.audit_log where action = 'device.revoked'`).length, 1)
})

t.test('a key that was revoked between its check and its deed does nothing', async t => {
  const { db, call } = await withServer(t)
  const key = await makeKey(db, 'deploy', ['enroll'])
  const { device_id } = await enroll(db, 'a')
  const server = asRole(t, db, 'fleet_server')
  const hash = `\\x${createHash('sha256').update(key).digest('hex')}`
  t.equal((await server`select * from fleet.authenticate_key(${hash}::text::bytea, null)`).length, 1)
  await db.sql`select fleet.revoke_api_key('deploy')`
  await t.rejects(
    server`select fleet.revoke_device(${device_id}) from fleet.act('key', 'deploy', ${hash}::text::bytea, 'enroll', null, null)`,
    { code: 'FL401', message: /was revoked/ },
  )
  t.equal((await call(`DELETE /admin/devices/${device_id}`, { token: key })).status, 401)
  t.same(await db.sql`select from fleet.devices where revoked_at is not null`, [])
})

t.test('while the database is unreachable, a key for metrics that was valid opens metrics, and nothing else is open', async t => {
  const db = await withCluster(t)
  const { call } = await withServer(t, {}, db)
  const [monitor, revoked, reader] = [
    await makeKey(db, 'prometheus', ['metrics', 'read']),
    await makeKey(db, 'revoked', ['metrics']),
    await makeKey(db, 'grafana', ['read']),
  ]
  for (const token of [monitor, revoked]) t.equal((await call('GET /metrics', { token })).status, 200)
  t.equal((await call('GET /v1/devices', { token: reader })).status, 200)
  await db.sql`select fleet.revoke_api_key('revoked')`
  t.equal((await call('GET /metrics', { token: revoked })).status, 401)
  await db.cluster.stop('immediate')
  const status = async (target: string, token: string) => (await call(target, { token })).status
  t.equal(await status('GET /metrics', monitor), 200)
  t.equal(await status('GET /ops/pool_health', monitor), 200)
  t.equal(await status('GET /metrics', revoked), 503)
  t.equal(await status('GET /metrics', reader), 503)
  t.equal(await status('GET /v1/devices', monitor), 503)
  t.equal((await call('GET /metrics', { admin: true })).status, 200)
})

t.test('wrong keys are limited by network, and a right key is not tried any longer', async t => {
  const { db, call } = await withServer(t, { trustProxy: true })
  const key = await makeKey(db, 'grafana', ['read'])
  const ask = (token: string, network: number) =>
    call('GET /v1/devices', { token, headers: { 'x-forwarded-for': `192.0.2.${network}` } })
  let wrong = 0
  const askWrong = (count: number) =>
    Promise.all(Array.from({ length: count }, () => ask(`nxk_${(wrong++).toString(16).padStart(64, '0')}`, 1)))
  const statuses = (await askWrong(60)).map(answer => answer.status)
  t.same(statuses, Array(60).fill(401))
  // One more a second is allowed, so a slow machine needs more than one try.
  let refused = await ask(key, 1)
  await waitFor(async () => {
    statuses.push(...(await askWrong(10)).map(answer => answer.status))
    refused = await ask(key, 1)
    return statuses.includes(429) && refused.status === 429
  })
  t.equal(refused.status, 429)
  t.match(refused.headers.get('retry-after'), /^\d+$/)
  t.equal((await ask(key, 2)).status, 200)
})

t.test('what a key did is there if and only if the deed committed, whenever Postgres is killed', async t => {
  const db = await withCluster(t, { durable: true })
  const { call } = await withServer(t, {}, db)
  const key = await makeKey(db, 'deploy', ['enroll', 'command'])
  const { device_id } = await enroll(db, 'a')
  const acknowledged: number[] = []
  for (let round = 0; round < 3; round++) {
    let isRunning = true
    const work = Promise.all(
      [0, 1, 2].map(async () => {
        while (isRunning) {
          const answer = await call('POST /admin/command', { token: key, body: { device_id, command: 'x' } })
          if (answer.status === 201) acknowledged.push((answer.body as { command_id: number }).command_id)
          else await sleep(20)
        }
      }),
    )
    await sleep(300 + 200 * Math.random())
    process.kill((await db.cluster.pid())!, 'SIGKILL')
    await waitFor(async () => (await db.cluster.pid()) === undefined)
    isRunning = false
    await work
    await db.cluster.start()
    await waitFor(async () => (await call('GET /v1/devices', { token: key })).status === 403)
  }
  const sql = asRole(t, db, 'fleet_dba')
  const sent = (await sql<{ command_id: string }[]>`select command_id from fleet.device_commands order by 1`).map(row =>
    Number(row.command_id),
  )
  const audited = (
    await sql<
      { command_id: string }[]
    >`select after ->> 'command_id' as command_id from fleet.audit_log where action = 'command.sent' order by audit_id`
  ).map(row => Number(row.command_id))
  t.same(
    audited.sort((a, b) => a - b),
    sent.sort((a, b) => a - b),
  )
  const missing = acknowledged.filter(id => !sent.includes(id))
  t.same(missing, [], 'and nothing that was acknowledged is missing')
  t.ok(sent.length > 10, `${sent.length} commands`)
})
