import { request } from 'node:http'
import t, { type Test } from 'tap'
import { freePort } from '../local/cluster.ts'
import { leftToCi } from '../local/config.ts'
import { spawnNode, waitFor, withDatabase, type TestDatabase } from '../testing/database.ts'
import { topology, withHaproxy, withPgbouncer } from '../testing/topology.ts'
import { connectHot, end } from './database.ts'
import { visitor } from '../testing/page.ts'
import { ADMIN_KEY, client, enroll, NO_LIMIT, serverEnv } from '../testing/server.ts'
import { checkStored, enrollMany, more, startTraffic } from '../testing/traffic.ts'

/** Postgres ← pgBouncer ← two servers ← HAProxy, each in processes of its own. */
async function withTopology(t: Test) {
  const db = await withDatabase(t)
  const pool = await withPgbouncer(t, db.url('fleet_server'))
  const pgbouncer = await pool.start()
  const ports: [number, number] = [await freePort(true), await freePort(true)]
  const start = (port: number) =>
    spawnNode(t, 'server/main.ts', {
      env: {
        ...serverEnv(db),
        ...NO_LIMIT,
        SERVER_DATABASE_URL: pool.through,
        PORT: String(port),
        WORKERS: '1',
        TRUST_PROXY: 'true',
      },
      ready: /"server.listening"/,
    })
  const servers = await Promise.all(ports.map(start))
  const balancer = await withHaproxy(t, ports)
  const haproxy = await balancer.start()
  const states = async (...wanted: string[]) => {
    let seen: string[] = []
    await waitFor(async () => (seen = await balancer.states()).join() === wanted.join(), {
      what: () =>
        `${wanted.join()}, not ${seen.join()}; the balancer printed:\n${haproxy.output()}\nthe pool:\n${pgbouncer.output()}`,
    })
  }
  await states('UP', 'UP')
  const direct = ports.map(port => client(`http://127.0.0.1:${port}`))
  return {
    db,
    pool,
    pgbouncer,
    ports,
    servers,
    direct,
    url: balancer.url,
    operators: balancer.operators,
    call: client(balancer.url),
    operator: client(balancer.operators),
    states,
    start,
  }
}

/** The status of a request whose path is sent unchanged; fetch() would normalize it. */
function rawStatus(url: string, method: string, path: string, headers: Record<string, string>) {
  const { hostname, port } = new URL(url)
  return new Promise<number>((resolve, reject) => {
    request({ hostname, port, method, path, headers }, response => {
      response.resume()
      resolve(response.statusCode!)
    })
      .on('error', reject)
      .end()
  })
}

/** The backends of the servers' hot path. */
async function backends(db: TestDatabase) {
  return db.admin<{ pid: number; usename: string }[]>`
    select pid, usename from pg_stat_activity where datname = current_database() and application_name = 'nexmdm server'
  `
}

