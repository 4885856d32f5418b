import { join } from 'node:path'
import type { Sql } from 'postgres'
import t, { type Test } from 'tap'
import { spawnProgram, testCluster, withDatabase, type TestDatabase } from '../../testing/database.ts'
import { asRole, daysAgo, enroll, ingest, partitionAt, value, type Beat } from '../../testing/fleet.ts'

const DEVICES = 40
const CLOSED = { code: '23514', constraint_name: 'device_heartbeats_settled' }

/** The minutes of a past day, as each device sends them. */
const minutes = (days: number, count = 50) =>
  Array.from(
    { length: count },
    (_, n) => `${daysAgo(days).slice(0, 10)}T${String(n % 24).padStart(2, '0')}:${String(n).padStart(2, '0')}:00.000Z`,
  )

/** Fills past days in the order of time, as they arrive; returns the names of their partitions. */
async function fill(sql: Sql, devices: number[], days: number[]) {
  for (const day of days) {
    await sql`
      insert into fleet.device_heartbeats (ts, received_at, device_id, battery_pct, agent_version)
      select ts, ts, device_id, extract(minute from ts)::int, 'plain'
      from unnest(${minutes(day)}::timestamptz[]) ts cross join unnest(${devices}::bigint[]) device_id
      order by ts, device_id`
  }
  return Promise.all(days.map(day => partitionAt(sql, daysAgo(day))))
}

async function withDays(t: Test, days: number[]) {
  const db = await withDatabase(t)
  const devices = await enroll(db.sql, DEVICES)
  const names = await fill(db.sql, devices, days)
  return { ...db, devices, names, name: names[0]! }
}

const settledAt = ({ sql }: TestDatabase, name: string) =>
  value(sql`select settled_at from fleet.partition_health where partition_name = ${name}`)

/** What the table itself is like: its order, its keys, and what is in it, independent of the order. */
async function stateOf({ sql }: TestDatabase, name: string) {
  const [state] = await sql.unsafe<
    { rows: number; sum: string; doubled: number; unsorted: number; keys: number; closed: boolean }[]
  >(`
    select count(*)::int as rows, sum(hashtextextended(h::text, 0)::numeric)::text as sum,
      (count(*) - count(distinct (device_id, fleet.heartbeat_bucket(ts))))::int as doubled,
      count(*) filter (where is_behind)::int as unsorted,
      (select count(*)::int from pg_index where indrelid = 'fleet.${name}'::regclass and indisunique and indisvalid) as keys,
      fleet.is_settled('fleet.${name}'::regclass) as closed
    from (
      select h as h, device_id, ts, device_id < lag(device_id) over (order by ctid)
        or device_id = lag(device_id) over (order by ctid) and ts > lag(ts) over (order by ctid) as is_behind
      from fleet.${name} h
    ) h`)
  return state!
}

t.test('the night settles the days for which no heartbeat can come, and no others', async t => {
  const db = await withDays(t, [20, 9, 3])
  const { sql, names } = db
  const [old, recent, open] = names as [string, string, string]
  const before = await stateOf(db, old)
  t.match(before, { rows: 2000, keys: 1, closed: false })
  t.ok(before.unsorted > 0)
  t.same(
    (await sql`select partition_name from fleet.nightly_plan() where step = 'settle'`).map(row => row.partition_name as string),
    [recent, old],
  )

  const runId = await value(sql`call fleet.nightly()`)
  t.match(await sql`select partition_name, rows, ok from fleet.run_steps(${runId as string}) where step = 'maintenance.settle'`, [
    { partition_name: recent, rows: '2000', ok: true },
    { partition_name: old, rows: '2000', ok: true },
  ])
  t.same(await stateOf(db, old), { ...before, unsorted: 0, keys: 0, closed: true })
  t.ok(await settledAt(db, old))
  t.match(await stateOf(db, open), { keys: 1, closed: false })
  t.equal(await settledAt(db, open), null)

  const again = await value(sql`call fleet.nightly()`)
  t.same(await sql`select from fleet.run_steps(${again as string}) where step = 'maintenance.settle'`, [], 'each is settled once')
  t.same(
    await sql`select from fleet.check_partitions() where check_name in ('partition_indexes', 'settled_days') and status <> 'ok'`,
    [],
  )

  const freeze = (await value(sql`select command from fleet.job_definitions() where jobname = 'fleet-freeze'`)) as string
  t.ok(freeze.includes(old), freeze)
  await sql.unsafe(freeze)
  t.equal(await value(sql`select command from fleet.job_definitions() where jobname = 'fleet-freeze'`), undefined)
  t.equal(
    await value(sql`select relallvisible = relpages from pg_class where oid = ${`fleet.${old}`}::regclass`),
    true,
    'every page is marked',
  )
})

