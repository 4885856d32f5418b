// Attacks with the archiver's stolen login: on retired tables, by false claims, and by registering archives.
import t from 'tap'
import type { Test } from 'tap'
import { testCluster, withDatabase } from '../../testing/database.ts'
import { asRole, daysAgo, enroll, ingest, partitionAt, value } from '../../testing/fleet.ts'

/** A database with one retired partition of three rows, and a session with the archiver's role. */
async function withRetired(t: Test) {
  const db = await withDatabase(t)
  const { sql } = db
  const [device] = (await enroll(sql, 1)) as [number]
  const day = daysAgo(5).slice(0, 10)
  await ingest(
    sql,
    [1, 2, 3].map(hour => ({ device_id: device, ts: `${day}T0${hour}:00:00Z` })),
  )
  const name = await partitionAt(sql, `${day}T01:00:00Z`)
  await sql`select fleet.archive_partition(${name})`
  return { db, sql, name, day, archiver: asRole(t, db, 'fleet_archiver') }
}

t.test('the archiver owns no table, and may only read the retired ones', async t => {
  const { db, name, archiver } = await withRetired(t)
  t.same(
    await db.admin`
    select c.oid::regclass::text as relation from pg_class c where c.relowner = 'fleet_archiver'::regrole
    union all select p.oid::regprocedure::text from pg_proc p where p.proowner = 'fleet_archiver'::regrole
    union all select n.nspname from pg_namespace n
    where n.nspowner = 'fleet_archiver'::regrole or has_schema_privilege('fleet_archiver', n.oid, 'create') and n.nspname not like 'pg_temp%'
  `,
    [],
  )
  t.match(await archiver.unsafe(`select count(*)::int as n from fleet_detached.${name}`), [{ n: 3 }])
  const table = `fleet_detached.${name}`
  // This is not an error: a role without the right to grant gets a warning, and nothing is granted.
  await archiver.unsafe(`grant truncate, insert, update, delete on ${table} to fleet_archiver`)
  await archiver.unsafe(`grant all on ${table} to public`)
  for (const statement of [
    `truncate ${table}`,
    `delete from ${table}`,
    `update ${table} set battery_pct = 1`,
    `insert into ${table} (ts, device_id) values (now(), 1)`,
    `copy ${table} (ts, device_id) from stdin`,
    `alter table ${table} drop column battery_pct`,
    `alter table ${table} add column x int`,
    `alter table ${table} rename to x`,
    `alter table ${table} rename column battery_pct to x`,
    `alter table ${table} set schema public`,
    `alter table ${table} force row level security`,
    `alter table ${table} enable row level security`,
    `create policy mine on ${table} using (false)`,
    `create rule mine as on select to ${table} do instead nothing`,
    `create trigger mine before insert on ${table} for each row execute function suppress_redundant_updates_trigger()`,
    `create index on ${table} (ts)`,
    `alter table ${table} alter column device_id type text using 'x'`,
    `alter table ${table} owner to fleet_archiver`,
    `drop table ${table}`,
    `comment on table ${table} is 'mine'`,
    // The right to vacuum, which the archiver needs since PostgreSQL 17, includes every lock. With it the archiver can delay a drop.
    ...(testCluster().postgres.major < 17 ? [`do $$ begin lock table ${table} in exclusive mode; end $$`] : []),
    `create function fleet_detached.mine() returns int language sql as 'select 1'`,
    'create table fleet_detached.mine ()',
    `create view fleet_detached.mine as select 1`,
    `create table fleet.mine ()`,
    'alter schema fleet_detached rename to x',
  ]) {
    await t.rejects(archiver.unsafe(statement), { code: /^(42501|42809|0A000)$/ }, statement)
  }
  t.match(await archiver.unsafe(`select count(*)::int as n from ${table}`), [{ n: 3 }])
})

