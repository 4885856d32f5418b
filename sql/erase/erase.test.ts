import t, { type Test } from 'tap'
import { withDatabase, type TestDatabase } from '../../testing/database.ts'
import { plainOnly } from '../../testing/distributed.ts'
import { archive, asRole, daysAgo, enroll, ingest, partitionAt, value } from '../../testing/fleet.ts'
import { change } from '../../testing/webhooks.ts'

/** Two devices with rows in every table that has a column device_id: the first one is to be erased. */
async function withTwoDevices(t: Test) {
  const db = await withDatabase(t)
  const [gone, other] = (await enroll(db.sql, 2)) as [number, number]
  await rowsEverywhere(db, [gone, other])
  return { db, gone, other, dba: asRole(t, db, 'fleet_dba') }
}

const NOON = (days: number) => `${daysAgo(days).slice(0, 10)}T12:00:00Z`

async function rowsEverywhere({ sql, admin }: TestDatabase, devices: number[]) {
  await admin`update fleet.devices set enrolled_at = now() - interval '60 days'`
  for (const days of [1, 3, 20, 30]) {
    await admin`
      insert into fleet.device_heartbeats (ts, received_at, device_id)
      select ${NOON(days)}::timestamptz + n * interval '1 minute', ${NOON(days)}, d
      from generate_series(1, 10) n, unnest(${devices}::bigint[]) d`
  }
  await ingest(
    sql,
    devices.flatMap(device_id => [{ device_id }, { device_id, ts: daysAgo(40) }]),
  )
  await sql`select fleet.create_webhook('hook', 'https://example.com/')`
  for (const device of devices) {
    await change(sql, device, { event: 'unity_down' })
    await sql`select fleet.send_command(${device}, 'restart')`
    await sql`select fleet.take_commands(${device})`
    await sql`
      select fleet.record_slowed(json_build_array(json_build_object('token_hash', encode(d.token_hash, 'hex'), 'times', 1)))
      from fleet.devices d where d.device_id = ${device}`
    await sql`select fleet.record_unreadable_fields(${sql.json([{ device_id: device, field: 'x', times: 1, example: 'y' }])}::json)`
    await admin`insert into fleet.import_devices (source, source_device, device_id) values ('public.old', ${String(device)}, ${device})`
    await admin`insert into fleet.late_arrivals (device_id, day) values (${device}, current_date - 3)`
    await admin`update fleet.devices set heartbeat_interval = '2 minutes' where device_id = ${device}`
    await sql`select fleet.rename_device(${device}, ${`person-${device}`})`
    await sql`select fleet.move_device(${device}, 'lobby')`
  }
  await sql`select fleet.roll_up(current_date - 20)`
  await sql`select fleet.roll_up(current_date - 1)`
  await sql`select fleet.settle_partition(partition_name) from fleet.settle_plan() where range_start = ${daysAgo(20).slice(0, 10)}::date`
}

/** How many rows of a device each table has that has any, from the catalog, so that a new table is found, too. */
async function rowsOf({ admin }: TestDatabase, device: number) {
  const tables = await admin<{ name: string }[]>`
    select c.oid::regclass::text as name from pg_class c
    join pg_attribute a on a.attrelid = c.oid and a.attname = 'device_id' and not a.attisdropped
    where c.relnamespace::regnamespace::text in ('fleet', 'fleet_detached') and c.relkind in ('r', 'p') and not c.relispartition
      and c.oid <> 'fleet.erasures'::regclass`
  const found: Record<string, number> = {}
  for (const { name } of tables) {
    const rows = (await value(admin.unsafe(`select count(*)::int from ${name} where device_id = ${device}`))) as number
    if (rows > 0) found[name] = rows
  }
  return { found, tables: tables.map(({ name }) => name) }
}