t.test('a settled day refuses every new row, no matter how it comes', async t => {
  const db = await withDays(t, [20])
  const { sql, admin, name } = db
  await sql`select fleet.settle_partition(${name})`
  const before = await stateOf(db, name)
  const row = `select * from fleet.${name} limit 1`
  for (const session of [sql, admin]) {
    await t.rejects(session.unsafe(`insert into fleet.device_heartbeats ${row} on conflict do nothing`), CLOSED)
    await t.rejects(session.unsafe(`insert into fleet.${name} ${row}`), CLOSED)
  }
  await t.rejects(admin.unsafe(`set session_replication_role = replica; insert into fleet.${name} ${row}`), CLOSED)
  await t.rejects(admin.unsafe(`update fleet.${name} set battery_pct = 1`), CLOSED)
  // As the owner does it with psql.
  const psql = await spawnProgram(t, join(testCluster().postgres.bin, 'psql'), [
    ...['-qX', db.url('postgres'), '-c'],
    `copy fleet.${name} (ts, received_at, device_id) from program 'printf "%s\\t%s\\t7\\n" "${minutes(20)[0]}" "${minutes(20)[0]}"' `,
  ])
  t.match(await psql.exited, { code: 1 })
  t.match(psql.output(), /violates check constraint "device_heartbeats_settled"/)
  t.same(await stateOf(db, name), before)

  // Changes of the columns rewrite the table, and must still be possible.
  await sql`alter table fleet.device_heartbeats add column shelf integer not null default 7`
  await sql`alter table fleet.device_heartbeats alter column shelf type bigint`
  t.match(await stateOf(db, name), { rows: before.rows, doubled: 0, unsorted: 0, closed: true })
})

t.test('a settled day is opened with its key, and settled again by the next night', async t => {
  const db = await withDays(t, [20])
  const { sql, name } = db
  const before = await stateOf(db, name)
  const dba = asRole(t, db, 'fleet_dba')
  t.equal(await value(dba`select fleet.settle_partition(${name})`), '2000')
  t.equal(await value(dba`select fleet.settle_partition(${name})`), '0', 'a second call changes nothing')
  t.equal(await value(dba`select fleet.unsettle_partition(${name})`), true)
  t.equal(await value(dba`select fleet.unsettle_partition(${name})`), false)
  t.same(await stateOf(db, name), { ...before, unsorted: 0 })
  t.equal(await settledAt(db, name), null)
  const row = `select * from fleet.${name} limit 1`
  t.equal((await sql.unsafe(`insert into fleet.device_heartbeats ${row} on conflict do nothing returning 1`)).length, 0)
  await sql`call fleet.nightly()`
  t.match(await stateOf(db, name), { unsorted: 0, keys: 0, closed: true })
})

t.test('quarantined heartbeats of a settled day are stored once when they are replayed', async t => {
  const db = await withDays(t, [12])
  const { sql, name, devices } = db
  const [first, second] = devices as [number, number]
  const [ts] = minutes(12) as [string]
  const early: Beat[] = [
    { device_id: first, ts },
    { device_id: first, ts: ts.replace(':00.000', ':03.000') },
    { device_id: second, ts: ts.replace('T00', 'T23') },
  ]
  t.ok((await ingest(sql, early)).every(({ result, reason }) => result === 'quarantined' && reason === 'too_late'))
  await sql`call fleet.nightly()`
  t.match(await stateOf(db, name), { closed: true, rows: 2000 })

  t.match(await sql`select * from fleet.replay_quarantine()`, [{ stored: '0', remaining: '3' }])
  t.match(await stateOf(db, name), { closed: true }, 'what is not accepted opens no day')

  await sql`update fleet.settings set max_late = '15 days'`
  t.match(await sql`select * from fleet.replay_quarantine()`, [{ stored: '1', duplicate: '2', remaining: '0' }])
  t.match(await stateOf(db, name), { rows: 2001, doubled: 0, keys: 1, closed: false })
})

