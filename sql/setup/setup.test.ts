import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Sql } from 'postgres'
import t, { type Test } from 'tap'
import { withDatabase } from '../../testing/database.ts'
import { asRole, daysAgo, partitionAt, value } from '../../testing/fleet.ts'
import { repository } from '../../lib/repository.ts'

const sqlFolder = join(repository, 'sql')
const DAY = 86_400_000

t.test('setup creates partitions for the days of the retention, today and premake_days ahead', async t => {
  const { sql } = await withDatabase(t)
  const [made] = await sql`
    select count(*)::int as partitions, min(range_start) as first, max(range_end) as last,
      bool_and(extract(epoch from range_start)::bigint % 86400 = 0) as at_utc_midnight
    from fleet.attached_partitions()
  `
  // The day of the setup: the template may have been made before midnight.
  const today = ((await value(sql`select min(created_at) from fleet.hb_partitions`)) as Date).setUTCHours(0, 0, 0, 0)
  t.same(made, {
    partitions: 90 + 14 + 1,
    first: new Date(today - 90 * DAY),
    last: new Date(today + 15 * DAY),
    at_utc_midnight: true,
  })
  t.equal(await value(sql`select count(*) from fleet.hb_partitions where state = 'active'`), '105')
  t.equal(
    await value(sql`
    select count(*) from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = 'fleet.device_heartbeats'::regclass and pg_get_expr(c.relpartbound, c.oid) = 'DEFAULT'
  `),
    '0',
    'there is no default partition',
  )
  t.match(await sql`select * from partman.part_config where parent_table = 'fleet.device_heartbeats'`, [
    {
      premake: 14,
      infinite_time_partitions: true,
      retention: null,
      retention_schema: 'fleet_detached',
      inherit_privileges: true,
      template_table: 'fleet.device_heartbeats_template',
    },
  ])
  t.equal(await value(sql`select fleet.set_up_partitions()`), 0, 'a second setup changes nothing')
})

t.test('every new partition has the dedupe key and the index for reads', async t => {
  const { sql } = await withDatabase(t)
  t.same(
    await sql`
    select count(*)::int as partitions,
      count(*) filter (where i.indisunique and pg_get_indexdef(i.indexrelid) like '%(device_id, date_bin(%')::int as dedupe,
      count(*) filter (where pg_get_indexdef(i.indexrelid) like '%(device_id, ts DESC)')::int as newest_first
    from fleet.attached_partitions() a
    join pg_index i on i.indrelid = a.relid
  `,
    [{ partitions: 210, dedupe: 105, newest_first: 105 }],
  )
})

t.test("a device's last day is read from one partition", async t => {
  const { sql } = await withDatabase(t)
  const today = new Date().toISOString().slice(0, 10)
  const plan = await sql.unsafe(`
    explain select * from fleet.device_heartbeats
    where device_id = 7 and ts >= '${today}T00:00Z' and ts < '${today}T00:00Z'::timestamptz + interval '1 day'
    order by ts desc
  `)
  const scans = plan.map(row => row['QUERY PLAN'] as string).filter(line => / on device_heartbeats/.test(line))
  t.equal(scans.length, 1, scans.join('\n'))
  t.match(scans[0], await partitionAt(sql, `${today}T12:00Z`))
})

for (const zone of ['America/New_York', 'Asia/Kolkata', 'Pacific/Apia']) {
  t.test(`bounds stay UTC midnights, without a gap, in a session in ${zone}`, async t => {
    const db = await withDatabase(t)
    const dba = asRole(t, db, 'fleet_dba', { TimeZone: zone, DateStyle: 'SQL, DMY' })
    await dba`select fleet.set_premake(34)`
    await dba`call fleet.maintain()`
    const today = daysAgo(0).slice(0, 10)
    await dba`select fleet.create_partitions(${today}::date - 120, ${today}::date - 80)`
    await dba`call fleet.nightly(null, '100 days')`
    t.same(await dba`select * from fleet.run_steps(2) where not ok`, [])
    await madeAhead(t, db.sql, 34, Date.parse(`${today}T00:00Z`))
    t.same(await db.sql`select * from fleet.check() where check_name like 'partition%' and status <> 'ok'`, [])
  })
}

/**
 * Tests that each UTC day from the oldest one to at least `days` after today has one partition. pg_partman may create a few more:
 * it counts the days ahead by age(), in which each month has 30 days, and rounds them.
 */
