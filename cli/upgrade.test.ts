// Upgrades a store of 0.1.0: npm run migrate revokes excess rights, and work that was under way continues.
import { execFile, spawnSync } from 'node:child_process'
import { readdir, readFile } from 'node:fs/promises'
import { join, parse } from 'node:path'
import { promisify } from 'node:util'
import { gunzipSync } from 'node:zlib'
import t from 'tap'
import type { Test } from 'tap'
import { makeDirectory, workAll } from '../testing/archiver.ts'
import { upgradeFrom010 } from './upgrade.ts'
import { asRole, daysAgo, enroll, ingest, partitionAt, value } from '../testing/fleet.ts'
import { plainEnv } from '../local/config.ts'
import { repository } from '../lib/repository.ts'
import { migrate } from './migrate.ts'
import { rightsPage } from './docs/rights.ts'
import { testCluster, withDatabase, type TestDatabase } from '../testing/database.ts'

const run = promisify(execFile)

/** A database as 0.1.0 left it: see testing/fixtures/README.md. Its days are made here, by 0.1.0's own function. */
async function withStoreOf010(t: Test) {
  const db = await withDatabase(t, 'template0')
  const dump = gunzipSync(await readFile(join(repository, 'testing/fixtures/store-0.1.0.sql.gz')))
  const psql = spawnSync(`${testCluster().postgres.bin}/psql`, ['-X', '-q', '-v', 'ON_ERROR_STOP=1', db.url('postgres')], {
    input: dump,
    env: plainEnv(),
    encoding: 'utf8',
  })
  t.equal(psql.status, 0, psql.stderr)
  // What 0.1.0 granted beyond the schemas of the dump.
  await db.admin.unsafe(`
    grant create, temporary on database ${db.name} to fleet_owner;
    grant usage, create on schema partman to fleet_owner;
    grant all on all tables in schema partman to fleet_owner;
    grant execute on all functions in schema partman to fleet_owner;
    grant execute on all procedures in schema partman to fleet_owner`)
  await db.sql.unsafe(`
    grant update, delete, truncate on fleet.device_heartbeats to fleet_owner;
    select fleet.set_up_partitions();
    revoke update, delete, truncate on fleet.device_heartbeats from fleet_owner;
    select partman.reapply_privileges('fleet.device_heartbeats')`)
  t.equal(await value(db.sql`select count(*)::int from graphile_migrate.migrations`), 27)
  return db
}

const migrations = (await readdir(join(repository, 'migrations/committed'))).sort().map(file => parse(file).name)
/** What npm run migrate says after an upgrade from 0.1.0. */
const applied = `Applied ${migrations.length === 1 ? '1 migration' : `${migrations.length} migrations`}: ${migrations.join(', ')}`

const migrateAgain = async (db: TestDatabase) => {
  const lines: string[] = []
  await migrate(db.url('postgres'), { current: true, log: line => lines.push(line) })
  return lines
}

/**
 * The schema of the store without its partitions, which depend on the date. Grants are sorted, because they are dumped in the
 * order in which they were made. NOT NULL has a name since PostgreSQL 18: a dump of an older version has none, so a restored
 * column gets one from its table, and not from the table from which it was copied.
 */
async function schemaOf(db: TestDatabase) {
  const { stdout } = await run(
    `${testCluster().postgres.bin}/pg_dump`,
    [
      '--schema-only',
      ...['fleet', 'fleet_detached', 'fleet_guard'].map(name => `--schema=${name}`),
      '--exclude-table=fleet.device_heartbeats_p*',
      '--exclude-table=fleet_detached.*',
      db.url('postgres'),
    ],
    { env: plainEnv(), maxBuffer: 100_000_000 },
  )
  return stdout
    .replace(/^\\(un)?restrict .*\n/gm, '')
    .replace(/ CONSTRAINT \w+ NOT NULL/g, ' NOT NULL')
    .replace(/(^GRANT .*\n)+/gm, grants => `${grants.trimEnd().split('\n').sort().join('\n')}\n`)
}

