// Attacks by fleet_reader, with the stolen password of a dashboard.
import postgres, { type Sql } from 'postgres'
import t, { type Test } from 'tap'
import { enroll as enrollOne, serverEnv, withProcess } from '../../testing/server.ts'
import { throwawayCluster } from '../../local/cluster.ts'
import { migrate } from '../../cli/migrate.ts'
import { SESSION_ENDED, testCluster, waitFor, withDatabase, type TestDatabase } from '../../testing/database.ts'
import { asRole, value } from '../../testing/fleet.ts'

/** A reader that has disabled every limit that a login may disable. */
async function unleashed(t: Test, db: TestDatabase) {
  const sql = asRole(t, db, 'fleet_reader')
  for (const setting of ['statement_timeout', 'idle_in_transaction_session_timeout', 'lock_timeout', 'idle_session_timeout'])
    await sql.unsafe(`set ${setting} = 0`)
  await sql`set default_transaction_read_only = off`
  return sql
}

t.test('a reader cannot write anything, not even temporarily', async t => {
  const db = await withDatabase(t)
  const reader = await unleashed(t, db)
  for (const call of [
    'lo_creat(-1)',
    'lo_create(0)',
    `lo_from_bytea(0, 'x')`,
    'lo_open(1, 131072)',
    `lo_put(1, 0, 'x')`,
    `lowrite(0, 'x')`,
    'lo_unlink(1)',
    'lo_truncate(0, 1)',
    'lo_truncate64(0, 1)',
    `lo_import('/etc/passwd')`,
    `lo_import('/etc/passwd', 1)`,
    `lo_export(1, '/tmp/x')`,
    `pg_logical_emit_message(false, 'x', 'x')`,
    `pg_logical_emit_message(false, 'x', 'x'::bytea)`,
    `pg_read_file('/etc/passwd')`,
    `pg_create_restore_point('x')`,
    'pg_switch_wal()',
    `pg_replication_origin_create('x')`,
    `pg_create_physical_replication_slot('x')`,
    `pg_create_logical_replication_slot('x', 'pgoutput')`,
    `dblink('x', 'x')`,
  ])
    await t.rejects(reader.unsafe(`select ${call}`), { code: /42501|42883/ }, call)
  for (const statement of [
    'create temporary table t (x int)',
    'create temporary view v as select 1',
    'create temporary sequence s',
    'create table public.t ()',
    'create table fleet.t ()',
    'create schema s',
    `copy (select 1) to '/tmp/x'`,
    `copy (select 1) to program 'id'`,
    'create table fleet_detached.t ()',
    'select * into temporary t from fleet.devices',
    `comment on view fleet.device_status is 'x'`,
    'truncate fleet.events',
    'delete from fleet.events',
    'do $$ begin lock table fleet.device_heartbeats in share mode; end $$',
    'vacuum pg_catalog.pg_class',
    'create publication p',
    'alter system set work_mem = 1',
  ]) {
    // VACUUM of another role's table only causes a warning.
    if (statement.startsWith('vacuum')) await reader.unsafe(statement)
    else await t.rejects(reader.unsafe(statement), { code: /42501|42883/ }, statement)
  }
  t.equal(await value(db.admin`select count(*)::int from pg_largeobject_metadata`), 0)
})

t.test(
  'only the owner may take advisory locks, so nobody can block maintenance, reconciliation, pg_partman or migrations',
  async t => {
    const db = await withDatabase(t)
    const functions = await db.admin<{ call: string }[]>`
    select proname || '(' || array_to_string(array_fill('1'::text, array[pronargs::int]), ',') || ')' as call
    from pg_proc where proname ~ '^pg_(try_)?advisory_' and pronargs > 0
  `
    t.ok(functions.length >= 20)
    for (const role of ['fleet_reader', 'fleet_dba', 'fleet_server', 'fleet_archiver'] as const) {
      const sql = role === 'fleet_reader' ? await unleashed(t, db) : asRole(t, db, role)
      for (const { call } of functions) await t.rejects(sql.unsafe(`select ${call}`), { code: '42501' }, `${role} ${call}`)
      for (const key of [
        `hashtextextended('fleet.maintenance', 0)`,
        '4727445306',
        '4727445306447283',
        `hashtext('pg_partman run_maintenance')`,
      ]) {
        await t.rejects(
          sql.unsafe(`select pg_advisory_lock(${key})`),
          { code: '42501', message: /permission denied for function pg_advisory_lock/ },
          key,
        )
      }
    }
    await db.sql`call fleet.maintain()`
    await asRole(t, db, 'fleet_dba')`call fleet.maintain()`
    await asRole(t, db, 'fleet_dba')`select * from fleet.reconcile()`
    await asRole(t, db, 'fleet_archiver')`select fleet.take_index_lock()`
    t.same(await db.sql`select event, detail from fleet.events where not is_ok`, [])
    await migrate(db.url('postgres'), { current: true, log: () => {} })
  },
)

