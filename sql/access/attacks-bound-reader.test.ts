// Attacks by the login of a partner, who may see one cohort. What it may use is read from the catalog, so that a view or function that
// is granted later is attacked, too.
import { text } from 'node:stream/consumers'
import type { Sql } from 'postgres'
import t, { type Test } from 'tap'
import { withDatabase } from '../../testing/database.ts'
import { value } from '../../testing/fleet.ts'
import { createReader, login, OTHER, OWN, SECRET, twoCompanies } from '../../testing/readers.ts'

interface Relation {
  name: string
  columns: string[]
  isTable: boolean
}

/** The relations outside the catalogs of Postgres that this role may read, with the columns. */
async function readable(admin: Sql, role: string) {
  return admin<Relation[]>`
    select c.oid::regclass::text as name, c.relkind in ('r', 'p') as "isTable", array(
      select a.attname::text from pg_attribute a
      where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and has_column_privilege(${role}, c.oid, a.attnum, 'select')
      order by a.attnum
    ) as columns
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'p', 'v', 'm', 'f', 'S') and n.nspname not in ('pg_catalog', 'information_schema') and n.nspname !~ '^pg_toast'
      and has_schema_privilege(${role}, n.oid, 'usage')
      and (c.relkind <> 'S' and has_any_column_privilege(${role}, c.oid, 'select') or c.relkind = 'S' and has_sequence_privilege(${role}, c.oid, 'select, usage, update'))
    order by 1`
}

/** Whether text of a row is of the other company. */
const isOther = (row: string) => row.includes(OTHER) || new RegExp(`(?<![\\d.])${SECRET}(?![\\d.])`).test(row)

const list = (columns: string[]) => columns.map(name => `"${name}"`).join(', ')

/** As a login sees it: the rows, without the columns that change while the test looks. */
async function rowsOf(sql: Sql, { name, columns }: Relation, where = '') {
  const steady = columns.filter(column => !/^(seconds_since|counted_at|window_start)$/.test(column))
  const rows = await sql.unsafe<{ row: string }[]>(
    `select row_to_json(r)::text as row from (select ${list(steady)} from ${name} ${where}) r`,
  )
  return rows.map(({ row }) => row).sort()
}

async function withReader(t: Test) {
  const db = await withDatabase(t)
  const ids = await twoCompanies(db)
  const reader = await createReader(t, db, [OWN])
  return { db, ...ids, reader, relations: await readable(db.admin, reader.name) }
}

t.test('in everything that a reader may read there are exactly the rows of its cohorts', async t => {
  const { db, own, reader, relations } = await withReader(t)
  t.ok(relations.length >= 20, `${relations.length} relations`)
  t.same(
    relations.map(({ name }) => name).filter(name => !name.startsWith('fleet.')),
    [],
    'all of them in schema fleet',
  )
  for (const relation of relations) {
    const { name, columns } = relation
    if (name === 'fleet.settings') {
      t.same(columns, ['offline_after'], 'of the settings only what the views need')
      continue
    }
    const all = await rowsOf(db.admin, relation)
    const seen = await rowsOf(reader.sql, relation)
    if (name === 'fleet.fleet_silence' || name === 'fleet.fleet_summary') {
      t.same(
        (await reader.sql.unsafe<{ cohort: string; devices: number }[]>(`select cohort, devices::int from ${name}`)).map(row => [
          row.cohort,
          row.devices,
        ]),
        [...(name === 'fleet.fleet_summary' ? [['(all)', 3]] : []), [OWN, 3]],
        name,
      )
      t.ok(all.some(isOther), `${name}: others see the other company there`)
      continue
    }
    const byDevice = columns.includes('device_id')
    const expected = await rowsOf(db.admin, relation, byDevice ? `where device_id in (${own.join()})` : `where cohort = '${OWN}'`)
    t.ok(expected.length > 0, `${name}: the reader has rows there`)
    // The log of commands has only numbers.
    t.ok(all.some(isOther) || name === 'fleet.command_dispatch_log', `${name}: others see the other company there`)
    t.ok(all.length > expected.length, `${name}: more rows`)
    t.same(seen, expected, name)
    t.notOk(seen.some(isOther), `${name}: nothing of the other company`)
    t.equal(await value(reader.sql.unsafe(`select count(*)::int from ${name}`)), expected.length, `${name}: count`)
  }
})

