import t from 'tap'
import { withDatabase } from '../../testing/database.ts'
import { plainOnly } from '../../testing/distributed.ts'
import { asRole, earlier, enroll, ingest, ingestOnTime, value } from '../../testing/fleet.ts'

const secondsAgo = (seconds: number) => new Date(Date.now() - seconds * 1000).toISOString()

t.test('a device is new, online, late, offline or clock_skewed', async t => {
  const { sql } = await withDatabase(t)
  const [online, late, offline, skewed, fresh, slow] = (await enroll(sql, 6)) as [number, number, number, number, number, number]
  await sql`update fleet.devices set heartbeat_interval = '15 minutes' where device_id = ${slow}`
  await ingestOnTime(sql, [
    { device_id: online, ts: secondsAgo(70), battery_pct: 50, unity_running: false },
    { device_id: late, ts: secondsAgo(180) },
    { device_id: offline, ts: secondsAgo(660), unity_running: false },
    { device_id: skewed, ts: secondsAgo(-3600) },
    { device_id: slow, ts: secondsAgo(1200) },
  ])
  const status = await sql<{ device_id: string; status: string }[]>`select device_id, status from fleet.device_status`
  t.same(Object.fromEntries(status.map(row => [row.device_id, row.status])), {
    [online]: 'online',
    [late]: 'late',
    [offline]: 'offline',
    [skewed]: 'clock_skewed',
    [fresh]: 'new',
    [slow]: 'online',
  })
  t.match(await sql`select device_id, seconds_since from fleet.devices_offline`, [{ device_id: String(offline) }])
  t.match(
    await sql`select device_id from fleet.unity_down`,
    [{ device_id: String(online) }],
    'only devices that still send heartbeats',
  )
  t.match(await sql`select * from fleet.fleet_summary`, [
    { cohort: '(all)', devices: '6', online: '2', late: '1', offline: '1', new: '1', clock_skewed: '1', unity_down: '1' },
    { cohort: 'default', devices: '6' },
  ])
  await sql`update fleet.settings set offline_after = '2 minutes'`
  t.equal(
    await value(sql`select status from fleet.device_status where device_id = ${late}`),
    'offline',
    'offline_after is a setting',
  )
  await sql`select fleet.revoke_device(${offline})`
  t.same(await sql`select * from fleet.device_status where device_id = ${offline}`, [], 'a revoked device is no longer shown')
})

t.test('reconcile moves last status to the newest stored heartbeat, and never backwards', async t => {
  const db = await withDatabase(t)
  const { sql, admin } = db
  const devices = await enroll(sql, 30)
  await ingest(
    sql,
    devices.map(device_id => ({ device_id, ts: secondsAgo(3600), battery_pct: 10, extra: { old: true } })),
  )
  const lost = devices.slice(0, 10)
  // A newer heartbeat that last status did not take over, and a row that is missing.
  await ingest(
    sql,
    lost.map(device_id => ({ device_id, ts: secondsAgo(60), battery_pct: 90, unity_running: false, extra: { device_id } })),
  )
  await admin`
    update fleet.device_last_status
    set last_ts = ${secondsAgo(3600)}, battery_pct = 10, unity_running = null, extra = '{"old": true}', status = 'ok'
    where device_id = any (${lost})`
  await admin`delete from fleet.device_last_status where device_id = ${devices[20] as number}`
  await admin`update fleet.device_last_status set last_ts = now() where device_id = ${devices[25] as number}`

  const dba = asRole(t, db, 'fleet_dba')
  t.match(await dba`select checked, updated from fleet.reconcile('24 hours', 4)`, [{ checked: '30', updated: '4' }])
  t.match(
    await dba`select checked, updated from fleet.reconcile()`,
    [{ checked: '30', updated: '7' }],
    'the next run repairs the rest',
  )
  t.match(await dba`select updated from fleet.reconcile()`, [{ updated: '0' }])
  t.match(
    await sql`
    select count(*) filter (where battery_pct = 90 and status = 'unity_down' and extra = jsonb_build_object('device_id', device_id))::int
        as healed,
      count(*) filter (where battery_pct = 10 and extra = '{"old": true}')::int as untouched
    from fleet.device_last_status
  `,
    [{ healed: 10, untouched: 20 }],
  )
  t.match(await sql`select rows from fleet.events where event = 'reconciliation.completed' order by event_id`, [
    { rows: '4' },
    { rows: '7' },
    { rows: '0' },
  ])
  t.equal(await value(sql`select total::int from fleet.counters where counter = 'reconciliation_rows_updated_total'`), 11)
  // Devices that fall behind again and again, for example while a trigger is disabled, do not keep the others from their turn.
  const healed = new Set<string>()
  for (let run = 0; run < 3; run++) {
    await admin`update fleet.device_last_status set last_ts = ${earlier(admin, 'last_ts', '1 hour')} where device_id <= 25`
    await dba`select fleet.reconcile('24 hours', 10)`
    const rows = await sql<{ device_id: string }[]>`
      select device_id from fleet.device_last_status ls
      where device_id <= 25 and last_ts = (select max(ts) from fleet.device_heartbeats h where h.device_id = ls.device_id)
    `
    for (const { device_id } of rows) healed.add(device_id)
  }
  t.equal(healed.size, 25, 'three runs of ten reach all devices')
  await dba`select fleet.reconcile()`

  await t.rejects(dba`select fleet.reconcile('-1 day')`, { code: 'FL422' })

  await admin`delete from fleet.device_last_status`
  t.match(await dba`select fleet.backfill_last_status(2) as updated`, [{ updated: '30' }])
  await t.rejects(dba`select fleet.backfill_last_status(0)`, { code: 'FL422' })

  const holder = asRole(t, db, 'fleet_dba')
  await holder`begin`
  await holder`select fleet.reconcile()`
  await t.rejects(dba`select fleet.reconcile()`, { code: 'FL003' }, 'two at once: the second reports it')
  await holder`rollback`
})

