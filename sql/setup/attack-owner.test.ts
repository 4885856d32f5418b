// Attacks by the owner of the store, which is not a superuser and tries to drop a day that has no archive.
import t from 'tap'
import { withDatabase } from '../../testing/database.ts'
import { daysAgo, enroll, ingest, partitionAt, value } from '../../testing/fleet.ts'

t.test('the owner cannot tell the guard that a partition is proven', async t => {
  const db = await withDatabase(t)
  const { sql, admin } = db
  const [device] = (await enroll(sql, 1)) as [number]
  await ingest(sql, [{ device_id: device, ts: daysAgo(1) }])
  const name = await partitionAt(sql, daysAgo(1))
  const dropped = () => sql.unsafe(`drop table fleet.${name}`)
  for (const statement of [
    `update fleet_guard.partitions set is_proven = true`,
    'delete from fleet_guard.partitions',
    'truncate fleet_guard.partitions',
    `insert into fleet_guard.partitions (partition_name, is_proven) values ('x', true)`,
    'drop table fleet_guard.partitions',
    'drop schema fleet_guard cascade',
    'alter table fleet_guard.partitions disable trigger all',
    'drop event trigger fleet_guard_drop',
    'alter event trigger fleet_guard_drop disable',
    `create or replace function fleet_guard.refuse_unproven_drop() returns event_trigger language plpgsql as 'begin end'`,
    'alter function fleet_guard.note_partition() rename to x',
    'drop function fleet_guard.note_partition() cascade',
    'create table fleet_guard.mine ()',
    `set session_replication_role = replica`,
    'alter schema fleet_guard rename to x',
  ]) {
    await t.rejects(sql.unsafe(statement), { code: '42501' }, statement)
  }
  await t.rejects(dropped(), { code: 'FL001' })

  // The guard's trigger on a table of the owner's own, with a row that claims a proof.
  await sql.unsafe(`
    create table fleet.forged (partition_name text, relid oid, relid_seal text, is_proven_empty boolean, state text, proven_at timestamptz);
    create trigger forged after insert on fleet.forged for each row execute function fleet_guard.note_partition()`)
  await t.rejects(sql.unsafe(`insert into fleet.forged values ('${name}', null, null, false, 'archived', now())`), {
    code: 'FL001',
    message: /a trigger on fleet\.forged cannot record what may be dropped/,
  })
  // The row claims that the table is empty. It is not, and the guard looks.
  await sql`update fleet.hb_partitions set is_proven_empty = true where partition_name = ${name}`
  t.equal(await value(admin`select is_proven from fleet_guard.partitions where partition_name = ${name}`), false)
  await t.rejects(dropped(), { code: 'FL001' })
  t.equal(await value(sql`select count(*)::int from fleet.device_heartbeats`), 1)

  // The table is renamed, and the row has no oid or that of another table.
  const other = await partitionAt(sql, daysAgo(2))
  await sql.unsafe(`
    alter table fleet.device_heartbeats detach partition fleet.${name};
    alter table fleet.${name} rename to aside`)
  for (const relid of ['null', `'fleet.${other}'::regclass::oid`, '1']) {
    await sql.unsafe(`update fleet.hb_partitions set relid = ${relid}, is_proven_empty = true where partition_name = '${name}'`)
    await t.rejects(sql.unsafe('drop table fleet.aside'), { code: 'FL001' }, `relid ${relid}`)
  }
  t.equal(await value(sql`select count(*)::int from fleet.aside`), 1)
})

t.test("the guard does not run the owner's code with the administrator's rights", async t => {
  const db = await withDatabase(t)
  const { sql, admin } = db
  const name = await partitionAt(sql, daysAgo(3))
  // A view, a rule or a policy in place of a partition would run the owner's code with the rights of the role that reads it.
  await sql.unsafe(`
    alter table fleet.device_heartbeats detach partition fleet.${name};
    alter table fleet.${name} rename to aside;
    create function fleet.spy() returns boolean language plpgsql as $$
      begin
        if (select rolsuper from pg_catalog.pg_roles where rolname = current_user) then
          raise exception 'ran as superuser';
        end if;
        return false;
      end $$;
    create view fleet.${name} as select fleet.spy() as ts`)
  await t.resolves(
    sql`update fleet.hb_partitions set is_proven_empty = true where partition_name = ${name}`.then(() => undefined),
  )
  await sql.unsafe(`
    drop view fleet.${name};
    create table fleet.${name} (ts timestamptz);
    insert into fleet.${name} values (now());
    alter table fleet.${name} enable row level security, force row level security;
    create policy spying on fleet.${name} using (fleet.spy());
    create table fleet.child () inherits (fleet.${name})`)
  await t.resolves(
    sql`update fleet.hb_partitions set is_proven_empty = true, bytes_size = 1 where partition_name = ${name}`.then(
      () => undefined,
    ),
  )
  t.equal(await value(admin`select is_proven from fleet_guard.partitions where partition_name = ${name}`), false)
})
