import t from 'tap'
import { withDatabase } from '../../testing/database.ts'
import { asRole, enroll, value } from '../../testing/fleet.ts'

const TABLE = 'public.device_heartbeats'

t.test('a table is imported, and its heartbeats written back, by the old names', async t => {
  const db = await withDatabase(t)
  const [device] = (await enroll(db.sql, 1)) as [number]
  await db.admin.unsafe(`
    create table ${TABLE} (device_id text, ts timestamp, battery_pct integer);
    grant select, insert, trigger on ${TABLE} to fleet_owner;
    insert into ${TABLE} select 'device-1', now() at time zone 'UTC' - n * interval '1 minute', n % 100 from generate_series(1, 300) n`)
  const dba = asRole(t, db, 'fleet_dba')
  const reader = asRole(t, db, 'fleet_reader')
  const states = async () => (await reader`select state from fleet.adoption_progress`).map(row => row.state as string)

  t.match(await dba`select rows::int from fleet.adoption_plan(${TABLE}) where item = 'taken'`, [{ rows: 300 }])
  t.same(await states(), [], 'the plan imports nothing')
  // Each of these procedures begins with a COMMIT, which fails where the caller does not allow it.
  t.equal(await value(dba.unsafe(`call fleet.adopt_table('${TABLE}', p_batch_rows => 100, p_pause => '0')`)), 'moved')
  t.same(await states(), ['moved'])
  t.equal(await value(dba.unsafe(`call fleet.run_adoption('${TABLE}', 100, '0', null)`)), 'moved', 'nothing is left to do')
  await t.rejects(
    dba.begin(sql => sql.unsafe(`call fleet.adopt_table('${TABLE}')`)),
    { code: '2D000' },
    'refused in a transaction, as import_table() is',
  )
  t.equal(await value(dba.unsafe(`call fleet.verify_adoption('${TABLE}')`)), 'verified')

  await db.sql`select fleet.ingest(json_build_array(json_build_object('device_id', ${device}::int, 'battery_pct', 7)))`
  t.equal(await value(dba.unsafe(`call fleet.abandon_adoption('${TABLE}')`)), 'abandoned')
  t.equal(await value(db.admin.unsafe(`select count(*)::int from ${TABLE}`)), 301, 'the new heartbeat is written back')

  await dba.unsafe(`call fleet.adopt_table('${TABLE}')`)
  await dba.unsafe(`call fleet.verify_adoption('${TABLE}')`)
  t.match(await value(dba.unsafe(`select fleet.confirm_adoption('${TABLE}')`)), /is confirmed/)
  t.equal(await value(dba`select fleet.forget_adoption(${TABLE})`), true)
  t.same(await states(), [])
})

t.test('an archiver of 0.1.0 registers an archive by the old name', async t => {
  const db = await withDatabase(t)
  const archiver = asRole(t, db, 'fleet_archiver')
  const [place] = await db.sql<{ day: string; name: string }[]>`
    select d.day::text, 'device_heartbeats_p' || to_char(d.day, 'YYYY_MM_DD') as name from (select current_date - 200 as day) d`
  const { day, name } = place!
  const register = () =>
    value(archiver`
      select fleet.adopt_archive(
        ${name}, ${day}::date::timestamptz, ${day}::date::timestamptz + interval '1 day', 10, 1, null, null,
        ${`file:///a/device_heartbeats/date=${day}/device_heartbeats_${day.replaceAll('-', '')}.parquet`}, ${'ab'.repeat(32)}, 10
      )`)
  t.equal(await register(), true)
  t.equal(await register(), false, 'it is known now')
  t.match(await db.sql`select state, row_count from fleet.hb_partitions where partition_name = ${name}`, [
    { state: 'dropped', row_count: '10' },
  ])
})

t.test('each old name has a file here, and says which name replaces it', async t => {
  const { sql } = await withDatabase(t)
  const aliases = await sql<{ name: string; comment: string }[]>`
    select p.proname as name, obj_description(p.oid, 'pg_proc') as comment
    from pg_proc p
    where p.pronamespace = 'fleet'::regnamespace and p.proname ~ 'adopt'
    union all
    select c.relname, obj_description(c.oid, 'pg_class')
    from pg_class c
    where c.relnamespace = 'fleet'::regnamespace and c.relname ~ 'adopt'
    order by 1`
  t.same(
    aliases.map(({ name }) => name),
    [
      'abandon_adoption',
      'adopt_archive',
      'adopt_table',
      'adoption_plan',
      'adoption_progress',
      'confirm_adoption',
      'forget_adoption',
      'run_adoption',
      'verify_adoption',
    ],
  )
  for (const { name, comment } of aliases) {
    const [, replacement] = /^Old name of fleet\.(\w+)(?:\(\))?; goes in 0\.3\.$/.exec(comment) ?? []
    t.ok(replacement, `${name}: ${comment}`)
    t.ok(
      await value(sql`
        select exists (select from pg_proc where pronamespace = 'fleet'::regnamespace and proname = ${replacement!})
          or to_regclass('fleet.' || ${replacement!}::text) is not null`),
      replacement!,
    )
  }
})
