import t from 'tap'
import postgres, { type Sql } from 'postgres'
import { waitFor, withDatabase } from '../../testing/database.ts'
import { isDistributed } from '../../testing/distributed.ts'
import { asRole, daysAgo, enroll, ingest, partitionAt, value } from '../../testing/fleet.ts'

const DAY = 86_400_000
const midnight = (at: Date) => new Date(at).setUTCHours(0, 0, 0, 0)

t.test('an idle fleet gets new partitions as the days pass', async t => {
  const { sql } = await withDatabase(t)
  const later = new Date(Date.now() + 40 * DAY)
  await sql`call fleet.maintain(null, ${later})`
  // By then a nightly run was missed, so some partitions are already retired.
  const [made] = await sql`select count(*)::int as days, max(range_end) as last from fleet.hb_partitions`
  t.same(made?.last, new Date(midnight(later) + 15 * DAY))
  t.ok(made?.days >= 145, `${made?.days} days`)
  t.equal(await value(sql`select count(*)::int from fleet.events where event = 'partition.create'`), made?.days)
  t.equal(await value(sql`select total::int from fleet.counters where counter = 'partitions_created_total'`), made?.days)
  t.equal(await value(sql`select count(*) from fleet.premake()`), '0', 'a second run creates nothing')
})

t.test('premake fills a hole between partitions, which pg_partman alone would not', async t => {
  const { sql, admin } = await withDatabase(t)
  const tomorrow = await partitionAt(sql, daysAgo(-1))
  const past = await partitionAt(sql, daysAgo(30))
  for (const name of [tomorrow, past]) {
    await admin.unsafe(
      `alter event trigger fleet_guard_drop disable; drop table fleet.${name}; alter event trigger fleet_guard_drop enable always`,
    )
  }
  t.match(await sql`select * from fleet.check() where status = 'fail' order by 1`, [
    { check_name: 'partition_tables' },
    { check_name: 'partitions_ahead' },
  ])
  await sql`call fleet.maintain()`
  t.equal(await partitionAt(sql, daysAgo(-1)), tomorrow)
  t.equal(await partitionAt(sql, daysAgo(30)), past)
  t.match(await sql`select * from fleet.check() where status = 'fail'`, [])
})

t.test('set_retention checks its value, is audited, and says what it will do', async t => {
  const db = await withDatabase(t)
  const dba = asRole(t, db, 'fleet_dba')
  for (const bad of ['0 days', '-5 days', '20 years', null]) {
    await t.rejects(dba`select fleet.set_retention(${bad}::interval)`, { code: 'FL422', hint: /set_retention\('60 days'\)/ })
  }
  const planned = await dba`select partition_name, action, reason from fleet.retention_plan('60 days') where action = 'retire'`
  // 31 if the store was set up before midnight.
  t.ok([30, 31].includes(planned.length), `${planned.length} days`)
  t.match(
    await value(dba`select fleet.set_retention('60 days')`),
    /^retention 60 days \(was 90 days\); the next nightly run retires 3[01] partitions$/,
  )
  await dba`select fleet.set_retention('60 days')`
  t.match(await dba`select setting, old_value, new_value, changed_by from fleet.settings_audit`, [
    { setting: 'retention', old_value: '90 days', new_value: '60 days', changed_by: 'fleet_dba' },
  ])
  t.match(await value(dba`select fleet.set_premake(20)`), 'premake 20 days (was 14)')
  await t.rejects(dba`select fleet.set_premake(0)`, { code: 'FL422' })
  await dba`call fleet.maintain()`
  t.match(await dba`select detail from fleet.check() where check_name = 'partitions_ahead'`, [
    { detail: /next 2[0-5] days; the setting is 20/ },
  ])
})

