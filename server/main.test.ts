import { createServer } from 'node:net'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import t from 'tap'
import { spawnNode, waitFor, withDatabase, type TestProcess } from '../testing/database.ts'
import { ADMIN_KEY, client, enroll, load, lost, NO_LIMIT, serverEnv, stored, withProcess } from '../testing/server.ts'
import { built } from '../lib/repository.ts'

async function exitOf({ exited }: TestProcess) {
  return (await exited).code
}

t.test('after SIGTERM under load, everything that was acknowledged is stored, and the exit code is 0', async t => {
  const db = await withDatabase(t)
  const { device_id, token } = await enroll(db, 'a')
  const { server, url } = await withProcess(t, db, NO_LIMIT)
  const traffic = load(url, token)
  await waitFor(async () => traffic.acknowledged.length > 300)
  const { code } = await server.stop('SIGTERM')
  await traffic.stop()
  t.equal(code, 0, server.output())
  t.match(server.output(), /"event":"server.stopped"/)
  t.same(await lost(db, device_id, traffic.acknowledged), [])
  t.same(
    [...traffic.statuses.keys()].filter(status => status !== 201),
    [],
    'no request got another answer',
  )
})

t.test('SIGTERM lets the requests in flight finish first', async t => {
  const db = await withDatabase(t)
  const { device_id, token } = await enroll(db, 'a')
  const { server, call } = await withProcess(t, db)
  const locker = await db.admin.reserve()
  await locker`begin`
  await locker`lock table fleet.device_heartbeats in share mode`
  const waiting = call('POST /v1/heartbeat', { token, body: {} })
  await waitFor(async () => {
    const rows = await db.admin`
      select from pg_stat_activity
      where datname = current_database() and application_name = 'nexmdm server' and wait_event_type = 'Lock'
    `
    return rows.length === 1
  })
  const stopped = server.stop('SIGTERM')
  await waitFor(async () => server.output().includes('server.draining'))
  await t.rejects(call('GET /healthz'), 'new connections are refused')
  await locker`rollback`
  locker.release()
  t.equal((await waiting).status, 201)
  t.equal((await stored(db, device_id)).length, 1)
  t.equal((await stopped).code, 0, server.output())
})

t.test('the server starts while nobody can connect to the database, says so, and is ready when the database is back', async t => {
  const db = await withDatabase(t)
  const { token } = await enroll(db, 'a')
  await db.admin.unsafe(`alter database ${db.name} connection limit 0`)
  const server = await spawnNode(t, 'server/main.ts', { env: serverEnv(db), ready: /"server.listening"/ })
  const call = client(`http://127.0.0.1:${/"port":(\d+)/.exec(server.output())![1]}`)
  t.equal((await call('GET /healthz')).status, 200)
  for (const answer of [await call('GET /readyz'), await call('POST /v1/heartbeat', { token, body: {} })]) {
    t.match(answer, { status: 503, body: { status: 503 } })
    t.match(answer.headers.get('retry-after'), /^\d+$/)
  }
  t.equal((await call('GET /metrics', { admin: true })).status, 200)
  await db.admin.unsafe(`alter database ${db.name} connection limit -1`)
  await waitFor(async () => (await call('GET /readyz')).status === 200, { what: () => server.output() })
  t.equal((await call('POST /v1/heartbeat', { token, body: {} })).status, 201)
})

t.test('if the port is in use, the server prints one sentence and exits with 1', async t => {
  const db = await withDatabase(t)
  const other = createServer().listen(0, '127.0.0.1')
  t.teardown(() => other.close())
  await once(other, 'listening')
  const { port } = other.address() as { port: number }
  const server = await spawnNode(t, 'server/main.ts', { env: { ...serverEnv(db), PORT: String(port) } })
  t.equal(await exitOf(server), 1)
  t.match(server.output(), new RegExp(`Port ${port} on 127.0.0.1 is already in use`))
})

t.test('wrong settings are all named, and the server exits with 2', async t => {
  const server = await spawnNode(t, 'server/main.ts', { env: { PORT: 'x', ADMIN_KEY: 'short' } })
  t.equal(await exitOf(server), 2)
  for (const name of ['PORT', 'ADMIN_KEY', 'SERVER_DATABASE_URL', 'OPS_DATABASE_URL']) {
    t.match(server.output(), new RegExp(`^ {2}${name} `, 'm'))
  }
})

t.test('the server also drains when the process that started it is gone', async t => {
  const db = await withDatabase(t)
  const child = spawn(process.execPath, [built('server/main.ts')], {
    stdio: ['ignore', 'pipe', 'inherit', 'ipc'],
    env: { PATH: '/usr/bin:/bin', ...serverEnv(db) },
  })
  t.teardown(() => child.kill('SIGKILL'))
  let output = ''
  child.stdout!.on('data', (data: Buffer) => {
    output += data.toString()
  })
  await waitFor(async () => output.includes('server.listening'))
  child.disconnect()
  const [code] = (await once(child, 'exit')) as [number | null]
  t.equal(code, 0)
  t.match(output, /"reason":"disconnect"/)
})

t.test("with an administrator's URL the server has only the rights of fleet_server", async t => {
  const db = await withDatabase(t)
  const env = { DATABASE_URL: db.url('postgres'), ADMIN_KEY, PORT: '0' }
  const server = await spawnNode(t, 'server/main.ts', { env, ready: /server.listening/ })
  const call = client(`http://127.0.0.1:${/"port":(\d+)/.exec(server.output())![1]}`)
  const { body } = await call('POST /admin/devices', { admin: true, body: { alias: 'a' } })
  t.equal((await call('POST /v1/heartbeat', { token: (body as { token: string }).token, body: {} })).status, 201)
  t.equal((await call('POST /ops/nightly', { admin: true })).status, 200)
  const rows = await db.admin<{ application_name: string }[]>`
    select application_name from pg_stat_activity where datname = current_database() and usename = 'postgres' and application_name like 'nexmdm %'
  `
  t.ok(rows.length > 0)
  await db.admin`revoke execute on function fleet.ingest_batch(json, timestamptz, bytea[], integer[]) from fleet_server`
  t.match(
    await call('POST /v1/heartbeat', { token: (body as { token: string }).token, body: {} }),
    {
      status: 500,
      body: { status: 500, detail: /internal error/ },
    },
    'a superuser would be let in',
  )
})