t.test('behind a pool and a balancer', { skip: topology.without || leftToCi(), timeout: 300_000 }, async t => {
  const { db, pool, pgbouncer, ports, servers, direct, url, operators, call, operator, states, start } = await withTopology(t)
  /** Sends heartbeats until it is stopped, or the test has ended. */
  const send = async (t: Test) => {
    const traffic = startTraffic([url], await enrollMany(db.sql, 60), { batchers: 10, pause: 100 })
    t.teardown(traffic.stop)
    return traffic
  }

  await t.test('heartbeats flow, single and batched, with the address of the device', async t => {
    const { device_id, token } = await enroll(db, 'a')
    t.match(await call('POST /v1/heartbeat', { token, body: { battery_pct: 80 }, headers: { 'x-forwarded-for': '192.0.2.1' } }), {
      status: 201,
      body: { result: 'stored', ts: /Z$/ },
    })
    const batch = [{ ts: '2001-01-01T00:00:00Z' }, { battery_pct: 80 }, { ts: 'yesterday' }]
    t.match(await call('POST /v1/heartbeats', { token, body: batch }), {
      status: 200,
      body: { quarantined: 1, rejected: 1 },
    })
    const [row] = await db.sql`select host(ip) as ip, battery_pct from fleet.device_last_status where device_id = ${device_id}`
    t.match(row, { ip: '127.0.0.1', battery_pct: 80 }, 'what the balancer saw, not what the client claims')
    const pids = (await backends(db)).map(row => row.pid)
    t.ok(pids.length > 0 && pids.length <= 20)
  })

  await t.test('the address for devices serves nothing else, even with the admin key and whatever the path', async t => {
    const { token } = await enroll(db, 'on the wrong side')
    const keys = { 'x-admin': ADMIN_KEY, authorization: `Bearer ${ADMIN_KEY}` }
    const paths = [
      '/',
      '/metrics',
      '/admin/devices',
      '/admin/command',
      '/ops/nightly',
      '/ops/pool_health',
      '/login',
      '/logout',
      '/devices/1',
      '/v1/devices',
      '/v1/devices/1',
      '//metrics',
      '/./metrics',
      '/v1/../metrics',
      '/v1/heartbeat/../../metrics',
      '/v1/commands/1/ack/../../../../ops/pool_health',
      '/%6detrics',
      '/metrics/',
      '/metrics?x=/v1/heartbeat',
      '/METRICS',
      `${url}/metrics`,
      '/v1/heartbeat/',
      '/v1/commands/1/ack/',
      '/v1/commands/x/ack',
      '/healthz/../metrics',
      '/;/metrics',
      '/page.css',
    ]
    for (const path of paths) {
      for (const method of ['GET', 'POST']) t.equal(await rawStatus(url, method, path, keys), 404, `${method} ${path}`)
    }
    t.match(
      await call('GET /metrics', { admin: true }),
      { status: 404, body: { status: 404, detail: /not available to devices/ } },
      'the balancer answers with a problem document',
    )
    for (const path of ['/healthz', '/readyz', '/openapi.json', '/v1/commands'])
      t.match(await call(`GET ${path}`, { token }), { status: 200 }, path)
    t.match(
      await call('POST /v1/commands/1/ack', { token }),
      { status: 404, body: { detail: /command/ } },
      "that is the server's answer",
    )

    for (const path of ['/metrics', '/ops/pool_health', '/v1/devices'])
      t.match(await operator(`GET ${path}`, { admin: true }), { status: 200 }, path)
    t.match(await operator('POST /v1/heartbeat', { token, body: {} }), { status: 201 }, 'operators may call what devices call')
  })

  await t.test('forwarding headers of clients are dropped at both addresses', async t => {
    const lies = {
      'x-forwarded-for': '192.0.2.1',
      'x-forwarded-proto': 'https',
      'x-forwarded-host': 'evil.example',
      forwarded: 'for=192.0.2.1;proto=https',
      'X-FORWARDED-PORT': '443',
    }
    for (const [door, to] of Object.entries({ devices: call, operators: operator })) {
      const { device_id, token } = await enroll(db, `with false headers at the address for ${door}`)
      t.match(await to('POST /v1/heartbeat', { token, body: {}, headers: lies }), { status: 201 })
      const [row] = await db.sql`select host(ip) as ip from fleet.device_last_status where device_id = ${device_id}`
      t.same(row, { ip: '127.0.0.1' }, door)
    }
    const { headers } = await visitor(operators).post('/login', { key: ADMIN_KEY }, lies)
    t.match(headers.getSetCookie()[0], /^fleet_session=/, 'over plain HTTP the cookie is not only for TLS')
  })

  await t.test('the role, the time zone and the statement timeout hold through the pool', async t => {
    await db.admin.unsafe(`alter database ${db.name} set timezone = 'Asia/Kolkata'`)
    const hot = connectHot({ url: pool.through }, 2)
    t.teardown(() => end(hot.sql))
    const [session] = await hot.sql<{ role: string; zone: string; timeout: string }[]>`
      select current_user as role, current_setting('timezone') as zone, current_setting('statement_timeout') as timeout
    `
    t.same(session, { role: 'fleet_server', zone: 'UTC', timeout: '2s' })
    await t.rejects(hot.sql`select pg_sleep(60)`, { code: '57014' })
  })

  await t.test('a statement that waits too long gets 503 with Retry-After, and then heartbeats flow again', async t => {
    const { device_id, token } = await enroll(db, 'b')
    const locker = await db.admin.reserve()
    await locker`begin`
    await locker`lock table fleet.device_last_status in exclusive mode`
    const answer = await call('POST /v1/heartbeat', { token, body: {} })
    t.equal(answer.status, 503)
    t.match(answer.headers.get('retry-after'), /^\d+$/)
    t.match(await call('GET /readyz'), { status: 200 }, 'the pool is not held up')
    await locker`rollback`
    locker.release()
    t.equal((await db.sql`select from fleet.device_heartbeats where device_id = ${device_id}`).length, 0)
    t.equal((await call('POST /v1/heartbeat', { token, body: {} })).status, 201)
  })

  await t.test('a revoked token stops on every server', async t => {
    const { device_id, token } = await enroll(db, 'c')
    for (const call of direct) t.equal((await call('POST /v1/heartbeat', { token, body: {} })).status < 300, true)
    t.equal((await operator(`DELETE /admin/devices/${device_id}`, { admin: true })).status, 204)
    for (const call of direct) {
      t.equal((await call('POST /v1/heartbeat', { token, body: {} })).status, 401)
    }
  })

  await t.test('when a server is killed under load, nothing acknowledged is lost, and the other one takes over', async t => {
    const traffic = await send(t)
    await more(traffic)
    await servers[1]!.stop('SIGKILL')
    await states('UP', 'DOWN')
    await more(traffic) // requests that were on their way to it
    const { refused } = traffic
    await more(traffic)
    t.equal(traffic.refused, refused, 'no request is sent to the dead server')
    servers[1] = await start(ports[1])
    await states('UP', 'UP')
    const [, revived] = direct
    await waitFor(async () => {
      const { body } = await revived!('GET /metrics', { admin: true })
      return Number(/^hb_writes_total (\d+)/m.exec(String(body))?.[1]) > 0
    })
    await traffic.stop()
    t.equal(traffic.cut, 0, 'the balancer answers in its place')
    await checkStored(t, db.sql, traffic)
  })

  await t.test('when a server is stopped under load, every heartbeat is still accepted', async t => {
    const traffic = await send(t)
    await more(traffic)
    t.equal((await servers[0]!.stop('SIGTERM')).code, 0)
    await states('DOWN', 'UP')
    servers[0] = await start(ports[0])
    await states('UP', 'UP')
    await traffic.stop()
    t.equal(traffic.refused + traffic.cut, 0)
    await checkStored(t, db.sql, traffic)
  })

  await t.test('while the pool restarts, requests are acknowledged or get a 5xx with Retry-After, and it recovers', async t => {
    const traffic = await send(t)
    let running = pgbouncer
    // Since pgBouncer 1.23, SIGTERM waits for the clients to disconnect.
    for (const signal of ['SIGQUIT', 'SIGKILL'] as const) {
      await more(traffic)
      const { refused } = traffic
      await running.stop(signal)
      await waitFor(async () => traffic.refused > refused)
      // Down long enough for the balancer to take both servers out. Then the balancer itself refuses.
      await states('DOWN', 'DOWN')
      t.match(await call('POST /v1/heartbeat', { token: 'any', body: {} }), {
        status: 503,
        body: { status: 503, detail: /No server/ },
      })
      running = await pool.start()
      await states('UP', 'UP')
    }
    await more(traffic)
    await traffic.stop()
    t.equal(traffic.cut, 0)
    await checkStored(t, db.sql, traffic)
  })

  for (const server of servers) t.equal((await server.stop('SIGTERM')).code, 0, server.output())
})