t.test('max_late can be raised after days were settled, and lowered again', async t => {
  const db = await withDays(t, [12])
  const { sql, name, devices } = db
  const [first, second] = devices as [number, number]
  await sql`call fleet.nightly()`
  await sql`update fleet.settings set max_late = '15 days'`
  t.match(await sql`select status, remedy from fleet.check_partitions() where check_name = 'settled_days'`, [
    { status: 'warn', remedy: 'call fleet.maintain();' },
  ])
  const [ts] = minutes(12) as [string]
  const late: Beat[] = [{ device_id: first, ts }, { device_id: second, ts: ts.replace('T00', 'T23') }, { device_id: first }]
  // Until it is open again, its heartbeats are kept aside; those of other days are stored.
  t.same(
    (await ingest(sql, late)).map(({ result }) => result),
    ['quarantined', 'quarantined', 'stored'],
  )
  await sql`call fleet.maintain()`
  t.match(await stateOf(db, name), { rows: 2001, doubled: 0, keys: 1, closed: false }, 'what came meanwhile is stored, once')
  t.equal(await value(sql`select count(*)::int from fleet.heartbeat_quarantine`), 0)
  t.same(
    (await ingest(sql, late)).slice(0, 2).map(({ result }) => result),
    ['duplicate', 'duplicate'],
  )
  await sql`update fleet.settings set max_late = '7 days'`
  await sql`call fleet.nightly()`
  t.match(await stateOf(db, name), { rows: 2001, doubled: 0, unsorted: 0, closed: true })
})

t.test('max_late in months: a day is settled only when ingest accepts no heartbeat for it any more', async t => {
  const db = await withDatabase(t)
  const { sql, admin } = db
  const devices = await enroll(sql, 2)
  const [first, second] = devices as [number, number]
  await sql`update fleet.settings set max_late = '1 month'`
  // A month back from the last hours of these days is 28, 29, 30 and 31 days.
  for (const [day, last] of [
    ['2025-02-27', '2025-03-27T22:00:00Z'],
    ['2025-01-30', '2025-02-28T22:00:00Z'],
    ['2025-06-15', '2025-07-15T22:00:00Z'],
    ['2025-07-30', '2025-08-30T22:00:00Z'],
  ] as const) {
    await sql`select fleet.create_partitions(${day}, ${day})`
    const name = await partitionAt(sql, `${day}T23:00:00Z`)
    await sql`insert into fleet.device_heartbeats (ts, received_at, device_id) values (${`${day}T23:00:00Z`}, ${day}, ${first})`
    const planned = (later: string) =>
      value(sql`select action from fleet.settle_plan(${last}::timestamptz + ${later}::interval) where partition_name = ${name}`)
    t.equal(await planned('0'), undefined, day)
    t.equal(await planned('4 hours'), 'settle', day)
  }

  const ts = (await value(sql`select now() - interval '1 month' + interval '2 hours'`)) as Date
  const name = await partitionAt(sql, ts.toISOString())
  await admin`insert into fleet.device_heartbeats (ts, received_at, device_id) values (${ts}, ${ts}, ${first})`
  await sql`call fleet.nightly()`
  t.match(await stateOf(db, name), { rows: 1, keys: 1, closed: false })
  t.match(await ingest(sql, [{ device_id: second, ts: ts.toISOString() }]), [{ result: 'stored' }])
})

