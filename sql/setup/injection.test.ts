import fc from 'fast-check'
import type { Sql } from 'postgres'
import t, { type Test } from 'tap'
import { hostileText } from '../../testing/hostile-text.ts'
import { withDatabase, type TestDatabase } from '../../testing/database.ts'
import { asRole, value } from '../../testing/fleet.ts'

/** The errors of a statement into which text was injected: bad syntax, or names of objects that do not exist. */
const BROKEN = new Set(['42601', '42703', '42883', '42P01', '42P02', '3F000', '22P02', 'XX000'])

/** Everything that hostile text could have created, changed or removed. */
async function inventory({ admin }: TestDatabase) {
  return await admin`
    select 'schema' as kind, nspname::text as name from pg_namespace where nspname !~ '^pg_(temp|toast)'
    -- Not those with ordinary names, which other tests make meanwhile on the same cluster.
    union all select 'role', rolname || rolsuper || rolcreaterole from pg_roles where rolname ~ '^(fleet|pg)_|^postgres$|[^a-z0-9_]'
    union all select 'function', oid::regprocedure::text || md5(prosrc) || proacl::text from pg_proc where pronamespace::regnamespace::text ~ '^fleet'
    union all select 'table', oid::regclass::text || relowner::regrole::text from pg_class
      where relnamespace::regnamespace::text in ('fleet', 'fleet_guard', 'public', 'partman') and relkind in ('r', 'p', 'v') and not relispartition
    union all select 'trigger', tgrelid::regclass || tgname::text || tgenabled::text from pg_trigger where tgparentid = 0
    union all select 'event trigger', evtname || evtenabled::text from pg_event_trigger
    order by 1, 2
  `
}

interface Routine {
  role: string
  call: string
  name: string
  types: string[]
}

/** Every function and procedure that a role may call and that takes text, JSON or the name of a table. */
async function routinesOf({ admin }: TestDatabase) {
  return await admin<Routine[]>`
    select distinct on (p.oid) r.rolname as role, case p.prokind when 'p' then 'call' else 'select' end as call,
      p.oid::regprocedure::text as name, array(select format_type(a, null) from unnest(p.proargtypes) a)::text[] as types
    from pg_proc p
    join pg_roles r on r.rolname in ('fleet_dba', 'fleet_server', 'fleet_archiver', 'fleet_reader') and has_function_privilege(r.oid, p.oid, 'execute')
    where p.pronamespace = 'fleet'::regnamespace and p.proargtypes::oid[] && array['text', 'json', 'jsonb', 'regclass']::regtype[]::oid[]
    order by p.oid, r.rolname
  `
}

/** A plausible value of each type, so that the function does not fail at once. */
function argument(type: string, text: string): unknown {
  switch (type) {
    case 'text':
      return text
    case 'jsonb':
    case 'json':
      return JSON.stringify({ [text]: text, ts: text, device_id: text, battery_pct: text })
    // In procedures this is a pause.
    case 'interval':
      return '0'
    case 'date':
    case 'timestamp with time zone':
      return new Date().toISOString()
    case 'boolean':
      return 'true'
    case 'bytea':
      return '\\x00'
    case 'regclass':
      return 'fleet.device_heartbeats'
    default:
      return type.endsWith('[]') ? '{1}' : '1'
  }
}

t.test('no text that is passed to a function is executed', { timeout: 300_000 }, async t => {
  const db = await withDatabase(t)
  const before = await inventory(db)
  const routines = await routinesOf(db)
  t.ok(routines.length > 40, `${routines.length} functions`)
  const sessions = new Map<string, Sql>()
  const as = (role: string) =>
    sessions.get(role) ?? sessions.set(role, asRole(t, db, role as 'fleet_dba', { statement_timeout: '2s' })).get(role)!
  const partition = (await value(db.sql`select partition_name from fleet.hb_partitions order by range_start limit 1`)) as string
  let calls = 0

  await fc.assert(
    fc.asyncProperty(
      fc.constantFrom(...routines),
      fc.array(hostileText, { minLength: 12, maxLength: 12 }),
      fc.nat(2),
      async (routine, texts, known) => {
        const { role, call, name, types } = routine
        let next = 0
        // Sometimes the name of an existing partition, so that the call gets further.
        const values = types.map((type, n) =>
          type === 'text' && n === 0 && known === 0 ? partition : argument(type, texts[next++ % 12]!),
        )
        const placeholders = types.map((type, n) => `$${n + 1}::text::${type}`)
        const sql = as(role)
        const statement = `${call} ${call === 'call' ? '' : '* from '}${name.slice(0, name.indexOf('('))}(${placeholders.join(', ')})`
        if (call === 'select') await sql`begin`
        calls++
        try {
          await sql.unsafe(statement, values as string[])
        } catch (error) {
          const { code, message } = error as { code: string; message: string }
          if (BROKEN.has(code)) throw new Error(`${name}: ${code} ${message}`, { cause: error })
        }
        if (call === 'select') await sql`rollback`
      },
    ),
    { numRuns: 300, endOnFailure: true },
  )

  t.comment(`${calls} calls`)
  t.same(await inventory(db), before, 'nothing was created, changed or removed')
})