/** Compares two dumps line by line, so that a failure shows the differences and not two million characters. */
function sameLines(t: Test, found: string, wanted: string, message: string) {
  const [left, right] = [found, wanted].map(text => new Set(text.split('\n'))) as [Set<string>, Set<string>]
  t.same(
    [...left].filter(line => !right.has(line)),
    [],
    `${message}: nothing is left over`,
  )
  t.same(
    [...right].filter(line => !left.has(line)),
    [],
    `${message}: nothing is missing`,
  )
  t.ok(found === wanted, message)
}

const listOf = (db: TestDatabase) => db.admin<{ hash: string; filename: string }[]>`
  select hash, filename from graphile_migrate.migrations order by filename`

/** The columns of a table, for a SELECT. */
async function columnsOf(db: TestDatabase, table: string) {
  return (await value(db.admin`
    select string_agg(format('%I', a.attname), ', ' order by a.attnum)
    from pg_attribute a where a.attrelid = ${table}::regclass and a.attnum > 0 and not a.attisdropped`)) as string
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
  t.equal(page, await rightsPage(fresh.admin), 'each role has the rights that it has in a new store')
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
      // 0.1.0 archived this day, and its manifest has not been read since.
      { state: 'dropped', row_count: '5', owns_its_columns: false },
      { state: 'dropped', row_count: '3', owns_its_columns: true },
      { state: 'dropped', row_count: '3', owns_its_columns: true },
    ],
  )
  await sql`call fleet.nightly()`
  t.match(await sql`select * from fleet.check() where status = 'fail'`, [])
})

t.test('an import that is under way continues after the upgrade', async t => {
  const db = await withStoreOf010(t)
  const day = daysAgo(4).slice(0, 10)
  await db.admin.unsafe(`
    create table public.old_heartbeats (device_id text, ts timestamptz);
    insert into public.old_heartbeats values ('a', '${day}T01:00Z');
    grant select, trigger on public.old_heartbeats to fleet_owner;
    insert into fleet.adoption_devices values ('public.old_heartbeats', 'a', 1)`)
  await db.admin`call fleet.adopt_table('public.old_heartbeats')`
  await migrateAgain(db)
  await db.admin.unsafe(`insert into public.old_heartbeats values ('a', '${day}T03:00Z')`)
  t.match(
    await db.sql`select device_id::int from fleet.device_heartbeats where ts >= ${`${day}T00:00Z`} order by ts`,
    [{ device_id: 1 }, { device_id: 1 }],
    'the trigger on the table still forwards heartbeats',
  )
  const dba = asRole(t, db, 'fleet_dba')
  await dba`call fleet.verify_import('public.old_heartbeats')`
  await dba`select fleet.confirm_import('public.old_heartbeats')`
  t.match(await dba`select state, rows_kept, rows_missing from fleet.import_progress`, [
    { state: 'confirmed', rows_kept: '2', rows_missing: '0' },
  ])
})

/** 0.1.0 called an import an adoption. */
async function importsTable({ admin }: TestDatabase) {
  return await value(admin`select coalesce(to_regclass('fleet.imports'), to_regclass('fleet.adoptions'))::text`)
}

