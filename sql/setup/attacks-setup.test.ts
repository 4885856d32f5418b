// Attacks by fleet_owner, which tries to become superuser when an administrator runs setup and migrations.
import { spawnSync } from 'node:child_process'
import t from 'tap'
import { plainEnv } from '../../local/config.ts'
import { repository } from '../../lib/repository.ts'
import { migrate, SETUP_FILES } from '../../cli/migrate.ts'
import { testCluster, withDatabase, type TestDatabase } from '../../testing/database.ts'
import { asRole, value } from '../../testing/fleet.ts'

const silent = { current: true, log: () => {} }

/** Creates functions of the attacker in a schema, as the owner could while it had the right to create schemas. */
async function plant(db: TestDatabase, schema: string) {
  await db.admin.unsafe(`
    create table if not exists fleet_guard.caught (who text, what text);
    grant insert on fleet_guard.caught to public; grant usage on schema fleet_guard to public;
    grant create on database ${db.name} to fleet_owner;
  `)
  await db.sql.unsafe(`create schema if not exists ${schema}; grant usage on schema ${schema} to public`)
  // Each matches some call better than the function in pg_catalog does.
  for (const [signature, result, original] of [
    ['format(text, name)', 'text', 'pg_catalog.format($1, variadic array[$2::text])'],
    ['format(text, text)', 'text', 'pg_catalog.format($1, variadic array[$2])'],
    ['to_regclass(text)', 'regclass', 'pg_catalog.to_regclass($1)'],
    ['to_regprocedure(text)', 'regprocedure', 'pg_catalog.to_regprocedure($1)'],
    ['to_regrole(text)', 'regrole', 'pg_catalog.to_regrole($1)'],
    ['has_schema_privilege(text, text, text)', 'boolean', 'pg_catalog.has_schema_privilege($1::name, $2, $3)'],
    ['pg_has_role(name, oid, text)', 'boolean', 'pg_catalog.pg_has_role($1, $2, $3)'],
    ['pg_try_advisory_lock(text)', 'boolean', 'true'],
  ] as const) {
    await db.sql.unsafe(`
      create or replace function ${schema}.${signature} returns ${result} language plpgsql as $f$
      begin
        insert into fleet_guard.caught values (session_user || '/' || current_user, '${signature}');
        return ${original};
      end $f$;
      grant execute on function ${schema}.${signature} to public
    `)
  }
}

const caught = (db: TestDatabase) =>
  db.admin<{ who: string; what: string }[]>`select distinct who, what from fleet_guard.caught order by 2`

t.test('setup and migrations call no function in a schema that is named after the administrator', async t => {
  const db = await withDatabase(t)
  await plant(db, 'postgres')
  // In schema public, too, as in a database that was created before PostgreSQL 15.
  await db.admin`grant create on schema public to public`
  await plant(db, 'public')
  t.equal(await value(db.admin`select format('%I', 'x'::name)`), 'x')
  t.same(
    (await caught(db)).map(({ who, what }) => [who, what]),
    [['postgres/postgres', 'format(text, name)']],
    'the attack works without a fixed search path',
  )
  await db.admin`truncate fleet_guard.caught`

  await migrate(db.url('postgres'), silent)
  t.same(await caught(db), [])
  const files = SETUP_FILES.flatMap(file => ['-f', `sql/setup/${file}`])
  const psql = spawnSync(`${testCluster().postgres.bin}/psql`, ['-X', '-v', 'ON_ERROR_STOP=1', ...files, db.url('postgres')], {
    cwd: repository,
    env: plainEnv(),
    encoding: 'utf8',
  })
  t.equal(psql.status, 0, psql.stderr)
  t.same(await caught(db), [], 'the psql command in docs/install.md calls none either')

  await t.rejects(
    db.sql`create schema another`,
    { code: '42501' },
    'the right to create schemas, which 0.1.0 had granted, is revoked',
  )
  await t.rejects(asRole(t, db, 'fleet_reader')`create table public.t ()`, { code: /42501|25006/ })
})

t.test('no ordinary role can create a schema, or an object in a schema in which a superuser runs scripts', async t => {
  const db = await withDatabase(t)
  for (const role of ['fleet_owner', 'fleet_server', 'fleet_archiver', 'fleet_reader', 'fleet_dba'] as const) {
    const sql = asRole(t, db, role)
    await sql`set default_transaction_read_only = off`
    for (const statement of [
      'create schema postgres',
      'create schema authorization current_user',
      'create schema if not exists fleet',
      'create extension tablefunc',
      'create function partman.f() returns int return 1',
      'create table partman.t ()',
      'create table public.t ()',
      'create function public.f() returns int return 1',
      'create function pg_catalog.f() returns int return 1',
      'create function fleet_guard.f() returns int return 1',
      'create function graphile_migrate.f() returns int return 1',
      'create trigger t before insert on fleet_guard.partitions for each row execute function fleet.record_last_status()',
      'create trigger t before insert on partman.part_config for each row execute function fleet.record_last_status()',
    ]) {
      // The owner's schema does not affect a superuser: no script runs there, and no search path contains it.
      if (role === 'fleet_owner' && statement.includes('graphile_migrate')) continue
      await t.rejects(sql.unsafe(statement), { code: /42501|42P06|0A000/ }, `${role}: ${statement}`)
    }
  }
})

t.test('each role that runs code has only pg_catalog in its search path', async t => {
  const db = await withDatabase(t)
  for (const role of ['fleet_owner', 'fleet_server', 'fleet_archiver'] as const) {
    t.equal(
      await value(asRole(t, db, role)`select setting from pg_settings where name = 'search_path'`),
      'pg_catalog, pg_temp',
      role,
    )
  }
})

t.test("if the owner can log in, its code does not run in the administrator's session", async t => {
  const db = await withDatabase(t)
  await db.admin`create table fleet_guard.caught (who text, what text)`
  await db.admin`grant insert on fleet_guard.caught to public`
  await db.admin`grant usage on schema fleet_guard to public`
  // graphile-migrate records migrations in tables that the owner owns.
  await db.sql.unsafe(`
    create function fleet.climb() returns trigger language plpgsql as $f$
    begin
      perform pg_catalog.set_config('role', 'none', false);
      insert into fleet_guard.caught values (session_user || '/' || current_user, tg_table_name);
      perform pg_catalog.set_config('role', 'fleet_owner', false);
      return new;
    end $f$;
    create trigger climb before insert or update on graphile_migrate.current for each row execute function fleet.climb();
  `)
  await migrate(db.url('postgres'), { ...silent, ownerUrl: db.url('fleet_owner') })
  t.same(
    (await caught(db)).map(({ who }) => who),
    ['fleet_owner/fleet_owner'],
  )
  await db.admin`truncate fleet_guard.caught`
  await migrate(db.url('postgres'), silent)
  t.same(
    (await caught(db)).map(({ who }) => who),
    ['postgres/postgres'],
    'without a login, its code does run there, as docs/threats.md says',
  )
})
