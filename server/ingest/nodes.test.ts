// Without Citus: two stores of their own, which answer with a map that gives one half of the devices to each.
import { randomBytes } from 'node:crypto'
import t, { type Test } from 'tap'
import { waitFor, withCluster, type OwnCluster } from '../../testing/database.ts'
import { ago, enroll, gatewayToken, withProcess, withServer, type Answer, type Call } from '../../testing/server.ts'
import { hashDeviceId } from './shards.ts'

const DEVICES = 20
const SLOW = { timeout: 300_000 }

interface Stores {
  home: OwnCluster
  far: OwnCluster
  tokens: string[]
  gateway: string
  old: string
}

const isFar = (deviceId: number) => hashDeviceId(deviceId) >= 0

/** The devices 1 to 20, a gateway, and a device with a token of before 0.2.0, all known to both stores. */
async function withStores(t: Test): Promise<Stores> {
  const home = await withCluster(t)
  const far = await withCluster(t)
  const tokens: string[] = []
  for (let n = 1; n <= DEVICES; n++) {
    const { device_id, token } = await enroll(home, `device-${n}`)
    if (device_id !== n || (await enroll(far, `device-${n}`)).device_id !== n)
      throw new Error(`device ${n} has the id ${device_id}`)
    tokens.push(token)
  }
  const old = `nxd_${randomBytes(32).toString('hex')}`
  await home.admin`update fleet.devices set token_hash = sha256(${old}::text::bytea) where device_id = 20`
  const gateway = await gatewayToken(home, 'hall')
  await gatewayToken(far, 'hall')
  const rows = await home.admin<{ device_id: string; hash: string }[]>`
    select device_id, encode(token_hash, 'hex') as hash from fleet.devices`
  for (const { device_id, hash } of rows)
    await far.admin`update fleet.devices set token_hash = decode(${hash}, 'hex') where device_id = ${device_id}`
  await far.admin`update fleet.gateways set token_hash = sha256(${gateway}::text::bytea)`
  await answerMap({ home, far }, [
    [-(2 ** 31), -1, 'home'],
    [0, 2 ** 31 - 1, 'far'],
  ])
  return { home, far, tokens, gateway, old }
}

/** Lets both answer as fleet.shard_map() of a distributed store does. */
async function answerMap({ home, far }: Pick<Stores, 'home' | 'far'>, shards: [number, number, 'home' | 'far' | number][]) {
  for (const store of [home, far]) {
    const rows = shards.map(([low, high, owner]) => {
      const port = owner === 'home' ? home.cluster.port : owner === 'far' ? far.cluster.port : owner
      return `(${low}, ${high}, '127.0.0.1', ${port}, ${port === store.cluster.port})`
    })
    await store.sql.unsafe(`
      create or replace function fleet.shard_map()
      returns table (low integer, high integer, host text, port integer, is_local boolean)
      language sql stable security definer set search_path = pg_catalog, pg_temp
      as $$ ${rows.length === 0 ? 'select 1, 1, null::text, 1, false where false' : `values ${rows.join()}`} $$`)
  }
}

/** Waits until the server knows these nodes, and which of them it can reach. */
async function known(call: Call, nodes: Record<string, number>) {
  let text = ''
  await waitFor(
    async () => {
      text = (await call('GET /metrics', { admin: true })).body as string
      const found = [...text.matchAll(/^db_node_up\{node="127.0.0.1:(\d+)"\} (\d)$/gm)].map(([, port, up]) => [port!, Number(up)])
      return JSON.stringify(found.sort()) === JSON.stringify(Object.entries(nodes).sort())
    },
    { what: () => `${JSON.stringify(nodes)} in ${text.match(/^db_node.*$/gm)?.join('\n')}` },
  )
  return text
}

async function storedIn({ admin }: OwnCluster) {
  const rows = await admin<{ device_id: string }[]>`select distinct device_id from fleet.device_heartbeats order by device_id`
  return rows.map(({ device_id }) => Number(device_id))
}

const all = Array.from({ length: DEVICES }, (_, n) => n + 1)
const results = ({ body }: Answer) => (body as { results: { result: string; [name: string]: unknown }[] }).results