t.test('a reader that disables and exceeds its time limits is ended, and nobody else is', async t => {
  const db = await withDatabase(t)
  const reader = await unleashed(t, db)
  const dba = asRole(t, db, 'fleet_dba')
  const owner = asRole(t, db, 'fleet_owner')
  const pidOf = async (sql: Sql) => Number(await value(sql`select pg_backend_pid()`))
  const pids = { reader: await pidOf(reader), dba: await pidOf(dba), owner: await pidOf(owner) }
  const alive = async (pid: number) => (await db.admin`select from pg_stat_activity where pid = ${pid}`).length === 1
  for (const sql of [reader, dba, owner]) await sql.unsafe('begin')
  await reader.unsafe('select count(*) from fleet.device_heartbeats')

  t.same(await db.sql`select * from fleet_guard.end_overdue_readers()`, [], 'not yet')
  const ended = await db.sql`select pid, usename, reason, is_ended from fleet_guard.end_overdue_readers(p_idle => '0')`
  t.match(
    [...ended],
    [{ pid: pids.reader, usename: 'fleet_reader', reason: /^its transaction was idle for \d+ s$/, is_ended: true }],
  )
  await waitFor(async () => !(await alive(pids.reader)))
  t.ok(await alive(pids.dba))
  t.ok(await alive(pids.owner))

  const sleeper = await unleashed(t, db)
  const asleep = sleeper`select pg_sleep(600)`.then(
    () => 'slept',
    (error: unknown) => error,
  )
  await waitFor(
    async () =>
      (await db.admin`select from pg_stat_activity where query = 'select pg_sleep(600)' and datname = ${db.name}`).length === 1,
  )
  t.match(await db.sql`select reason from fleet_guard.end_overdue_readers(p_statement => '0')`, [
    { reason: /^its statement ran for \d+ s$/ },
  ])
  t.match(await asleep, { code: new RegExp(SESSION_ENDED.join('|')) })

  const keeper = await unleashed(t, db)
  await keeper.unsafe('begin')
  const busy = keeper`select pg_sleep(600)`.then(
    () => 'slept',
    (error: unknown) => error,
  )
  await waitFor(
    async () =>
      (await db.admin`select from pg_stat_activity where query = 'select pg_sleep(600)' and datname = ${db.name}`).length === 1,
  )
  t.match(await db.sql`select reason from fleet_guard.end_overdue_readers(p_transaction => '0')`, [
    { reason: /^its transaction was open for \d+ s$/ },
  ])
  t.match(await busy, { code: new RegExp(SESSION_ENDED.join('|')) })

  for (const role of ['fleet_reader', 'fleet_server', 'fleet_archiver', 'fleet_dba'] as const) {
    await t.rejects(asRole(t, db, role)`select * from fleet_guard.end_overdue_readers('0', '0', '0')`, { code: '42501' }, role)
  }
})

