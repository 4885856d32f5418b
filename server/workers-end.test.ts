import { once } from 'node:events'
import { readFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import t from 'tap'
import { freePort } from '../local/cluster.ts'
import { spawnNode, waitFor, withDatabase } from '../testing/database.ts'
import { value } from '../testing/fleet.ts'
import { isAlive } from '../lib/process.ts'
import { enroll, living, load, lost, NO_LIMIT, serverEnv, withProcess } from '../testing/server.ts'

for (const signal of ['SIGTERM', 'SIGINT'] as const) {
  t.test(`after ${signal} under load all workers drain, and the exit code is 0`, async t => {
    const db = await withDatabase(t)
    const { device_id, token } = await enroll(db, 'a')
    const { server, url } = await withProcess(t, db, { WORKERS: '2', ...NO_LIMIT })
    await waitFor(async () => living(server).length === 2)
    const pids = living(server)
    const traffic = load(url, token, 5)
    await waitFor(async () => traffic.acknowledged.length > 200)
    const { code } = await server.stop(signal)
    await traffic.stop()
    t.equal(code, 0, server.output())
    t.same(
      pids.filter(pid => isAlive(pid)),
      [],
    )
    t.same(await lost(db, device_id, traffic.acknowledged), [])
    t.same([...traffic.statuses.keys()], [201], 'no request got another answer')
  })
}

t.test('when the first process is killed, the workers notice, drain and leave nothing behind', async t => {
  const db = await withDatabase(t)
  const { device_id, token } = await enroll(db, 'a')
  const { server, url } = await withProcess(t, db, { WORKERS: '2', ...NO_LIMIT })
  await waitFor(async () => living(server).length === 2)
  const pids = living(server)
  const traffic = load(url, token, 5)
  await waitFor(async () => traffic.acknowledged.length > 200)
  process.kill(server.pid, 'SIGKILL')
  await waitFor(async () => !pids.some(pid => isAlive(pid)), { what: () => server.output() })
  await traffic.stop()
  t.same(await lost(db, device_id, traffic.acknowledged), [])
  t.equal(server.output().match(/"event":"server.stopped","in_time":true/g)?.length, 2, server.output())
  t.equal([...traffic.statuses.keys()].join(), '201')
})

t.test('when the first process is killed while a worker starts, that worker ends too', async t => {
  const db = await withDatabase(t)
  const { server } = await withProcess(t, db, { WORKERS: '2' })
  const children = async () => (await readFile(`/proc/${server.pid}/task/${server.pid}/children`, 'utf8')).trim().split(' ')
  await waitFor(async () => (await children()).length === 2)
  // It cannot answer any more, so the second worker opens its connections and then waits for the port.
  process.kill(server.pid, 'SIGSTOP')
  const pids = (await children()).map(Number)
  await waitFor(
    async () =>
      (await value(db.admin`
        select count(*)::int from pg_stat_activity
        where datname = current_database() and application_name = 'nexmdm server'`)) === 4,
  )
  process.kill(server.pid, 'SIGKILL')
  await waitFor(async () => !pids.some(pid => isAlive(pid)), { what: () => server.output() })
})

t.test('a port in use is reported once, with exit code 1', async t => {
  const db = await withDatabase(t)
  const other = createServer().listen(0, '127.0.0.1')
  t.teardown(() => other.close())
  await once(other, 'listening')
  const { port } = other.address() as { port: number }
  const server = await spawnNode(t, 'server/main.ts', { env: { ...serverEnv(db), PORT: String(port), WORKERS: '4' } })
  t.equal((await server.exited).code, 1)
  t.equal(server.output().match(new RegExp(`^Port ${port} on 127.0.0.1 is already in use`, 'gm'))?.length, 1, server.output())
})

t.test('wrong settings are reported once, with exit code 2', async t => {
  const server = await spawnNode(t, 'server/main.ts', { env: { ADMIN_KEY: 'short', WORKERS: '4' } })
  t.equal((await server.exited).code, 2)
  t.equal(server.output().match(/ADMIN_KEY must have/g)?.length, 1, server.output())
})

t.test('when no worker survives its start any more, the server gives up with exit code 1', async t => {
  const db = await withDatabase(t)
  const port = await freePort(true)
  const { server } = await withProcess(t, db, { WORKERS: '2', PORT: String(port) })
  await waitFor(async () => living(server).length === 2)
  // Another process takes the port while nobody serves.
  const other = createServer()
  t.teardown(() => other.close())
  other.on('error', () => setImmediate(listen))
  for (const pid of living(server)) process.kill(pid, 'SIGKILL')
  listen()
  t.equal((await server.exited).code, 1)
  t.match(server.output(), /^5 workers in a row ended during startup, the last one with code 1\. The server gives up\.$/m)

  function listen() {
    other.listen(port, '127.0.0.1')
  }
})
