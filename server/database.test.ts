import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import postgres from 'postgres'
import t from 'tap'
import { connectHot, connectReporter, connectOps, end, toRfc3339 } from './database.ts'
import { connect as connectArchiver } from '../archiver/database.ts'
import { freePort } from '../local/cluster.ts'
import { testCluster, withDatabase } from '../testing/database.ts'

t.test('of several hosts, the first one that answers is used', async t => {
  const db = await withDatabase(t)
  const url = new URL(db.url('fleet_server'))
  const gone = await freePort(true)
  for (const hosts of [`127.0.0.1:${gone},${url.host}`, `${url.host},127.0.0.1:${gone}`]) {
    for (const attrs of ['', '?target_session_attrs=primary']) {
      const sql = connectOps({ url: `${url.href.replace(url.host, hosts).split('?')[0]}${attrs}` })
      t.teardown(() => end(sql))
      t.match(
        await Promise.all([1, 2, 3].map(n => sql`select ${n}::int as n`)),
        [[{ n: 1 }], [{ n: 2 }], [{ n: 3 }]],
        `${hosts} ${attrs}`,
      )
    }
  }
})

t.test('a timestamp keeps its microseconds', async t => {
  t.equal(toRfc3339('2026-01-02 03:04:05.678901+00'), '2026-01-02T03:04:05.678901Z')
  t.equal(toRfc3339('2026-01-02 03:04:05+00'), '2026-01-02T03:04:05Z')
  t.equal(toRfc3339('2026-01-02 03:04:05-05'), '2026-01-02T03:04:05-05:00')
  t.equal(toRfc3339('2026-01-02 03:04:05+05:30'), '2026-01-02T03:04:05+05:30')
})

t.test('each connection sets its statement timeout and search path, whatever the role has', async t => {
  const db = await withDatabase(t)
  await db.admin.unsafe(`alter database ${db.name} set search_path = public`)
  const login = { url: db.url('fleet_server'), role: 'fleet_server' }
  const hot = connectHot(login, 1)
  const ops = connectOps({ url: db.url('fleet_server') }, 1)
  const reporter = connectReporter({ url: db.url('fleet_server') })
  const archiver = connectArchiver({ url: db.url('fleet_server') }, { max: 1 })
  t.teardown(() => Promise.all([hot.sql, ops, reporter].map(end)))
  t.teardown(() => archiver.end({ timeout: 1 }))
  for (const [name, sql, timeout] of [
    ['hot', hot.sql, '2s'],
    ['ops', ops, '0'],
    ['reporter', reporter, '5s'],
    ['archiver', archiver, '0'],
  ] as const) {
    t.same(
      await sql.unsafe(`select current_setting('statement_timeout') as timeout, current_setting('search_path') as names`),
      [{ timeout, names: 'pg_catalog, pg_temp' }],
      name,
    )
  }
})

// Without patches/postgres+3.4.9.patch the next statement is never sent, and fails when connect_timeout ends.
t.test('after a connection died before its statement was sent, the next statement is answered', async t => {
  const db = await withDatabase(t)
  const { host, port } = testCluster()
  let socket: Socket | undefined
  const open = async () => {
    socket = connect(port, host)
    await once(socket, 'connect')
    return socket
  }
  const options = { max: 1, fetch_types: false, connect_timeout: 120, socket: open }
  const sql = postgres(db.url('fleet_server'), options as postgres.Options<Record<string, never>>)
  t.teardown(() => sql.end({ timeout: 1 }))
  await sql`select 1`
  socket?.destroy()
  // Like the writer, this sends after the sockets of a turn of the event loop were read. The driver learns only after that that
  // this socket is closed.
  await new Promise(resolve => setImmediate(resolve))
  await t.rejects(sql`select 2`, { code: 'CONNECTION_CLOSED' })
  const answer = await Promise.race([sql`select 3 as number`, sleep(20_000, 'no answer', { ref: false })])
  t.match(answer, [{ number: 3 }])
})

// Without the patch it fails with the error of the previous statement.
t.test('after a backend was ended during a statement, the next statement is answered', async t => {
  const db = await withDatabase(t)
  const sql = postgres(db.url('fleet_server'), { max: 1, fetch_types: false })
  t.teardown(() => sql.end({ timeout: 1 }))
  await t.rejects(sql`select pg_terminate_backend(pg_backend_pid())`, { code: 'CONNECTION_CLOSED' })
  t.match(await sql`select 2 as number`, [{ number: 2 }])
})
