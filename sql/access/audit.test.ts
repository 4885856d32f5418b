import { setTimeout as sleep } from 'node:timers/promises'
import type { Sql } from 'postgres'
import t, { type Test } from 'tap'
import { type TestDatabase, waitFor, withCluster, withDatabase } from '../../testing/database.ts'
import { archive, asRole, daysAgo, enroll, ingest, partitionAt, value } from '../../testing/fleet.ts'
import { generator } from '../../testing/random.ts'
import { change } from '../../testing/webhooks.ts'

/** What fleet_dba may call, that may write, and that leaves no row of its own: why. */
const NOT_AUDITED: Record<string, string> = {
  // Reads only.
  adoption_plan: 'reads only',
  import_plan: 'reads only',
  refused_rows: 'reads only',
  // Only says what is in the catalog, and is done by nearly every call.
  note_columns: 'records the columns that the table has, which somebody else changed',
  sync_partitions: 'records the partitions that the catalog has; partition.create in fleet.events',
  wake_archiver: 'sends a notification',
  wake_notifier: 'sends a notification',
  // Inner steps.
  begin_import: 'import_table; tested by it',
  begin_verification: 'verify_import; tested by it',
  begin_abandoning: 'abandon_import; tested by it',
  import_step: 'a batch of import_table, verify_import or abandon_import',
  run_import: 'the batches of import_table, verify_import or abandon_import',
  run_adoption: 'old name of run_import',
  end_import: 'the end of import_table, verify_import or abandon_import',
  run_next_step: 'a step of a run that begin_run recorded',
  run_planned_steps: 'the steps of a run that begin_run recorded',
  end_run: 'the end of a run that begin_run recorded',
  run_erasures: 'goes on with what erase_device recorded',
  erase_step: 'goes on with what erase_device recorded',
  audit_unlock: 'writes the row of force_unlock',
  schedule_jobs: 'changes nothing without pg_cron; tested in a cluster that has it',
}

interface Store {
  db: TestDatabase
  dba: Sql
  device: number
  /** The name of the partition of a day. */
  partition: (days: number) => Promise<string>
}

interface Deed {
  /** The call. What it needs is made before. */
  call: string
  prepare?: () => Promise<unknown>
  rows: [action: string, target: string | RegExp][]
  /** What a second call does: nothing, or the same again, or it fails. */
  again?: 'nothing' | 'same' | 'fails'
  /** It commits, or takes a lock of its session, so that a test cannot roll it back. */
  isFinal?: true
}

t.test('each call for DBAs that changes something writes its row in its own transaction', { timeout: 300_000 }, async t => {
  const store = await withStore(t)
  const { db, dba } = store
  const deeds = await deedsOf(store)
  const callable = await db.admin<{ name: string }[]>`
    select distinct p.proname::text as name from pg_proc p
    where p.pronamespace = 'fleet'::regnamespace and has_function_privilege('fleet_dba', p.oid, 'execute') and p.provolatile = 'v'
    order by 1`
  const known = new Set([...Object.keys(deeds), ...Object.keys(NOT_AUDITED)])
  t.same(
    callable.map(({ name }) => name).filter(name => !known.has(name)),
    [],
    'give each new call for DBAs a deed here, or say why it leaves no row',
  )
  t.same(
    [...known].filter(name => !callable.some(row => row.name === name)),
    [],
    'what is listed here exists',
  )

  const newest = async () => (await value(db.admin`select coalesce(max(audit_id), 0) from fleet.audit_log`)) as string
  const since = (id: string) => db.admin<{ actor: string; how: string; action: string; target: string }[]>`
    select actor, how, action, target from fleet.audit_log where audit_id > ${id} order by audit_id`
  for (const [name, { call, prepare, rows, again = 'same', isFinal }] of Object.entries(deeds)) {
    await prepare?.()
    let before = await newest()
    if (!isFinal) {
      await dba.unsafe('begin')
      await dba.unsafe(call)
      await dba.unsafe('rollback')
      t.same(await since(before), [], `${name}: rolled back, it leaves no row`)
    }
    await dba.unsafe(call)
    const expected = rows.map(([action, target]) => ({ actor: 'fleet_dba', how: 'sql', action, target }))
    const found = await since(before)
    t.match(found, expected, `${name} leaves its row`)
    t.equal(found.length, expected.length, `${name} leaves no other row`)
    before = await newest()
    if (again === 'fails') await t.rejects(dba.unsafe(call), `${name} fails when it is called again`)
    else await dba.unsafe(call)
    t.equal((await since(before)).length, again === 'same' ? rows.length : 0, `${name}, called again: ${again}`)
  }
  const all = JSON.stringify(await db.admin`select * from fleet.audit_log`)
  t.notMatch(all, /nx[dgk]_|whsec_|secret-path|secret-user/, 'no token, key or secret is in it')
})