t.test('every table is empty of an erased device, and the other device keeps every row', async t => {
  const { db, gone, other, dba } = await withTwoDevices(t)
  const before = await rowsOf(db, gone)
  t.same(
    before.tables.filter(name => before.found[name] === undefined).map(name => name.replace(/.*_template/, 'template')),
    ['template'],
    'the test has rows in every table with a column device_id; give a new one some in rowsEverywhere()',
  )
  const kept = await rowsOf(db, other)

  const id = await value(dba`select fleet.erase_device(${gone}, 'request 4711')`)
  t.same(Object.keys((await rowsOf(db, gone)).found), ['fleet.device_heartbeats'], 'the call itself leaves only heartbeats')
  await dba`call fleet.run_erasures()`
  t.same((await rowsOf(db, gone)).found, {})
  t.same((await rowsOf(db, other)).found, kept.found)
  t.match(await dba`select * from fleet.erasure_progress`, [
    {
      erasure_id: id,
      device_id: String(gone),
      state: 'done',
      requested_by: 'fleet_dba',
      reason: 'request 4711',
      rows_online: '41',
      archives_left: '0',
      partitions_left: '0',
      last_error: null,
      finished_at: Date,
    },
  ])
  t.equal(await value(dba`select status from fleet.check() where check_name = 'erasures'`), 'ok')
  // The audit names neither the device nor its alias.
  const events = await db.admin<
    { event: string; detail: string }[]
  >`select event, detail from fleet.events where event like 'device.%'`
  t.match(
    events.filter(({ event }) => event.startsWith('device.erase')),
    [
      { event: 'device.erase', detail: `erasure ${id as string}; by fleet_dba: request 4711` },
      { event: 'device.erased', detail: /41 heartbeats online, 0 in 0 archives/ },
    ],
  )
  t.same(
    events.filter(({ detail }) => RegExp(`person-${gone}|device ${gone}\\b|device-${gone}\\b`).test(detail)),
    [],
  )
  t.equal(events.filter(({ detail }) => /^a device that was erased; by /.test(detail)).length, 2, 'who changed it is kept')
  t.ok(events.some(({ detail }) => detail.includes(`person-${other}`)))
})

t.test('days are not rolled up again because a device was erased', async t => {
  const { db, gone, dba } = await withTwoDevices(t)
  const due = () => db.sql`
    select day from fleet.rollup_plan() where day in (current_date - 20, current_date - 1)`
  t.same(await due(), [])
  await dba`select fleet.erase_device(${gone}, 'x')`
  t.same(await due(), [])
})

t.test('erasing is refused for a device that never was, without a reason, and for other roles', async t => {
  const { db, gone, dba } = await withTwoDevices(t)
  await t.rejects(dba`select fleet.erase_device(999999, 'x')`, { code: 'FL404', message: /there never was one/ })
  await t.rejects(dba`select fleet.erase_device(${-gone}, 'x')`, { code: 'FL404' })
  await t.rejects(dba`select fleet.erase_device(null, 'x')`, { code: 'FL422', message: /device_id is null/ })
  await t.rejects(dba`select fleet.erase_device(${gone}, ' ')`, { code: 'FL422', message: /reason/ })
  for (const role of ['fleet_reader', 'fleet_server', 'fleet_archiver', 'fleet_verifier'] as const) {
    const other = asRole(t, db, role)
    if (role === 'fleet_reader') await other`set default_transaction_read_only = off`
    for (const statement of [
      `select fleet.erase_device(${gone}, 'x')`,
      'call fleet.run_erasures()',
      'select fleet.erase_step()',
      'select * from fleet.erasures',
      'select * from fleet.erasure_items',
      'select * from fleet.erasure_progress',
      'select fleet.retry_erasure(1)',
      `select fleet.delete_heartbeats('x', '{1}')`,
      `select fleet.delete_device_rows('{1}')`,
    ])
      await t.rejects(other.unsafe(statement), { code: '42501' }, `${role}: ${statement}`)
  }
  t.equal(await value(db.sql`select count(*)::int from fleet.devices`), 2)
})

t.test('a hold refuses an erasure before anything is deleted, and names itself', async t => {
  const { db, gone, other, dba } = await withTwoDevices(t)
  const [held, without] = [await partitionAt(db.sql, NOON(20)), await partitionAt(db.sql, NOON(25))]
  await dba`select fleet.hold_partition(${without}, 'it has no heartbeats')`
  await dba`select fleet.hold_partition(${held}, 'case 12')`
  const before = await rowsOf(db, gone)
  await t.rejects(dba`select fleet.erase_device(${gone}, 'x')`, {
    code: 'FL002',
    message: RegExp(`partition ${held} has heartbeats of it and is held \\(case 12\\) by fleet_dba; nothing was deleted`),
    hint: /release_partition/,
  })
  t.same(await rowsOf(db, gone), before)
  await dba`select fleet.release_partition(${held})`
  await dba`select fleet.erase_device(${gone}, 'x')`
  // A hold that came later stops the erasure there, and is reported.
  await dba`select fleet.hold_partition(${held}, 'case 13')`
  await dba`call fleet.run_erasures()`
  t.same((await rowsOf(db, gone)).found, { 'fleet.device_heartbeats': 10 })
  t.match(await dba`select status, detail, remedy from fleet.check() where check_name = 'erasures'`, [
    { status: 'fail', detail: /is held \(case 13\)/, remedy: /retry_erasure\(\d+\)/ },
  ])
  await dba`select fleet.release_partition(${held})`
  await dba`select fleet.retry_erasure(erasure_id) from fleet.erasure_progress`
  await dba`call fleet.run_erasures()`
  t.same((await rowsOf(db, gone)).found, {})
  t.ok((await rowsOf(db, other)).found['fleet.device_heartbeats'])
})