t.test("the archiver's count is compared with Postgres's own count", async t => {
  const { db, sql, name, archiver } = await withRetired(t)
  await archiver`select * from fleet.claim_partition('thief')`
  // The thief claims fewer rows. The owner counts before the export is recorded, so nobody can prove that the table was empty.
  await t.rejects(archiver`select fleet.count_retired(${name}, 'thief', 0, ${'cd'.repeat(32)})`, {
    code: 'FL010',
    message: /has 3 rows, but thief says that it copied 0/,
  })
  await t.rejects(archiver`select fleet.count_retired(${name}, 'thief', 3, 'x')`, {
    code: 'FL422',
    message: /x is not a SHA-256/,
  })
  await archiver`select fleet.count_retired(${name}, 'thief', 3, ${'cd'.repeat(32)})`
  await archiver`select fleet.record_export(${name}, 'thief')`
  await archiver`select fleet.record_upload(${name}, 'thief', 'file:///x', ${'ab'.repeat(32)}, 10, 3)`
  // It may name any SHA-256 of the rows, but not the count or the times.
  for (const [count, ts] of [
    [0, null],
    [3, null],
    [3, daysAgo(5)],
  ] as const) {
    await t.rejects(
      archiver`
        select fleet.record_proof(${name}, 'thief', ${'ab'.repeat(32)}, null, ${count}, ${ts}, ${ts}, ${'cd'.repeat(32)})`,
      { code: 'FL010', message: /differs from its rows; the partition is kept/ },
      `${count} rows of ${ts}`,
    )
  }
  await t.rejects(archiver`select fleet.drop_partition(${name})`, { code: 'FL001' })
  t.match(await db.admin`select state, step, proven_at from fleet.hb_partitions where partition_name = ${name}`, [
    { state: 'archiving', step: 'uploaded', proven_at: null },
  ])
  for (const statement of [
    `update fleet.hb_partitions set state = 'archived'`,
    `select fleet.drop_retired('${name}', 0, now())`,
    `select fleet.accept_archive('${name}', 'x')`,
    `select fleet.release_partition('${name}')`,
    `select fleet.retire_partition('${name}')`,
  ]) {
    await t.rejects(archiver.unsafe(statement), { code: '42501' }, statement)
  }
  t.match(await sql`select * from fleet.check() where status = 'fail'`, [])
})

t.test('the archiver may insert into a restored day only until its rows are compared', async t => {
  const { db, sql, name, archiver, day } = await withRetired(t)
  const [sum] = await sql<{ min_ts: Date; max_ts: Date }[]>`
    select * from fleet.count_rows(${`fleet_detached.${name}`}::regclass)`
  await db.admin.unsafe(`create table public.kept as table fleet_detached.${name}; grant select on public.kept to fleet_archiver`)
  await archiver`select * from fleet.claim_partition('a')`
  await archiver`select fleet.count_retired(${name}, 'a', 3, ${'cd'.repeat(32)})`
  await archiver`select fleet.record_export(${name}, 'a')`
  await archiver`select fleet.record_upload(${name}, 'a', 'file:///x', ${'ab'.repeat(32)}, 10, 3)`
  await archiver`select fleet.record_proof(${name}, 'a', ${'ab'.repeat(32)}, null, 3, ${sum!.min_ts}, ${sum!.max_ts}, ${'cd'.repeat(32)})`
  await archiver`select fleet.drop_partition(${name})`
  await archiver`select fleet.request_restore(${day}::date, ${day}::date)`
  await archiver`select * from fleet.claim_restore('a')`
  const table = (await value(archiver`select fleet.begin_restore(${name}, 'a')`)) as string
  await archiver.unsafe(`insert into ${table} select * from public.kept`)
  for (const statement of [
    `alter table ${table} add check (true)`,
    `create policy p on ${table} using (true)`,
    `truncate ${table}`,
    `delete from ${table}`,
  ]) {
    await t.rejects(archiver.unsafe(statement), { code: '42501' }, statement)
  }

  // A second session of the archiver has an open insert. The restore waits for it and then sees its rows.
  const second = asRole(t, db, 'fleet_archiver')
  await second.unsafe(
    `begin; insert into ${table} select ts + interval '1 minute', received_at, device_id from public.kept limit 1`,
  )
  await t.rejects(archiver`select fleet.finish_restore(${name}, 'a', ${'cd'.repeat(32)})`, { message: /lock timeout/ })
  await second.unsafe('commit')
  await t.rejects(archiver`select fleet.finish_restore(${name}, 'a', ${'cd'.repeat(32)})`, {
    code: 'FL010',
    detail: /rows 3, restored 4/,
  })
  await db.admin.unsafe(`delete from ${table} where ts not in (select ts from public.kept)`)
  await archiver`select fleet.finish_restore(${name}, 'a', ${'cd'.repeat(32)})`
  await t.rejects(archiver.unsafe(`insert into fleet.${name} (ts, device_id) values ('${day}T05:00:00Z', 1)`), { code: '42501' })
  t.match(await sql`select count(*)::int as n from fleet.device_heartbeats where ts::date = ${day}::date`, [{ n: 3 }])
})

