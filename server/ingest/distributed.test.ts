// The server before a store on Citus: a coordinator and two workers.
import { randomBytes } from 'node:crypto'
import t from 'tap'
import { distribute } from '../../cli/distribute.ts'
import { onWorker, withCitus, withoutCitus } from '../../testing/citus.ts'
import { waitFor } from '../../testing/database.ts'
import { enroll, gatewayToken, NO_LIMIT, withProcess } from '../../testing/server.ts'

const DEVICES = 24
const BEGAN = Date.now()

/** The time `seconds` before the test began, so that no two of a device are in one bucket, however long it takes. */
const at = (seconds: number) => new Date(BEGAN - 1_000 * seconds).toISOString()

t.test('routed heartbeats', { skip: withoutCitus, timeout: 900_000 }, async t => {
  const nodes = await withCitus(t)
  const { admin, sql, coordinator, workers } = nodes
  await distribute(coordinator.url('postgres', 'fleet'), { workers: nodes.hosts, shards: 4, log: () => {} })
  for (const cluster of [coordinator, ...workers]) {
    const superuser = onWorker(t, cluster)
    await superuser`alter system set track_functions = 'all'`
    await superuser`select pg_reload_conf()`
  }
  const devices: { device_id: number; token: string }[] = []
  for (let n = 1; n <= DEVICES; n++) devices.push(await enroll(nodes, `device-${n}`))
  const gateway = await gatewayToken(nodes, 'hall')
  const { call, server } = await withProcess(t, nodes, { WORKERS: '1', ...NO_LIMIT })
  const scrape = async () => (await call('GET /metrics', { admin: true })).body as string
  const isUp = async (...up: number[]) => {
    const text = await scrape()
    return workers.every((worker, nth) => text.includes(`db_node_up{node="127.0.0.1:${worker.port}"} ${up[nth]}\n`))
  }
  await waitFor(() => isUp(1, 1))
  /** Where each device is, by Citus. */
  const places = async () => {
    const rows = await admin<{ id: string; port: number; shard: string }[]>`
      select i.id, s.nodeport as port, s.shardid as shard
      from unnest(${devices.map(({ device_id }) => device_id)}::bigint[]) i (id)
      join citus_shards s on s.shardid = get_shard_id_for_distribution_column('fleet.device_last_status', i.id)`
    return new Map(rows.map(({ id, ...place }) => [Number(id), place]))
  }
  /** How often a function was called by the server on a node. What a session has counted is seen when it ends. */
  const calls = async (cluster: (typeof workers)[number], name: string) => {
    const superuser = onWorker(t, cluster)
    await superuser`
      select pg_terminate_backend(pid, 10000) from pg_stat_activity where application_name like 'nexmdm server%' or usename = 'fleet_server'`
    const [row] = await superuser<{ calls: number }[]>`
      select coalesce(sum(calls), 0)::int as calls from pg_stat_user_functions where schemaname = 'fleet' and funcname = ${name}`
    return row!.calls
  }

  await t.test('the coordinator takes no part in them', async t => {
    for (const { token } of devices) {
      t.match(await call('POST /v1/heartbeat', { token, body: { ts: at(30), battery_pct: 50 } }), { status: 201 })
      t.match(await call('POST /v1/heartbeats', { token, body: [{ ts: at(60) }, { ts: at(90) }] }), { body: { stored: 2 } })
    }
    const body = Array.from({ length: 240 }, (_, n) => {
      const { device_id } = devices[n % DEVICES]!
      return { device_id, ts: at(200 + 10 * n), signal_dbm: -n % 100 }
    })
    t.match(await call('POST /v1/heartbeats', { token: gateway, body }), { status: 200, body: { stored: 240 } })
    t.same(
      await sql`select count(*)::int as rows, count(distinct (device_id, ts))::int as distinct from fleet.device_heartbeats`,
      [{ rows: DEVICES * 13, distinct: DEVICES * 13 }],
    )
    t.equal((await sql`select from fleet.device_last_status where battery_pct = 50`).length, DEVICES)
    for (const name of ['ingest_batch', 'authenticate']) t.equal(await calls(coordinator, name), 0, name)
    for (const worker of workers) t.ok((await calls(worker, 'ingest_batch')) >= 10)
    t.ok((await calls(workers[0]!, 'authenticate')) + (await calls(workers[1]!, 'authenticate')) > 0)

    // As a control: what names no device goes to the coordinator.
    const old = `nxd_${randomBytes(32).toString('hex')}`
    await admin`update fleet.devices set token_hash = sha256(${old}::text::bytea) where device_id = ${devices.at(-1)!.device_id}`
    devices.at(-1)!.token = old
    await waitFor(() => isUp(1, 1))
    t.match(await call('POST /v1/heartbeat', { token: old, body: { ts: at(6_000) } }), { status: 201 })
    t.equal(await calls(coordinator, 'ingest_batch'), 1)
    await waitFor(() => isUp(1, 1))
  })

  await t.test('a shard moves under load, and nothing is lost or doubled', async t => {
    const before = await places()
    const { shard, port } = before.get(devices[0]!.device_id)!
    const target = workers.find(worker => worker.port !== port)!
    const acknowledged: string[] = []
    const statuses = new Map<number, number>()
    let next = 0
    let running = true
    const senders = Array.from({ length: 6 }, async () => {
      while (running) {
        const n = next++
        const { device_id, token } = devices[n % (DEVICES - 1)]!
        const ts = at(100_000 + 10 * n)
        const { status } = await call('POST /v1/heartbeat', { token, body: { ts } })
        statuses.set(status, (statuses.get(status) ?? 0) + 1)
        if (status === 201) acknowledged.push(`${device_id} ${ts}`)
      }
    })
    await waitFor(() => Promise.resolve(acknowledged.length > 100))
    await admin`
      select citus_move_shard_placement(${shard}::bigint, '127.0.0.1', ${port}::int, '127.0.0.1', ${target.port}::int,
        shard_transfer_mode => 'force_logical')`
    t.equal((await places()).get(devices[0]!.device_id)!.port, target.port)
    const atMove = acknowledged.length
    await waitFor(() => Promise.resolve(acknowledged.length > atMove + 100), { what: () => JSON.stringify([...statuses]) })
    running = false
    await Promise.all(senders)
    t.comment(JSON.stringify([...statuses]))
    const rows = await sql<{ device_id: string; ts: Date }[]>`
      select device_id, ts from fleet.device_heartbeats where ts <= ${at(100_000)}`
    const kept = rows.map(({ device_id, ts }) => `${device_id} ${ts.toISOString()}`)
    t.equal(new Set(kept).size, kept.length, 'nothing is doubled')
    const all = new Set(kept)
    t.same(
      acknowledged.filter(one => !all.has(one)),
      [],
      'nothing is lost',
    )
    // Within ten seconds the server knows.
    const shards = [
      ...(await admin<{ port: number; shards: number }[]>`
      select nodeport as port, count(*)::int as shards from citus_shards
      where table_name = 'fleet.device_last_status'::regclass group by 1`),
    ]
    await waitFor(async () => {
      const text = await scrape()
      return shards.every(({ port, shards }) => text.includes(`db_node_shards{node="127.0.0.1:${port}"} ${shards}\n`))
    })
    t.match(await call('POST /v1/heartbeat', { token: devices[0]!.token, body: {} }), { status: 201 })
  })

  await t.test('a worker that is away takes only its own devices with it', async t => {
    const where = await places()
    const [away] = workers
    const named = devices.slice(0, -1)
    t.ok(named.some(({ device_id }) => where.get(device_id)!.port === away!.port))
    await away!.stop('immediate')
    await waitFor(() => isUp(0, 1))
    for (const { device_id, token } of named) {
      const answer = await call('POST /v1/heartbeat', { token, body: { ts: at(7_000) } })
      const isLost = where.get(device_id)!.port === away!.port
      t.match([answer.status, answer.headers.get('retry-after')], isLost ? [503, /^\d+$/] : [201, null], `device ${device_id}`)
    }
    const body = named.map(({ device_id }) => ({ device_id, ts: at(7_100) }))
    const answer = await call('POST /v1/heartbeats', { token: gateway, body })
    t.equal(answer.status, 503)
    t.same(
      (answer.body as { results: { result: string }[] }).results.map(({ result }) => result),
      named.map(({ device_id }) => (where.get(device_id)!.port === away!.port ? 'unavailable' : 'stored')),
    )
    t.match(await call('GET /readyz'), { status: 200, body: { away: [`127.0.0.1:${away!.port}`] } })
    await away!.start()
    await waitFor(() => isUp(1, 1))
    for (const { token } of named) t.match(await call('POST /v1/heartbeat', { token, body: { ts: at(7_200) } }), { status: 201 })
    t.match(await call('POST /v1/heartbeats', { token: gateway, body }), { status: 200 }, 'the gateway sends all of it again')
    t.equal((await sql`select from fleet.device_heartbeats where ts = ${at(7_100)}`).length, named.length)
  })

  await t.test('without the coordinator the workers go on', async t => {
    await coordinator.stop('immediate')
    await waitFor(async () => ((await call('GET /readyz')).body as { away?: string[] }).away?.length === 1)
    t.equal((await call('GET /readyz')).status, 200)
    for (const { token } of devices.slice(0, -1))
      t.match(await call('POST /v1/heartbeat', { token, body: { ts: at(8_000) } }), { status: 201 })
    const body = devices.flatMap(({ device_id }) => [
      { device_id, ts: at(8_100) },
      { device_id, ts: at(8_200) },
    ])
    t.match(await call('POST /v1/heartbeats', { token: gateway, body }), { status: 200, body: { stored: 2 * DEVICES } })
    const { token } = devices.at(-1)!
    t.match(await call('POST /v1/heartbeat', { token, body: { ts: at(8_000) } }), { status: 201 }, 'also what names no device')
    await coordinator.start()
    await waitFor(async () => ((await call('GET /readyz')).body as { away?: string[] }).away === undefined)
    t.equal(
      (
        await onWorker(t, coordinator)`
        select from fleet.device_heartbeats where ts between ${at(8_200)} and ${at(8_000)}`
      ).length,
      3 * DEVICES,
    )
  })

  await t.test('with a wrong map every heartbeat is stored all the same', async t => {
    const [one, other] = workers.map(({ port }) => port)
    await onWorker(t, coordinator, 'fleet_owner').begin(async sql => {
      const [row] = await sql<{ body: string }[]>`
        select string_agg(format('(%s, %s, %L, %s, false)', low, high, host, case port when ${one!}::int then ${other!}::int else ${one!}::int end), ', ') as body
        from fleet.shard_map()`
      await sql.unsafe(`
        create or replace function fleet.shard_map()
        returns table (low integer, high integer, host text, port integer, is_local boolean)
        language sql stable security definer set search_path = pg_catalog, pg_temp as $$ values ${row!.body} $$`)
    })
    const counts = async () => await Promise.all(workers.map(worker => calls(worker, 'ingest_batch')))
    // Ten seconds later each is sent to the other worker.
    const where = await places()
    const mine = devices.slice(0, -1).filter(({ device_id }) => where.get(device_id)!.port === one)
    let seconds = 20_000
    await waitFor(
      async () => {
        await waitFor(() => isUp(1, 1))
        const before = await counts()
        await waitFor(() => isUp(1, 1))
        seconds += 20
        for (const { token } of mine)
          t.match(await call('POST /v1/heartbeat', { token, body: { ts: at(seconds) } }), { status: 201 })
        const after = await counts()
        return after[1]! > before[1]! && after[0] === before[0]
      },
      { timeoutMs: 60_000, every: 2_000 },
    )
    const [row] = await onWorker(t, coordinator)<{ stored: number }[]>`
      select count(*)::int as stored from fleet.device_heartbeats
      where device_id = ${mine[0]!.device_id} and ts between ${at(50_000)} and ${at(20_020)}`
    t.equal(row!.stored, (seconds - 20_000) / 20)
  })
  t.equal((await server.stop()).code, 0)
})