t.test('nightly retires partitions past the retention: counted, detached, read-only', async t => {
  const db = await withDatabase(t)
  const { sql } = db
  const [device] = (await enroll(sql, 1)) as [number]
  await sql`update fleet.settings set max_late = '80 days'`
  const day = daysAgo(70).slice(0, 10)
  await ingest(
    sql,
    [`${day}T10:00Z`, `${day}T20:00Z`, daysAgo(3)].map(ts => ({ device_id: device, ts })),
  )
  const old = await partitionAt(sql, `${day}T12:00Z`)
  const dba = asRole(t, db, 'fleet_dba')
  await dba`select fleet.set_retention('60 days')`
  const today = midnight((await value(sql`select now()`)) as Date)
  const due = (await value(
    sql`select count(*)::int from fleet.attached_partitions() where range_end <= ${new Date(today - 60 * DAY)}`,
  )) as number
  const attached = await value(sql`select count(*)::int from fleet.attached_partitions()`)
  const plan = await dba`select * from fleet.nightly_plan()`
  t.equal(plan.filter(row => row.step === 'retire').length, due)
  t.equal(await value(sql`select count(*)::int from fleet.attached_partitions()`), attached, 'the plan changes nothing')

  const [run] = await dba<{ p_run_id: string }[]>`call fleet.nightly()`
  const steps = await dba`select * from fleet.run_steps(${run?.p_run_id ?? null})`
  t.same(
    steps.filter(row => !row.ok),
    [],
  )
  t.same(steps.filter(row => row.step === 'maintenance.retire').length, due)
  t.match(
    await sql`select state, row_count, relid::regclass::text as table from fleet.hb_partitions where partition_name = ${old}`,
    [{ state: 'detached', row_count: '2', table: `fleet_detached.${old}` }],
  )
  t.match(
    await sql`select min(range_start) as first, count(*)::int as n from fleet.attached_partitions() where range_start <= now()`,
    [{ first: new Date(today - 60 * DAY), n: 61 }],
  )
  t.equal(await value(sql`select count(*) from fleet.device_heartbeats`), '1')

  const archiver = asRole(t, db, 'fleet_archiver')
  for (const statement of [
    `insert into fleet_detached.${old} (ts, device_id) values (now(), 1)`,
    `delete from fleet_detached.${old}`,
    `update fleet_detached.${old} set battery_pct = 1`,
    `truncate fleet_detached.${old}`,
  ]) {
    await t.rejects(archiver.unsafe(statement), { code: '42501' }, `archiver: ${statement}`)
    await t.rejects(sql.unsafe(statement), { code: '42501' }, `owner: ${statement}`)
  }
  await archiver.unsafe(`vacuum (freeze) fleet_detached.${old}`)
  t.match(await archiver.unsafe(`select count(*)::int as n from fleet_detached.${old}`), [{ n: 2 }])

  await dba`call fleet.nightly()`
  t.equal(
    await value(sql`select count(*) from fleet.events where event = 'partition.detach'`),
    String(due),
    'a second run finds nothing to do',
  )
})

t.test('a run can be given its own retention and its own clock', async t => {
  const { sql } = await withDatabase(t)
  const later = new Date(Date.now() + 10 * DAY)
  await sql`call fleet.nightly(null, '30 days', ${later})`
  t.match(await sql`select min(range_start) as first, max(range_end) as last from fleet.attached_partitions()`, [
    { first: new Date(midnight(later) - 30 * DAY), last: new Date(midnight(later) + 15 * DAY) },
  ])
  t.equal(await value(sql`select retention::text from fleet.settings`), '90 days')
})

t.test('held and restored days stay attached while older and newer ones are retired', async t => {
  const db = await withDatabase(t)
  const { sql } = db
  const [device] = (await enroll(sql, 1)) as [number]
  await sql`update fleet.settings set max_late = '89 days'`
  const noon = `${daysAgo(80).slice(0, 10)}T12:00:00Z`
  const held = await partitionAt(sql, noon)
  await ingest(sql, [{ device_id: device, ts: noon }])
  const dba = asRole(t, db, 'fleet_dba')
  await t.rejects(dba`select fleet.hold_partition(${held}, ' ')`, { code: 'FL422' })
  await t.rejects(dba`select fleet.hold_partition('nothing', 'why')`, { code: 'FL404', hint: /partition_health/ })
  await dba`select fleet.hold_partition(${held}, 'case 4711')`
  await dba`call fleet.nightly(null, '60 days')`
  t.equal(await partitionAt(sql, noon), held)
  t.match(await sql`select count(*)::int as n from fleet.attached_partitions() where range_start <= now()`, [{ n: 62 }])
  t.equal(await value(sql`select count(*) from fleet.device_heartbeats`), '1')
  t.same(await sql`select * from fleet.check() where status = 'fail'`, [])
  await t.rejects(dba`select fleet.archive_partition(${held})`, { code: 'FL002', message: /held \(case 4711\)/ })
  t.match(await dba`select action, reason from fleet.retention_plan('60 days') where partition_name = ${held}`, [
    { action: 'hold', reason: 'held: case 4711' },
  ])

  // Its indexes are still there, and inserts are still routed to it.
  t.match(await ingest(sql, [{ device_id: device, ts: noon.replace('12:', '13:') }]), [{ result: 'stored' }])
  await sql`update fleet.settings set retention = '60 days'`
  await dba`select fleet.release_partition(${held})`
  const overdue = () => sql`
    select c.status, m.value >= 19 as lags
    from fleet.check_partitions() c
    cross join fleet.metric_values() m
    where c.check_name = 'retention' and m.metric = 'retention_lag_days'`
  t.match(await overdue(), [{ status: 'ok', lags: false }], 'the next night retires it')
  await sql`update fleet.events set at = at - interval '3 days' where event = 'partition.release'`
  t.match(await overdue(), [{ status: 'warn', lags: true }], 'no night has')
  await dba`call fleet.nightly(null, '60 days')`
  t.match(await sql`select state, row_count from fleet.hb_partitions where partition_name = ${held}`, [
    { state: 'detached', row_count: '2' },
  ])
})