async function madeAhead(t: Test, sql: Sql, days: number, today: number) {
  const bounds = await sql<{ range_start: Date; range_end: Date }[]>`select * from fleet.attached_partitions()`
  const first = bounds[0]?.range_start.getTime() ?? NaN
  t.equal(first % DAY, 0, 'a UTC midnight')
  t.same(
    bounds.map(row => [row.range_start.getTime(), row.range_end.getTime()]),
    bounds.map((_, day) => [first + day * DAY, first + (day + 1) * DAY]),
    'each partition begins where the previous one ends and holds one day',
  )
  const ahead = ((bounds.at(-1)?.range_end.getTime() ?? NaN) - today) / DAY - 1
  t.ok(ahead >= days && ahead <= days + 5, `${ahead} days ahead, ${days} were requested`)
}

t.test('setup chooses monthly partitions when the cadence says so', async t => {
  const { sql, admin } = await withDatabase(t)
  await admin.unsafe(`
    alter event trigger fleet_guard_drop disable;
    set role fleet_owner;
    drop table fleet.device_heartbeats cascade;
    delete from partman.part_config;
    delete from fleet.hb_partitions;
    create table fleet.device_heartbeats (like fleet.device_heartbeats_template) partition by range (ts);
    update fleet.settings set cadence = 'monthly', premake_days = 3;
    select fleet.set_up_partitions('2026-03-31T23:00Z');
  `)
  const partitions = await sql<{ range_start: Date }[]>`
    select range_start from fleet.attached_partitions() where range_start < '2026-05-01'
  `
  t.same(
    partitions.map(row => row.range_start.toISOString().slice(0, 10)),
    [
      // 90 days before 31 March 2026 is 30 December.
      '2025-12-01',
      '2026-01-01',
      '2026-02-01',
      '2026-03-01',
      '2026-04-01',
    ],
  )
})

t.test('every object has a comment', async t => {
  const { sql } = await withDatabase(t)
  const partitions = sql`
    select relid from fleet.attached_partitions()
    union all select i.indexrelid from fleet.attached_partitions() a join pg_index i on i.indrelid = a.relid
  `
  t.same(
    await sql`
    select 'relation' as kind, c.oid::regclass::text as name
    from pg_class c
    where c.relnamespace in ('fleet'::regnamespace, 'fleet_detached'::regnamespace, 'fleet_guard'::regnamespace)
      and c.relkind in ('r', 'p', 'v', 'm', 'S', 'i', 'I')
      and c.oid not in (${partitions})
      and obj_description(c.oid, 'pg_class') is null
      -- Indexes of constraints are described by the constraint's name, sequences of identity columns by the column.
      and not exists (select from pg_constraint k where k.conindid = c.oid)
      and not exists (select from pg_depend d where d.objid = c.oid and d.deptype = 'i' and c.relkind = 'S')
    union all
    select 'column', c.oid::regclass || '.' || a.attname
    from pg_class c
    join pg_attribute a on a.attrelid = c.oid
    where c.relnamespace in ('fleet'::regnamespace, 'fleet_guard'::regnamespace)
      and c.relkind in ('r', 'p')
      and a.attnum > 0 and not a.attisdropped
      and col_description(c.oid, a.attnum) is null
    union all
    select 'routine', p.oid::regprocedure::text
    from pg_proc p
    where p.pronamespace in ('fleet'::regnamespace, 'fleet_guard'::regnamespace) and obj_description(p.oid, 'pg_proc') is null
    union all
    select 'trigger', g.tgname
    from pg_trigger g
    join pg_class c on c.oid = g.tgrelid
    where c.relnamespace = 'fleet'::regnamespace and not g.tgisinternal and g.tgparentid = 0
      and obj_description(g.oid, 'pg_trigger') is null
    union all
    select 'policy', format('%s on %s', p.polname, p.polrelid::regclass)
    from pg_policy p
    where obj_description(p.oid, 'pg_policy') is null
    union all
    select 'schema', n.nspname from pg_namespace n
    where n.nspname like 'fleet%' and obj_description(n.oid, 'pg_namespace') is null
    union all
    select 'role', r.rolname from pg_roles r
    where r.rolname like 'fleet%' and shobj_description(r.oid, 'pg_authid') is null
    union all
    select 'event trigger', e.evtname from pg_event_trigger e
    where e.evtname like 'fleet%' and obj_description(e.oid, 'pg_event_trigger') is null
  `,
    [],
  )
})