t.test('nothing else may be read: no other relation, no column, no partition, whoever makes it', async t => {
  const { db, own, reader, relations } = await withReader(t)
  await db.sql`call fleet.maintain()`
  await db.sql`select fleet.create_partitions(current_date - 200, current_date - 195)`
  await db.admin`select partman.reapply_privileges('fleet.device_heartbeats')`
  await db.sql.unsafe(`alter table fleet.device_heartbeats add column color text`)
  await db.admin`update fleet.settings set retention = '60 days'`
  await db.sql`call fleet.nightly()`
  t.same(
    (await reader.sql<{ id: number }[]>`select device_id::int as id from fleet.device_heartbeats order by 1`).map(({ id }) => id),
    own,
    'after a night, which makes and retires partitions, the heartbeats are still those of its cohorts',
  )
  t.match(await db.sql`select * from fleet.check_readers()`, [{ status: 'ok' }])
  const refused = await db.admin<{ name: string; partition: boolean }[]>`
    select c.oid::regclass::text as name, c.relispartition as partition from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'p', 'v', 'm', 'f') and n.nspname not in ('pg_catalog', 'information_schema') and n.nspname !~ '^pg_toast'
      and c.oid::regclass::text <> all (${relations.map(({ name }) => name)}::text[])`
  t.ok(refused.filter(row => row.partition).length > 50, 'there are partitions')
  t.ok(refused.filter(row => row.name.startsWith('fleet_detached.')).length > 0, 'also retired ones')
  for (const { name } of refused) await t.rejects(reader.sql.unsafe(`select from ${name}`), { code: '42501' }, name)
  for (const { name, isTable, columns } of await readable(db.admin, reader.name)) {
    if (!isTable) continue
    const hidden = await db.admin<{ column: string }[]>`
      select attname::text as column from pg_attribute
      where attrelid = ${name}::regclass and attnum > 0 and not attisdropped and attname <> all (${columns}::text[])`
    for (const { column } of hidden)
      await t.rejects(reader.sql.unsafe(`select "${column}" from ${name}`), { code: '42501' }, `${name}.${column}`)
  }
  await t.resolves(
    reader.sql`select color from fleet.device_heartbeats limit 1`,
    'a new column of the heartbeats is granted at once',
  )
  await t.rejects(reader.sql`select token_hash from fleet.devices`, { code: '42501' })
})

t.test('nothing may be written or locked', async t => {
  const { db, reader, relations } = await withReader(t)
  await reader.sql`set default_transaction_read_only = off`
  for (const { name, columns } of relations) {
    const column = columns[0]!
    for (const statement of [
      `insert into ${name} ("${column}") values (null)`,
      `insert into ${name} select * from ${name}`,
      `update ${name} set "${column}" = null`,
      `delete from ${name}`,
      `truncate ${name}`,
      `do $$ begin lock table ${name} in share mode; end $$`,
      `select from ${name} for update`,
      `copy ${name} ("${column}") from stdin`,
      `alter table ${name} disable row level security`,
      `drop policy seen_cohorts on ${name}`,
      `create policy mine on ${name} using (true)`,
      `comment on table ${name} is 'x'`,
    ])
      await t.rejects(reader.sql.unsafe(statement), { code: /^(42501|42809|42704|428C9|0A000|55000)$/ }, statement)
  }
  for (const statement of [
    'create table public.mine ()',
    'create temporary table mine ()',
    'create schema mine',
    'create function public.mine() returns int language sql return 1',
    `do $$ begin perform fleet.audit('x', 'x'); end $$`,
    'call fleet.nightly()',
    `alter role fleet_cohort_reader login`,
    `grant fleet_reader to ${reader.name}`,
    `grant select on fleet.devices to public`,
    `alter role ${reader.name} bypassrls`,
    `alter role ${reader.name} connection limit 100`,
    'select pg_advisory_lock(1)',
    'select lo_create(0)',
  ])
    await t.rejects(reader.sql.unsafe(statement), { code: '42501' }, statement)
  t.equal(await value(db.admin`select count(*)::int from fleet.devices`), 6)
})