t.test('an archive can be registered only for a past day or month and at its place in a known store', async t => {
  const { sql, archiver } = await withRetired(t)
  const register = (from: string, to: string, url: string) =>
    archiver`
    select fleet.register_archive('stolen', ${from}::text::timestamptz, ${to}::text::timestamptz, 1, 1, null, null, ${url}, ${'ab'.repeat(32)}, 10,
      '[{"name": "ts", "type": "timestamp with time zone"}]')`.then(() => undefined)
  const place = (day: string, root = 'file:///srv/archive') =>
    `${root}/device_heartbeats/date=${day}/device_heartbeats_${day.replaceAll('-', '')}.parquet`
  for (const [from, to] of [
    ['2027-01-01', '2999-01-01'],
    ['2999-01-01', '2999-01-02'],
    ['2019-01-01', '2020-01-01'],
    ['2020-01-01', '2020-01-01'],
    ['2020-01-02', '2020-01-01'],
    ['2020-01-15', '2020-02-15'],
    ['2020-01-01T12:00:00Z', '2020-01-02T12:00:00Z'],
    ['-infinity', 'infinity'],
    [daysAgo(0).slice(0, 10), daysAgo(-1).slice(0, 10)],
  ] as const) {
    await t.rejects(
      register(from, to, place(from.slice(0, 10))),
      { code: 'FL422', message: /its range is not a past UTC day or month/ },
      `${from} to ${to}`,
    )
  }
  for (const url of [
    'file:///etc/passwd',
    place('2020-01-02'),
    place('2020-01-01', 'file:///srv/../etc'),
    place('2020-01-01', 'http://host/x'),
    place('2020-01-01', 'file://host/srv'),
    place('2020-01-01').replace('.parquet', '.parquet/x'),
    place('2020-01-01').replace('device_heartbeats_', 'other_'),
    place('2020-01-01', 's3:///prefix'),
    `${place('2020-01-01')}\n`,
    '',
  ]) {
    await t.rejects(
      register('2020-01-01', '2020-01-02', url),
      { code: 'FL422', message: /is not a valid place for the archive of 2020-01-01/ },
      url,
    )
  }
  await register('2020-01-01', '2020-01-02', place('2020-01-01'))
  await t.rejects(register('2020-02-01', '2020-03-01', place('2020-02-01', 's3://elsewhere/x')), {
    code: 'FL422',
    message: /s3:\/\/elsewhere\/x is not a known store of this database \(file:\/\/\/srv\/archive\)/,
    hint: /archive_stores/,
  })
  await sql`update fleet.settings set archive_stores = archive_stores || 's3://elsewhere/x'::text`
  await t.resolves(
    register('2020-02-01', '2020-03-01', place('2020-02-01', 's3://elsewhere/x').replace('20200201', '202002')).catch(
      (error: unknown) => {
        // This is refused because the first archive already has the name, not because of the place.
        if ((error as { code?: string }).code !== 'FL409') throw error
      },
    ),
  )
  t.same(await sql`select partition_name from fleet.hb_partitions where range_start > now() + interval '1 year'`, [])
})