t.test('every call for DBAs and every view for dashboards shows an example in its comment', async t => {
  const { sql } = await withDatabase(t)
  t.same(
    await sql`
    select p.proname as name
    from pg_proc p
    where p.pronamespace = 'fleet'::regnamespace
      and has_function_privilege('fleet_dba', p.oid, 'execute')
      and obj_description(p.oid, 'pg_proc') not like all (array['%Example: %', 'Old name of %'])
      -- These are called by views, or by maintenance with the rights of its caller.
      and p.proname not like 'check\\_%'  -- the parts of check()
      and p.proname not in (
        'audit_unlock', 'find_session', 'begin_run', 'end_run', 'run_next_step', 'run_planned_steps', 'is_night_missed', 'job_history',
        'metric_values', 'silence_metrics', 'marks_hold', 'archive_columns', 'checksum_expression', 'sync_partitions', 'wake_archiver', 'run_steps', 'begin_import',
        'begin_verification', 'begin_abandoning', 'import_step', 'end_import', 'run_import'
      )
    union all
    select c.relname from pg_class c
    where c.relnamespace = 'fleet'::regnamespace and c.relkind = 'v' and has_table_privilege('fleet_reader', c.oid, 'select')
      and obj_description(c.oid, 'pg_class') not like all (array['%Example: %', 'Old name of %'])
    order by 1
  `,
    [],
  )
})

t.test('the migrations made exactly what sql/ defines', async t => {
  const db = await withDatabase(t)
  const owner = asRole(t, db, 'fleet_owner')
  await owner`set search_path = pg_catalog`
  const files = await includedFiles()
  const before = await objects(owner)
  for (const file of files) await owner.unsafe(await textOf(file))
  t.same(await objects(owner), before, 'running the files in sql/ changes nothing, so no file was edited without a migration')

  const names = files
    .filter(file => !/^setup\/|\.(trigger|policies)\.sql$/.test(file))
    .map(file => file.replace(/.*\/|(\.view)?\.sql$/g, ''))
  const made = await owner<{ name: string }[]>`
    select proname as name from pg_proc where pronamespace = 'fleet'::regnamespace
    union all select relname from pg_class where relnamespace = 'fleet'::regnamespace and relkind = 'v'
    order by 1
  `
  t.same(
    made.map(row => row.name),
    names.sort(),
    'each function, procedure and view has a file of its name',
  )
})

/** The files of the replaceable objects: functions first, then triggers and policies, then views, then the grants. */
async function includedFiles() {
  const files = (await readdir(sqlFolder, { recursive: true })).filter(
    // What is in distributed/ takes the place of others, in a store on Citus only.
    file => file.endsWith('.sql') && !file.endsWith('.inc.sql') && !/^(setup|distributed)\//.test(file),
  )
  const rank = (file: string) => (file.endsWith('.view.sql') ? 2 : /\.(trigger|policies)\.sql$/.test(file) ? 1 : 0)
  return [...files.sort((a, b) => rank(a) - rank(b) || a.localeCompare(b)), 'setup/grants.sql']
}

/** The text of a file, with the files that it includes, as graphile-migrate writes it. */
async function textOf(file: string): Promise<string> {
  const text = await readFile(join(sqlFolder, file), 'utf8')
  const included = [...text.matchAll(/^--!include (.*)$/gm)].map(([line, name]) => ({ line, name: name! }))
  const texts = await Promise.all(included.map(async ({ line, name }) => ({ line, name, inner: await textOf(name) })))
  return texts.reduce(
    (whole, { line, name, inner }) => whole.replace(line, () => `--! Included ${name}\n${inner.trim()}\n--! EndIncluded ${name}`),
    text,
  )
}

async function objects(sql: Sql) {
  return await sql`
    select p.oid::regprocedure::text as name, pg_get_functiondef(p.oid) as definition,
      obj_description(p.oid, 'pg_proc') as comment, p.proacl::text[] as acl
    from pg_proc p where p.pronamespace = 'fleet'::regnamespace
    union all
    select c.oid::regclass::text, concat_ws(' ', pg_get_viewdef(c.oid), c.reloptions, c.relrowsecurity),
      obj_description(c.oid, 'pg_class'), c.relacl::text[]
    from pg_class c where c.relnamespace = 'fleet'::regnamespace and c.relkind in ('v', 'r', 'p') and not c.relispartition
    union all
    select g.tgname, pg_get_triggerdef(g.oid), obj_description(g.oid, 'pg_trigger'), null
    from pg_trigger g join pg_class c on c.oid = g.tgrelid
    where c.relnamespace = 'fleet'::regnamespace and not g.tgisinternal and g.tgparentid = 0
    union all
    select format('%s %s', p.polname, p.polrelid::regclass),
      concat_ws(' ', p.polpermissive, p.polcmd, p.polroles::regrole[], pg_get_expr(p.polqual, p.polrelid)),
      obj_description(p.oid, 'pg_policy'), null
    from pg_policy p
    order by 1
  `.then(rows => rows.map(row => ({ ...row, acl: (row.acl as string[] | null)?.sort() })))
}