/** A store in which everything can be done. */
async function withStore(t: Test): Promise<Store> {
  const db = await withDatabase(t)
  const { sql, admin } = db
  const [device, other] = (await enroll(sql, 2)) as [number, number]
  await admin`update fleet.devices set enrolled_at = now() - interval '80 days'`
  for (const days of [1, 20, 21, 60, 61, 62, 63, 64, 65])
    await admin`
      insert into fleet.device_heartbeats (ts, received_at, device_id)
      select ${daysAgo(days)}::timestamptz + n * interval '1 second', ${daysAgo(days)}, d
      from generate_series(0, 40, 20) n, unnest(${[device, other]}::bigint[]) d`
  return { db, dba: asRole(t, db, 'fleet_dba'), device, partition: days => partitionAt(sql, daysAgo(days)) }
}

async function deedsOf({ db, dba, device, partition }: Store): Promise<Record<string, Deed>> {
  const { sql, admin } = db
  const p: Record<number, string> = {}
  for (const days of [20, 21, 60, 61, 62, 63, 64, 65]) p[days] = await partition(days)
  const day = (days: number) => daysAgo(days).slice(0, 10)
  const on = (days: number) => `partition:${p[days]}`
  const archiver = () => archive(admin)
  const oldTable = (name: string) => async () => {
    await admin.unsafe(`
      create table public.${name} (device_id text, ts timestamp, battery_pct integer);
      grant select, insert, trigger on public.${name} to fleet_owner;
      insert into public.${name} values ('device-1', now() at time zone 'UTC' - interval '3 hours', 7)`)
  }
  const importDone = (name: string) => async () => {
    await waitFor(async () => {
      await dba.unsafe(`call fleet.verify_import('public.${name}')`)
      return true
    })
  }
  const other = device + 1
  const dead = async () => {
    await change(sql, device, { event: 'offline' })
    await admin`update fleet.webhook_deliveries set state = 'dead' where state = 'pending'`
  }
  return {
    // Keys and sessions.
    create_api_key: {
      call: `select fleet.create_api_key('grafana', '{read}')`,
      rows: [['api_key.created', 'api_key:grafana']],
      again: 'fails',
    },
    rotate_api_key: { call: `select fleet.rotate_api_key('grafana')`, rows: [['api_key.rotated', 'api_key:grafana']] },
    revoke_api_key: {
      call: `select fleet.revoke_api_key('grafana')`,
      rows: [['api_key.revoked', 'api_key:grafana']],
      again: 'nothing',
    },
    close_session: {
      prepare: () => admin`
        insert into fleet.sessions (session_hash, actor, login, scopes, ends_at)
        values (sha256('x'), 'ann', 'oidc', '{read}', now() + interval '1 hour')`,
      call: 'select fleet.close_session(1)',
      rows: [['session.ended', 'session:1']],
      again: 'nothing',
    },
    create_reader: {
      // Roles belong to the cluster, so the name has that of the database.
      call: `select fleet.create_reader('${db.name}_audit', '{lobby}')`,
      rows: [['reader.created', `reader:${db.name}_audit`]],
      again: 'fails',
    },
    set_reader_cohorts: {
      call: `select fleet.set_reader_cohorts('${db.name}_audit', '{hall}')`,
      rows: [['reader.changed', `reader:${db.name}_audit`]],
      again: 'nothing',
    },
    renew_reader_password: {
      call: `select fleet.renew_reader_password('${db.name}_audit')`,
      rows: [['reader.password_renewed', `reader:${db.name}_audit`]],
    },
    drop_reader: {
      call: `select fleet.drop_reader('${db.name}_audit')`,
      rows: [['reader.dropped', `reader:${db.name}_audit`]],
      again: 'fails',
    },

    // Devices.
    create_device: { call: `select fleet.create_device('new-1')`, rows: [['device.enrolled', /^device:\d+$/]], again: 'fails' },
    enroll_device: { call: `select fleet.enroll_device('new-2')`, rows: [['device.enrolled', /^device:\d+$/]], again: 'fails' },
    renew_token: { call: `select fleet.renew_token(${device})`, rows: [['device.token_renewed', `device:${device}`]] },
    rename_device: {
      call: `select fleet.rename_device(${device}, 'device-1b')`,
      rows: [['device.renamed', `device:${device}`]],
      again: 'nothing',
    },
    move_device: {
      call: `select fleet.move_device(${device}, 'lobby')`,
      rows: [['device.moved', `device:${device}`]],
      again: 'nothing',
    },
    send_command: { call: `select fleet.send_command(${device}, 'restart')`, rows: [['command.sent', `device:${device}`]] },
    set_cohort_interval: {
      call: `select fleet.set_cohort_interval('lobby', '5 minutes')`,
      rows: [['cohort_interval.changed', 'cohort_interval:lobby']],
      again: 'nothing',
    },
    create_gateway_token: {
      call: `select fleet.create_gateway_token('gate')`,
      rows: [['gateway.created', 'gateway:gate']],
      again: 'fails',
    },
    revoke_gateway: {
      call: `select fleet.revoke_gateway('gate')`,
      rows: [['gateway.revoked', 'gateway:gate']],
      again: 'nothing',
    },
    ingest: {
      call: `select fleet.ingest('[{"device_id":${device}}]')`,
      rows: [['heartbeats.ingested', 'heartbeats:1']],
    },
    replay_quarantine: {
      prepare: async () => {
        await ingest(sql, [{ device_id: device, ts: daysAgo(30) }])
        await admin`update fleet.settings set max_late = '40 days'`
      },
      call: 'select * from fleet.replay_quarantine()',
      rows: [['quarantine.replayed', 'quarantine:all']],
      again: 'nothing',
    },
    backfill_last_status: {
      prepare: () => admin`update fleet.device_last_status set last_ts = null`,
      call: 'select fleet.backfill_last_status(30)',
      rows: [['last_status.backfilled', 'last_status:all']],
      again: 'nothing',
    },
    reconcile: {
      prepare: () => admin`update fleet.device_last_status set last_ts = null`,
      call: `select * from fleet.reconcile('30 days')`,
      rows: [['last_status.reconciled', 'last_status:all']],
      again: 'nothing',
    },
    roll_up: { call: 'select fleet.roll_up(current_date - 1)', rows: [['day.rolled_up', `day:${day(1)}`]] },

    // Settings.
    set_premake: { call: 'select fleet.set_premake(15)', rows: [['setting.changed', 'setting:premake_days']], again: 'nothing' },
    set_retention: {
      call: `select fleet.set_retention('100 days')`,
      rows: [['setting.changed', 'setting:retention']],
      again: 'nothing',
    },
    create_partitions: {
      call: `select fleet.create_partitions('${day(-20)}', '${day(-21)}')`,
      rows: [['partitions.created', `partitions:${day(-20)}/${day(-21)}`]],
      again: 'nothing',
    },

    // Maintenance, before there is anything for it to do with the partitions below.
    nightly: { call: 'call fleet.nightly()', rows: [['nightly.started', /^run:\d+$/]], isFinal: true },
    maintain: { call: 'call fleet.maintain()', rows: [['maintain.started', /^run:\d+$/]], isFinal: true },
    begin_run: {
      call: `select fleet.end_run(fleet.begin_run('maintain'))`,
      rows: [['maintain.started', /^run:\d+$/]],
      isFinal: true,
    },
    force_unlock: {
      prepare: () => blocker(db),
      call: `select * from fleet.force_unlock('reconcile')`,
      rows: [['lock.forced', 'lock:reconcile']],
      again: 'nothing',
      isFinal: true,
    },

    // Partitions and their archives.
    hold_partition: {
      call: `select fleet.hold_partition('${p[21]}', 'case 7')`,
      rows: [['partition.held', on(21)]],
      again: 'nothing',
    },
    release_partition: {
      call: `select fleet.release_partition('${p[21]}')`,
      rows: [['partition.released', on(21)]],
      again: 'nothing',
    },
    settle_partition: {
      prepare: async () => {
        await admin`update fleet.settings set max_late = '7 days'`
        await sql`select fleet.unsettle_partition(${p[20]!})`
      },
      call: `select fleet.settle_partition('${p[20]}')`,
      rows: [['partition.settled', on(20)]],
      again: 'nothing',
    },
    unsettle_partition: {
      call: `select fleet.unsettle_partition('${p[20]}')`,
      rows: [['partition.unsettled', on(20)]],
      again: 'nothing',
    },
    archive_partition: {
      call: `select fleet.archive_partition('${p[60]}')`,
      rows: [['partition.archive_requested', on(60)]],
      again: 'nothing',
    },
    retry_archive: {
      prepare: () =>
        admin`update fleet.hb_partitions set state = 'archive_failed', attempts = 5 where partition_name = ${p[60]!}`,
      call: `select fleet.retry_archive('${p[60]}')`,
      rows: [['partition.archive_retried', on(60)]],
    },
    drop_partition: {
      prepare: async () => {
        await admin`update fleet.settings set archive_grace = '1 day'`
        await archiver()
        await admin`update fleet.settings set archive_grace = '0'`
      },
      call: `select fleet.drop_partition('${p[60]}')`,
      rows: [['partition.dropped', on(60)]],
      again: 'nothing',
    },
    accept_archive: {
      prepare: async () => {
        await admin`select fleet.archive_partition(${p[61]!})`
        await admin`update fleet.settings set archive_grace = '1 day'`
        await archiver()
        await admin.unsafe(`delete from fleet_detached.${p[61]} where device_id = ${other}`)
      },
      call: `select fleet.accept_archive('${p[61]}', 'case 8')`,
      rows: [
        ['partition.archive_accepted', on(61)],
        ['partition.dropped', on(61)],
      ],
      again: 'fails',
    },
    request_restore: { call: `select fleet.request_restore('${day(61)}')`, rows: [['restore.requested', /^restore:\d+$/]] },
    forget_archive: {
      call: `select fleet.forget_archive('${p[61]}', 'case 9')`,
      rows: [['partition.archive_forgotten', on(61)]],
    },

    // Webhooks.
    create_webhook: {
      call: `select fleet.create_webhook('hook', 'https://secret-user:x@example.com/secret-path')`,
      rows: [['webhook.created', 'webhook:hook']],
      again: 'fails',
    },
    rotate_webhook_secret: {
      call: `select fleet.rotate_webhook_secret('hook')`,
      rows: [['webhook.secret_rotated', 'webhook:hook']],
    },
    test_webhook: { call: `select fleet.test_webhook('hook')`, rows: [['webhook.tested', 'webhook:hook']] },
    pause_webhook: { call: `select fleet.pause_webhook('hook')`, rows: [['webhook.paused', 'webhook:hook']], again: 'nothing' },
    resume_webhook: {
      call: `select fleet.resume_webhook('hook')`,
      rows: [['webhook.resumed', 'webhook:hook']],
      again: 'nothing',
    },
    retry_deliveries: {
      prepare: dead,
      call: `select fleet.retry_deliveries('hook')`,
      rows: [['webhook.retried', 'webhook:hook']],
      again: 'nothing',
    },
    dismiss_deliveries: {
      prepare: dead,
      call: `select fleet.dismiss_deliveries('hook')`,
      rows: [['webhook.dismissed', 'webhook:hook']],
      again: 'nothing',
    },
    replay_webhook: { call: `select fleet.replay_webhook('hook', 1)`, rows: [['webhook.replayed', 'webhook:hook']] },
    remove_webhook: { call: `select fleet.remove_webhook('hook')`, rows: [['webhook.removed', 'webhook:hook']], again: 'fails' },

    // Imports. A call of import_table that goes on with another one says so; the call below begins a new pass.
    import_table: {
      prepare: oldTable('old'),
      call: `call fleet.import_table('public.old')`,
      rows: [['import.begun', 'import:public.old']],
      isFinal: true,
    },
    verify_import: {
      call: `call fleet.verify_import('public.old')`,
      rows: [['import.verification_begun', 'import:public.old']],
      isFinal: true,
    },
    confirm_import: {
      call: `select fleet.confirm_import('public.old')`,
      rows: [['import.confirmed', 'import:public.old']],
      again: 'nothing',
    },
    forget_import: {
      call: `select fleet.forget_import('public.old')`,
      rows: [['import.forgotten', 'import:public.old']],
      again: 'nothing',
    },
    adopt_table: {
      prepare: oldTable('older'),
      call: `call fleet.adopt_table('public.older')`,
      rows: [['import.begun', 'import:public.older']],
      isFinal: true,
    },
    verify_adoption: {
      call: `call fleet.verify_adoption('public.older')`,
      rows: [['import.verification_begun', 'import:public.older']],
      isFinal: true,
    },
    abandon_import: {
      call: `call fleet.abandon_import('public.older')`,
      rows: [['import.abandoning_begun', 'import:public.older']],
      isFinal: true,
    },
    abandon_adoption: {
      call: `call fleet.abandon_adoption('public.older')`,
      rows: [['import.abandoning_begun', 'import:public.older']],
      isFinal: true,
    },
    confirm_adoption: {
      prepare: async () => {
        await dba.unsafe(`call fleet.import_table('public.older')`)
        await importDone('older')()
      },
      call: `select fleet.confirm_adoption('public.older')`,
      rows: [['import.confirmed', 'import:public.older']],
      again: 'nothing',
    },
    forget_adoption: {
      call: `select fleet.forget_adoption('public.older')`,
      rows: [['import.forgotten', 'import:public.older']],
      again: 'nothing',
    },

    set_cadence: {
      call: `select fleet.set_cadence('monthly')`,
      rows: [['setting.changed', 'setting:cadence']],
      again: 'nothing',
    },

    // Last, because the device goes.
    revoke_device: {
      call: `select fleet.revoke_device(${device})`,
      rows: [['device.revoked', `device:${device}`]],
      again: 'nothing',
    },
    erase_device: {
      call: `select fleet.erase_device(${device}, 'request 1')`,
      rows: [['erasure.requested', /^erasure:\d+$/]],
      again: 'nothing',
    },
    retry_erasure: {
      call: 'select fleet.retry_erasure(erasure_id) from fleet.erasures',
      rows: [['erasure.retried', /^erasure:\d+$/]],
    },
  }
}