t.test('settle is switched off and on; a day that is too large waits for a longer settle_max_wait', async t => {
  const db = await withDays(t, [20, 15])
  const { sql, names } = db
  const dba = asRole(t, db, 'fleet_dba')
  const closed = async () => Promise.all(names.map(async name => (await stateOf(db, name)).closed))
  await dba`update fleet.settings set settle = false`
  t.match(await sql`select setting, new_value from fleet.settings_audit`, [{ setting: 'settle', new_value: 'false' }])
  await sql`call fleet.nightly()`
  t.same(await closed(), [false, false])
  t.match(await sql`select status from fleet.check_partitions() where check_name = 'settled_days'`, [{ status: 'ok' }])

  await dba`update fleet.settings set settle = true, settle_max_wait = '1 ms'`
  await sql`call fleet.nightly()`
  t.same(await closed(), [false, false])
  const [check] = await dba<{ status: string; remedy: string }[]>`
    select status, remedy from fleet.check_partitions() where check_name = 'settled_days'`
  t.equal(check?.status, 'warn')
  for (const line of check?.remedy.split('\n') ?? []) await dba.unsafe(line)
  t.same(await closed(), [true, true])

  await dba`update fleet.settings set settle = false`
  await dba`call fleet.nightly()`
  t.same(await closed(), [true, true], 'what is settled stays so')
})

t.test('a night stops settling when its budget is used up, and the next one goes on', async t => {
  const db = await withDays(t, [20, 15, 10])
  const { sql, names } = db
  const settled = async () =>
    (await sql`select partition_name from fleet.partition_health where settled_at is not null order by range_start`).map(
      row => row.partition_name as string,
    )
  await sql`update fleet.settings set settle_budget = '1 ms'`
  for (const expected of [names.slice(2), names.slice(1), names]) {
    await sql`call fleet.nightly()`
    t.same(await settled(), expected, 'one more each night, the newest first')
  }
})

t.test('a long reader of a day makes the night try, and move on; ingest and other readers go on', async t => {
  const db = await withDays(t, [20, 15])
  const { sql, names, devices } = db
  const [old, newer] = names as [string, string]
  const reader = asRole(t, db, 'fleet_owner')
  await reader`begin`
  await reader.unsafe(`select count(*) from fleet.${newer}`)
  const night = sql`call fleet.nightly()`.then(rows => rows[0]!.p_run_id as string)
  let answered = 0
  let ended = false
  void night.finally(() => (ended = true))
  while (!ended) {
    await ingest(sql, [{ device_id: devices[answered % DEVICES]! }])
    answered++
  }
  t.ok(answered > 0)
  t.match(await sql`select partition_name, ok, detail from fleet.run_steps(${await night}) where step = 'maintenance.settle'`, [
    { partition_name: newer, ok: false, detail: /lock timeout/ },
    { partition_name: old, ok: true },
  ])
  t.match(await stateOf(db, newer), { keys: 1, closed: false })
  t.match(
    await sql`select status, remedy from fleet.check_partitions(now() + interval '5 days') where check_name = 'settled_days'`,
    [{ status: 'warn', remedy: 'call fleet.nightly();' }],
  )
  await reader`commit`
  await sql`call fleet.nightly()`
  t.match(await stateOf(db, newer), { keys: 0, closed: true, unsorted: 0 })
})

t.test('sizes and checks are answered while a day is being settled', async t => {
  const db = await withDays(t, [20])
  const { sql, name } = db
  await sql`select fleet.refresh_sizes()`
  const settling = asRole(t, db, 'fleet_owner')
  await settling`begin`
  await settling`select fleet.settle_partition(${name})`
  const page = asRole(t, db, 'fleet_reader', { lock_timeout: '100' })
  t.ok(Number(await value(page`select bytes_size from fleet.partition_health where partition_name = ${name}`)) > 0)
  await page`select * from fleet.storage_growth`
  await page`select * from fleet.device_day(1)`
  await page`select * from fleet.job_health`
  const dba = asRole(t, db, 'fleet_dba', { lock_timeout: '100' })
  await dba`select * from fleet.nightly_plan()`
  t.same(await dba`select * from fleet.check() where detail like 'the check itself failed%'`, [])
  await asRole(t, db, 'fleet_server', { lock_timeout: '100' })`select * from fleet.metric_values()`
  await settling`rollback`
  t.match(await stateOf(db, name), { closed: false, keys: 1 })
})

