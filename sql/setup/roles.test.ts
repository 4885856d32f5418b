import t from 'tap'
import { withDatabase } from '../../testing/database.ts'
import { asRole, enroll, ingest, value } from '../../testing/fleet.ts'

const TABLES = [
  'settings',
  'settings_audit',
  'devices',
  'gateways',
  'device_heartbeats',
  'device_last_status',
  'heartbeat_quarantine',
  'hb_partitions',
  'events',
  'counters',
  'archivers',
  'webhooks',
  'webhook_deliveries',
  'notifiers',
  'incidents',
  'device_transitions',
  'restore_requests',
  'restore_items',
  'device_commands',
  'command_dispatch_log',
  'cohorts',
  'slo_counts',
  'device_availability_daily',
  'rolled_up_days',
  'late_arrivals',
  'storage_daily',
  'fleet_samples',
  'fleet_counts',
  'sessions',
  'api_credentials',
  'audit_log',
  'readers',
]

t.test('nothing is granted to public', async t => {
  const { admin } = await withDatabase(t)
  t.same(
    await admin`
    select p.oid::regprocedure::text as name from pg_proc p
    where p.pronamespace in ('fleet'::regnamespace, 'fleet_guard'::regnamespace)
      and has_function_privilege('public', p.oid, 'execute')
    union all
    select c.oid::regclass::text from pg_class c
    where c.relnamespace in ('fleet'::regnamespace, 'fleet_detached'::regnamespace, 'fleet_guard'::regnamespace)
      and exists (select from aclexplode(c.relacl) a where a.grantee = 0)
    union all
    select n.nspname::text from pg_namespace n
    where n.nspname like 'fleet%' and exists (select from aclexplode(n.nspacl) a where a.grantee = 0)
  `,
    [],
  )
})

t.test("every function with the owner's rights has a fixed search path", async t => {
  const { sql } = await withDatabase(t)
  t.same(
    await sql`
    select p.oid::regprocedure::text as name from pg_proc p
    where p.pronamespace in ('fleet'::regnamespace, 'fleet_guard'::regnamespace)
      and p.prokind = 'f'
      and not coalesce('search_path=pg_catalog, pg_temp' = any (p.proconfig), false)
      -- The names in a body like "return …" were resolved when the function was created.
      and (p.prosecdef or p.prosqlbody is null)
  `,
    [],
  )
})

/** What the views of devices read with the rights of the login, and what the ops page reads. */
const READ_BY_SERVER = ['device_last_status', 'device_transitions', 'cohorts', 'fleet_counts', 'audit_log']

t.test('fleet_server ingests, reads the fleet views and their tables, runs the ops calls, and writes no table', async t => {
  const db = await withDatabase(t)
  const server = asRole(t, db, 'fleet_server')
  // The timeout of its connections for /ops; the role's own 2 s are for the hot path.
  await server`set statement_timeout = '60s'`
  const [device] = await server<{ device_id: string; token: string }[]>`select * from fleet.create_device('a')`
  t.match(await ingest(server, [{ device_id: Number(device?.device_id) }]), [{ result: 'stored' }])
  t.match(await server`select * from fleet.authenticate(sha256(${device?.token ?? ''}::text::bytea))`, [
    { kind: 'device', name: 'a' },
  ])
  t.match(await server`select status from fleet.device_status`, [{ status: 'online' }])
  await server`call fleet.nightly()`
  await server`select * from fleet.reconcile()`
  await server`select * from fleet.check()`
  await server`select * from fleet.metric_values()`
  await server`select * from fleet.silence_metrics()`
  await server`select * from fleet.device_day(1)`
  for (const view of ['partition_health', 'archives', 'job_health', 'fleet_silence', 'fleet_trend', 'slo'])
    await server`select * from ${server(`fleet.${view}`)}`
  await server`select device_id, alias, cohort, heartbeat_interval, enrolled_at, revoked_at from fleet.devices`
  await t.rejects(server`select token_hash from fleet.devices`, { code: '42501' })
  await server`select offline_after from fleet.settings`
  for (const table of TABLES) {
    const select = server`select * from ${server(`fleet.${table}`)} limit 1`
    if (READ_BY_SERVER.includes(table)) await select
    else await t.rejects(select, { code: '42501' }, `select ${table}`)
    await t.rejects(server`delete from ${server(`fleet.${table}`)}`, { code: '42501' }, `delete from ${table}`)
  }
  for (const call of [
    `fleet.set_retention('60 days')`,
    `fleet.drop_partition('x')`,
    `fleet.archive_partition('x')`,
    `fleet.create_gateway_token('x')`,
    `fleet.retire_partition('x')`,
    `fleet.enroll_device('x')`,
    `fleet.record_proof('x', 'x', 'x', 0, 0, now(), now())`,
  ]) {
    await t.rejects(server.unsafe(`select ${call}`), { code: '42501' }, call)
  }
  await t.rejects(server`create table fleet.mine (x int)`, { code: '42501' })
})