t.test('a token and a gateway cannot send for an erased device', async t => {
  const db = await withDatabase(t)
  const { sql } = db
  const [device] = await sql<{ device_id: string; token: string }[]>`select * from fleet.create_device('a')`
  const gateway = (await value(sql`select fleet.create_gateway_token('g')`)) as string
  const send = (token: string) => sql`
    select results from fleet.ingest_batch(${sql.json([{ device_id: Number(device!.device_id) }])}::json, now(),
      array[fleet.hash_token(${token})], array[1])`
  t.same(await send(device!.token), [{ results: null }])
  await asRole(t, db, 'fleet_dba')`select fleet.erase_device(${device!.device_id}, 'x')`
  t.same(await send(device!.token), [{ results: ['unauthorized'] }])
  t.same(await send(gateway), [{ results: ['unknown_device'] }])
  await sql`call fleet.run_erasures()`
  t.same((await rowsOf(db, Number(device!.device_id))).found, {})
})

t.test('a heartbeat that was on its way when the device was erased is erased, too', async t => {
  const { db, gone, dba } = await withTwoDevices(t)
  // Its transaction has read that the device is enrolled, and is not committed yet.
  const late = asRole(t, db, 'fleet_owner')
  await late`begin`
  await late`select count(*) from fleet.devices`
  await late`select * from fleet.replay_quarantine()`
  await dba`select fleet.erase_device(${gone}, 'x')`
  await dba`call fleet.run_erasures()`
  t.match(await dba`select state, last_error from fleet.erasure_progress`, [{ state: 'running', last_error: /waits for trans/ }])
  t.match(await db.sql`select status from fleet.check(now() + interval '2 hours') where check_name = 'erasures'`, [
    { status: 'fail' },
  ])
  await ingest(late, [{ device_id: gone, ts: NOON(0) < daysAgo(0) ? NOON(0) : daysAgo(0.01) }])
  await late`commit`
  t.ok((await rowsOf(db, gone)).found['fleet.device_heartbeats'])
  await dba`call fleet.run_erasures()`
  t.same((await rowsOf(db, gone)).found, {})
  t.match(await dba`select state, last_error from fleet.erasure_progress`, [{ state: 'done', last_error: null }])
})

t.test('erasing twice is one erasure, and looks again', async t => {
  const { db, gone, dba } = await withTwoDevices(t)
  const erase = () => value(dba`select fleet.erase_device(${gone}, 'x')`)
  const id = await erase()
  t.equal(await erase(), id)
  await dba`call fleet.run_erasures()`
  t.match(await dba`select state from fleet.erasure_progress`, [{ state: 'done' }])
  // A trusted caller stores what it is given.
  await ingest(db.sql, [{ device_id: gone }])
  t.equal(await erase(), id)
  await dba`call fleet.run_erasures()`
  t.same((await rowsOf(db, gone)).found, {})
  t.match(await dba`select state from fleet.erasure_progress`, [{ state: 'done' }])
})

t.test('a device that a superuser deleted leaves nothing but heartbeats, and can still be erased', async t => {
  const { db, gone, other, dba } = await withTwoDevices(t)
  const kept = await rowsOf(db, other)
  await db.admin`delete from fleet.devices where device_id = ${gone}`
  t.same(Object.keys((await rowsOf(db, gone)).found), ['fleet.device_heartbeats'])
  await dba`select fleet.erase_device(${gone}, 'x')`
  await dba`call fleet.run_erasures()`
  t.same((await rowsOf(db, gone)).found, {})
  t.same((await rowsOf(db, other)).found, kept.found)
})