/** A session that holds the lock of reconcile(). The call that frees it ends it. */
async function blocker({ sql }: TestDatabase) {
  const held = await sql.reserve()
  await held`select pg_advisory_lock(hashtextextended('fleet.reconcile', 0))`
}

t.test('what is written by hand into devices and import_devices leaves a row for each device, or one for many', async t => {
  const db = await withDatabase(t)
  const dba = asRole(t, db, 'fleet_dba')
  const devices = (await enroll(db.sql, 150)) as [number, ...number[]]
  const log = async () => {
    const rows =
      await db.admin`select actor, action, target, before, after from fleet.audit_log where action <> 'device.enrolled' order by audit_id`
    await db.admin`alter table fleet.audit_log disable trigger user`
    await db.admin`delete from fleet.audit_log`
    await db.admin`alter table fleet.audit_log enable trigger user`
    return rows as unknown as { action: string; target: string }[]
  }
  await log()
  await dba`update fleet.devices set cohort = 'lobby' where device_id in (${devices[0]}, ${devices[1]!})`
  await dba`update fleet.devices set cohort = 'lobby' where device_id = ${devices[0]}`
  await dba`update fleet.devices set heartbeat_interval = '2 minutes' where device_id = ${devices[0]}`
  t.same(await log(), [
    {
      actor: 'fleet_dba',
      action: 'device.changed',
      target: `device:${devices[0]}`,
      before: { cohort: 'default' },
      after: { cohort: 'lobby' },
    },
    {
      actor: 'fleet_dba',
      action: 'device.changed',
      target: `device:${devices[1]}`,
      before: { cohort: 'default' },
      after: { cohort: 'lobby' },
    },
    {
      actor: 'fleet_dba',
      action: 'device.changed',
      target: `device:${devices[0]}`,
      before: { heartbeat_interval: '00:01:00' },
      after: { heartbeat_interval: '00:02:00' },
    },
  ])
  await dba`update fleet.devices set cohort = 'hall'`
  t.match(await log(), [
    { action: 'devices.changed', target: 'devices:150', before: { cohorts: ['default', 'lobby'] }, after: { cohorts: ['hall'] } },
  ])
  await dba
    .begin(async tx => {
      await tx`update fleet.devices set cohort = 'x'`
      throw new Error('never mind')
    })
    .catch(() => {})
  await db.sql`select fleet.move_device(${devices[0]}, 'lobby')`
  t.match(await log(), [{ action: 'device.moved' }], 'a function writes only its own row')

  const map = (source: string, id: number) => ({ source, source_device: `old-${id}`, device_id: id })
  await dba`insert into fleet.import_devices ${dba(devices.slice(0, 2).map(id => map('public.old', id)))}`
  await dba`update fleet.import_devices set device_id = ${devices[2]!} where source_device = ${`old-${devices[0]}`}`
  await dba`delete from fleet.import_devices where source_device = ${`old-${devices[1]}`}`
  t.match(await log(), [
    {
      action: 'import_device.mapped',
      target: 'import:public.old',
      before: null,
      after: { source_device: `old-${devices[0]}`, device_id: devices[0] },
    },
    { action: 'import_device.mapped', target: 'import:public.old', after: { device_id: devices[1] } },
    {
      action: 'import_device.changed',
      target: 'import:public.old',
      before: { device_id: devices[0] },
      after: { device_id: devices[2] },
    },
    { action: 'import_device.unmapped', target: 'import:public.old', before: { device_id: devices[1] }, after: null },
  ])
  await dba`delete from fleet.import_devices`
  await log()
  await dba`insert into fleet.import_devices ${dba(devices.slice(0, 120).map(id => map('public.old', id)))}`
  t.match(await log(), [{ action: 'import_device.mapped', target: 'import:public.old', before: null, after: { devices: 120 } }])
})