t.test('fleet_archiver archives, but may not retire partitions or change settings', async t => {
  const db = await withDatabase(t)
  const archiver = asRole(t, db, 'fleet_archiver')
  await archiver`select fleet.archiver_heartbeat('a', '1')`
  await archiver`select * from fleet.claim_partition('a')`
  await archiver`select * from fleet.archives`
  for (const call of [
    `fleet.set_retention('60 days')`,
    `fleet.archive_partition('x')`,
    `fleet.retire_partition('x')`,
    `fleet.enroll_device('x')`,
    `fleet.ingest('[]')`,
    `fleet.get_partition('x')`,
  ]) {
    await t.rejects(archiver.unsafe(`select ${call}`), { code: '42501' }, call)
  }
  for (const table of ['devices', 'settings', 'heartbeat_quarantine']) {
    await t.rejects(archiver`select * from ${archiver(`fleet.${table}`)}`, { code: '42501' }, table)
  }
  await archiver`select * from fleet.device_heartbeats`
  await t.rejects(archiver`insert into fleet.device_heartbeats (ts, device_id) values (now(), 1)`, { code: '42501' })
  await t.rejects(archiver`update fleet.hb_partitions set state = 'archived'`, { code: '42501' })
})

t.test('fleet_reader reads views and heartbeats, within limits, but no tokens', async t => {
  const db = await withDatabase(t)
  const [device] = (await enroll(db.sql, 1)) as [number]
  await ingest(db.sql, [{ device_id: device }])
  const reader = asRole(t, db, 'fleet_reader')
  for (const view of [
    'device_status',
    'devices_offline',
    'unity_down',
    'fleet_summary',
    'partition_health',
    'archives',
    'data_coverage',
    'storage_growth',
    'storage_history',
    'job_health',
    'slo',
    'device_availability',
    'device_heartbeats',
    'device_last_status',
    'events',
  ]) {
    await t.resolves(
      reader`select * from ${reader(`fleet.${view}`)} limit 1`.then(() => undefined),
      view,
    )
  }
  t.equal(await value(reader`show statement_timeout`), '30s')
  t.equal(await value(reader`show idle_in_transaction_session_timeout`), '1min')
  await t.resolves(reader`select device_id, alias, cohort from fleet.devices`.then(() => undefined))
  await t.rejects(reader`select token_hash from fleet.devices`, { code: '42501' })
  await t.rejects(reader`select fleet.ingest('[]')`, { code: '42501' })
  await t.rejects(reader`call fleet.nightly()`, { code: '42501' })
  await reader`set default_transaction_read_only = off`
  await t.rejects(reader`insert into fleet.device_heartbeats (ts, device_id) values (now(), 1)`, { code: '42501' })
  await t.rejects(reader`update fleet.settings set retention = '1 day'`, { code: '42501' })
})

