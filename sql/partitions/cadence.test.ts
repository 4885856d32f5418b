import t from 'tap'
import type { Sql } from 'postgres'
import { withDatabase } from '../../testing/database.ts'
import { isDistributed } from '../../testing/distributed.ts'
import { asRole, daysAgo, enroll, ingest, partitionAt, value } from '../../testing/fleet.ts'

/** How many partitions leave a hole or overlap, how many hold a month, and where the last one ends. */
async function coverage(sql: Sql) {
  const [row] = await sql<{ faults: number; months: number; last: Date }[]>`
    select count(*) filter (where a.previous_end <> a.range_start)::int as faults,
      count(*) filter (where a.range_end > a.range_start + interval '1 day')::int as months,
      max(a.range_end) as last
    from (
      select range_start, range_end, lag(range_end) over (order by range_start) as previous_end
      from fleet.attached_partitions()
    ) a
  `
  return row!
}

/** The next such date from the day after tomorrow on. What pg_partman made, by the real clock, must not reach beyond it. */
function next(monthAndDay: string) {
  for (let year = new Date().getUTCFullYear(); ; year++) {
    const day = new Date(`${year}-${monthAndDay}T00:00Z`)
    // In most years JavaScript takes 29 February for 1 March.
    if (day.toISOString().includes(`-${monthAndDay}T`) && day.getTime() > Date.now() + 86_400_000) return `${year}-${monthAndDay}`
  }
}

/** Runs `use` and rolls it back. */
async function undone(sql: Sql, use: (sql: Sql) => Promise<void>) {
  await sql`begin`
  try {
    await use(sql)
  } finally {
    await sql`rollback`
  }
}

t.test(
  'on whatever date the cadence changes, and changes back, each day has a partition',
  { timeout: isDistributed ? 1_200_000 : 300_000 },
  async t => {
    const db = await withDatabase(t)
    const sql = asRole(t, db, 'fleet_owner')
    // Ends of months and years, first days of months, leap days, and dates 14 days before them, because premake_days is 14.
    const leapYear = next('02-29').slice(0, 4)
    const dates = [
      next('01-01'),
      next('01-31'),
      next('02-14'),
      next('12-17'),
      next('12-18'),
      `${leapYear}-02-15`,
      `${leapYear}-02-29`,
      '2100-02-28',
    ]
    for (const date of dates) {
      await undone(sql, async () => {
        const at = (days: number) => new Date(Date.parse(`${date}T13:00:00Z`) + days * 86_400_000).toISOString()
        // As if the fleet was set up a month before that date.
        await sql`delete from fleet.hb_partitions`
        await sql.unsafe(`
        do $$
        declare v_table regclass;
        begin
          for v_table in select relid from fleet.attached_partitions() loop
            execute format('alter table fleet.device_heartbeats detach partition %s', v_table);
            execute format('alter table %s set schema fleet_detached', v_table);
          end loop;
        end $$
      `)
        await sql`update fleet.settings set retention = '20 days', premake_days = 14`
        await sql`select fleet.create_partitions(${at(-30)}::timestamptz::date, ${at(0)}::timestamptz::date)`
        await sql`select fleet.premake(${at(0)})`
        t.match(await coverage(sql), { faults: 0, months: 0 }, `${date}: daily`)

        await sql`select fleet.set_cadence('monthly', ${at(0)})`
        const monthly = await coverage(sql)
        t.match(monthly, { faults: 0 }, `${date}: no hole between days and the months after them`)
        t.ok(monthly.months >= 1 && monthly.last.getUTCDate() === 1, 'months begin on the first')
        for (const days of [1, 20, 45, 100]) await sql`select fleet.premake(${at(days)})`
        const later = await coverage(sql)
        t.match(later, { faults: 0 }, `${date}: no hole later`)
        t.ok(later.last.getTime() > Date.parse(at(114)), 'as far ahead as wanted')
        t.ok(later.last.getTime() < Date.parse(at(114 + 32)), 'but no additional month')

        await sql`select fleet.set_cadence('daily', ${at(100)})`
        for (const days of [100, 101, 130, 160, 190]) await sql`select fleet.premake(${at(days)})`
        const back = await coverage(sql)
        t.match(back, { faults: 0, months: later.months }, `${date}: no hole between months and the days after them`)
        t.equal(back.last.getTime(), Date.parse(at(190 + 15).slice(0, 10)))
      })
    }
  },
)

