// Attacks on the functions that make logins, which have the administrator's rights, by a stolen login of fleet_owner or fleet_dba.
import postgres from 'postgres'
import t, { type Test } from 'tap'
import { scramVerifier } from '../../local/scram.ts'
import { waitFor, withDatabase, type TestDatabase } from '../../testing/database.ts'
import { asRole, value } from '../../testing/fleet.ts'
import { createReader, dropAfter, login, OWN } from '../../testing/readers.ts'

const verifier = scramVerifier('guess')

/** All that Postgres stores of the roles that this test did not make itself. */
const rolesOf = ({ admin }: TestDatabase, names: string[]) =>
  admin`
    select r.rolname, r.rolsuper, r.rolcreaterole, r.rolcreatedb, r.rolreplication, r.rolbypassrls, r.rolcanlogin, r.rolconnlimit,
      r.rolpassword, shobj_description(r.oid, 'pg_authid') as comment, s.setconfig,
      array(select m.roleid::regrole::text from pg_auth_members m where m.member = r.oid order by 1) as member_of
    from pg_authid r
    left join pg_db_role_setting s on s.setrole = r.oid and s.setdatabase = 0
    where r.rolname = any (${names}::text[])
    order by 1`

async function makeRole(t: Test, { name, admin }: TestDatabase, suffix: string, options: string) {
  const role = `${name}_${suffix}`
  await admin.unsafe(`create role ${role} ${options}`)
  t.teardown(() => admin.unsafe(`drop role if exists ${role}`))
  return role
}

t.test('only fleet_owner may call them, and nobody may call those that check nothing', async t => {
  const { admin } = await withDatabase(t)
  t.same(
    await admin`
    select p.proname as name, array(
      select r.rolname::text from pg_roles r
      where r.rolname like 'fleet\_%' and has_function_privilege(r.oid, p.oid, 'execute') order by 1
    ) as roles
    from pg_proc p where p.pronamespace = 'fleet_guard'::regnamespace and p.proname ~ '_reader|reader_|verifier' and p.proname !~ 'overdue'
    order by 1`,
    [
      { name: 'create_reader', roles: ['fleet_owner'] },
      { name: 'drop_reader', roles: ['fleet_owner'] },
      { name: 'end_reader_sessions', roles: [] },
      { name: 'find_reader', roles: [] },
      { name: 'reader_mark', roles: ['fleet_owner'] },
      { name: 'require_verifier', roles: [] },
      { name: 'set_reader_password', roles: ['fleet_owner'] },
    ],
  )
})

t.test('no role that exists is changed, dropped, or given a password, whoever it belongs to', async t => {
  const db = await withDatabase(t)
  const { sql, name: database } = db
  const owner = sql
  const dba = asRole(t, db, 'fleet_dba')
  const roles = [
    'postgres',
    'fleet_owner',
    'fleet_dba',
    'fleet_reader',
    'fleet_cohort_reader',
    'pg_monitor',
    await makeRole(t, db, 'super', 'superuser login'),
    await makeRole(t, db, 'app', 'login'),
    // Looks like a reader, but was not made by create_reader().
    await makeRole(t, db, 'member', 'login in role fleet_cohort_reader'),
    await makeRole(t, db, 'elsewhere', 'login in role fleet_cohort_reader'),
    await makeRole(t, db, 'marked', 'login'),
  ]
  const mark = (await value(owner`select fleet_guard.reader_mark()`)) as string
  await db.admin.unsafe(`comment on role ${database}_elsewhere is '${mark.replace(database, 'another_store')}'`)
  await db.admin.unsafe(`comment on role ${database}_marked is '${mark}'`)
  const before = await rolesOf(db, roles)
  t.equal(before.length, roles.length)

  for (const role of roles) {
    const names = [role, role.toUpperCase(), `"${role}"`, ` ${role}`, `${role} `, `${role}\n`]
    for (const name of names) {
      const isTaken = name === role && !/^(fleet|pg)_/.test(role)
      await t.rejects(
        owner`select fleet_guard.create_reader(${name}, ${verifier})`,
        { code: isTaken ? 'FL409' : 'FL422' },
        `create ${JSON.stringify(name)}`,
      )
      t.equal(await value(owner`select fleet_guard.set_reader_password(${name}, ${verifier})`), false, `password of ${name}`)
      t.equal(await value(owner`select fleet_guard.drop_reader(${name})`), false, `drop ${name}`)
    }
    // The owner can write into its own table what it likes.
    await owner`insert into fleet.readers (reader, cohorts) values (${role}, array['acme'])`
    await t.rejects(dba`select fleet.renew_reader_password(${role})`, { code: /FL409|FL422/ }, `renew ${role}`)
    await dba`select fleet.drop_reader(${role})`
  }
  t.same(await rolesOf(db, roles), before)
  t.same(await db.admin`select session_user::text as name`, [{ name: 'postgres' }])
})