t.test('no error tells a value of another cohort, in whatever form and by whatever plan', async t => {
  const { db, reader, relations } = await withReader(t)
  const nobody = await createReader(t, db, ['nobody'], 'nobody')
  // A failing conversion puts the value into the message. If it ran before the policy, it would fail for a row of the other company.
  const conversions = (column: string) => [
    `"${column}"::text::int4range is null`,
    `("${column}"::text || 'x')::timestamptz is null`,
  ]
  const forms = (name: string, condition: string, columns: string[]) => [
    `select count(*)::int from ${name} where ${condition}`,
    `select count(*)::int from (select * from (select ${list(columns)} from ${name}) a where ${condition} offset 0) b`,
    `select count(*)::int from ${name} where case when true then ${condition} end`,
    `select count(*)::int from generate_series(1, 2) g cross join lateral (select 1 from ${name} where ${condition}) l`,
    `select count(*)::int from (select min(1) from ${name} group by ${condition}) s`,
    `select count(*)::int from generate_series(1, 1) g where exists (select from ${name} where ${condition})`,
    `select count(*)::int from (select from ${name} order by ${condition} limit 5) s`,
  ]
  let failing = 0
  const leaks: string[] = []
  for (const [settings, ways] of [
    [[], 7],
    [['enable_seqscan', 'enable_hashjoin', 'enable_nestloop'], 3],
    [['enable_indexscan', 'enable_bitmapscan', 'enable_indexonlyscan', 'enable_mergejoin', 'enable_hashagg'], 3],
  ] as const) {
    if (settings.length > 0)
      for (const one of [reader, nobody]) {
        for (const setting of settings) await one.sql.unsafe(`set ${setting} = off`)
        await one.sql`set join_collapse_limit = 1`
        await one.sql`set from_collapse_limit = 1`
      }
    for (const { name, columns } of relations) {
      if (name === 'fleet.settings') continue
      for (const column of columns)
        for (const condition of conversions(column))
          for (const form of forms(name, condition, columns).slice(0, ways)) {
            const [own, none] = await Promise.all([reader.sql, nobody.sql].map(sql => sql.unsafe(form).then(String, describe)))
            failing += own!.startsWith('22') ? 1 : 0
            // Who sees no device sees no row, so nothing is converted. Only these two have a row of their own, for (all).
            const hasRow = ['fleet.fleet_summary', 'fleet.fleet_silence'].includes(name)
            if (isOther(own!) || isOther(none!) || (!hasRow && none!.startsWith('22'))) leaks.push(`${form}: ${own}, ${none}`)
          }
    }
    for (const one of [reader, nobody]) await one.sql`reset all`
  }
  t.same(leaks, [])
  t.ok(failing > 500, `${failing} of them failed for a row of the reader itself, so the conversions do fail`)
  const [error] = await Promise.all([
    db.admin.unsafe(`select from fleet.device_status where alias::int4range is null`).then(String, describe),
  ])
  t.ok(isOther(error), 'and somebody who sees everything is told a value of the other company')
})

/** All that an error says. */
function describe(error: unknown) {
  const { code, message, detail, hint, where } = error as Record<string, string | undefined>
  return [code, message, detail, hint, where].join(' ')
}

