// The whole path of a heartbeat and of a day on a coordinator and two workers. See docs/scale-out.md.
import { pathToFileURL } from 'node:url'
import t from 'tap'
import { distribute } from '../cli/distribute.ts'
import { migrate } from '../cli/migrate.ts'
import { daysAgo, fillDay, makeDirectory, partitionOf, pathsOf, runCli, stateOf, workAll } from './archiver.ts'
import { onWorker, withCitus, withoutCitus } from './citus.ts'
import { client } from './database.ts'
import { asRole, ingest, value } from './fleet.ts'
import { ago, gatewayToken, lastStatus, withServer } from './server.ts'
import { notifyOnce, withReceiver } from './webhooks.ts'

const DAY = daysAgo(70)
const QUIET = { skip: withoutCitus, timeout: 600_000 }

t.test('a store on a coordinator and two workers', QUIET, async t => {
  const nodes = await withCitus(t)
  const { sql, admin, coordinator, workers, hosts } = nodes
  const dba = asRole(t, nodes, 'fleet_dba')

  // What it has before.
  await sql`select fleet.create_device('early-' || n) from generate_series(1, 100) n`
  await ingest(
    sql,
    Array.from({ length: 20 }, (_, n) => ({ device_id: n + 1, ts: ago(300), battery_pct: n })),
  )
  await fillDay(admin, DAY, 1000)
  await fillDay(admin, daysAgo(20), 500)
  const content = async () =>
    await admin`
    select date_trunc('day', ts)::text as day, count(*)::int, sum(hash_record_extended(h, 0)::numeric)::text as hash
    from fleet.device_heartbeats h group by 1 order by 1`
  const before = await content()
  const bad = async () =>
    (await dba<{ check_name: string }[]>`select check_name, detail from fleet.check() where status <> 'ok'`).map(row => ({
      ...row,
    }))
  const badBefore = (await bad()).map(row => row.check_name)

  const lines: string[] = []
  await distribute(coordinator.url('postgres', 'fleet'), { workers: hosts, shards: 4, log: line => lines.push(line) })
  t.match(lines.at(-1), /The store is distributed over 2 workers/)
  t.same(await content(), before, 'no row is lost, doubled or changed')
  const [shards] = await admin`
    select count(*)::int as shards, count(distinct nodename || nodeport)::int as nodes from citus_shards
    where table_name = 'fleet.device_last_status'::regclass`
  t.same(shards, { shards: 4, nodes: 2 })
  t.equal(
    await value(
      admin`select sum(pg_relation_size(t.relid))::int from pg_partition_tree('fleet.device_heartbeats') t where isleaf`,
    ),
    0,
    'the coordinator keeps no heartbeat',
  )
  for (const worker of workers) {
    const [rights] = await onWorker(t, worker)`
      select bool_or(has_function_privilege('public', p.oid, 'execute')) as everybody,
        has_function_privilege('fleet_server', 'fleet.ingest_batch(json, timestamptz, bytea[], integer[])', 'execute') as server,
        has_function_privilege('fleet_reader', 'fleet.ingest_batch(json, timestamptz, bytea[], integer[])', 'execute') as reader
      from pg_proc p where p.pronamespace = 'fleet'::regnamespace`
    t.same(rights, { everybody: false, server: true, reader: false }, 'the rights on a worker are those on the coordinator')
  }

  // Heartbeats over HTTP: one, a batch, a gateway's.
  const { call } = await withServer(t, {}, nodes)
  const enrolled = await call('POST /admin/devices', { admin: true, body: { alias: 'lobby-1', cohort: 'lobby' } })
  t.equal(enrolled.status, 201, JSON.stringify(enrolled.body))
  const { device_id: device, token } = enrolled.body as { device_id: number; token: string }
  t.match(await lastStatus(nodes, device), { noted_status: 'new', last_ts: null }, 'a device has a row of last status at once')
  t.match(await call('POST /v1/heartbeat', { token, body: { battery_pct: 81, unity_running: true } }), {
    status: 201,
    body: { result: 'stored' },
  })
  t.match(await call('POST /v1/heartbeat', { token, body: { battery_pct: 82 } }), { body: { result: 'duplicate' } })
  t.match(await call('POST /v1/heartbeat', { token: 'nxd_1_nobody', body: {} }), { status: 401 })
  const batch = await call('POST /v1/heartbeats', {
    token,
    body: [{ ts: ago(120), battery_pct: 90 }, { ts: ago(60), battery_pct: 85 }, { ts: ago(30 * 86_400) }],
  })
  t.match(
    (batch.body as { results: { result: string }[] }).results.map(item => item.result),
    ['stored', 'stored', 'quarantined'],
    JSON.stringify(batch.body),
  )
  const gateway = await gatewayToken(nodes, 'hall')
  const passed = await call('POST /v1/heartbeats', {
    token: gateway,
    body: [...Array.from({ length: 20 }, (_, n) => ({ device_id: n + 1, battery_pct: 50 + n })), { device_id: 999_999 }],
  })
  const results = (passed.body as { results: { result: string }[] }).results.map(item => item.result)
  t.same(results.slice(0, 20), Array(20).fill('stored'), JSON.stringify(passed.body))
  t.not(results[20], 'stored')
  t.match(await lastStatus(nodes, device), { battery_pct: 81, status: 'ok' }, 'a late heartbeat does not rewind last status')
  t.match(await lastStatus(nodes, 7), { battery_pct: 56 })
  t.match(await call(`GET /v1/devices/${device}`, { admin: true }), { status: 200, body: { status: 'online', battery_pct: 81 } })

  // What comes late says that a device lives, and no more.
  await admin`update fleet.device_last_status set last_received_at = ${ago(600)} where device_id = 12`
  const { last_ts } = (await lastStatus(nodes, 12)) as { last_ts: Date }
  await ingest(sql, [{ device_id: 12, ts: ago(7200), battery_pct: 1 }])
  const heard = (await lastStatus(nodes, 12)) as { last_ts: Date; last_received_at: Date; battery_pct: number }
  t.same(heard.last_ts, last_ts)
  t.ok(Date.now() - heard.last_received_at.getTime() < 60_000, 'a late heartbeat counts as a sign of life')
  t.not(heard.battery_pct, 1)

  // Any node stores any device.
  for (const [nth, worker] of workers.entries()) {
    const [row] = await onWorker(t, worker, 'fleet_server')`
      select results, reasons, device_ids from fleet.ingest_batch(
        (select json_agg(json_build_object('device_id', n, 'battery_pct', ${nth}::int)) from generate_series(1, 20) n),
        now(), array[sha256(${gateway}::text::bytea)], array[20]
      )`
    const { device_ids } = row as unknown as { device_ids: string[] }
    t.same(
      device_ids.map(Number),
      Array.from({ length: 20 }, (_, n) => n + 1),
    )
  }

  // A node passes on what is not its own over connections that it keeps.
  const passesOn = client(coordinator.url('fleet_server', 'fleet'), 1)
  t.teardown(() => passesOn.end({ timeout: 1 }))
  const gpid = `citus_internal gpid=%${String(await value(passesOn`select pg_backend_pid()`)).padStart(10, '0')}`
  const sessions = async () => {
    const pids = workers.map(
      worker => onWorker(t, worker)`
        select coalesce(array_agg(pid order by pid), '{}') as pids from pg_stat_activity where application_name like ${gpid}`,
    )
    return (await Promise.all(pids)).map(([row]) => (row as { pids: number[] }).pids)
  }
  const pass = async (secondsAgo: number) => {
    const items = Array.from({ length: 100 }, (_, n) => ({ device_id: n + 1, ts: ago(secondsAgo) }))
    t.equal(await value(passesOn`select results from fleet.ingest_batch(${passesOn.json(items)}::json)`), null, 'all are stored')
  }
  await pass(250)
  await pass(230)
  const kept = await sessions()
  for (const secondsAgo of [210, 190, 170]) await pass(secondsAgo)
  t.same(await sessions(), kept)
  t.ok(
    kept.every(pids => pids.length > 1),
    'one for each of the shards to which a batch writes',
  )

  // Transitions, and a webhook: noted by the minute's job.
  const receiver = await withReceiver(t)
  await dba`select fleet.create_webhook('hook', ${receiver.url}, array['unity_down'], p_grace => '0')`
  await sql`call fleet.mark_silent()`
  t.match(await value(sql`select noted_status from fleet.device_last_status where device_id = ${device}`), 'online')
  t.match(
    await call('POST /v1/heartbeats', {
      token: gateway,
      body: [{ device_id: 3, ts: new Date(Date.now() + 11_000).toISOString(), unity_running: false }],
    }),
    { body: { results: [{ result: 'stored' }] } },
  )
  await sql`call fleet.mark_silent()`
  t.match(await sql`select event, status from fleet.device_transitions where device_id = 3 order by transition_id desc limit 1`, [
    { event: 'unity_down', status: 'unity_down' },
  ])
  t.equal((await notifyOnce(t, nodes)).code, 0)
  t.equal(receiver.received.filter(({ text }) => text.includes('"early-3"')).length, 1, 'a message was delivered')

  // A device that was silent between two heartbeats.
  await admin`update fleet.device_last_status set last_received_at = ${ago(3600)}, last_ts = ${ago(3600)} where device_id = 5`
  await ingest(sql, [{ device_id: 5, ts: new Date(Date.now() + 22_000).toISOString() }])
  await sql`call fleet.mark_silent()`
  t.match(
    (await sql`select event from fleet.device_transitions where device_id = 5 order by transition_id`)
      .map(row => row.event as string)
      .slice(-3),
    ['late', 'offline', 'back'],
  )
  t.equal(await value(sql`select gap_from from fleet.device_last_status where device_id = 5`), null)

  // A night.
  await sql`call fleet.maintain()`
  await sql`call fleet.nightly()`
  t.same(await sql`select event, detail from fleet.events where event like 'maintenance%' and detail like '%ERROR%'`, [])
  t.match(
    await sql`select settled_at is not null as settled from fleet.hb_partitions where partition_name = ${await partitionOf(sql, daysAgo(20))}`,
    [{ settled: true }],
  )
  t.ok(Number(await value(sql`select count(*) from fleet.device_availability(current_date - 3, current_date)`)) >= 21)
  await admin`update fleet.device_last_status set last_ts = ${ago(7200)}, battery_pct = 1 where device_id = 9`
  t.match(await sql`select updated from fleet.reconcile()`, [{ updated: '1' }])
  t.match(await value(sql`select battery_pct from fleet.device_last_status where device_id = 9`), 58)

  // A day: archived, dropped, read, erased from, restored.
  const directory = await makeDirectory(t)
  const partition = await partitionOf(sql, DAY)
  const read = () => admin`
    select h.*, h.ts::text, h.received_at::text from fleet.device_heartbeats h
    where h.ts >= ${DAY}::date and h.ts < ${DAY}::date + 1 order by h.device_id, h.ts`
  const rows = await read()
  t.equal(rows.length, 1000)
  await dba`select fleet.archive_partition(${partition})`
  await workAll(t, nodes, directory)
  const state = await stateOf(sql, partition)
  t.match(state, { state: 'dropped', row_count: '1000' }, String(state.last_error))
  t.equal((await read()).length, 0)
  const query = await runCli(
    t,
    nodes,
    directory,
    'query',
    'select count(*) as rows from device_heartbeats where device_id = 7',
    '--json',
  )
  t.equal(query.code, 0, query.output)
  t.match(JSON.parse(query.output), [
    { rows: Number(await value(sql`select count(*) from fleet.device_heartbeats where device_id = 7`)) + 10 },
  ])
  await dba`select fleet.erase_device(7, 'a test')`
  for (let round = 0; round < 3; round++) {
    await dba`call fleet.run_erasures()`
    await workAll(t, nodes, directory)
  }
  await dba`call fleet.run_erasures()`
  t.match(
    await dba`select state from fleet.erasure_progress`,
    [{ state: 'done' }],
    'the device is erased online and in the archive',
  )
  t.same(await sql`select 1 from fleet.device_last_status where device_id = 7`, [])
  const restored = await runCli(t, nodes, directory, 'restore', DAY)
  t.equal(restored.code, 0, restored.output)
  t.match(await stateOf(sql, partition), { state: 'restored' })
  t.same(
    await read(),
    rows.filter(row => row.device_id !== '7'),
    'the day comes back row for row, without the erased device',
  )
  t.ok(pathsOf(directory, DAY).parquet)

  // The guard may not look into a day that the same transaction has locked.
  const empty = daysAgo(40)
  await t.rejects(
    sql`
      select fleet.register_archive(p.partition_name, p.range_start, p.range_end, 1, 1, p.range_start, p.range_start,
        ${pathToFileURL(directory).href} || ${`/archive/device_heartbeats/date=${empty}/device_heartbeats_${empty.replaceAll('-', '')}.parquet`},
        ${'ab'.repeat(32)}, 10)
      from fleet.hb_partitions p where p.partition_name = ${await partitionOf(sql, empty)}`,
    { code: 'FL409', message: /is online and empty, and a distributed store cannot exchange it/ },
  )

  // As the next night does, for the day that was restored after this one.
  await sql`select fleet.schedule_vacuum()`
  // This cluster is made for the test, so settings were named before, too. No archiver and no notifier keep running here.
  t.same(
    (await bad()).filter(
      ({ check_name }) => !badBefore.includes(check_name) && !['archiver', 'notifier', 'webhooks'].includes(check_name),
    ),
    [],
    'check() names nothing new in a distributed store',
  )

  // A migration: it reaches the workers, and the forms of a distributed store stay.
  await sql`select fleet.add_field('storage_free_mb', 'integer', 'Free storage in MB.')`
  await migrate(coordinator.url('postgres', 'fleet'), { current: true, log: () => {} })
  for (const worker of workers) {
    t.match(
      await onWorker(t, worker)`
      select count(*)::int from pg_attribute where attrelid = 'fleet.device_heartbeats'::regclass and attname = 'storage_free_mb'`,
      [{ count: 1 }],
    )
  }
  t.match(
    await value(
      sql`select prosrc from pg_proc where oid = 'fleet.ingest_batch(json,timestamptz,bytea[],integer[])'::regprocedure`,
    ),
    /v_firsts/,
  )
  t.match(await ingest(sql, [{ device_id: 11, ts: new Date(Date.now() + 45_000).toISOString() }]), [{ result: 'stored' }])
})