t.test('readers are checked every minute, and each ended session is an event', async t => {
  const db = await withDatabase(t)
  const reader = await unleashed(t, db)
  await reader.unsafe('begin')
  // As if a minute and a half had passed.
  await db.admin.unsafe(`
    create or replace function fleet_guard.end_overdue_readers(p_statement interval default '0', p_idle interval default '0', p_transaction interval default '0')
    returns table (pid integer, usename text, reason text, is_ended boolean) language sql security definer set search_path = pg_catalog, pg_temp as $f$
      ${(await value(db.admin`select prosrc from pg_proc where oid = 'fleet_guard.end_overdue_readers'::regproc`)) as string}
    $f$
  `)
  await db.sql`call fleet.mark_silent()`
  t.match(await db.sql`select event, detail from fleet.events where event = 'reader.ended'`, [
    { event: 'reader.ended', detail: /^backend \d+ of fleet_reader: its transaction was idle/ },
  ])
  await db.admin.unsafe(`
    create or replace function fleet_guard.end_overdue_readers(p_statement interval default '0', p_idle interval default '0', p_transaction interval default '0')
    returns table (pid integer, usename text, reason text, is_ended boolean) language plpgsql security definer set search_path = pg_catalog, pg_temp as $f$
      begin raise insufficient_privilege using message = 'permission denied to terminate process'; end
    $f$
  `)
  await t.resolves(
    db.sql`call fleet.mark_silent()`,
    'if the administrator may not end sessions, the other work of each minute still runs',
  )
  const [job] = await db.sql`select schedule from fleet.job_definitions() where command = 'call fleet.mark_silent()'`
  t.equal(job?.schedule, '* * * * *')
})

t.test('readers cannot take the connections of heartbeats and administrators, or fill the disk', async t => {
  const { cluster, end } = await throwawayCluster({
    postgres: testCluster().postgres,
    databases: ['fleet'],
    cronDatabase: 'fleet',
    connections: 60,
  })
  t.teardown(end)
  await migrate(cluster.url('postgres', 'fleet'), { current: true, log: () => {} })
  await cluster.allowLogins()
  const connect = (role: Parameters<typeof cluster.url>[0]) => {
    const sql = postgres(cluster.url(role, 'fleet'), { max: 1, onnotice: () => {}, fetch_types: false })
    t.teardown(() => sql.end({ timeout: 1 }))
    return sql
  }
  const admin = connect('postgres')
  const [limits] = await admin`
    select sum(rolconnlimit) filter (where rolconnlimit > 0)::int as limited, current_setting('max_connections')::int as most
    from pg_roles where rolname like 'fleet\_%'
  `
  t.ok(limits!.limited * 2 <= limits!.most, `${limits!.limited} of ${limits!.most}`)

  const tries = await Promise.all(
    Array.from({ length: 50 }, () =>
      connect('fleet_reader')`select 1 as n`.then(
        () => 'in',
        (error: { code: string; message: string }) => `${error.code} ${error.message}`,
      ),
    ),
  )
  t.equal(tries.filter(answer => answer === 'in').length, 6)
  t.match(new Set(tries.filter(answer => answer !== 'in')), new Set(['53300 too many connections for role "fleet_reader"']))
  for (const role of ['fleet_dba', 'fleet_server', 'fleet_owner', 'fleet_archiver'] as const)
    t.equal(await value(connect(role)`select 1`), 1, role)

  const db = {
    name: 'fleet',
    sql: connect('fleet_owner'),
    admin,
    url: (role: Parameters<typeof cluster.url>[0]) => cluster.url(role, 'fleet'),
  }
  const { token } = await enrollOne(db, 'a')
  const { call } = await withProcess(t, db, { ...serverEnv(db) })
  t.equal((await call('POST /v1/heartbeat', { token, body: {} })).status, 201, 'heartbeats are still accepted')

  await admin`alter role fleet_reader connection limit 7`
  await migrate(cluster.url('postgres', 'fleet'), { current: true, log: () => {} })
  t.equal(
    await value(admin`select rolconnlimit from pg_roles where rolname = 'fleet_reader'`),
    7,
    'a limit that was set by hand stays',
  )

  await admin`select pg_terminate_backend(pid) from pg_stat_activity where usename = 'fleet_reader'`
  const reader = connect('fleet_reader')
  await waitFor(
    async () =>
      await value(reader`show temp_file_limit`).then(
        limit => limit === '512MB',
        () => false,
      ),
  )
  await t.rejects(reader`set temp_file_limit = -1`, { code: '42501' })
  await admin`alter role fleet_reader set temp_file_limit = '1MB'`
  const small = connect('fleet_reader')
  await admin`select pg_terminate_backend(pid) from pg_stat_activity where usename = 'fleet_reader'`
  await t.rejects(small`select count(*) from (select n, repeat('x', 100) from generate_series(1, 200000) n order by 2, 1) s`, {
    code: '53400',
    message: /temporary file size exceeds/,
  })
})