/** Names have at most 63 bytes. */
const hostileName = hostileText.map(text => cut(text)).filter(name => name.trim() !== '')

function cut(text: string) {
  let name = ''
  for (const character of text) {
    if (Buffer.byteLength(name + character) > 63) break
    name += character
  }
  return name
}

t.test('a partition with any name can be registered, restored, held and released', { timeout: 300_000 }, async t => {
  const db = await withDatabase(t)
  const before = await inventory(db)
  const archiver = asRole(t, db, 'fleet_archiver')
  const dba = asRole(t, db, 'fleet_dba')
  let days = 400
  await fc.assert(
    fc.asyncProperty(hostileName, hostileText, async (name, reason) => {
      const start = new Date(Math.floor(Date.now() / 86_400_000 - days++) * 86_400_000)
      const end = new Date(start.getTime() + 86_400_000)
      if ((await value(db.sql`select count(*) from fleet.hb_partitions where partition_name = ${name}`)) !== '0') return
      // The column names come from a manifest and can be any text, too.
      const columns = [
        { name: 'ts', type: 'timestamp with time zone' },
        { name: 'received_at', type: 'timestamp with time zone' },
        { name: 'device_id', type: 'bigint' },
        { name, type: 'text' },
      ]
      const day = start.toISOString().slice(0, 10)
      const register = (root: string) => archiver`select fleet.register_archive(
      ${name}, ${start}, ${end}, 0, 0, null, null,
      ${`${root}/device_heartbeats/date=${day}/device_heartbeats_${day.replaceAll('-', '')}.parquet`}, ${'ab'.repeat(32)}, 1, ${archiver.json(columns)})`
      await t.rejects(register(reason), { code: 'FL422' }, 'text instead of a URL')
      await register('file:///archive')
      await dba`select fleet.request_restore(${start}::date)`
      const [claimed] = await archiver`select * from fleet.claim_restore('worker')`
      t.match(claimed, { partition_name: name })
      const table = (await value(archiver`select fleet.begin_restore(${name}, 'worker')`)) as string
      t.equal(await value(archiver`select count(*) from ${archiver.unsafe(table)}`), '0')
      await archiver`select fleet.finish_restore(${name}, 'worker')`
      t.equal(await value(db.sql`select state from fleet.hb_partitions where partition_name = ${name}`), 'restored')
      await dba`select fleet.hold_partition(${name}, ${reason.trim() || 'x'})`
      await dba`select fleet.release_partition(${name})`
      // Its remedies contain these names; here it only must not fail.
      await dba`select * from fleet.check()`
    }),
    { numRuns: 12, endOnFailure: true },
  )
  t.same(await inventory(db), before)
})

async function importTable(t: Test, db: TestDatabase, schema: string, table: string, columns: [string, string]) {
  const name = `${quoted(schema)}.${quoted(table)}`
  await db.admin.unsafe(`
    create schema if not exists ${quoted(schema)};
    create table ${name} (${quoted(columns[0])} timestamptz, ${quoted(columns[1])} bigint);
    insert into ${name} values (now() - interval '1 hour', 1);
    grant usage on schema ${quoted(schema)} to fleet_owner, fleet_dba;
    grant select, trigger on ${name} to fleet_owner, fleet_dba`)
  const before = await inventory(db)
  const dba = asRole(t, db, 'fleet_dba')
  const oid = (await value(db.admin`select ${name}::regclass::oid::text`)) as string
  const map = JSON.stringify({ ts: columns[0], device_id: columns[1] })
  await dba`select * from fleet.import_plan(${oid}::text::oid::regclass, ${map}::text::jsonb)`
  await dba.unsafe(`call fleet.import_table($1::text::oid::regclass, 'enroll', $2::text::jsonb, p_forward => false)`, [oid, map])
  await dba.unsafe('call fleet.verify_import($1::text::oid::regclass)', [oid])
  await dba.unsafe('select fleet.confirm_import($1::text::oid::regclass)', [oid]).catch((error: unknown) => {
    // An import that cannot be confirmed yet raises an error with a code of the store.
    if (!/^FL/.test((error as { code: string }).code)) throw error
  })
  await dba`select * from fleet.check()`
  await dba`select * from fleet.import_progress`
  const after = (await inventory(db)).filter(({ kind, name }) => kind !== 'trigger' || !String(name).includes(table))
  t.same(
    after,
    before.filter(({ kind, name }) => kind !== 'trigger' || !String(name).includes(table)),
  )
}

function quoted(name: string) {
  return `"${name.replaceAll('"', '""')}"`
}

t.test('a table with any names of its schema, itself and its columns can be imported', { timeout: 300_000 }, async t => {
  const db = await withDatabase(t)
  const evil = [
    "'; create table public.pwned(); --",
    '"; create table public.pwned(); --',
    '$$ %I %s %L %1$s \\',
    'a\nb\'";--/*',
  ] as const
  await importTable(t, db, evil[0], evil[1], [evil[2], evil[3]])
  t.equal(await value(db.admin`select to_regclass('public.pwned')`), null)
})