t.test('a day that is attached while a newer one is retired stays attached', async t => {
  const db = await withDatabase(t)
  const { sql, admin } = db
  const retire = async (days: number) => {
    const partition = await partitionAt(sql, daysAgo(days))
    const attaching = asRole(t, db, 'fleet_owner')
    await attaching`begin`
    await attaching`select fleet.create_partitions(current_date - ${100 + days}::integer, current_date - ${100 + days}::integer)`
    const retired = sql`select fleet.retire_partition(${partition})`.then(
      () => true,
      (error: unknown) => {
        // It waits for a lock 300 ms at most.
        if (error instanceof postgres.PostgresError && error.code === '55P03') return false
        throw error
      },
    )
    let isOver = false
    void retired.finally(() => {
      isOver = true
    })
    await waitFor(
      async () =>
        isOver ||
        (
          await admin`
      select from pg_locks where relation = 'fleet.device_heartbeats'::regclass and not granted
    `
        ).length > 0,
    )
    await attaching`commit`
    return retired
  }
  let days = 60
  while (!(await retire(days))) days++
  t.match(
    await sql`
    select h.state, h.relid = a.relid as is_attached from fleet.hb_partitions h left join fleet.attached_partitions() a using (partition_name)
    where h.range_start = (current_date - ${100 + days}::integer)::timestamp at time zone 'UTC'
  `,
    [{ state: 'active', is_attached: true }],
  )
})

t.test('attaching a held day again needs no scan of it', async t => {
  const { sql } = await withDatabase(t)
  const held = await partitionAt(sql, daysAgo(80))
  await sql`select fleet.hold_partition(${held}, 'legal')`
  const [row] = await sql<{ bound: string }[]>`
    select pg_get_constraintdef(oid) as bound from pg_constraint
    where conrelid = ${`fleet.${held}`}::regclass and conname = 'device_heartbeats_within_range' and convalidated
  `
  t.match(row?.bound, /CHECK \(\(\(ts >= '.*'::timestamp with time zone\) AND \(ts < '.*'::timestamp with time zone\)\)\)/)
})

t.test('a query on the whole parent delays a retirement and nothing else', async t => {
  const db = await withDatabase(t)
  const { sql } = db
  const [device] = (await enroll(sql, 1)) as [number]
  const reader = asRole(t, db, 'fleet_reader')
  const dba = asRole(t, db, 'fleet_dba')
  await reader`begin`
  await reader`select count(*) from fleet.device_heartbeats`
  const night = dba`call fleet.nightly(null, '89 days', now())`.then(rows => rows)
  t.match(await ingest(sql, [{ device_id: device }]), [{ result: 'stored' }], 'ingest continues')
  // Long enough for one attempt to reach its lock timeout; then the reader commits.
  await sql`select pg_sleep(0.6)`
  await reader`commit`
  const [run] = (await night) as unknown as { p_run_id: string }[]
  const retired = await sql<
    { ok: boolean }[]
  >`select ok from fleet.run_steps(${run?.p_run_id ?? null}) where step = 'maintenance.retire'`
  t.ok(retired.length > 0 && retired.every(({ ok }) => ok), JSON.stringify(retired))
})

