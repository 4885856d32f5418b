import t from 'tap'
import { withDatabase } from '../../testing/database.ts'
import { archive, asRole, daysAgo, enroll, ingest, partitionAt } from '../../testing/fleet.ts'

// West and east of UTC, on both sides of the date line, with and without summer time, in both hemispheres.
const ZONES = [
  'America/New_York',
  'Europe/Berlin',
  'Asia/Kolkata',
  'Australia/Lord_Howe',
  'Pacific/Kiritimati',
  'Pacific/Pago_Pago',
]

t.test("a day is a UTC day in every view and plan, whatever the session's TimeZone is", async t => {
  const db = await withDatabase(t)
  const devices = await enroll(db.sql, 3)
  await db.admin`update fleet.devices set enrolled_at = now() - interval '20 days'`
  await ingest(
    db.sql,
    [0.1, 1.1, 2.1, 3.1].flatMap(days => devices.map(device_id => ({ device_id, ts: daysAgo(days) }))),
  )
  // Long enough ago that summer time began or ended since. It is retired, so that the archive has a day, too.
  const first = daysAgo(300).slice(0, 10)
  await db.sql`select fleet.create_partitions(${first}::date, ${first}::date)`
  await db.sql`update fleet.settings set archive_grace = '0'`
  const old = await partitionAt(db.sql, `${first}T12:00Z`)
  await db.sql`select fleet.archive_partition(${old})`
  await archive(asRole(t, db, 'fleet_archiver'))
  await db.sql`call fleet.nightly(null, '90 days')`

  const views = await db.sql<{ name: string }[]>`
    select distinct c.relname as name from pg_class c join pg_attribute a on a.attrelid = c.oid
    where c.relnamespace = 'fleet'::regnamespace and c.relkind = 'v' and a.attnum > 0 and a.atttypid = 'date'::regtype
    order by 1
  `
  const queries = [
    ...views.map(({ name }) => `select v::text from fleet.${name} v order by day, 1`),
    `select partition_name, action, reason from fleet.retention_plan('60 days')`,
    'select * from fleet.nightly_plan()',
    'select day, action from fleet.rollup_plan()',
    'select cadence, reason from fleet.recommend_cadence()',
    `select day, sum(expected) as expected, sum(seen) as seen from fleet.device_availability where day > '${daysAgo(9).slice(0, 10)}' group by day order by day`,
    `select device_id, expected, seen from fleet.device_availability('${daysAgo(3).slice(0, 10)}', '${daysAgo(1).slice(0, 10)}') order by 1`,
  ]
  t.ok(views.length >= 3, `${views.map(({ name }) => name).join(', ')}`)
  const reference = asRole(t, db, 'fleet_dba', { TimeZone: 'UTC' })
  const [coverage] = await reference`
    select count(*)::int as days, min(day)::text as first, max(day)::text as last, count(*) filter (where "where" = 'archived')::int as archived
    from fleet.data_coverage
  `
  t.match(coverage, { first, last: daysAgo(0).slice(0, 10), days: 301, archived: 1 }, 'each day once, up to today')
  for (const zone of ZONES) {
    const session = asRole(t, db, 'fleet_dba', { TimeZone: zone })
    for (const query of queries) {
      const [told, expected] = [lines(await session.unsafe(query)), lines(await reference.unsafe(query))]
      t.same(told.filter((line, n) => line !== expected[n]).slice(0, 3), [], `${zone}: ${query}`)
      t.equal(told.length, expected.length, `${zone}: ${query}`)
    }
    await t.rejects(session`select fleet.hold_partition(${old}, 'too late')`, {
      code: 'FL002',
      hint: `request_restore('${first}')`,
    })
  }
})

/** One line for each row, without times of day, because those depend on the zone of the session. */
function lines(rows: readonly object[]) {
  return rows.map(row => JSON.stringify(row).replaceAll(/\\"\d{4}-\d\d-\d\d \d\d:[^"]*\\"/g, '(a moment)'))
}