t.test('an upgraded store has the schema of a new one, and keeps its data', async t => {
  const db = await withStoreOf010(t)
  const fresh = await withDatabase(t)
  const day = daysAgo(4).slice(0, 10)
  await db.admin.unsafe(`
    create table public.old_heartbeats (device_id text, ts timestamptz);
    insert into public.old_heartbeats values ('a', '${day}T01:00Z'), ('b', '${day}T02:00Z');
    grant select, trigger on public.old_heartbeats to fleet_owner;
    insert into fleet.adoption_devices values ('public.old_heartbeats', 'a', 1), ('public.old_heartbeats', 'b', 2)`)
  await db.admin`call fleet.adopt_table('public.old_heartbeats', p_forward => false)`
  const held = await partitionAt(db.sql, `${day}T01:00:00Z`)
  await db.sql`select fleet.hold_partition(${held}, 'evidence')`
  // A version may add columns.
  const oldStatus = await columnsOf(db, 'fleet.device_last_status')
  const oldHeartbeat = await columnsOf(db, 'fleet.device_heartbeats')
  const contents = async () => ({
    devices: await db.admin`
      select device_id, alias, cohort, token_hash, heartbeat_interval, enrolled_at, revoked_at from fleet.devices order by device_id`,
    gateways: await db.admin`select * from fleet.gateways`,
    commands: await db.admin`select * from fleet.device_commands order by command_id`,
    dispatches: await db.admin`select * from fleet.command_dispatch_log order by dispatch_id`,
    quarantine: await db.admin`select * from fleet.heartbeat_quarantine order by device_id`,
    statuses: await db.admin.unsafe(`select ${oldStatus} from fleet.device_last_status order by device_id`),
    audit: await db.admin`select * from fleet.settings_audit order by audit_id`,
    heartbeats: await db.admin.unsafe(`select ${oldHeartbeat} from fleet.device_heartbeats order by device_id`),
    counters: await db.admin`select * from fleet.counters where counter not like 'hb\\_webhook\\_%' order by counter`,
    events: await db.admin`select * from fleet.events where event <> 'columns.change' order by event_id`,
    settings: await db.admin`select retention, offline_after, store_ip, command_expires_after from fleet.settings`,
    partitions: await db.admin`
      select partition_name, state, row_count, archive_url, held_reason from fleet.hb_partitions order by 1`,
    cohorts: await db.admin`select * from fleet.cohorts`,
    imports: await db.admin.unsafe(`select source, state, rows_stored from ${(await importsTable(db)) as string}`),
  })
  const before = await contents()
  t.match(before, {
    devices: { length: 4 },
    commands: { length: 2 },
    quarantine: { length: 2 },
    heartbeats: { length: 2 },
    imports: [{ state: 'moved', rows_stored: '2' }],
    settings: [{ offline_after: '00:15:00', store_ip: 'prefix' }],
  })

  t.match(await migrateAgain(db), ['Upgraded the tables of 0.1.0', applied])
  t.same(
    (await listOf(db)).map(({ filename }) => filename),
    migrations.map(name => `${name.slice(0, 6)}.sql`),
  )
  const wanted = await schemaOf(fresh)
  t.match(wanted, /CREATE VIEW fleet\.device_status /)
  sameLines(t, await schemaOf(db), wanted, 'after 27 migrations')
  t.same(await contents(), before)
  t.match(
    await db.admin`
    select bool_and(relid_seal = fleet_guard.seal(relid)) as are_sealed from fleet.hb_partitions where relid is not null
    union all select bool_and(relid_seal = fleet_guard.seal(relid)) from fleet.imports
    union all select bool_and(relid_seal = fleet_guard.seal(relid)) from fleet_guard.partitions where relid is not null
  `,
    [{ are_sealed: true }, { are_sealed: true }, { are_sealed: true }],
  )
  t.equal(
    await value(db.admin`select string_agg(format('%I', c.name), ', ' order by c.attnum) from fleet.heartbeat_columns c`),
    await columnsOf(fresh, 'fleet.device_heartbeats'),
  )
  t.same(
    await db.admin`select detail from fleet.events where event = 'columns.change' order by event_id`,
    await fresh.admin`
      select format('added %s %s', a.attname, format_type(a.atttypid, a.atttypmod)) as detail
      from pg_attribute a
      where a.attrelid = 'fleet.device_heartbeats'::regclass and a.attnum > 0 and not a.attisdropped
        and not format('%I', a.attname) = any (${oldHeartbeat.split(', ')})
      order by a.attnum`,
    'days that were archived before lack the new columns',
  )

  const list = await listOf(db)
  t.notMatch((await migrateAgain(db)).join('\n'), /Upgraded|Applied/, 'the second time there is nothing to do')
  t.same(await listOf(db), list)
  sameLines(t, await schemaOf(db), wanted, 'after a second run')
  t.same(await contents(), before)
})