t.test('set_cadence checks its value, is audited, can be repeated, and ingest continues', async t => {
  const db = await withDatabase(t)
  const dba = asRole(t, db, 'fleet_dba')
  for (const bad of ['weekly', '', null]) {
    await t.rejects(dba`select fleet.set_cadence(${bad})`, { code: 'FL422', hint: /set_cadence\('daily'\)/ })
  }
  t.match(await value(dba`select fleet.set_cadence('monthly')`), /^cadence monthly \(was daily\) from \d{4}-\d\d-01 on/)
  t.match(await value(dba`select fleet.set_cadence('monthly')`), 'the cadence is already monthly')
  t.match(await dba`select setting, old_value, new_value from fleet.settings_audit`, [
    { setting: 'cadence', old_value: 'daily', new_value: 'monthly' },
  ])
  t.match(await dba`select * from fleet.check() where status = 'fail'`, [])
  await dba`call fleet.maintain()`
  t.match(await dba`select * from fleet.run_steps((select max(run_id) from fleet.events)) where not ok`, [])
  t.match(await value(dba`select fleet.set_premake(60)`), 'premake 60 days (was 14)')
  await dba`call fleet.maintain()`
  t.match(await dba`select status from fleet.check() where check_name = 'partitions_ahead'`, [{ status: 'ok' }])

  const [device] = (await enroll(db.sql, 1)) as [number]
  const month = new Date(Date.now() + 55 * 86_400_000).toISOString()
  await db.sql`update fleet.settings set retention = '90 days'`
  t.match(await ingest(db.sql, [{ device_id: device, ts: month }], month), [{ result: 'stored' }])
  const partition = await partitionAt(db.sql, month)
  t.equal(await value(db.admin`select count(*) from fleet.${db.admin(partition)}`), '1')
  t.match(
    await db.sql`
    select count(*)::int as n from pg_index where indrelid = ${`fleet.${partition}`}::regclass
  `,
    [{ n: 2 }],
    'a monthly partition has both indexes',
  )
})

t.test('recommend_cadence uses the measured volume', async t => {
  const db = await withDatabase(t)
  const dba = asRole(t, db, 'fleet_dba')
  t.match(await dba`select * from fleet.recommend_cadence()`, [
    { cadence: 'monthly', rows_per_month: '0', reason: /no whole day/ },
  ])
  const [device] = (await enroll(db.sql, 1)) as [number]
  await ingest(db.sql, [
    { device_id: device, ts: daysAgo(2) },
    { device_id: device, ts: daysAgo(3) },
  ])
  await db.sql`select fleet.refresh_sizes()`
  t.match(await dba`select * from fleet.recommend_cadence()`, [
    { cadence: 'monthly', rows_per_month: '30', reason: /measured over 2 days: not above 5000000/ },
  ])
  await db.sql`update fleet.hb_partitions set row_count = 200000 where row_count > 0`
  t.match(await dba`select * from fleet.recommend_cadence()`, [
    { cadence: 'daily', rows_per_month: '6000000', reason: /above 5000000/ },
  ])
})

t.test('after a change of the cadence the partitions of before are retired, each alone', async t => {
  const { sql } = await withDatabase(t)
  const states = async () => {
    const rows = await sql<{ day: string; state: string }[]>`
      select range_start::text as day, state from fleet.hb_partitions
      where range_start < now() - interval '80 days' order by range_start`
    return rows.map(({ state }) => state)
  }
  await sql`select fleet.create_partitions((current_date - 96)::date, (current_date - 92)::date)`
  await sql`select fleet.set_cadence('monthly')`
  const whole = (await states()).length
  t.ok(whole >= 5, `${whole} days`)
  for (const [n, days] of [96, 95].entries()) {
    await sql`select fleet.retire_partition(${await partitionAt(sql, daysAgo(days))})`
    t.same(
      await states(),
      Array.from({ length: whole }, (_, at) => (at <= n ? 'detached' : 'active')),
      `${days} days ago`,
    )
  }
})
