import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { Writable } from 'node:stream'
import type { Sql } from 'postgres'
import t, { type Test } from 'tap'
import { connectHot } from './database.ts'
import { connect as connectArchiver } from '../archiver/database.ts'
import { createLog } from '../lib/log.ts'
import { scramVerifier } from '../local/scram.ts'
import { makeDirectory } from '../testing/archiver.ts'
import { waitFor, withCluster, withDatabase, type OwnCluster } from '../testing/database.ts'
import { asRole } from '../testing/fleet.ts'
import { ago, enroll, withProcess, withServer } from '../testing/server.ts'

interface Health {
  status: string
  reason?: string
}

const REFUSED = /too many clients already|remaining connection slots are reserved/

/** The server's sessions of the hot path. */
async function pids(admin: Sql) {
  const rows = await admin<{ pid: number }[]>`
    select pid from pg_stat_activity where application_name = 'nexmdm server' order by pid
  `
  return rows.map(({ pid }) => pid)
}

/** Takes every connection that Postgres still has for roles that have no reserved ones. */
async function takeAll(t: Test, db: OwnCluster) {
  const others: Sql[] = []
  for (;;) {
    const other = asRole(t, db, 'fleet_owner')
    try {
      await other`select 1`
      others.push(other)
    } catch (error) {
      t.match(error, { code: '53300', message: REFUSED })
      break
    }
  }
  return () => Promise.all(others.map(other => other.end({ timeout: 1 })))
}

t.test('heartbeats are stored while others have taken all connections, and pool health says so', async t => {
  const db = await withCluster(t, { connections: 24 })
  const { call } = await withServer(t, {}, db)
  const { token } = await enroll(db, 'a')
  // It has sent no statement, so it is as after a quiet hour.
  await waitFor(async () => (await pids(db.admin)).length === 2)
  t.match((await call('GET /ops/pool_health', { admin: true })).body, { status: 'ok', reason: undefined })
  const giveBack = await takeAll(t, db)
  // More at once than there are connections.
  const answers = await Promise.all(
    Array.from({ length: 30 }, (_, n) => call('POST /v1/heartbeat', { token, body: { ts: ago(60 + 20 * n) } })),
  )
  t.same([...new Set(answers.map(({ status }) => status))], [201])
  const reads = await Promise.all(Array.from({ length: 30 }, () => call('GET /v1/devices', { admin: true })))
  t.same([...new Set(reads.map(({ status }) => status))], [200])
  t.match((await call('GET /ops/pool_health', { admin: true })).body, {
    status: 'critical',
    reason: REFUSED,
    pool: { in_use: 0, max: 10 },
  })
  t.equal((await call('GET /readyz')).status, 200, 'it can store heartbeats, so a balancer keeps it')
  await giveBack()
  await waitFor(async () => ((await call('GET /ops/pool_health', { admin: true })).body as Health).status === 'ok')
})

t.test('a connection that is kept comes back after it was ended, without a request', async t => {
  const db = await withDatabase(t)
  await withServer(t, {}, db)
  const own = async () =>
    await db.admin<{ pid: number }[]>`
    select pid from pg_stat_activity where application_name = 'nexmdm server' and datname = ${db.name} order by pid
  `
  await waitFor(async () => (await own()).length === 2)
  const before = await own()
  await db.admin`select pg_terminate_backend(pid) from unnest(${before.map(({ pid }) => pid)}::int[]) pid`
  await waitFor(async () => {
    const now = await own()
    return now.length === 2 && now.every(({ pid }) => before.every(old => old.pid !== pid))
  })
})

t.test('a connection is replaced only after its successor is open', async t => {
  const db = await withCluster(t, { connections: 24 })
  let lifetimeMs = 3_600_000
  const lines: string[] = []
  const pool = connectHot({ url: db.url('fleet_server') }, 10, { lifetimeMs: () => lifetimeMs, log: logTo(lines) })
  t.teardown(() => pool.end())
  await waitFor(async () => (await pids(db.admin)).length === 2)
  const giveBack = await takeAll(t, db)
  lifetimeMs = 1
  // The two come back at once, and from now on each should be replaced all the time.
  await db.admin`select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'nexmdm server'`
  await waitFor(() => Promise.resolve(lines.some(line => line.includes('pool.connection_refused'))))
  // The successor of the first may have taken the place of the second, which then comes back a little later.
  await waitFor(async () => (await pids(db.admin)).length === 2)
  const before = await pids(db.admin)
  t.match(await pool.run(sql => sql`select 1 as one`), [{ one: 1 }])
  t.same(await pids(db.admin), before, 'no other connection is free, so they stay')
  await giveBack()
  await waitFor(
    async () => {
      const now = await pids(db.admin)
      return before.every(pid => !now.includes(pid))
    },
    { timeoutMs: 60_000 },
  )
  for (let n = 0; n < 200; n++) t.match(await pool.run(sql => sql`select ${n}::int as n`), [{ n }])
})