t.test('each heartbeat goes to the node that has its device, and the answers come back in order', SLOW, async t => {
  const stores = await withStores(t)
  const { home, far, tokens, gateway, old } = stores
  const { call } = await withServer(t, {}, home)
  await known(call, { [home.cluster.port]: 1, [far.cluster.port]: 1 })
  for (const id of all.slice(0, 6)) {
    t.match(await call('POST /v1/heartbeat', { token: tokens[id - 1]!, body: { ts: ago(60) } }), { status: 201 }, `device ${id}`)
    const batch = await call('POST /v1/heartbeats', {
      token: tokens[id - 1]!,
      body: [{ ts: ago(200) }, { ts: 'yesterday' }, { ts: ago(300) }],
    })
    t.same(
      results(batch).map(({ result }) => result),
      ['stored', 'rejected', 'stored'],
    )
  }
  t.same(
    await storedIn(home),
    all.slice(0, 6).filter(id => !isFar(id)),
  )
  t.same(await storedIn(far), all.slice(0, 6).filter(isFar))
  t.ok((await storedIn(home)).length > 0 && (await storedIn(far)).length > 0)

  // Each has its own value, so that an answer in the wrong place would show. The last two are not known or not valid.
  const days = all.map(n => (n % 3 === 0 ? ago(86_400 * 20 + n) : ago(600 + n)))
  const passed = await call('POST /v1/heartbeats', {
    token: gateway,
    body: [...all.map(n => ({ device_id: n, ts: days[n - 1] })), { device_id: 'one' }, { device_id: 999_999 }],
  })
  t.equal(passed.status, 200, JSON.stringify(passed.body))
  t.same(
    results(passed).map(({ result, ts }) => [result, ts && new Date(ts as string).toISOString()]),
    [...all.map(n => [n % 3 === 0 ? 'quarantined' : 'stored', days[n - 1]]), ['rejected', undefined], ['rejected', undefined]],
  )
  t.match(results(passed)[21], { errors: [{ path: 'device_id', message: 'is not an enrolled device' }] })
  const again = await call('POST /v1/heartbeats', {
    token: gateway,
    body: all.slice(0, 2).map(n => ({ device_id: n, ts: days[n - 1] })),
  })
  t.same(
    results(again).map(({ result }) => result),
    ['duplicate', 'duplicate'],
  )
  t.same(
    await storedIn(far),
    all.filter(n => isFar(n) && (n <= 6 || n % 3 !== 0)),
  )

  // A token that names no device goes to the home, which stores every device.
  t.match(await call('POST /v1/heartbeat', { token: old, body: { ts: ago(5_000) } }), { status: 201 })
  t.equal(
    (await home.admin`select from fleet.device_heartbeats where device_id = 20 and ts < now() - interval '1 hour'`).length,
    1,
  )
  // One that lies about its device is refused wherever it goes.
  for (const id of all.slice(0, 4))
    t.match(await call('POST /v1/heartbeat', { token: `nxd_${id}_${randomBytes(32).toString('hex')}`, body: {} }), {
      status: 401,
    })

  const text = await known(call, { [home.cluster.port]: 1, [far.cluster.port]: 1 })
  const value = (name: string) => Number(new RegExp(`^${name.replace(/[{}.]/g, '\\$&')} (\\d+)$`, 'm').exec(text)?.[1])
  const byNode = [home, far].map(({ cluster }) => value(`hb_node_writes_total{node="127.0.0.1:${cluster.port}"}`))
  t.equal(byNode[0]! + byNode[1]!, value('hb_writes_total'), 'the writes of the nodes are all writes')
  t.ok(byNode[0]! > 0 && byNode[1]! > 0)
  t.match(text, new RegExp(`^db_node_shards\\{node="127.0.0.1:${far.cluster.port}"\\} 1$`, 'm'))
  t.match((await call('GET /ops/pool_health', { admin: true })).body, {
    status: 'ok',
    nodes: [
      { node: `127.0.0.1:${home.cluster.port}`, status: 'ok', shards: 1 },
      { node: `127.0.0.1:${far.cluster.port}`, status: 'ok', shards: 1, pool: { max: 4 } },
    ],
  })
})

