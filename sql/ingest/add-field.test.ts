import t from 'tap'
import { waitFor, withDatabase, type TestDatabase } from '../../testing/database.ts'
import { asRole, daysAgo, enroll, ingest, partitionAt, value } from '../../testing/fleet.ts'

/** The tables that have the column, apart from partitions: type and comment. */
const tablesWith = ({ sql }: TestDatabase, name: string) => sql`
  select a.attrelid::regclass::text as table, format_type(a.atttypid, a.atttypmod) as type, col_description(a.attrelid, a.attnum) as comment
  from pg_attribute a
  join pg_class c on c.oid = a.attrelid
  where a.attname = ${name} and not a.attisdropped and c.relkind in ('r', 'p') and not c.relispartition
  order by 1`

t.test('a field gets its column and comment in the heartbeats, in their template and partitions, and in last status', async t => {
  const db = await withDatabase(t)
  const add = () => db.sql`select fleet.add_field('uptime', 'bigint', 'What it''s for.')`
  await add()
  const expected = ['fleet.device_heartbeats', 'fleet.device_heartbeats_template', 'fleet.device_last_status'].map(table => ({
    table,
    type: 'bigint',
    comment: "What it's for.",
  }))
  t.same(await tablesWith(db, 'uptime'), expected)
  await add()
  t.same(await tablesWith(db, 'uptime'), expected, 'again')
  t.same(
    await db.sql`
      select a.partition_name from fleet.attached_partitions() a
      left join pg_attribute c on c.attrelid = a.relid and c.attname = 'uptime'
      where col_description(a.relid, c.attnum) is distinct from 'What it''s for.'`,
    [],
    'partitions that were made before',
  )
  t.same(await db.sql`select * from fleet.column_changes`, [], 'a store without heartbeats begins with the column')
  t.equal(await value(db.sql`select type from fleet.heartbeat_columns where name = 'uptime'`), 'bigint')
})

t.test('in a store with heartbeats the column is recorded as a change, once', async t => {
  const db = await withDatabase(t)
  const [device_id] = (await enroll(db.sql, 1)) as [number]
  await ingest(db.sql, [{ device_id }])
  for (let n = 0; n < 2; n++) await db.sql`select fleet.add_field('uptime', 'bigint', 'Uptime.')`
  t.match(await db.sql`select change, name, new_type from fleet.column_changes`, [
    { change: 'added', name: 'uptime', new_type: 'bigint' },
  ])
})

t.test('a column of the store with this name is kept if it has the type, and is not changed if it has another', async t => {
  const db = await withDatabase(t)
  await db.sql`alter table fleet.device_heartbeats add column uptime bigint, add column model integer`
  await db.sql`select fleet.add_field('uptime', 'bigint', 'Uptime.')`
  t.equal((await tablesWith(db, 'uptime')).length, 3)
  await t.rejects(db.sql`select fleet.add_field('model', 'text', 'The model.')`, {
    code: 'FL422',
    message: 'fleet.device_heartbeats has a column model of type integer already, and the field needs one of type text',
    hint: /alter table fleet\.device_heartbeats rename column model to own_model;$/,
  })
  t.match(await tablesWith(db, 'model'), [{ table: 'fleet.device_heartbeats', type: 'integer', comment: null }])
})

t.test('a column that may not be null is refused, because most heartbeats would fail', async t => {
  const db = await withDatabase(t)
  await db.sql`alter table fleet.device_heartbeats add column uptime bigint not null default 0`
  await t.rejects(db.sql`select fleet.add_field('uptime', 'bigint', 'Uptime.')`, {
    code: 'FL422',
    hint: /alter column uptime drop not null/,
  })
  await db.sql`alter table fleet.device_heartbeats alter column uptime drop not null`
  await db.sql`select fleet.add_field('uptime', 'bigint', 'Uptime.')`
})

t.test('while a partition is held by VACUUM, heartbeats get through, and the column comes afterwards', async t => {
  const db = await withDatabase(t)
  const [device_id] = (await enroll(db.sql, 1)) as [number]
  const vacuum = await db.admin.reserve()
  await vacuum`begin`
  await vacuum.unsafe(`lock table fleet.${await partitionAt(db.sql, daysAgo(3))} in share update exclusive mode`)
  const adding = db.sql`select fleet.add_field('uptime', 'bigint', 'Uptime.')`.then(rows => rows.length)
  const session = asRole(t, db, 'fleet_owner')
  await waitFor(
    async () =>
      (
        await db.admin`select from pg_locks where not granted and database = (select oid from pg_database where datname = current_database())`
      ).length > 0,
  )
  t.match(await ingest(session, [{ device_id }]), [{ result: 'stored' }])
  t.equal((await tablesWith(db, 'uptime')).length, 0, 'it is still waiting')
  await vacuum`rollback`
  vacuum.release()
  t.equal(await adding, 1)
  t.equal((await tablesWith(db, 'uptime')).length, 3)
})