t.test('a settled day whose constraint was dropped by hand gets its key back', async t => {
  const db = await withDays(t, [20, 12])
  const { sql, admin, names, devices } = db
  const [doubled, clean] = names as [string, string]
  await sql`call fleet.nightly()`
  const remove = (name: string) => admin.unsafe(`alter table fleet.${name} drop constraint device_heartbeats_settled`)
  const again = (name: string) =>
    admin.unsafe(`insert into fleet.${name} select * from fleet.${name} limit 7 on conflict do nothing`)

  // Without a duplicate maintenance does it.
  await remove(clean)
  await sql`select fleet.sync_partitions()`
  t.match(await sql`select status, detail from fleet.check_partitions() where check_name = 'settled_days'`, [
    { status: 'fail', detail: new RegExp(clean) },
  ])
  await sql`call fleet.maintain()`
  t.match(await stateOf(db, clean), { rows: 2000, keys: 1, closed: false })
  t.equal(await settledAt(db, clean), null)

  await remove(doubled)
  await again(doubled)
  t.match(await stateOf(db, doubled), { rows: 2007, doubled: 7, keys: 0 })
  await sql`select fleet.sync_partitions()`
  await t.rejects(sql`select fleet.unsettle_partition(${doubled})`, {
    code: 'FL002',
    message: new RegExp(doubled),
    detail: /duplicated/,
    hint: /delete from fleet\.\w+ a using/,
  })
  const [check] = await sql<{ status: string; remedy: string }[]>`
    select status, remedy from fleet.check_partitions() where check_name = 'settled_days'`
  t.equal(check?.status, 'fail')
  t.same(
    await sql`select from fleet.check_partitions() where check_name = 'partition_indexes' and status <> 'ok'`,
    [],
    'one check names it',
  )
  await admin.unsafe(check!.remedy)
  t.match(await stateOf(db, doubled), { rows: 2000, doubled: 0, keys: 1, closed: false })
  t.equal(await settledAt(db, doubled), null)
  await again(doubled)
  t.match(await stateOf(db, doubled), { rows: 2000 })
  t.equal(await value(sql`select fleet.unsettle_partition(${doubled})`), false)

  // What was never settled gets its key back, too.
  const today = await partitionAt(sql, daysAgo(0))
  await ingest(sql, [{ device_id: devices[0]! }])
  await admin.unsafe(
    `drop index ${(await value(sql`select fleet.dedupe_index(${`fleet.${today}`}::regclass)::regclass::text`)) as string}`,
  )
  t.equal(await value(sql`select fleet.unsettle_partition(${today})`), true)
  t.match(await stateOf(db, today), { keys: 1 })
})

t.test('a short retention, held days and months', async t => {
  const db = await withDays(t, [20, 4])
  const { sql, names } = db
  const [old, recent] = names as [string, string]
  await sql`select fleet.hold_partition(${old}, 'legal hold')`
  await sql`select fleet.set_retention('3 days')`
  const run = await value(sql`call fleet.nightly()`)
  t.same(await sql`select from fleet.run_steps(${run as string}) where not ok`, [])
  t.match(await stateOf(db, old), { closed: true, unsorted: 0 })
  t.equal(await value(sql`select state from fleet.hb_partitions where partition_name = ${recent}`), 'detached')
})

t.test('a partition without its key is not settled, because it may have duplicates', async t => {
  const db = await withDays(t, [20])
  const { sql, admin, name } = db
  const key = (await value(sql`select fleet.dedupe_index(${`fleet.${name}`}::regclass)::regclass::text`)) as string
  await admin.unsafe(`drop index ${key}`)
  await t.rejects(sql`select fleet.settle_partition(${name})`, { code: 'FL002' })
  await sql`call fleet.nightly()`
  t.match(await stateOf(db, name), { closed: false })
  t.match(await sql`select status from fleet.check_partitions() where check_name = 'partition_indexes'`, [{ status: 'fail' }])
})