t.test('whom the server names is named everywhere, and a login cannot hide as a job of pg_cron', async t => {
  const db = await withDatabase(t)
  const { sql, admin } = db
  const dba = asRole(t, db, 'fleet_dba')
  const partition = await partitionAt(sql, daysAgo(5))
  // What the server says in its session; a superuser may do both, as no login of the store may.
  await admin.begin(async tx => {
    await tx`select fleet.act('session', 'ann@example.com', null, null, 'ticket-9', '192.0.2.7')`
    await tx`select fleet.hold_partition(${partition}, 'case 7')`
    await tx`select fleet.create_webhook('hook', 'https://example.com')`
  })
  t.match(await dba`select held_by from fleet.hb_partitions where partition_name = ${partition}`, [
    { held_by: 'ann@example.com' },
  ])
  t.match(await dba`select created_by from fleet.webhooks`, [{ created_by: 'ann@example.com' }])
  t.match(await dba`select actor, how, action, request_id, address from fleet.audit_log order by audit_id`, [
    { actor: 'ann@example.com', how: 'session', action: 'partition.held', request_id: 'ticket-9', address: '192.0.2.7' },
    { actor: 'ann@example.com', how: 'session', action: 'webhook.created' },
  ])
  await dba`set application_name = 'pg_cron scheduler'`
  await dba`select fleet.release_partition(${partition})`
  await dba`call fleet.nightly()`
  t.match(await dba`select actor, how, action from fleet.audit_log order by audit_id offset 2`, [
    { actor: 'fleet_dba', how: 'sql', action: 'partition.released' },
    { actor: 'fleet_dba', how: 'sql', action: 'nightly.started' },
  ])
})