t.test('a partition that cannot be retired is recorded and does not stop the others', async t => {
  const db = await withDatabase(t)
  const { sql, admin } = db
  const dba = asRole(t, db, 'fleet_dba')
  const bad = await partitionAt(sql, daysAgo(88))
  await admin.unsafe(`create table fleet_detached.${bad} (squatter int)`)
  const [run] = await dba<{ p_run_id: string }[]>`call fleet.nightly(null, '85 days')`
  const steps = await dba`select * from fleet.run_steps(${run?.p_run_id ?? null}) where step = 'maintenance.retire'`
  t.ok([5, 6].includes(steps.length), `${steps.length} days; one more if the store was set up before midnight`)
  t.match(
    steps.filter(row => !row.ok),
    [{ partition_name: bad, detail: /already exists/ }],
  )
  t.match(await sql`select status, detail from fleet.check() where check_name = 'maintenance'`, [
    { status: 'fail', detail: RegExp(bad) },
  ])
  await admin.unsafe(
    `alter event trigger fleet_guard_drop disable; drop table fleet_detached.${bad}; alter event trigger fleet_guard_drop enable always`,
  )
  await dba`call fleet.nightly(null, '85 days')`
  t.match(await sql`select status from fleet.check() where check_name = 'maintenance'`, [{ status: 'ok' }])
})

t.test('a second run of maintenance says which backend is running one', async t => {
  const db = await withDatabase(t)
  const holder = asRole(t, db, 'fleet_dba')
  const [{ pid, run } = { pid: 0, run: '' }] = await holder<{ pid: number; run: string }[]>`
    select pg_backend_pid() as pid, fleet.begin_run('nightly') as run`
  const dba = asRole(t, db, 'fleet_dba')
  await t.rejects(dba`call fleet.nightly()`, { code: 'FL003', message: RegExp(`backend ${pid}`) })
  await t.rejects(dba`call fleet.maintain()`, { code: 'FL003' })
  await holder`select fleet.end_run(${run})`
  await dba`call fleet.nightly()`
})

t.test('a run that fails before its first step releases the lock', async t => {
  const db = await withDatabase(t)
  const dba = asRole(t, db, 'fleet_dba')
  await dba`set lock_timeout = '100ms'`
  await db.admin.begin(async admin => {
    await admin`lock table fleet.planned_steps in exclusive mode`
    await t.rejects(dba`call fleet.nightly()`, { code: '55P03' })
    t.same(await admin`select * from fleet.lock_holders('maintenance')`, [], 'the session is still open and has no lock')
  })
  await asRole(t, db, 'fleet_owner')`call fleet.nightly()`
})

t.test('a stuck run of maintenance can be ended by force, and the next one continues', async t => {
  const db = await withDatabase(t)
  const stuck = asRole(t, db, 'fleet_owner')
  await stuck`select fleet.begin_run('nightly')`
  const [{ pid } = { pid: 0 }] = await stuck<{ pid: number }[]>`select pg_backend_pid() as pid`
  const sleep = stuck`select pg_sleep(600)`.catch((error: unknown) => error)
  const dba = asRole(t, db, 'fleet_dba')
  await waitFor(async () => (await db.admin`select from pg_stat_activity where pid = ${pid} and query ~ 'pg_sleep'`).length === 1)
  await t.rejects(dba`call fleet.nightly()`, { code: 'FL003', hint: /force_unlock\('maintenance'\)/ })
  t.match(await dba`select * from fleet.force_unlock()`, [{ pid, usename: 'fleet_owner', query: /pg_sleep/, is_ended: true }])
  t.ok((await sleep) instanceof Error, 'its session is gone')
  await dba`call fleet.nightly()`
  t.same(await dba`select * from fleet.force_unlock('reconcile')`, [], 'there is no backend to end')
  await t.rejects(dba`select fleet.force_unlock('everything')`, { code: 'FL422' })
  const reader = asRole(t, db, 'fleet_reader')
  await t.rejects(reader`select fleet.force_unlock()`, { code: '42501' })
})

t.test('the hourly run makes up for a missed nightly run', async t => {
  const { sql, admin } = await withDatabase(t)
  const nights = () => value(sql`select count(*)::int from fleet.events where event = 'nightly.end' and is_ok`)
  await sql`call fleet.maintain()`
  t.equal(await nights(), 0, 'a new store waits for its first night')
  await admin`update fleet.hb_partitions set created_at = now() - interval '2 days'`
  await sql`call fleet.maintain()`
  t.equal(await nights(), 1)
  await sql`call fleet.maintain()`
  t.equal(await nights(), 1, 'only once')
  await admin`update fleet.events set at = at - interval '26 hours' where event = 'nightly.start'`
  await sql`call fleet.maintain()`
  t.equal(await nights(), 2)
})