t.test('nobody may delete heartbeats after an erasure either, and a settled day stays settled', async t => {
  const { db, gone, dba } = await withTwoDevices(t)
  await dba`select fleet.erase_device(${gone}, 'x')`
  await dba`call fleet.run_erasures()`
  const owner = asRole(t, db, 'fleet_owner')
  const name = await partitionAt(db.sql, NOON(20))
  await t.rejects(owner.unsafe(`delete from fleet.${name}`), { code: '42501' })
  t.match(
    await db.sql`select fleet.is_settled(fleet.table_of(p)) as is_settled, settled_at from fleet.hb_partitions p where partition_name = ${name}`,
    [{ is_settled: true, settled_at: Date }],
  )
  await t.rejects(db.admin`select fleet.delete_heartbeats(${name}, array[123])`, { code: 'FL002', message: /no erasure covers/ })
})

t.test('an archive and its retired table wait for the archiver, and are not archived or restored meanwhile', async t => {
  const { db, gone, dba } = await withTwoDevices(t)
  const archiver = asRole(t, db, 'fleet_archiver')
  const name = await partitionAt(db.sql, NOON(30))
  await dba`select fleet.archive_partition(${name})`
  await archive(archiver)
  await dba`select fleet.erase_device(${gone}, 'x')`
  await dba`call fleet.run_erasures()`
  t.match(await dba`select state, archives_left, next_archives from fleet.erasure_progress`, [
    { state: 'running', archives_left: '1', next_archives: ['file:///nowhere'] },
  ])
  await dba`select fleet.request_restore(${daysAgo(30).slice(0, 10)}::date)`
  t.same(await archiver`select * from fleet.claim_restore('a')`, [])
  t.match(await dba`select status, detail from fleet.check(now()) where check_name = 'erasures'`, [{ status: 'ok' }])
  t.match(await db.sql`select status, detail from fleet.check(now() + interval '2 days') where check_name = 'erasures'`, [
    { status: 'warn', detail: /1 archives left/ },
  ])
  t.match(await archiver`select partition_name, device_ids from fleet.claim_erasure('a')`, [
    { partition_name: name, device_ids: [String(gone)] },
  ])
  await archiver`select fleet.record_absence(${name}, 'a', array[${gone}::bigint], ${'ab'.repeat(32)})`
  await dba`call fleet.run_erasures()`
  t.match(await dba`select state from fleet.erasure_progress`, [{ state: 'done' }])
  t.match(await archiver`select partition_name from fleet.claim_restore('a')`, [{ partition_name: name }])
})

t.test('an erasure does not end while a table cannot be looked into', async t => {
  const { db, gone, dba } = await withTwoDevices(t)
  await db.admin`create table fleet.of_somebody_else as select device_id from fleet.devices`
  await dba`select fleet.erase_device(${gone}, 'x')`
  await dba`call fleet.run_erasures()`
  t.match(await dba`select state, partitions_left, archives_left, last_error from fleet.erasure_progress`, [
    { state: 'running', partitions_left: '0', archives_left: '0', last_error: /may not read fleet.of_somebody_else/ },
  ])
  t.match(await db.sql`select status, detail from fleet.check(now() + interval '61 minutes') where check_name = 'erasures'`, [
    { status: 'fail', detail: /may not read fleet.of_somebody_else/ },
  ])
  await db.admin`grant select, delete on fleet.of_somebody_else to fleet_owner`
  await dba`call fleet.run_erasures()`
  t.match(await dba`select state, last_error from fleet.erasure_progress`, [{ state: 'done', last_error: null }])
  t.equal(await value(db.admin`select count(*)::int from fleet.of_somebody_else where device_id = ${gone}`), 0)
})

const noImport = plainOnly('it cannot import')
t.test('an import does not enroll an erased device again', { skip: noImport }, async t => {
  const { db, gone, dba } = await withTwoDevices(t)
  await dba`select fleet.erase_device(${gone}, 'x')`
  await dba`call fleet.run_erasures()`
  await db.admin.unsafe(`
    create table public.plain (device_id bigint, ts timestamptz);
    insert into public.plain select d, now() - interval '1 hour' from unnest(array[${gone}, 5000]) d;
    alter table public.plain owner to fleet_owner`)
  const owner = asRole(t, db, 'fleet_owner')
  await owner`call fleet.import_table('public.plain', p_unknown_devices => 'enroll')`
  t.same((await rowsOf(db, gone)).found, {})
  t.ok((await rowsOf(db, 5000)).found['fleet.device_heartbeats'])
})
