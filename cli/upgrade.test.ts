// Upgrades a store of 0.1.0: npm run migrate takes away excess rights, and work that was under way goes on.
import { mkdtemp, mkdir, readdir, readFile, copyFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { migrate as runCommitted } from 'graphile-migrate'
import t from 'tap'
import type { Test } from 'tap'
import { makeDirectory, workAll } from '../testing/archiver.ts'
import { asRole, daysAgo, enroll, ingest, partitionAt } from '../testing/fleet.ts'
import { repository } from '../local/config.ts'
import { migrate, migrationSettings, poolsEnded, setupFiles } from './migrate.ts'
import { rightsPage } from './docs/rights.ts'
import { withDatabase } from '../testing/database.ts'

/** The last migration of 0.1.0. */
const lastOf010 = '000027'

/** A database as 0.1.0 left it: its migrations, and the rights that its setup gave beyond today's. */
async function withStoreOf010(t: Test) {
  const db = await withDatabase(t, 'template0')
  for (const file of setupFiles) await db.admin.unsafe(await readFile(join(repository, 'sql/setup', file), 'utf8'))
  const folder = await mkdtemp(join(tmpdir(), 'nexmdm-migrations-'))
  t.teardown(() => rm(folder, { recursive: true, force: true }))
  await mkdir(join(folder, 'committed'))
  const committed = join(repository, 'migrations/committed')
  const files = (await readdir(committed)).filter(name => name.slice(0, 6) <= lastOf010)
  t.equal(files.length, 27)
  for (const name of files) await copyFile(join(committed, name), join(folder, 'committed', name))
  await writeFile(join(folder, 'current.sql'), '')
  const settings = await migrationSettings(db.admin, db.url('postgres'), () => {})
  await runCommitted({ ...settings, migrationsFolder: folder })
  await poolsEnded()
  await db.admin.unsafe(`
    grant create, temporary on database ${db.name} to fleet_owner;
    grant temporary on database ${db.name} to public;
    grant insert, update on fleet_guard.partitions to fleet_owner;
    grant usage, create on schema partman to fleet_owner;
    grant all on all tables in schema partman to fleet_owner;
    grant execute on function pg_catalog.pg_advisory_lock(bigint), pg_catalog.lo_create(oid), pg_catalog.lo_from_bytea(oid, bytea) to public`)
  return db
}

t.test('after the upgrade a store of 0.1.0 has the rights of a new one and keeps working', async t => {
  const db = await withStoreOf010(t)
  const { sql, admin } = db
  const [device] = (await enroll(sql, 1)) as [number]
  const days = [6, 5].map(ago => daysAgo(ago).slice(0, 10))
  for (const day of days)
    await ingest(
      sql,
      [1, 2, 3].map(hour => ({ device_id: device, ts: `${day}T0${hour}:00:00Z` })),
    )
  const [first, second] = (await Promise.all(days.map(day => partitionAt(sql, `${day}T01:00:00Z`)))) as [string, string]
  // One day waits for the archiver. Another was exported by an archiver of 0.1.0, which then died.
  for (const name of [first, second]) await sql`select fleet.archive_partition(${name})`
  const archiver = asRole(t, db, 'fleet_archiver')
  await archiver`select fleet.claim_partition('old', '0 seconds')`
  await archiver`select fleet.record_frozen(${first}, 'old')`
  await archiver`
    select fleet.record_export(${first}, 'old', row_count, content_checksum, min_ts, max_ts)
    from fleet.content_checksum(${`fleet_detached.${first}`}::regclass)`
  t.match(await admin`select count(*)::int as n from pg_class where relowner = 'fleet_archiver'::regrole and relkind = 'r'`, [
    { n: 2 },
  ])

  await migrate(db.url('postgres'), { current: true, log: () => {} })

  const fresh = await withDatabase(t)
  // A new store has no retired tables, so they are compared below.
  const page = (await rightsPage(admin))
    .split('\n')
    .filter(line => !line.includes('fleet_detached.'))
    .join('\n')
  t.equal(page, await rightsPage(fresh.admin), 'each role may do what it may in a new store')
  t.same(
    await admin`
    select c.oid::regclass::text as left_over from pg_class c where c.relowner = 'fleet_archiver'::regrole
    union all
    select 'schema ' || n.nspname from pg_namespace n, unnest(array['fleet_server', 'fleet_archiver', 'fleet_reader', 'fleet_dba', 'fleet_verifier']) r
    where n.nspname !~ '^pg_' and has_schema_privilege(r, n.oid, 'create')
    union all
    select 'create schemas' where has_database_privilege('fleet_owner', current_database(), 'create')
    union all
    select 'temporary' where has_database_privilege('fleet_reader', current_database(), 'temporary')
    union all
    select 'guard' where has_table_privilege('fleet_owner', 'fleet_guard.partitions', 'insert, update, delete, truncate')
    union all
    select 'partman' where has_schema_privilege('fleet_owner', 'partman', 'create') or has_table_privilege('fleet_owner', 'partman.part_config', 'trigger')
    union all
    select p.oid::regprocedure::text from pg_proc p
    where p.oid in ('pg_catalog.pg_advisory_lock(bigint)'::regprocedure, 'pg_catalog.lo_create(oid)'::regprocedure, 'pg_catalog.lo_from_bytea(oid, bytea)'::regprocedure)
      and has_function_privilege('fleet_reader', p.oid, 'execute')
  `,
    [],
  )
  for (const name of [first, second]) {
    await t.rejects(archiver.unsafe(`truncate fleet_detached.${name}`), { code: '42501' })
    t.match(await archiver.unsafe(`select count(*)::int as n from fleet_detached.${name}`), [{ n: 3 }])
    await t.rejects(sql.unsafe(`drop table fleet_detached.${name}`), { code: 'FL001' }, 'the guard knows it')
  }

  t.same((await workAll(t, db, await makeDirectory(t))).results, ['done', 'done'])
  t.match(
    await sql`select state, row_count, columns is not null as owns_its_columns from fleet.hb_partitions where archive_url is not null order by range_start`,
    [
      { state: 'dropped', row_count: '3', owns_its_columns: true },
      { state: 'dropped', row_count: '3', owns_its_columns: true },
    ],
  )
  await sql`call fleet.nightly()`
  t.match(await sql`select * from fleet.check() where status = 'fail'`, [])
})