t.test("today's partition is never retired", async t => {
  const { sql } = await withDatabase(t)
  await t.rejects(sql`select fleet.archive_partition(${await partitionAt(sql, daysAgo(0))})`, {
    code: 'FL002',
    message: /may still receive/,
  })
})

t.test('a partition without a proven archive is not dropped, no matter who tries', async t => {
  const db = await withDatabase(t)
  const { sql, admin } = db
  const active = await partitionAt(sql, daysAgo(10))
  const retired = await partitionAt(sql, daysAgo(50))
  await sql`select fleet.archive_partition(${retired})`
  const dba = asRole(t, db, 'fleet_dba')
  await t.rejects(dba`select fleet.drop_partition(${active})`, { code: 'FL001', hint: /archive_partition/ })
  await t.rejects(dba`select fleet.drop_partition(${retired})`, { code: 'FL001' })

  const refused = async (session: Sql, statements: string, what: string, code = 'FL001') =>
    t.rejects(
      // One by one, because Citus sends the whole text to each node.
      session.begin(async s => {
        for (const statement of statements.split('; ')) await s.unsafe(statement)
      }),
      { code, ...(code === 'FL001' ? { hint: /drop_partition/ } : {}) },
      what,
    )
  await refused(sql, `drop table fleet.${active}`, 'plain drop by the owner')
  await t.rejects(
    asRole(t, db, 'fleet_archiver').unsafe(`drop table fleet_detached.${retired}`),
    { code: '42501' },
    'plain drop by the archiver',
  )
  await refused(admin, `drop table fleet.${active}`, 'plain drop by a superuser')
  await refused(admin, `alter table fleet.${active} rename to harmless; drop table fleet.harmless`, 'rename, then drop')
  await refused(admin, `alter table fleet_detached.${retired} set schema public; drop table public.${retired}`, 'move, then drop')
  await refused(
    admin,
    `alter table fleet.device_heartbeats detach partition fleet.${active}; drop table fleet.${active}`,
    'detach, then drop',
  )
  await refused(admin, 'drop table fleet.device_heartbeats cascade', 'drop of the parent')
  await refused(admin, 'drop schema fleet cascade', 'drop schema')
  await refused(admin, 'drop schema fleet_detached cascade', 'drop schema of the retired')
  await refused(admin, 'drop owned by fleet_owner cascade', 'drop owned')
  await refused(admin, `set session_replication_role = replica; drop table fleet.${active}`, 'with triggers disabled')
  await admin`insert into fleet.device_heartbeats (ts, device_id) values (${daysAgo(10)}::date + interval '1 hour', 1)`
  const claim = `update fleet.hb_partitions set is_proven_empty = true where partition_name = '${active}'`
  // In a distributed store Citus ends the transaction before: the guard and the owner are two roles on the same shards.
  await refused(
    sql,
    `${claim}; drop table fleet.${active}`,
    'the owner claims that the table is empty',
    isDistributed ? '40P01' : 'FL001',
  )
  await refused(
    sql,
    `alter table fleet.${active} rename to harmless; ${claim}; drop table fleet.harmless`,
    'the same claim after a rename',
    isDistributed ? '25001' : 'FL001',
  )
  await refused(
    sql,
    `alter table fleet.device_heartbeats detach partition fleet.${active}; alter table fleet.${active} set schema fleet_detached;
    ${claim}; drop table fleet_detached.${active}`,
    'the same claim after a move',
    isDistributed ? '25001' : 'FL001',
  )
  await refused(
    admin,
    `create table fleet_detached.unknown (x int); drop table fleet_detached.unknown`,
    'a table it does not know',
  )
  await t.rejects(
    admin.begin(s =>
      s.unsafe(`
    update partman.part_config set retention_schema = null;
    select partman.drop_partition_time('fleet.device_heartbeats', '80 days', false, false)
  `),
    ),
    { message: /without a proven archive/ },
    "pg_partman's own drop",
  )
  await t.rejects(sql`truncate fleet.device_heartbeats`, { code: '42501' })
  await t.rejects(sql`delete from fleet.device_heartbeats`, { code: '42501' })
  t.equal(await value(sql`select count(*) from fleet.attached_partitions()`), '104')
  await admin`create table public.mine (x int)`
  await admin`drop table public.mine`
})
