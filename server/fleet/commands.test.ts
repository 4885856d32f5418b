import t from 'tap'
import { waitFor, type TestDatabase } from '../../testing/database.ts'
import { isDistributed } from '../../testing/distributed.ts'
import { enroll, gatewayToken, withServer, type Call } from '../../testing/server.ts'

interface Command {
  command_id: number
  command: string
  payload: unknown
  created_at: string
}

async function send(call: Call, deviceId: number, command: string, payload?: unknown) {
  const answer = await call('POST /admin/command', { admin: true, body: { device_id: deviceId, command, payload } })
  return (answer.body as { command_id: number }).command_id
}

async function poll(call: Call, token: string) {
  return ((await call('GET /v1/commands', { token })).body as { commands: Command[] }).commands
}

async function dispatches(db: TestDatabase, commandId: number) {
  const rows = await db.sql<{ event: string }[]>`
    select event from fleet.command_dispatch_log where command_id = ${commandId} order by dispatch_id
  `
  return rows.map(row => row.event)
}

async function metric(call: Call, name: string) {
  const { body } = await call('GET /metrics', { admin: true })
  return Number(new RegExp(`^${name} (.*)$`, 'm').exec(body as string)![1])
}

t.test('a command is handed over at each poll until it is acknowledged, and every step is logged', async t => {
  const { db, call } = await withServer(t)
  const { device_id, token } = await enroll(db, 'a')
  t.same(await poll(call, token), [])
  const payload = { percent: 30, zones: ['hall', null, 0.5], nested: { ok: true }, text: 'ä\\u0000' }
  const answer = await call('POST /admin/command', { admin: true, body: { device_id, command: 'set_volume', payload } })
  t.match(answer, { status: 201, body: { command_id: Number } })
  const first = (answer.body as { command_id: number }).command_id
  const second = await send(call, device_id, 'restart_unity')
  t.ok(second > first)

  const [a, b] = await poll(call, token)
  t.match(a, { command_id: first, command: 'set_volume', created_at: /^\d{4}-.*Z$/ })
  t.same(a!.payload, payload)
  t.match(b, { command_id: second, command: 'restart_unity', payload: null })
  t.equal((await poll(call, token)).length, 2, 'again: the answer may have been lost')
  for (let n = 0; n < 2; n++) {
    const ack = await call(`POST /v1/commands/${first}/ack`, { token })
    t.equal(ack.status, 204)
    t.equal(ack.body, '')
  }
  t.same(
    (await poll(call, token)).map(command => command.command_id),
    [second],
  )
  t.same(await dispatches(db, first), ['sent', 'handed_over', 'handed_over', 'acknowledged'])
  t.same(await dispatches(db, second), ['sent', 'handed_over', 'handed_over', 'handed_over'])
  t.equal(await metric(call, 'dispatch_log_writes_total'), 8)
  t.equal(await metric(call, 'dispatch_log_writes_failed_total'), 0)
})

t.test('a device gets only its own commands, and no command can be sent to a revoked or unknown device', async t => {
  const { db, call } = await withServer(t)
  const [a, b, gone] = [await enroll(db, 'a'), await enroll(db, 'b'), await enroll(db, 'gone')]
  const id = await send(call, a.device_id, 'ping')
  t.same(await poll(call, b.token), [])
  for (const path of [`${id}`, '999', 'x', '9'.repeat(30)]) {
    t.match(await call(`POST /v1/commands/${path}/ack`, { token: b.token }), { status: 404, body: { status: 404 } }, path)
  }
  t.same(await dispatches(db, id), ['sent'])
  await db.sql`select fleet.revoke_device(${gone.device_id})`
  for (const device_id of [gone.device_id, 999]) {
    const answer = await call('POST /admin/command', { admin: true, body: { device_id, command: 'ping' } })
    t.match(answer, { status: 404, body: { detail: new RegExp(`device ${device_id}`), hint: String } })
  }
  const gateway = await gatewayToken(db, 'hall')
  for (const token of [gateway, undefined, `nxd_${'0'.repeat(64)}`]) {
    for (const path of ['GET /v1/commands', `POST /v1/commands/${id}/ack`]) {
      t.equal((await call(path, token === undefined ? {} : { token })).status, 401, path)
    }
  }
  for (const headers of [{}, { authorization: `Bearer ${a.token}` }]) {
    const answer = await call('POST /admin/command', {
      headers: headers as Record<string, string>,
      body: { device_id: 1, command: 'x' },
    })
    t.equal(answer.status, 401)
  }
})

