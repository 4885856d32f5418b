import { spawn } from 'node:child_process'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Sql } from 'postgres'
import t, { type Test } from 'tap'
import { archiverEnv, daysAgo, makeDirectory, partitionOf } from '../../testing/archiver.ts'
import { freePort } from '../../local/cluster.ts'
import { plainEnv } from '../../local/config.ts'
import { spawnNode, waitFor, withDatabase } from '../../testing/database.ts'
import { asRole, enroll } from '../../testing/fleet.ts'

const root = join(import.meta.dirname, '../..')

for (const [page, role] of [
  ['README.md', 'fleet_dba'],
  ['RUNBOOK.md', 'fleet_dba'],
  ['docs/views.md', 'fleet_reader'],
] as const) {
  t.test(`every SQL statement in ${page} runs, as ${role}`, async t => {
    const db = await withDatabase(t)
    const text = await readFile(join(root, page), 'utf8')
    await oldApplication(db.admin)
    const blocks = [...text.matchAll(/```sql\n([\s\S]*?)```/g)].map(match => match[1] ?? '')
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
      // The examples name devices that this database does not have: the store's own words say so.
      t.ok(!error || error.code === 'FL404', `${statement}${error ? ` -- ${error.code} ${error.message}` : ''}`)
    }
  })
}

t.test('RUNBOOK.md, followed step by step, imports a plain table to the last row', async t => {
  const db = await withDatabase(t)
  await oldApplication(db.admin)
  const text = await readFile(join(root, 'RUNBOOK.md'), 'utf8')
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
  // The days that it brings back.
  const { env } = await withArchivedDays(t, [93, 92, 91])
  const text = await readFile(join(root, 'RUNBOOK.md'), 'utf8')
  const blocks = shellBlocks(text)
  t.ok(blocks.length >= 5, `${blocks.length} blocks`)
  for (const block of blocks) {
    const { code, output } = await runShell(block, env)
    t.equal(code, 0, `${block}\n${output}`)
    t.notMatch(output, /"status":[45]\d\d/, 'nor does the server refuse')
  }
})

t.test(
  'every shell command in README.md that speaks to the server or the archive runs as it is printed',
  { timeout: 300_000 },
  async t => {
    const { db, env } = await withArchivedDays(t, [100])
    const text = (await readFile(join(root, 'README.md'), 'utf8')).replaceAll('http://127.0.0.1:8080', 'http://127.0.0.1:$PORT')
    const posting = shellBlocks(section(text, 'Post heartbeats')).filter(block => !block.includes('docs/agent.sh'))
    t.equal(posting.length, 4)
    const [first = '', ...others] = posting
    const [enrolling = '', beating = ''] = first.split('\n\n')
    const { output: device } = await runShell(enrolling, env)
    const [, TOKEN] = /"token":"(nxd_[^"]+)"/.exec(device) ?? []
    const answers: string[] = []
    for (const block of [beating, ...others]) {
      const { code, output } = await runShell(block, { ...env, TOKEN })
      t.equal(code, 0, `${block}\n${output}`)
      answers.push(output)
    }
    t.match(answers[0], /^\{"result":"stored","ts":"[^"]+","next_interval_s":60\}/)
    t.match(
      answers[1],
      /"result":"stored".*"result":"rejected".*"battery_pct".*"stored":1,"duplicate":0,"quarantined":0,"rejected":1/,
    )
    t.match(answers[2], /^\{"command_id":\d+\}.*"command":"set_volume"/s)
    t.match(await db.sql`select status from fleet.device_status where alias = 'lobby-tablet-7'`, [{ status: 'online' }])
    t.same(await db.sql`select * from fleet.heartbeat_quarantine`, [])

    const archive = shellBlocks(section(text, 'Run it for years'))
    t.equal(archive.length, 1)
    for (const block of archive) {
      const { code, output } = await runShell(block, env)
      t.equal(code, 0, `${block}\n${output}`)
    }
  },
)

/** A store with a server and an archiver whose days of so long ago are archived and dropped, and the variables that a shell needs for it. */
async function withArchivedDays(t: Test, ago: number[]) {
  const db = await withDatabase(t)
  // As npm start does.
  const [device] = (await enroll(db.sql, 1)) as [number]
  for (const day of ago.map(daysAgo)) {
    await db.sql`select fleet.create_partitions(${day}::date, ${day}::date)`
    await db.admin`insert into fleet.device_heartbeats (ts, device_id) select ${day}::date + n * interval '1 minute', ${device} from generate_series(1, 500) n`
    await db.sql`select fleet.archive_partition(${await partitionOf(db.sql, day)})`
  }
  const directory = await makeDirectory(t)
  const port = await freePort(true)
  const env = {
    ...archiverEnv(db, directory),
    DATABASE_URL: db.url('postgres'),
    NEW_DATABASE_URL: (await withDatabase(t, 'template0')).url('postgres'),
    ADMIN_KEY: 'an-admin-key-for-tests',
    PORT: String(port),
    WORKERS: '1',
  }
  await spawnNode(t, 'archiver/main.ts', { env })
  await spawnNode(t, 'server/main.ts', { env, ready: `http://127.0.0.1:${port}/readyz` })
  await waitFor(async () => (await db.sql`select from fleet.hb_partitions where state = 'dropped'`).length === ago.length)
  return { db, env }
}

function section(text: string, title: string) {
  return (
    text
      .slice(text.indexOf(`\n## ${title}\n`))
      .slice(1)
      .split('\n## ')[0] ?? ''
  )
}

function shellBlocks(text: string) {
  return [...text.matchAll(/```sh\n([\s\S]*?)```/g)].map(match => match[1] ?? '')
}

t.test('docs/views.md has a section, with an example, for each view that dashboards may read', async t => {
  const { sql } = await withDatabase(t)
  const text = await readFile(join(root, 'docs/views.md'), 'utf8')
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

/** Runs lines of shell in the repository, to the first that fails; curl fails on an answer that is an error. */
function runShell(command: string, env: Record<string, string | undefined>) {
  return new Promise<{ code: number | null; output: string }>((resolve, reject) => {
    // eslint-disable-next-line no-restricted-syntax -- the command is a page of ours
    const shell = spawn('bash', ['-c', `set -eo pipefail; curl() { command curl --fail-with-body "$@"; }\n${command}`], {
      cwd: root,
      env: { ...plainEnv(), ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    let output = ''
    for (const stream of [shell.stdout, shell.stderr])
      stream.on('data', (chunk: Buffer) => {
        output += chunk.toString()
      })
    shell.once('error', reject)
    shell.once('close', code => resolve({ code, output }))
  })
}

t.test('the runbook has a section for each of its links', async t => {
  const text = await readFile(join(root, 'RUNBOOK.md'), 'utf8')
  const anchors = [...text.matchAll(/^## (.*)$/gm)].map(match => (match[1] ?? '').toLowerCase().replaceAll(' ', '-'))
  for (const [, link = ''] of text.matchAll(/\]\(#(.*?)\)/g)) t.ok(anchors.includes(link), link)
})