t.test('of an erased device the rows stay, and what they say about it goes', async t => {
  const db = await withDatabase(t)
  const dba = asRole(t, db, 'fleet_dba')
  const [gone, other] = (await enroll(db.sql, 2, 'person')) as [number, number]
  for (const device of [gone, other]) {
    await dba`select fleet.rename_device(${device}, ${`name-of-${device}`})`
    await dba`select fleet.send_command(${device}, 'show', ${dba.json({ text: `hello name-of-${device}` })})`
    await dba`insert into fleet.import_devices values ('public.old', ${`name-of-${device}`}, ${device})`
  }
  await dba`select fleet.erase_device(${gone}, 'request 4711')`
  t.same(
    await dba`select action, before, after from fleet.audit_log where target = ${`device:${gone}`} order by audit_id`,
    ['device.enrolled', 'device.renamed', 'command.sent'].map(action => ({ action, before: null, after: null })),
    'who did what and when is kept',
  )
  const all = JSON.stringify(await dba`select * from fleet.audit_log`)
  t.notMatch(all, new RegExp(`person-1|name-of-${gone}`))
  t.match(all, new RegExp(`name-of-${other}`))
  t.match(await dba`select target, after from fleet.audit_log where action = 'erasure.requested'`, [
    { target: 'erasure:1', after: { reason: 'request 4711' } },
  ])
  for (const set of ['after = null, before = null', `actor = 'x'`])
    await t.rejects(
      db.sql.unsafe(`update fleet.audit_log set ${set} where target = 'device:${other}'`),
      { code: 'FL403' },
      'the rows of other devices cannot be changed, even by the owner',
    )
  await t.rejects(db.sql`update fleet.audit_log set actor = 'x' where target = ${`device:${gone}`}`, { code: 'FL403' })
})