t.test('an invalid command is refused with the field named, and nothing is written', async t => {
  const { db, call } = await withServer(t)
  const { device_id } = await enroll(db, 'a')
  let deep: unknown = 1
  for (let n = 0; n < 40; n++) deep = n % 2 ? [deep] : { deep }
  const wrong: [string, unknown][] = [
    ['device_id', { command: 'x' }],
    ['device_id', { device_id: '1', command: 'x' }],
    ['device_id', { device_id: 0.5, command: 'x' }],
    ['command', { device_id }],
    ['command', { device_id, command: '' }],
    ['command', { device_id, command: 'x'.repeat(65) }],
    ['command', { device_id, command: 'a\0' }],
    ['payload', { device_id, command: 'x', payload: { a: ['\0'] } }],
    ['payload', { device_id, command: 'x', payload: { '\ud800': 1 } }],
    ['payload', { device_id, command: 'x', payload: deep }],
    ['payload', `{"device_id":${device_id},"command":"x","payload":[1e400]}`],
    ['payload', `{"device_id":${device_id},"command":"x","payload":9007199254740993}`],
    ['', []],
    ['', null],
  ]
  for (const [path, body] of wrong) {
    const answer = await call('POST /admin/command', {
      admin: true,
      body: typeof body === 'string' ? body : JSON.stringify(body),
      headers: { 'content-type': 'application/json' },
    })
    t.match(answer, { status: 422, body: { errors: [{ path }] } }, JSON.stringify(body).slice(0, 100))
  }
  t.equal((await call('POST /admin/command', { admin: true, body: '{' })).status, 400)
  t.equal(
    (await call('POST /admin/command', { admin: true, body: { device_id, command: 'x', payload: 'y'.repeat(20_000) } })).status,
    413,
  )
  t.match(
    await call('POST /admin/command', { admin: true, body: { device_id, command: ' ' } }),
    { status: 422 },
    'refused by the database',
  )
  t.same(await db.sql`select from fleet.device_commands`, [])
  t.equal(
    (await call('POST /admin/command', { admin: true, body: { device_id, command: '𝄞'.repeat(64), payload: null } })).status,
    201,
  )
})

t.test('a byte order mark before the JSON of an operator is accepted', async t => {
  const { db, call } = await withServer(t)
  const mark = (body: unknown) => `\uFEFF${JSON.stringify(body)}`
  t.equal((await call('POST /admin/devices', { admin: true, body: mark({ alias: 'a' }) })).status, 201)
  const [device] = await db.sql<{ device_id: string }[]>`select device_id from fleet.devices`
  const body = mark({ device_id: Number(device!.device_id), command: 'reboot' })
  t.equal((await call('POST /admin/command', { admin: true, body })).status, 201)
})

t.test('two polls at once both get the command, two acknowledgements at once count as one', async t => {
  const { db, call } = await withServer(t)
  const { device_id, token } = await enroll(db, 'a')
  const id = await send(call, device_id, 'ping')
  const polls = await Promise.all(Array.from({ length: 8 }, () => poll(call, token)))
  t.ok(polls.every(commands => commands.length === 1 && commands[0]!.command_id === id))
  // Both find it unacknowledged, and one waits for the other.
  const holder = await db.sql.reserve()
  await holder`begin`
  await holder`select from fleet.device_commands where device_id = ${device_id} and command_id = ${id} for update`
  const acks = Array.from({ length: 5 }, () => call(`POST /v1/commands/${id}/ack`, { token }))
  const waiting = () =>
    isDistributed
      ? db.admin`select distinct waiting_gpid from citus_lock_waits`
      : db.admin`select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`
  await waitFor(async () => (await waiting()).length === 5)
  t.equal((await poll(call, token)).length, 1, 'a poll does not wait for them')
  await holder`rollback`
  holder.release()
  t.same(
    (await Promise.all(acks)).map(answer => answer.status),
    [204, 204, 204, 204, 204],
  )
  t.same(await dispatches(db, id), ['sent', ...Array<string>(9).fill('handed_over'), 'acknowledged'])
  t.same(await poll(call, token), [])
})

t.test('commands that are sent at the same time are all handed over, oldest first, a hundred per poll', async t => {
  const { db, call } = await withServer(t)
  const { device_id, token } = await enroll(db, 'a')
  const ids = await Promise.all(Array.from({ length: 120 }, (_, n) => send(call, device_id, `command-${n}`)))
  ids.sort((a, b) => a - b)
  const first = await poll(call, token)
  t.same(
    first.map(command => command.command_id),
    ids.slice(0, 100),
  )
  await Promise.all(first.map(command => call(`POST /v1/commands/${command.command_id}/ack`, { token })))
  t.same(
    (await poll(call, token)).map(command => command.command_id),
    ids.slice(100),
  )
})

t.test('while the dispatch log cannot be written, nothing is sent or handed over, and that is counted', async t => {
  const { db, call } = await withServer(t)
  const { device_id, token } = await enroll(db, 'a')
  const id = await send(call, device_id, 'ping')
  await db.admin`alter table fleet.command_dispatch_log add constraint nothing check (false) not valid`
  t.equal((await call('GET /v1/commands', { token })).status, 500)
  t.equal((await call(`POST /v1/commands/${id}/ack`, { token })).status, 500)
  t.equal((await call('POST /admin/command', { admin: true, body: { device_id, command: 'ping' } })).status, 500)
  t.equal(await metric(call, 'dispatch_log_writes_failed_total'), 3)
  await db.admin`alter table fleet.command_dispatch_log drop constraint nothing`
  t.same(
    (await poll(call, token)).map(command => command.command_id),
    [id],
    'the command is still waiting',
  )
  t.equal((await call('POST /admin/command', { admin: true, body: { device_id: 999, command: 'ping' } })).status, 404)
  t.equal(await metric(call, 'dispatch_log_writes_failed_total'), 3, 'an unknown device does not count as a failure')
})