t.test('fleet_dba runs the store by its functions, but may not change heartbeats or proofs', async t => {
  const db = await withDatabase(t)
  const [device] = (await enroll(db.sql, 1)) as [number]
  await ingest(db.sql, [{ device_id: device }])
  const dba = asRole(t, db, 'fleet_dba')
  await dba`select fleet.enroll_device('b', 'lobby')`
  await dba`update fleet.settings set max_future = '1 minute'`
  await dba`update fleet.devices set heartbeat_interval = '5 minutes' where cohort = 'lobby'`
  t.match(await dba`select setting, changed_by from fleet.settings_audit`, [{ setting: 'max_future', changed_by: 'fleet_dba' }])
  await t.rejects(dba`update fleet.settings set retention = '1 day'`, { code: '42501' }, 'retention is set only by its function')
  await t.rejects(dba`update fleet.settings set store_ip = 'maybe'`, { message: /settings_store_ip_known/ })
  for (const statement of [
    'delete from fleet.device_heartbeats',
    'truncate fleet.device_heartbeats',
    'update fleet.device_heartbeats set battery_pct = 1',
    `update fleet.hb_partitions set state = 'archived'`,
    'delete from fleet.events',
    'update fleet_guard.partitions set is_proven = true',
    `select fleet.record_proof('x', 'x', 'x', 0, 0, now(), now())`,
    'select token_hash from fleet.devices',
  ]) {
    await t.rejects(dba.unsafe(statement), { code: '42501' }, statement)
  }
})

t.test('the owner is not a superuser and may not change heartbeats', async t => {
  const { sql } = await withDatabase(t)
  t.equal(await value(sql`select rolsuper from pg_roles where rolname = 'fleet_owner'`), false)
  for (const statement of [
    'delete from fleet.device_heartbeats',
    'truncate fleet.device_heartbeats',
    'update fleet.device_heartbeats set battery_pct = 1',
    'drop event trigger fleet_guard_drop',
    'drop schema fleet_guard cascade',
  ]) {
    await t.rejects(sql.unsafe(statement), { code: /42501|42704/ }, statement)
  }
})

t.test('a token works until it is revoked; the store keeps only its hash', async t => {
  const db = await withDatabase(t)
  const dba = asRole(t, db, 'fleet_dba')
  const server = asRole(t, db, 'fleet_server')
  const token = (await value(dba`select fleet.enroll_device('tablet', 'lobby')`)) as string
  t.match(token, /^nxd_\d+_[0-9a-f]{64}$/)
  const who = () => server`select * from fleet.authenticate(sha256(${token}::text::bytea))`
  const [device] = await who()
  t.match(device, { kind: 'device', name: 'tablet', cohort: 'lobby', next_interval_s: 60 })
  const everything = await db.admin`select d::text as row from fleet.devices d`
  t.notOk(
    everything.some(row => (row.row as string).includes(token.slice(-64))),
    'the table does not contain the token',
  )
  await t.rejects(dba`select fleet.enroll_device('tablet')`, { code: 'FL409' })
  await t.rejects(dba`select fleet.enroll_device('')`, { code: 'FL422', message: /alias/ })
  await t.rejects(dba`select fleet.revoke_device(999999)`, { code: 'FL404' })
  t.equal(await value(dba`select fleet.revoke_device(${device?.device_id as string})`), true)
  t.equal(await value(dba`select fleet.revoke_device(${device?.device_id as string})`), false)
  t.same(await who(), [])

  const gateway = (await value(dba`select fleet.create_gateway_token('warehouse')`)) as string
  const speaker = () => server`select * from fleet.authenticate(sha256(${gateway}::text::bytea))`
  t.match(await speaker(), [{ kind: 'gateway', device_id: null, name: 'warehouse' }])
  t.equal(await value(dba`select fleet.revoke_gateway('warehouse')`), true)
  t.same(await speaker(), [])
})