t.test('a role cannot be marked as made by create_reader() by those who could gain from it', async t => {
  const db = await withDatabase(t)
  const app = await makeRole(t, db, 'app', 'login')
  const { name, sql } = await createReader(t, db, [OWN])
  await sql`set default_transaction_read_only = off`
  const mark = (await value(db.sql`select fleet_guard.reader_mark()`)) as string
  for (const session of [db.sql, asRole(t, db, 'fleet_dba'), sql]) {
    for (const role of [app, name, 'fleet_reader'])
      await t.rejects(session.unsafe(`comment on role ${role} is '${mark}'`), { code: '42501' })
    await t.rejects(session.unsafe(`grant fleet_cohort_reader to ${app}`), { code: '42501' })
    await t.rejects(session.unsafe('create role mine'), { code: '42501' })
  }
})

t.test('only a verifier is accepted, so no password can get into a statement, and nothing behind it', async t => {
  const db = await withDatabase(t)
  const { name } = await createReader(t, db, [OWN])
  const before = await rolesOf(db, [name])
  for (const wrong of [
    null,
    '',
    'a password',
    `${verifier}' superuser --`,
    `${verifier} superuser`,
    `${verifier}\n`,
    ` ${verifier}`,
    verifier.replace('4096', '1'),
    verifier.replace('SCRAM-SHA-256', 'scram-sha-256'),
    'md5d41d8cd98f00b204e9800998ecf8427e',
    verifier.slice(0, -1),
  ]) {
    await t.rejects(db.sql`select fleet_guard.set_reader_password(${name}, ${wrong})`, { code: 'FL422' }, JSON.stringify(wrong))
    await t.rejects(db.sql`select fleet_guard.create_reader(${`${name}_2`}, ${wrong})`, { code: 'FL422' }, JSON.stringify(wrong))
  }
  t.same(await rolesOf(db, [name, `${name}_2`]), before)
})

t.test('a reader that was given more since is not passed on with a new password', async t => {
  const db = await withDatabase(t)
  const dba = asRole(t, db, 'fleet_dba')
  const app = await makeRole(t, db, 'app', 'nologin')
  const { name } = await createReader(t, db, [OWN])
  for (const attribute of ['superuser', 'createrole', 'createdb', 'replication', 'bypassrls']) {
    await db.admin.unsafe(`alter role ${name} ${attribute}`)
    const before = await rolesOf(db, [name])
    await t.rejects(dba`select fleet.renew_reader_password(${name})`, { code: 'FL002', message: /attribute/ }, attribute)
    await t.rejects(dba`select fleet.drop_reader(${name})`, { code: 'FL002' }, attribute)
    t.same(await rolesOf(db, [name]), before)
    await db.admin.unsafe(`alter role ${name} no${attribute}`)
  }
  await db.admin.unsafe(`grant ${app} to ${name}`)
  await t.rejects(dba`select fleet.renew_reader_password(${name})`, { code: 'FL002', message: new RegExp(`member of ${app}`) })
  await dba`select fleet.drop_reader(${name})`
  t.same(await rolesOf(db, [name]), [], 'but whoever has more may be shut out')
})