t.test('jobs and killed backends: a row is there if and only if its deed is', { timeout: 300_000 }, async t => {
  const db = await withCluster(t)
  const { sql, admin } = db
  const dba = asRole(t, db, 'fleet_dba')
  const next = generator(20261129)
  const random = (below: number) => Math.floor(next() * below)
  const devices = await enroll(sql, 2000)
  const partition = await partitionAt(sql, daysAgo(5))

  t.match(await dba`select count(*)::int from fleet.schedule_jobs()`, [{ count: 8 }])
  await sql`select cron.unschedule('fleet-erase')`
  await dba`select from fleet.schedule_jobs()`
  await dba`select from fleet.schedule_jobs()`
  t.match(
    await admin`select actor, action, target from fleet.audit_log where action like 'jobs.%' and actor = 'fleet_dba'`,
    [{ actor: 'fleet_dba', action: 'jobs.scheduled', target: 'jobs:pg_cron' }],
    'only where it changed the schedule',
  )
  // pg_cron runs this within the minute, while the backends die.
  await admin`update cron.job set schedule = '* * * * *' where jobname in ('fleet-maintain', 'fleet-reconcile')`
  await admin`update fleet.device_last_status set last_ts = null`

  let revoked = 0
  let deeds = 0
  /** Does deeds until the session dies, some alone and some in one transaction. */
  const act = async (login: Sql) => {
    for (;;) {
      const several = await login.reserve()
      try {
        const isOne = random(2) === 0
        if (isOne) await several`begin`
        await several`select fleet.hold_partition(${partition}, ${`case ${deeds}`})`
        await several`select fleet.send_command(${devices[1999]!}, 'restart')`
        await several`select fleet.revoke_device(${devices[revoked++]!})`
        if (random(3) > 0) await several`select fleet.release_partition(${partition})`
        if (isOne) await several`commit`
        deeds++
      } finally {
        several.release()
      }
    }
  }
  const compare = async (when: string, as = admin) => {
    const [found] = await as<Record<string, unknown>[]>`
      select
        array(select c.command_id::text from fleet.device_commands c order by c.command_id) as commands,
        array(select a.after ->> 'command_id' from fleet.audit_log a where a.action = 'command.sent' order by a.audit_id)
          as commands_audited,
        array(select 'device:' || d.device_id from fleet.devices d where d.revoked_at is not null order by d.device_id) as revoked,
        array(select a.target from fleet.audit_log a where a.action = 'device.revoked' order by split_part(a.target, ':', 2)::bigint)
          as revoked_audited,
        (select count(*) from fleet.events where event = 'partition.hold') as holds,
        (select count(*) from fleet.audit_log where action = 'partition.held') as holds_audited,
        (select count(*) from fleet.events where event = 'partition.release') as releases,
        (select count(*) from fleet.audit_log where action = 'partition.released') as releases_audited,
        (select p.held_reason from fleet.hb_partitions p where p.partition_name = ${partition}) as held,
        (select a.after ->> 'reason' from fleet.audit_log a where a.action like 'partition.%' order by a.audit_id desc limit 1)
          as held_audited`
    for (const what of ['commands', 'revoked', 'holds', 'releases', 'held'])
      t.same(found![what], found![`${what}_audited`], `${when}: ${what}`)
  }

  for (let round = 0; round < 20; round++) {
    const login = asRole(t, db, 'fleet_dba', { application_name: 'deeds' })
    const before = deeds
    const died = t.rejects(act(login))
    await waitFor(async () => deeds > before)
    await sleep(random(25))
    await admin`select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'deeds'`
    await died
    await compare(`round ${round}`)
  }
  await waitFor(async () => (await value(admin`select count(*) from fleet.events where event = 'maintain.end'`)) !== '0', {
    timeoutMs: 130_000,
  })
  t.same(
    await admin`select action from fleet.audit_log where how = 'job' or action in ('maintain.started', 'nightly.started', 'last_status.reconciled')`,
    [],
    'what pg_cron runs for the store is in fleet.events',
  )

  // Postgres restarts all sessions when one of them is killed with -9.
  const login = asRole(t, db, 'fleet_dba', { application_name: 'deeds' })
  const before = deeds
  const died = t.rejects(act(login))
  await waitFor(async () => deeds > before + 3)
  const pid = (await value(admin`select pid from pg_stat_activity where application_name = 'deeds'`)) as number
  const own = (await value(admin`select pg_backend_pid()`)) as number
  process.kill(pid, 'SIGKILL')
  await died
  // This session was ended, too, so another one answers.
  await waitFor(() =>
    admin`select pg_backend_pid() as pid`.then(
      ([row]) => row!.pid !== own,
      () => false,
    ),
  )
  await compare('after kill -9', asRole(t, db, 'postgres'))
  t.ok(deeds > 20, `${deeds} rounds of deeds`)
})
