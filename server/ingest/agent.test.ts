import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { connect, createServer, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { freePort } from '../../local/cluster.ts'
import { spawnProgram, waitFor, withDatabase } from '../../testing/database.ts'
import { enroll, stored, withServer } from '../../testing/server.ts'
import { shellTools } from '../../testing/shell-tools.ts'

// The agent sends with curl.
const skip = shellTools.without

/** Starts docs/agent.sh with lines in its buffer. `kept` returns what it has not sent yet. */
async function startAgent(t: Test, url: string, token: string, lines: string[] = []) {
  const directory = await mkdtemp(join(tmpdir(), 'fleet-agent-'))
  const buffer = join(directory, 'heartbeats.ndjson')
  await writeFile(buffer, lines.map(line => `${line}\n`).join(''))
  const agent = await spawnProgram(t, 'sh', ['docs/agent.sh'], {
    env: { URL: url, TOKEN: token, BUFFER: buffer, INTERVAL: '1', BATTERY: '57' },
  })
  t.teardown(async () => {
    // If the agent were killed, the processes that it waits for would stay behind.
    await agent.stop('SIGTERM')
    await rm(directory, { recursive: true, force: true })
  })
  const kept = async () =>
    (await readFile(buffer, 'utf8'))
      .split('\n')
      .filter(Boolean)
      .map(line => (JSON.parse(line) as { ts: string }).ts)
  return { agent, kept }
}

/** The bucket of ten seconds in which the store keeps a heartbeat. */
function bucket(ts: string) {
  return Math.floor(Date.parse(ts) / 10_000)
}

t.test('the example agent keeps what it cannot send, and sends it when the server is back', { skip }, async t => {
  const db = await withDatabase(t)
  const { device_id, token } = await enroll(db, 'a')
  const port = await freePort(true)
  const { agent, kept } = await startAgent(t, `http://127.0.0.1:${port}`, token)
  await waitFor(async () => /offline, [3-9] kept/.test(agent.output()), { what: agent.output })
  const before = await kept()

  await db.sql`update fleet.devices set heartbeat_interval = '1 hour' where device_id = ${device_id}`
  await withServer(t, { port }, db)
  await waitFor(async () => (await kept()).length === 0, { what: agent.output })
  await waitFor(async () => /next in \d{3,4} s/.test(agent.output()), { what: agent.output })
  const rows = await stored(db, device_id)
  const buckets = rows.map(row => bucket((row.ts as Date).toISOString()))
  t.same(
    before.map(bucket).filter(one => !buckets.includes(one)),
    [],
    'nothing is lost',
  )
  t.equal(new Set(buckets).size, rows.length, 'nothing is stored twice')
  t.match(rows[0], { battery_pct: 57, agent_version: 'agent.sh' })
})

t.test('a refused agent tries again when it was told to', { skip }, async t => {
  const db = await withDatabase(t)
  const { device_id, token } = await enroll(db, 'a')
  const { url } = await withServer(t, {}, db)
  await db.admin.unsafe(`alter database ${db.name} connection limit 0`)
  await db.admin`select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and usename = 'fleet_server'`
  const { agent, kept } = await startAgent(t, url, token)
  await waitFor(async () => /refused with 503, again in \d+ s/.test(agent.output()), { what: agent.output })
  await db.admin.unsafe(`alter database ${db.name} connection limit -1`)
  await waitFor(async () => (await kept()).length === 0, { what: agent.output })
  t.ok((await stored(db, device_id)).length > 0)
})

t.test('an agent of a device that has sent too much waits as long as it is told, and then gets on', { skip }, async t => {
  const { db, url, call } = await withServer(t, { deviceRequestsPerMinute: 30 })
  const { device_id, token } = await enroll(db, 'a')
  while ((await call('GET /v1/commands', { token })).status !== 429);
  const ts = new Date(Date.now() - 60_000).toISOString()
  const { agent, kept } = await startAgent(t, url, token, [`{"ts":"${ts}"}`])
  // Another program with the same token, as long as the agent was not refused yet.
  await waitFor(
    async () => {
      await call('GET /v1/commands', { token })
      return agent.output().includes('refused')
    },
    { every: 0, what: agent.output },
  )
  t.match(agent.output(), /^refused with 429, again in [12] s$/m)
  t.ok((await kept()).includes(ts))
  await waitFor(async () => (await kept()).length === 0, { what: agent.output })
  t.ok((await stored(db, device_id)).some(row => (row.ts as Date).toISOString() === ts))
})

t.test('a lost answer leads to a duplicate, not to a second heartbeat', { skip }, async t => {
  const { db, url } = await withServer(t)
  const { device_id, token } = await enroll(db, 'a')
  await db.sql`update fleet.devices set heartbeat_interval = '1 hour' where device_id = ${device_id}`
  let lost = 0
  const open = new Set<Socket>()
  const proxy = createServer(socket => {
    const upstream = connect(Number(new URL(url).port), '127.0.0.1')
    for (const end of [socket, upstream]) open.add(end.on('error', () => {}))
    socket.pipe(upstream)
    upstream
      .on('data', data => {
        if (lost++ === 0) socket.destroy()
        else socket.write(data)
      })
      .on('close', () => socket.destroy())
  }).listen(0, '127.0.0.1')
  await new Promise(resolve => proxy.once('listening', resolve))
  t.teardown(() => {
    for (const socket of open) socket.destroy()
    proxy.close()
  })
  const { agent, kept } = await startAgent(t, `http://127.0.0.1:${(proxy.address() as { port: number }).port}`, token)
  await waitFor(async () => /next in \d{3,4} s/.test(agent.output()), { what: agent.output })
  t.match(agent.output(), /offline/)
  t.same(await kept(), [])
  const rows = await stored(db, device_id)
  const buckets = rows.map(row => bucket((row.ts as Date).toISOString()))
  t.equal(new Set(buckets).size, rows.length)
})

t.test('the agent counts and reports heartbeats that the server rejects', { skip }, async t => {
  const { db, url } = await withServer(t)
  const { device_id, token } = await enroll(db, 'a')
  await db.sql`update fleet.devices set heartbeat_interval = '1 hour' where device_id = ${device_id}`
  const lines = ['{"ts":"yesterday"}', '{"ts":"2026-13-01T00:00:00Z"}', 'not JSON', `{"ts":"${new Date().toISOString()}"}`]
  const { agent, kept } = await startAgent(t, url, token, lines)
  // The reasons follow the line with the counts.
  await waitFor(async () => agent.output().includes('must be JSON'), { what: agent.output })
  t.match(agent.output(), /^sent 2, rejected 3, next in \d{3,4} s$/m)
  t.match(agent.output(), /result:rejected.*ts.*RFC 3339/)
  t.match(agent.output(), /result:rejected.*must be JSON/)
  t.same(await kept(), [], 'sending them again would change nothing')
})

t.test('an unknown token ends the agent, with the message of the server', { skip }, async t => {
  const { url } = await withServer(t)
  const { agent } = await startAgent(t, url, `nxd_${'0'.repeat(64)}`)
  t.equal((await agent.exited).code, 1)
  t.match(agent.output(), /The token is unknown or revoked/)
})