t.test('statements are spread over all connections, and further ones wait their turn', async t => {
  const db = await withDatabase(t)
  const pool = connectHot({ url: db.url('fleet_server') }, 4)
  t.teardown(() => pool.end())
  const running = Array.from({ length: 6 }, (_, n) =>
    pool.run(sql => sql<{ n: number; pid: number }[]>`select ${n}::int as n, pg_backend_pid() as pid, pg_sleep(0.2)`),
  )
  t.match(pool, { inUse: 4, waiting: 2 })
  const rows = (await Promise.all(running)).map(([row]) => row!)
  t.same(
    rows.map(({ n }) => n),
    [0, 1, 2, 3, 4, 5],
  )
  t.equal(new Set(rows.map(({ pid }) => pid)).size, 4)
  t.match(pool, { inUse: 0, waiting: 0, statements: 6, waits: 2 })
})

t.test('a changed password is reported once with its reason, and the server goes on when it fits again', async t => {
  const db = await withCluster(t)
  const { token } = await enroll(db, 'a')
  const { server, call } = await withProcess(t, db)
  t.equal((await call('POST /v1/heartbeat', { token, body: { ts: ago(600) } })).status, 201)
  const [old] = await db.admin<
    { verifier: string }[]
  >`select rolpassword as verifier from pg_authid where rolname = 'fleet_server'`
  const setPassword = (verifier: string) => db.admin.unsafe(`alter role fleet_server password '${verifier}'`)
  const health = async () => (await call('GET /ops/pool_health', { admin: true })).body as Health
  const refused = { status: 'critical', reason: 'password authentication failed for user "fleet_server"' }

  await setPassword(scramVerifier('another-password'))
  t.match(await health(), refused, 'before a connection was lost')
  t.equal((await call('POST /v1/heartbeat', { token, body: { ts: ago(580) } })).status, 201, 'those that are open still work')
  await db.admin`select pg_terminate_backend(pid) from pg_stat_activity where usename = 'fleet_server'`
  await waitFor(async () => (await call('POST /v1/heartbeat', { token, body: { ts: ago(560) } })).status === 503)
  for (let n = 0; n < 20; n++) await call('POST /v1/heartbeat', { token, body: { ts: ago(540 - 20 * n) } })
  t.match(await health(), refused)
  t.equal(server.output().match(/pool\.connection_refused/g)?.length, 1)

  await setPassword(old!.verifier)
  await waitFor(async () => (await health()).status === 'ok')
  t.equal((await call('POST /v1/heartbeat', { token, body: { ts: ago(60) } })).status, 201)
  t.equal(server.output().match(/pool\.connection_accepted/g)?.length, 1)
})

t.test('with a passfile, server and archiver follow a changed password without a restart', async t => {
  const db = await withCluster(t)
  const directory = await makeDirectory(t)
  const file = join(directory, 'pass word')
  const { host, pathname } = new URL(db.url('fleet_server'))
  const write = (password: string) =>
    writeFile(
      file,
      `# a comment\nelsewhere:*:*:*:no\n*:*:other:fleet_server:no\n${host}:*:other:no\n*:*:fleet:fleet_server:${password.replace(/[:\\]/g, '\\$&')}\n`,
    )
  const setPassword = (password: string) => db.admin.unsafe(`alter role fleet_server password '${scramVerifier(password)}'`)
  const url = `postgres://fleet_server@${host}${pathname}?passfile=${encodeURIComponent(file)}`
  const { token } = await enroll(db, 'a')
  await write('a:first\\one:')
  await setPassword('a:first\\one:')
  const login = { url }
  const { call } = await withServer(t, { hot: login, ops: login }, db)
  const archiver = connectArchiver({ url: `${url}&prepare=true` }, { max: 1 })
  t.teardown(() => archiver.end({ timeout: 1 }))
  t.equal((await call('POST /v1/heartbeat', { token, body: { ts: ago(600) } })).status, 201)
  t.match(await archiver`select session_user::text as name`, [{ name: 'fleet_server' }])

  await setPassword('another')
  await write('another')
  await db.admin`select pg_terminate_backend(pid) from pg_stat_activity where usename = 'fleet_server'`
  await waitFor(async () => (await call('POST /v1/heartbeat', { token, body: { ts: ago(300) } })).status < 300)
  t.match((await call('GET /ops/pool_health', { admin: true })).body, { status: 'ok' })
  await waitFor(() =>
    archiver`select 1`.then(
      () => true,
      () => false,
    ),
  )
  await writeFile(file, '')
  t.match((await call('GET /ops/pool_health', { admin: true })).body, {
    status: 'critical',
    reason: 'password authentication failed for user "fleet_server"',
  })
})

function logTo(lines: string[]) {
  return createLog(
    'server',
    'info',
    new Writable({
      write(chunk, _, done) {
        lines.push(String(chunk))
        done()
      },
    }),
  )
}