t.test('a node that is away takes only its own devices with it, and is used again as soon as it is back', SLOW, async t => {
  const { home, far, tokens, gateway, old } = await withStores(t)
  const { call, server } = await withProcess(t, home, { WORKERS: '1' })
  const ports = { [home.cluster.port]: 1, [far.cluster.port]: 1 }
  await known(call, ports)
  await far.cluster.stop('immediate')
  await known(call, { ...ports, [far.cluster.port]: 0 })
  for (const id of all.slice(0, 19)) {
    const answer = await call('POST /v1/heartbeat', { token: tokens[id - 1]!, body: {} })
    if (isFar(id)) t.match([answer.status, answer.headers.get('retry-after')], [503, /^([1-9]|10)$/], `device ${id}`)
    else t.match(answer, { status: 201 }, `device ${id}`)
  }
  const large = await call('POST /v1/heartbeats', {
    token: gateway,
    body: Array.from({ length: 60 }, (_, n) => ({ device_id: 1 + (n % 19), ts: ago(100 + 20 * n) })),
  })
  t.equal(large.status, 503, 'a gateway may send all of it again, as after every 503')
  t.match(large.headers.get('retry-after'), /^([1-9]|10)$/)
  t.match(large.headers.get('content-type'), /problem\+json/)
  t.same(
    results(large).map(({ result }) => result),
    Array.from({ length: 60 }, (_, n) => (isFar(1 + (n % 19)) ? 'unavailable' : 'stored')),
    'and the answer says what was stored',
  )
  t.match(
    await call('POST /v1/heartbeats', {
      token: gateway,
      body: all.filter(n => !isFar(n)).map(device_id => ({ device_id, ts: ago(9000) })),
    }),
    {
      status: 200,
    },
  )
  t.match(await call('POST /v1/heartbeat', { token: old, body: {} }), { status: 201 })
  const name = `127.0.0.1:${far.cluster.port}`
  t.match(await call('GET /readyz'), { status: 200, body: { status: 'ready', away: [name] } })
  t.match((await call('GET /ops/pool_health', { admin: true })).body, {
    status: 'critical',
    reason: new RegExp(`^${name}: .*ECONNREFUSED`),
    nodes: [{ status: 'ok' }, { node: name, status: 'away', reason: /ECONNREFUSED/ }],
  })
  const text = await known(call, { ...ports, [far.cluster.port]: 0 })
  t.match(text, new RegExp(`^hb_node_writes_failed_total\\{node="${name}"\\} [1-9]`, 'm'))
  t.match(server.output(), new RegExp(`"node":"${name}","event":"pool.connection_refused"`))

  await far.cluster.start()
  await known(call, ports)
  for (const id of all.slice(0, 19))
    t.match(await call('POST /v1/heartbeat', { token: tokens[id - 1]!, body: { ts: ago(20_000) } }), { status: 201 })
  t.strictSame((await call('GET /readyz')).body, { status: 'ready' })
})

t.test('while the home is away, the others go on, and the server stays ready', SLOW, async t => {
  const { home, far, tokens, gateway, old } = await withStores(t)
  const { call, server } = await withProcess(t, home, { WORKERS: '1' })
  const ports = { [home.cluster.port]: 1, [far.cluster.port]: 1 }
  await known(call, ports)
  await home.cluster.stop('immediate')
  const name = `127.0.0.1:${home.cluster.port}`
  await waitFor(async () => {
    const { body } = await call('GET /readyz')
    return ((body as { away?: string[] }).away ?? []).includes(name)
  })
  t.equal((await call('GET /readyz')).status, 200)
  for (const id of all.slice(0, 19)) {
    const { status } = await call('POST /v1/heartbeat', { token: tokens[id - 1]!, body: {} })
    t.equal(status, isFar(id) ? 201 : 503, `device ${id}`)
  }
  const ids = all.filter(n => isFar(n) && n < 20)
  const body = Array.from({ length: 60 }, (_, n) => ({ device_id: ids[n % ids.length], ts: ago(100 + 20 * n) }))
  t.match(await call('POST /v1/heartbeats', { token: gateway, body }), { status: 200, body: { stored: 60 } })
  t.match(
    await call('POST /v1/heartbeats', {
      token: tokens[ids[0]! - 1]!,
      body: body.map(({ ts }) => ({ ts: new Date(Date.parse(ts) - 90_000_000) })),
    }),
    {
      status: 200,
    },
  )
  t.match(await call('POST /v1/heartbeat', { token: old, body: {} }), { status: 201 }, 'any node stores what names no device')
  t.equal((await call('POST /v1/heartbeat', { token: 'nxd_' + '0'.repeat(64), body: {} })).status, 401)
  t.equal((await call('GET /v1/devices/1', { admin: true })).status, 503, 'reads are at the home')

  await home.cluster.start()
  await known(call, ports)
  for (const id of all.slice(0, 19))
    t.match(await call('POST /v1/heartbeat', { token: tokens[id - 1]!, body: { ts: ago(20_000) } }), { status: 201 })
  t.strictSame((await call('GET /readyz')).body, { status: 'ready' })
  t.equal((await server.stop()).code, 0)
})