t.test('no role, setting or name changes whose rows a reader sees', async t => {
  const { db, reader } = await withReader(t)
  const seen = async (sql: Sql) => [
    (await sql`select distinct cohort from fleet.device_status`).map(row => row.cohort as string),
    Number(await value(sql`select count(*) from fleet.device_heartbeats`)),
    (await sql`select cohort from fleet.fleet_silence`).map(row => row.cohort as string),
  ]
  const normal = [[OWN], 3, [OWN]]
  t.same(await seen(reader.sql), normal)
  await reader.sql`set default_transaction_read_only = off`
  for (const statement of [
    'set role fleet_reader',
    'set role fleet_owner',
    'set role postgres',
    'set session authorization fleet_reader',
    'set session authorization postgres',
    `select set_config('role', 'fleet_reader', false)`,
    `select set_config('session_authorization', 'fleet_reader', false)`,
    `set is_superuser = on`,
    `alter role ${reader.name} rename to fleet_reader_2`,
    `set session_replication_role = replica`,
    'create function pg_temp.seen_cohorts() returns text[] language sql return null',
    `load 'auto_explain'`,
  ])
    await t.rejects(reader.sql.unsafe(statement), { code: /^(42501|22023|55P02|42602|0LP01|0A000)$/ }, statement)
  t.same(await seen(reader.sql), normal)

  for (const statement of [
    'set role fleet_cohort_reader',
    'set role none',
    'set session authorization default',
    'reset session authorization',
    `set search_path = pg_temp, fleet, public, pg_catalog`,
    `set search_path = ''`,
    `set plan_cache_mode = force_generic_plan`,
    `set default_transaction_isolation = 'serializable'`,
    'set parallel_setup_cost = 0',
    'set parallel_tuple_cost = 0',
    'set min_parallel_table_scan_size = 0',
    'set force_parallel_mode = on',
    'set row_security = on',
    `set application_name = 'nexmdm report'`,
    `select set_config('fleet.seen_cohorts', '{borealis}', false)`,
  ]) {
    await reader.sql.unsafe(statement).catch(() => {}) // not every version has each of them
    t.same(await seen(reader.sql), normal, statement)
  }
  await reader.sql`set row_security = off`
  await t.rejects(reader.sql`select * from fleet.device_status`, { code: '42501', message: /row-level security/ })
  await reader.sql`reset row_security`

  // What a role stores for its next logins.
  for (const setting of [`row_security = off`, `search_path = pg_temp, fleet`, `statement_timeout = 0`])
    await reader.sql.unsafe(`alter role ${reader.name} set ${setting}`)
  const next = login(t, db, reader.name, reader.password)
  await t.rejects(next`select * from fleet.device_status`, { code: '42501', message: /row-level security/ })
  await next`set row_security = on`
  t.same(await seen(next), normal)
  // Postgres notices that this one will be refused, and refuses it at the login.
  await reader.sql.unsafe(`alter role ${reader.name} set role = 'fleet_reader'`).catch(() => {})
  const last = login(t, db, reader.name, reader.password)
  t.notMatch(
    await last`select session_user, current_user`.then(
      rows => String(rows[0]!.current_user),
      () => '',
    ),
    'fleet_reader',
  )
})

t.test('statistics, COPY and cursors show no more than a query', async t => {
  const { reader } = await withReader(t)
  t.same(await reader.sql`select * from pg_stats where schemaname like 'fleet%' and tablename <> 'settings'`, [])
  t.same(await reader.sql`select * from pg_stats_ext`, [])
  const copied = await text(await reader.sql`copy fleet.devices (alias) to stdout`.readable())
  t.match(copied, /acme-down/)
  t.notOk(isOther(copied))
  await reader.sql.begin('read only', async one => {
    await one`declare everything cursor for select * from fleet.device_status`
    t.equal((await one`fetch all everything`).length, 3)
  })
})