t.test('on a new store, check is ok except for what is not started, and every row has a remedy', async t => {
  const { sql, admin } = await withDatabase(t)
  // The settings of the tests' throwaway cluster do not matter here.
  t.same(
    await sql`select check_name, status from fleet.check() where status <> 'ok' and check_name not like 'setting%' order by 1`,
    [
      { check_name: 'archiver', status: 'warn' }, // none was started
      { check_name: 'scheduler', status: 'warn' }, // pg_cron is in another database
    ],
  )
  await sql`select fleet.archiver_heartbeat('a', '1')`
  t.match(await sql`select status from fleet.check() where check_name = 'archiver'`, [{ status: 'ok' }])
  await admin`update fleet.archivers set last_seen_at = now() - interval '1 hour'`
  t.match(await sql`select status, detail from fleet.check() where check_name = 'archiver'`, [
    { status: 'fail', detail: 'last seen 01:00:00 ago' },
  ])

  await admin`create table fleet.device_heartbeats_default partition of fleet.device_heartbeats default`
  await admin`alter event trigger fleet_guard_drop disable`
  const [partition] = await sql<{ name: string; index: string }[]>`
    select a.partition_name as name, i.indexrelid::regclass::text as index
    from fleet.attached_partitions() a join pg_index i on i.indrelid = a.relid and i.indisunique
    limit 1
  `
  await admin.unsafe(`drop index ${partition?.index ?? ''}`)
  await admin.unsafe(`alter table fleet.${partition?.name ?? ''} rename to renamed`)
  await admin`insert into fleet.heartbeat_quarantine select now(), n, now(), 'too_late', '{}' from generate_series(1, 150) n`
  await admin`update fleet.hb_partitions set state = 'detached', detached_at = now() - interval '3 days'
    where partition_name = (select partition_name from fleet.hb_partitions order by range_start offset 5 limit 1)`
  const found = await sql<{ check_name: string; status: string; remedy: string | null }[]>`
    select * from fleet.check() where status <> 'ok' and check_name not like 'setting%' order by 1
  `
  t.same(
    found.map(row => [row.check_name, row.status]),
    [
      ['archive_backlog', 'fail'],
      ['archiver', 'fail'],
      ['default_partition', 'warn'],
      ['guard', 'warn'],
      ['partition_catalog', 'fail'],
      ['partition_indexes', 'fail'],
      ['partition_names', 'fail'],
      ['quarantine', 'warn'],
      ['scheduler', 'warn'],
    ],
  )
  t.ok(
    found.every(row => row.remedy),
    'each with its remedy',
  )
})

t.test('the metrics of the database exist from the first day', async t => {
  const { sql } = await withDatabase(t)
  const metrics = await sql<{ metric: string; value: number }[]>`select metric, value from fleet.metric_values()`
  const names = metrics.map(row => row.metric)
  for (const name of [
    'partitions_created_total',
    'partitions_archived_total',
    'hb_partition_dropped_total',
    'archive_failures_total',
    'reconciliation_rows_updated_total',
    'partition_premake_runway_days',
    'retention_lag_days',
    'archive_backlog_partitions',
  ]) {
    t.ok(names.includes(name), name)
  }
  t.equal(metrics.find(row => row.metric === 'partitions_created_total')?.value, 105)
  const runway = metrics.find(row => row.metric === 'partition_premake_runway_days')?.value ?? 0
  t.ok(runway > 14 && runway <= 15, `runway ${runway}`)
})

const noRowBack = plainOnly(
  'a row of last status that was deleted by hand comes back with the next heartbeat or fleet.reconcile()',
)
t.test('each device has a row of last status, however it was enrolled', { skip: noRowBack }, async t => {
  const { sql, admin } = await withDatabase(t)
  const [called] = (await enroll(sql, 1)) as [number]
  const inserted = Number(
    await value(admin`insert into fleet.devices (alias, token_hash) values ('by hand', sha256('x')) returning device_id`),
  )
  const rows = () => sql`select device_id::int, last_received_at, status, is_silent from fleet.device_last_status order by 1`
  const empty = [called, inserted].map(device_id => ({ device_id, last_received_at: null, status: null, is_silent: false }))
  t.same(await rows(), empty)
  await ingest(sql, [{ device_id: called }])
  await admin`delete from fleet.device_last_status`
  t.same(await rows(), empty, 'a row that is deleted comes back empty')
  t.same(
    (await sql`select device_id::int from fleet.list_devices('new')`).map(row => row.device_id as number),
    [called, inserted],
  )
  await admin`delete from fleet.devices where device_id = ${inserted}`
  await admin`delete from fleet.device_last_status where device_id = ${inserted}`
  t.same(await rows(), empty.slice(0, 1), 'unless its device is gone')
})