t.test('a reader that owns something is not dropped, and the error says what to do', async t => {
  const db = await withDatabase(t)
  const dba = asRole(t, db, 'fleet_dba')
  const { name, sql } = await createReader(t, db, [OWN])
  await db.admin.unsafe(`create table public.theirs (); alter table public.theirs owner to ${name}`)
  await sql`select 1`
  await t.rejects(dba`select fleet.drop_reader(${name})`, {
    code: 'FL002',
    detail: /theirs/,
    hint: new RegExp(`drop owned by ${name}`),
  })
  t.equal((await dba`select from fleet.reader_logins`).length, 1, 'nothing was done')
  t.same(await sql`select fleet.seen_cohorts() as cohorts`, [{ cohorts: [OWN] }])
  for (const statement of [`reassign owned by ${name} to postgres`, `drop owned by ${name}`]) await db.admin.unsafe(statement)
  await dba`select fleet.drop_reader(${name})`
})

t.test('an administrator with nothing but CREATEROLE, as in a managed Postgres, is enough', async t => {
  const db = await withDatabase(t)
  const { admin } = db
  const managed = await makeRole(t, db, 'managed', 'createrole login')
  await admin.unsafe(`grant fleet_cohort_reader to ${managed} with admin option`)
  for (const { signature } of await admin<{ signature: string }[]>`
    select p.oid::regprocedure::text as signature from pg_proc p
    where p.pronamespace = 'fleet_guard'::regnamespace and p.proname ~ '_reader|reader_|verifier'`)
    await admin.unsafe(`alter function ${signature} owner to ${managed}`)
  await admin.unsafe(`grant usage on schema fleet_guard to ${managed}`)
  t.teardown(() => admin.unsafe(`drop owned by ${managed}`))

  const notices: string[] = []
  const dba = postgres(db.url('fleet_dba'), { max: 1, onnotice: ({ message }) => notices.push(message ?? '') })
  t.teardown(() => dba.end({ timeout: 1 }))
  const name = `${db.name}_reader`
  dropAfter(t, db, name)
  const password = (await value(dba`select fleet.create_reader(${name}, array['acme'])`)) as string
  t.match(notices, [/only a superuser may set temp_file_limit/])
  const reader = login(t, db, name, password)
  t.same(await reader`select fleet.seen_cohorts() as cohorts`, [{ cohorts: [OWN] }])
  t.equal(await value(reader`show statement_timeout`), '30s')
  const pid = Number(await value(reader`select pg_backend_pid()`))
  notices.length = 0
  await dba`select fleet.drop_reader(${name})`
  t.match(notices, [new RegExp(`backend ${pid} is still connected`)], 'it may not end sessions, and says so')
  await dba`select pg_terminate_backend(${pid})`
  await waitFor(async () => (await admin`select from pg_stat_activity where pid = ${pid}`).length === 0)
  t.same(await admin`select from pg_roles where rolname = ${name}`, [])
})

t.test('without the functions of the administrator, the error says which file makes them', async t => {
  const db = await withDatabase(t)
  await db.admin`drop function fleet_guard.create_reader(text, text)`
  const dba = asRole(t, db, 'fleet_dba')
  for (const call of [`create_reader('x', array['x'])`, `renew_reader_password('x')`, `drop_reader('x')`])
    await t.rejects(dba.unsafe(`select fleet.${call}`), { code: 'FL002', hint: /sql\/setup\/reader-logins\.sql/ }, call)
})

t.test('a reader that disables and exceeds its time limits is ended', async t => {
  const db = await withDatabase(t)
  const { name, sql } = await createReader(t, db, [OWN])
  for (const setting of ['statement_timeout', 'idle_in_transaction_session_timeout']) await sql.unsafe(`set ${setting} = 0`)
  await sql.unsafe('begin')
  await sql.unsafe('select count(*) from fleet.devices')
  t.same(await db.sql`select * from fleet_guard.end_overdue_readers()`, [], 'not yet')
  t.match(await db.sql`select usename, is_ended from fleet_guard.end_overdue_readers(p_idle => '0')`, [
    { usename: name, is_ended: true },
  ])
})