t.test('every function that a reader may call tells nothing of other cohorts', async t => {
  const { db, other, reader } = await withReader(t)
  const routines = await db.admin<{ name: string; types: string[]; definer: boolean }[]>`
    select p.oid::regproc::text as name, array(select format_type(a, null) from unnest(p.proargtypes) a) as types, p.prosecdef as definer
    from pg_proc p
    join pg_namespace n on n.oid = p.pronamespace
    where n.nspname not in ('pg_catalog', 'information_schema') and has_schema_privilege(${reader.name}, n.oid, 'usage')
      and has_function_privilege(${reader.name}, p.oid, 'execute')
    order by 1`
  t.same(
    routines.filter(row => row.definer).map(row => row.name),
    ['fleet.counts_hold', 'fleet.marks_hold', 'fleet.seen_cohorts', 'fleet.silence_at'],
    "with the owner's rights: two that answer yes or no, and two that answer with the cohorts of the login",
  )
  const example: Record<string, string> = {
    bigint: String(other[0]),
    integer: '60',
    boolean: 'true',
    text: `'${OTHER}'`,
    interval: `'1 minute'`,
    'timestamp with time zone': 'now()',
  }
  for (const { name, types } of routines) {
    const call = `${name}(${types.map(type => `${example[type] ?? 'null'}::${type}`).join(', ')})`
    const rows = await reader.sql.unsafe(`select to_jsonb(r)::text as row from ${call} r`)
    t.notOk(
      rows.some(row => isOther(row.row as string)),
      call,
    )
  }
  t.ok(
    (await db.admin`select to_jsonb(r)::text as row from fleet.silence_at(now()) r`).some(row => isOther(row.row as string)),
    'others are told the silence of all cohorts',
  )
  const refused = await db.admin<{ call: string }[]>`
    select format('%s(%s)', p.oid::regproc, array_to_string(array(select 'null::' || format_type(a, null) from unnest(p.proargtypes) a), ', ')) as call
    from pg_proc p
    where p.pronamespace = 'fleet'::regnamespace and p.prokind = 'f' and p.prorettype <> 'trigger'::regtype
      and not has_function_privilege(${reader.name}, p.oid, 'execute')`
  t.ok(refused.length > 200)
  for (const { call } of refused) await t.rejects(reader.sql.unsafe(`select ${call}`), { code: /42501|0A000/ }, call)
})

t.test('everybody else sees what they saw, whoever they are', async t => {
  const { db, relations } = await withReader(t)
  // A login of its own, and one that is a member without inheriting, which may become a member of the other role.
  for (const role of ['fleet_reader', 'fleet_dba'] as const) {
    const name = `${db.name}_${role}`
    await db.admin.unsafe(`create role ${name} login password 'x' in role ${role}`)
    t.teardown(() => db.admin.unsafe(`drop role ${name}`))
    for (const sql of [login(t, db, name, 'x'), login(t, db, role, new URL(db.url(role)).password)]) {
      t.equal(await value(sql`select fleet.seen_cohorts()`), null)
      for (const relation of relations) {
        if (relation.name === 'fleet.settings') continue
        t.same(await rowsOf(sql, relation), await rowsOf(db.admin, relation), `${role}: ${relation.name}`)
      }
    }
  }
  const server = login(t, db, 'fleet_server', new URL(db.url('fleet_server')).password)
  for (const name of [
    'device_status',
    'devices_offline',
    'fleet_summary',
    'recent_changes',
    'fleet_silence',
    'unreadable_fields',
  ]) {
    const relation = relations.find(one => one.name === `fleet.${name}`)!
    t.same(await rowsOf(server, relation), await rowsOf(db.admin, relation), `fleet_server: ${name}`)
  }
})

t.test('a login that has the rights but is not in fleet.readers sees nothing, with or without INHERIT', async t => {
  const { db, relations } = await withReader(t)
  for (const inherit of ['inherit', 'noinherit']) {
    const name = `${db.name}_${inherit}`
    await db.admin.unsafe(`create role ${name} login password 'x' ${inherit} in role fleet_cohort_reader`)
    t.teardown(() => db.admin.unsafe(`drop role ${name}`))
    const sql = login(t, db, name, 'x')
    await sql`set role fleet_cohort_reader`
    t.same(await sql`select fleet.seen_cohorts() as cohorts`, [{ cohorts: [] }])
    for (const relation of relations) {
      if (['fleet.settings', 'fleet.fleet_summary'].includes(relation.name)) continue
      t.same(await rowsOf(sql, relation), [], `${inherit}: ${relation.name}`)
    }
    t.match(await sql`select cohort, devices from fleet.fleet_summary`, [{ cohort: '(all)', devices: '0' }])
  }
})
