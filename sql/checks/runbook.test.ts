import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Sql } from 'postgres'
import t from 'tap'
import { withDatabase } from '../../testing/database.ts'
import { blocksOf, runShell, withArchivedDays } from '../../testing/pages.ts'
import { asRole } from '../../testing/fleet.ts'
import { repository } from '../../lib/repository.ts'

for (const [page, role] of [
  ['docs/operate.md', 'fleet_dba'],
  ['docs/audit.md', 'fleet_dba'],
  ['RUNBOOK.md', 'fleet_dba'],
  ['docs/views.md', 'fleet_reader'],
] as const) {
  t.test(`every SQL statement in ${page} runs, as ${role}`, async t => {
    const db = await withDatabase(t)
    const text = await readFile(join(repository, page), 'utf8')
    await oldApplication(db.admin)
    const blocks = blocksOf(text, 'sql')
    t.ok(blocks.length >= 2, `${blocks.length} blocks`)
    for (const statement of blocks
      .flatMap(block => block.split(/;\n/))
      .map(part => part.trim())
      .filter(Boolean)) {
      const session = asRole(t, db, statement.startsWith('-- as the owner of the table') ? 'postgres' : role)
      const error = await session.unsafe(statement).then(
        () => undefined,
        (caught: { code: string; message: string }) => caught,
      )
      await session.end({ timeout: 1 })
      // The examples name devices that this database does not have, which the store reports with FL404.
      t.ok(!error || error.code === 'FL404', `${statement}${error ? ` -- ${error.code} ${error.message}` : ''}`)
    }
  })
}

t.test('RUNBOOK.md, followed step by step, imports a plain table to the last row', async t => {
  const db = await withDatabase(t)
  await oldApplication(db.admin)
  const text = await readFile(join(repository, 'RUNBOOK.md'), 'utf8')
  const section = /## Import a plain table([\s\S]*?)\n## /.exec(text)?.[1] ?? ''
  const statements = [...section.matchAll(/```sql\n([\s\S]*?)```/g)]
    .flatMap(match => (match[1] ?? '').split(/;\n/))
    .map(part => part.trim())
  for (const statement of statements.filter(part => part && !part.includes('abandon_import'))) {
    await asRole(t, db, statement.startsWith('-- as the owner of the table') ? 'postgres' : 'fleet_dba').unsafe(statement)
  }
  t.match(await db.sql`select state, rows_kept, rows_missing, rows_changed from fleet.import_progress`, [
    { state: 'confirmed', rows_kept: '1000', rows_missing: '0', rows_changed: '0' },
  ])
  t.match(await db.sql`select count(*)::int as rows, count(battery_pct)::int as batteries from fleet.device_heartbeats`, [
    { rows: 1000, batteries: 1000 },
  ])
  t.match(await db.admin`select to_regclass('public.device_heartbeats') as table`, [{ table: null }])
})

/** The plain table of another application that the runbook imports; its devices have ids of their own. */
function oldApplication(admin: Sql) {
  return admin.unsafe(`
    create table public.devices (id text primary key default gen_random_uuid(), alias text unique);
    insert into public.devices (alias) select 'tablet-' || n from generate_series(1, 10) n;
    create table public.device_heartbeats (device_id text references public.devices, ts timestamp, battery integer);
    insert into public.device_heartbeats
    select id, now() at time zone 'utc' - n * interval '1 hour', n % 101 from public.devices, generate_series(1, 100) n;
  `)
}

t.test('every shell command in RUNBOOK.md runs, against a server and an archiver', { timeout: 300_000 }, async t => {
  // The days that the runbook restores.
  const { env } = await withArchivedDays(t, [93, 92, 91])
  const text = await readFile(join(repository, 'RUNBOOK.md'), 'utf8')
  const blocks = blocksOf(text, 'sh')
  t.ok(blocks.length >= 5, `${blocks.length} blocks`)
  for (const block of blocks) {
    const { code, output } = await runShell(block, env)
    t.equal(code, 0, `${block}\n${output}`)
    t.notMatch(output, /"status":[45]\d\d/, 'the server does not refuse it either')
  }
})

t.test('docs/views.md has a section, with an example, for each view that dashboards may read', async t => {
  const { sql } = await withDatabase(t)
  const text = await readFile(join(repository, 'docs/views.md'), 'utf8')
  const sections = [...text.matchAll(/^### (\w+)\n([^]*?)(?=^##|$(?![^]))/gm)].map(([, name, body]) => ({
    name: name!,
    body: body!,
  }))
  const views = await sql<{ name: string }[]>`
    select relname as name from pg_class
    where relnamespace = 'fleet'::regnamespace and relkind in ('v', 'm') and has_table_privilege('fleet_reader', oid, 'select')
      and obj_description(oid, 'pg_class') not like 'Old name of %'
    order by 1
  `
  t.same(
    sections.map(section => section.name).sort(),
    views.map(view => view.name),
  )
  for (const { name, body } of sections) t.match(body, new RegExp('```sql\\n[^`]*fleet\\.' + name + '\\b'), name)
})

t.test('the runbook has a section for each of its links', async t => {
  const text = await readFile(join(repository, 'RUNBOOK.md'), 'utf8')
  const anchors = [...text.matchAll(/^## (.*)$/gm)].map(match =>
    (match[1] ?? '').toLowerCase().replaceAll('?', '').replaceAll(' ', '-'),
  )
  for (const [, link = ''] of text.matchAll(/\]\(#(.*?)\)/g)) t.ok(anchors.includes(link), link)
})