t.test('the map is followed while the server runs', SLOW, async t => {
  const stores = await withStores(t)
  const { home, far, tokens } = stores
  await answerMap(stores, [])
  const { call } = await withServer(t, {}, home)
  const send = async (seconds: number) => {
    for (const id of all.slice(0, 8))
      t.match(await call('POST /v1/heartbeat', { token: tokens[id - 1]!, body: { ts: ago(seconds) } }), { status: 201 })
  }
  const text = (await call('GET /metrics', { admin: true })).body as string
  t.notMatch(text, /^(db|hb)_node_\w+\{/m, 'a plain store has no nodes')
  t.strictSame((await call('GET /readyz')).body, { status: 'ready' })
  t.notMatch((await call('GET /ops/pool_health', { admin: true })).body, { nodes: [] })
  await send(1_000)
  t.same(await storedIn(far), [])
  t.same(await storedIn(home), all.slice(0, 8))

  await answerMap(stores, [[-(2 ** 31), 2 ** 31 - 1, 'far']])
  await known(call, { [home.cluster.port]: 1, [far.cluster.port]: 1 })
  await send(2_000)
  t.same(await storedIn(far), all.slice(0, 8))

  // As long as a node was never reached, the home stores what is its.
  await answerMap(stores, [[-(2 ** 31), 2 ** 31 - 1, 1]])
  await known(call, { [home.cluster.port]: 1, 1: 0 })
  const before = (await home.admin`select from fleet.device_heartbeats`).length
  await send(3_000)
  t.equal((await home.admin`select from fleet.device_heartbeats`).length, before + 8)
  t.match((await call('GET /ops/pool_health', { admin: true })).body, { status: 'critical', reason: /^127.0.0.1:1: / })

  await answerMap(stores, [])
  await known(call, {})
  await send(4_000)
  t.equal((await home.admin`select from fleet.device_heartbeats`).length, before + 16)
})

t.test('a node that lost another one in the middle of a statement is answered with 503', SLOW, async t => {
  const { home, far, tokens, gateway } = await withStores(t)
  const { call } = await withServer(t, {}, home)
  await known(call, { [home.cluster.port]: 1, [far.cluster.port]: 1 })
  // What Citus raises then.
  await far.admin`
    create function fleet.lose() returns trigger language plpgsql
    as $$ begin raise exception using errcode = 'XX000', message = 'failure on connection marked as essential: 10.0.0.22:5432'; end $$`
  await far.admin`create trigger lose before insert on fleet.device_heartbeats execute function fleet.lose()`
  const there = all.find(isFar)!
  const lost = await call('POST /v1/heartbeat', { token: tokens[there - 1]!, body: {} })
  t.match(lost, { status: 503, body: { detail: /was lost just now; nothing was acknowledged/ } })
  t.match(lost.headers.get('retry-after'), /^\d+$/)
  t.equal((await call('POST /v1/heartbeats', { token: gateway, body: all.map(device_id => ({ device_id })) })).status, 503)
  t.equal(
    (await call('POST /v1/heartbeat', { token: tokens[all.find(id => !isFar(id))! - 1]!, body: { ts: ago(60) } })).status,
    201,
  )
  await far.admin`drop trigger lose on fleet.device_heartbeats`
  t.equal((await call('POST /v1/heartbeat', { token: tokens[there - 1]!, body: {} })).status, 201)
})
