import t from 'tap'
import { migrate } from './migrate.ts'
import { withDatabase } from '../testing/database.ts'

// Debian packages one major version with each PostgreSQL. npm run test:trixie adds the script of 4.7 next to 5.2.
t.test('pg_partman 4 is updated to 5 in place, and partitions continue to be made', async t => {
  const db = await withDatabase(t, 'template0')
  const versions = (
    await db.admin<{ version: string }[]>`
    select version from pg_available_extension_versions where name = 'pg_partman' order by string_to_array(version, '.')::integer[]
  `
  ).map(({ version }) => version)
  const [from, to] = [versions.findLast(version => version.startsWith('4.')), versions.at(-1)]
  if (!from || !to || to.startsWith('4.')) return t.plan(0, `needs pg_partman 4 and 5; found ${versions.join(', ')}`)
  t.comment(`from ${from} to ${to}`)
  const adminUrl = db.url('postgres')
  const partitions = async () =>
    (
      await db.admin<{ bounds: string }[]>`
    select partition_name || ' ' || range_start || ' ' || range_end as bounds from fleet.attached_partitions() order by range_start
  `
    ).map(({ bounds }) => bounds)
  const troubles = async () =>
    (
      await db.admin<{ check_name: string }[]>`
    select check_name from fleet.check() where status <> 'ok' and (check_name like 'partition%' or check_name in ('retention', 'guard', 'maintenance', 'triggers'))
  `
    ).map(({ check_name }) => check_name)

  await db.admin.unsafe(`create schema partman; create extension pg_partman schema partman version '${from}'`)
  await migrate(adminUrl, { current: true, log: () => {} })
  await db.admin`insert into fleet.device_heartbeats (ts, device_id) select now() - n * interval '1 day', 1 from generate_series(0, 89) n`
  const before = await partitions()

  await db.admin.unsafe('alter extension pg_partman update')
  await migrate(adminUrl, { current: true, log: () => {} })
  t.same(await db.admin`select extversion from pg_extension where extname = 'pg_partman'`, [{ extversion: to }])
  t.same(await partitions(), before, 'no partition is touched')
  t.same(await troubles(), [])

  await db.sql`select fleet.set_premake(20)`
  await db.sql`select fleet.set_retention('80 days')`
  await db.sql`call fleet.nightly()`
  t.equal(
    (await db.sql`select from fleet.hb_partitions where state = 'detached'`).length,
    10,
    'the days beyond the retention are retired',
  )
  const after = await partitions()
  t.same(after.slice(0, before.length - 10), before.slice(10), 'no name and no bound of the others has changed')
  t.ok(after.length >= before.length - 10 + 6, 'and six more future days exist')
  await db.admin`insert into fleet.device_heartbeats (ts, device_id) values (now() + interval '1 day', 2), (now() - interval '3 days', 2)`
  t.same(await troubles(), [])

  await db.sql`select fleet.set_cadence('monthly')`
  await db.sql`select fleet.set_premake(90)`
  await db.sql`call fleet.nightly()`
  t.ok((await partitions()).at(-1)!.match(/-01 00:00:00\+00$/), 'a monthly partition follows the days')
  t.same(await troubles(), [])
})