t.test('a column of the store named extra is not taken for the new one', async t => {
  const db = await withStoreOf010(t)
  const [device] = (await enroll(db.sql, 1)) as [number]
  await ingest(db.sql, [{ device_id: device, ts: daysAgo(1) }])
  await db.sql`alter table fleet.device_heartbeats add column extra text`
  await db.admin`update fleet.device_heartbeats set extra = 'mine'`
  const refused = await migrateAgain(db).catch((error: Error) => (error.cause ?? error) as Error & { hint?: string })
  t.match(refused, {
    code: 'FL422',
    message: 'fleet.device_heartbeats has a column extra of type text already, and the field needs one of type jsonb',
    hint: /rename column extra to own_extra/,
  })
  await db.sql`alter table fleet.device_heartbeats rename column extra to own_extra`
  await migrateAgain(db)
  await ingest(db.sql, [{ device_id: device, extra: { a: 1 } }])
  t.match(await db.sql`select own_extra, extra from fleet.device_heartbeats where device_id = ${device} order by ts`, [
    { own_extra: 'mine', extra: null },
    { own_extra: null, extra: { a: 1 } },
  ])
})

t.test('a store of a development version, with 28 migrations, is carried over too', async t => {
  const db = await withStoreOf010(t)
  await db.admin`delete from graphile_migrate.migrations`
  await db.admin`
    insert into graphile_migrate.migrations (hash, filename)
    select case n
        when 1 then 'sha1:3049aa638ec4482720c5bf9cff43c111ead20a1b' when 27 then 'sha1:0b4b26d6b47a7d2682253d5f4f36f7616f259278'
        when 28 then 'sha1:8aeca77ddc7515f65b0f5551c0df636aef3cebc9' else 'sha1:' || n
      end, to_char(n, 'FM000000') || '.sql'
    from generate_series(1, 28) n`
  t.match(await migrateAgain(db), ['Upgraded the tables of 0.1.0', applied])
  sameLines(t, await schemaOf(db), await schemaOf(await withDatabase(t)), 'in the end')
})

t.test('an upgrade that stopped half-way is finished by the next one', async t => {
  const db = await withStoreOf010(t)
  await db.admin.unsafe(await readFile(join(repository, 'sql/setup/guard.sql'), 'utf8'))
  await upgradeFrom010(asRole(t, db, 'fleet_owner', { TimeZone: 'UTC', search_path: 'pg_catalog, pg_temp' }))
  t.same(await listOf(db), [])
  t.match(await migrateAgain(db), [applied])
  sameLines(t, await schemaOf(db), await schemaOf(await withDatabase(t)), 'in the end')
})

t.test('a store with other migrations is refused and not changed', async t => {
  const db = await withStoreOf010(t)
  const everything = async () => ({
    schema: await schemaOf(db),
    list: await listOf(db),
    setup: await db.admin`
    select (select count(*)::int from pg_proc where pronamespace = 'fleet_guard'::regnamespace) as functions,
      (select array_agg(evtname order by evtname) from pg_event_trigger) as triggers`,
  })
  const refused = async (ownerUrl: string | undefined, message: RegExp) => {
    const before = await everything()
    await t.rejects(migrate(db.url('postgres'), { log: () => {}, ...(ownerUrl && { ownerUrl }) }), { message })
    t.same(await everything(), before)
  }

  await db.admin`insert into graphile_migrate.migrations (hash, filename) values ('sha1:unknown', '000028.sql')`
  await refused(
    undefined,
    /^this database has migrations that no released .* 000028\.sql with hash sha1:unknown\..* Nothing was changed\.$/,
  )
  await db.admin`delete from graphile_migrate.migrations where filename > '000014.sql'`
  for (const ownerUrl of [undefined, db.url('fleet_owner')]) {
    await refused(ownerUrl, /newest migration is 000014\.sql.* Check out 0\.1\.0 \(commit c27bf5cd0.* Nothing was changed\.$/)
  }
})
