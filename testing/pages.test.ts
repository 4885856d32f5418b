// Runs the commands of README.md and docs/ as they are printed. Other files test the rest: sql/checks/runbook.test.ts the
// commands of RUNBOOK.md and the SQL of all pages, local/start.test.ts README.md's first commands, two-servers.test.ts
// docs/two-servers.md, add-a-field.test.ts docs/add-a-field.md, and docker/alertmanager/alertmanager.test.ts docs/alert-me.md.
import { cp, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { makeDirectory } from './archiver.ts'
import { repository } from '../lib/repository.ts'
import { prometheus } from './prometheus.ts'
import { withDatabase } from './database.ts'
import { value } from './fleet.ts'
import { blocksOf, readPage, runShell, section, withArchivedDays } from './pages.ts'
import { shellTools } from './shell-tools.ts'

/** The commands of a page, with the port of the test's server instead of the usual one. */
async function readCommands(page: string) {
  return (await readPage(page)).replaceAll('http://127.0.0.1:8080', 'http://127.0.0.1:$PORT')
}

t.test('a test runs the shell commands of each page', async t => {
  const docs = (await readdir(join(repository, 'docs'))).filter(name => name.endsWith('.md')).map(name => `docs/${name}`)
  const pages = ['README.md', 'RUNBOOK.md', 'CONTRIBUTING.md', ...docs]
  const found: string[] = []
  for (const page of pages) if (blocksOf(await readPage(page), 'sh').length > 0) found.push(page)
  t.same(found.sort(), [
    'CONTRIBUTING.md',
    'README.md',
    'RUNBOOK.md',
    'docs/add-a-field.md',
    'docs/agents.md',
    'docs/alert-me.md',
    'docs/api.md',
    'docs/install.md',
    'docs/operate.md',
    'docs/two-servers.md',
    'docs/upgrade.md',
  ])
})

t.test('the commands of docs/agents.md enroll a device, send heartbeats and a command', { skip: shellTools.without }, async t => {
  const { db, env } = await withArchivedDays(t, [])
  const page = await readCommands('docs/agents.md')
  const [openapi = '', enrolling = '', single = '', odd = '', batch = '', commands = '', agent = '', ...others] = blocksOf(
    page,
    'sh',
  )
  t.same(others, [])
  t.match(agent, /^TOKEN=nxd_… sh docs\/agent\.sh$/m, 'which server/agent.test.ts runs')
  const run = async (block: string, TOKEN?: string) => {
    const { code, output } = await runShell(block, { ...env, TOKEN })
    t.equal(code, 0, `${block}\n${output}`)
    return output
  }
  t.match(await run(openapi), /"openapi":"3\.1\.\d"/)
  const [, token] = /"token":"(nxd_[^"]+)"/.exec(await run(enrolling)) ?? []
  t.match(await run(single, token), /^\{"result":"stored","ts":"[^"]+","next_interval_s":\d+\}/)
  t.match(await run(odd, token), /^\{"result":"stored","ts":"[^"]+","next_interval_s":\d+,"ignored":\["batery_pct"\]\}/)
  t.match(
    await run(batch, token),
    /"result":"stored".*"result":"rejected".*"ts".*"stored":1,"duplicate":0,"quarantined":0,"rejected":1/,
  )
  t.match(await run(commands, token), /^\{"command_id":\d+\}.*"command":"set_volume"/s)
  t.match(await db.sql`select status from fleet.device_status where alias = 'lobby-tablet-7'`, [{ status: 'online' }])
  t.same(await db.sql`select * from fleet.heartbeat_quarantine`, [])
})

t.test('the examples of docs/api.md get the statuses that the page shows', { skip: shellTools.without }, async t => {
  const { db, env } = await withArchivedDays(t, [])
  // The device and the command of the examples.
  await db.admin`select setval(pg_get_serial_sequence('fleet.devices', 'device_id'), 41)`
  await db.admin`select setval(pg_get_serial_sequence('fleet.device_commands', 'command_id'), 6)`
  const [device] = await db.sql<{ device_id: string; token: string }[]>`select * from fleet.create_device('lobby-tablet-7')`
  t.equal(device!.device_id, '42')
  t.match(await db.sql`select fleet.send_command(42, 'reboot') as command_id`, [{ command_id: '7' }])
  const variables = {
    URL: `http://127.0.0.1:${env.PORT}`,
    TOKEN: device!.token,
    GATEWAY_TOKEN: String(await value(db.sql`select fleet.create_gateway_token('warehouse-3')`)),
    ADMIN_KEY: env.ADMIN_KEY,
  }
  // The heartbeats of the examples are of a fixed day; here they are of the last minutes.
  const shift = Date.now() - Date.parse('2026-01-31T12:00:30Z')
  const now = (text: string) =>
    text.replaceAll(/2026-01-31T\d\d:\d\d:\d\dZ/g, at => new Date(Date.parse(at) + shift).toISOString())
  const examples = [...(await readPage('docs/api.md')).matchAll(/^```sh\n(curl [^]*?)^```\n([^]*?)(?=^```sh|^### )/gm)]
  t.ok(examples.length >= 15, `${examples.length} examples`)
  for (const [, command = '', rest = ''] of examples) {
    const expected = /^answers (\d{3}):$/m.exec(rest)?.[1] ?? /^\| (\d{3}) \|/m.exec(rest)?.[1]
    const { output } = await runShell(now(command).replace('curl ', `command curl -sS -o /dev/null -w '%{http_code}' `), {
      ...env,
      ...variables,
    })
    t.equal(output, expected, command)
  }
})

t.test(
  'the commands of docs/operate.md give CSV, and list, verify, restore and query archives',
  { timeout: 300_000 },
  async t => {
    const { db, env } = await withArchivedDays(t, [100])
    const page = await readCommands('docs/operate.md')
    const [fleet = '', devices = '', ...others] = blocksOf(section(page, 'Get CSV'), 'sh')
    t.same(others, [])
    const tables = await runShell(fleet, { ...env, READER_URL: db.url('fleet_reader') })
    t.equal(tables.code, 0, tables.output)
    t.match(tables.output, /^cohort,devices,.*\n\(all\),1,[^]*^day,alias,availability_pct$/m)
    const answer = await runShell(devices, env)
    t.equal(answer.code, 0, answer.output)
    t.match(answer.output, /^device_id,alias,/)

    const [archive = '', ...more] = blocksOf(section(page, 'The archive'), 'sh')
    t.same(more, [])
    const { code, output } = await runShell(archive, env)
    t.equal(code, 0, `${archive}\n${output}`)
  },
)

t.test('the commands of docs/operate.md configure Prometheus', { skip: prometheus.without }, async t => {
  const directory = await makeDirectory(t)
  await cp(join(repository, 'docker'), join(directory, 'docker'), { recursive: true })
  const [block = '', ...others] = blocksOf(section(await readPage('docs/operate.md'), 'Prometheus and Grafana'), 'sh')
  t.same(others, [])
  const { code, output } = await runShell(block, { ADMIN_KEY: 'an-admin-key-for-tests' }, { cwd: directory })
  t.equal(code, 0, output)
})

t.test(
  'the commands of docs/install.md prepare a database for an owner who is not a superuser',
  { timeout: 120_000 },
  async t => {
    const db = await withDatabase(t, 'template0')
    // Roles belong to the cluster, which other tests use too, so this role has a name of its own.
    const role = `deployer_${process.pid}`
    await db.admin.unsafe(`create role ${role} login password 'secret'`)
    t.teardown(async () => {
      const other = await withDatabase(t)
      await other.admin.unsafe(`drop role ${role}`)
    })
    const [block = '', ...others] = blocksOf(await readPage('docs/install.md'), 'sh')
    t.same(others, [])
    const deployer = new URL(db.url('fleet_owner'))
    deployer.username = role
    deployer.password = 'secret'
    const { code, output } = await runShell(block.replace(/\bdeployer\b/, role), {
      ADMIN_URL: db.url('postgres'),
      DEPLOYER_URL: deployer.href,
    })
    t.equal(code, 0, output)
    t.match(output, /The database is up to date/)
    t.match(
      await db.admin`select has_function_privilege('fleet_server', 'fleet.ingest(json, timestamptz)', 'execute') as is_ready`,
      [{ is_ready: true }],
    )
  },
)

t.test('the commands of docs/upgrade.md run against a store', { timeout: 300_000 }, async t => {
  const { env } = await withArchivedDays(t, [])
  const blocks = blocksOf(await readPage('docs/upgrade.md'), 'sh')
  t.ok(blocks.length >= 3)
  for (const block of blocks) {
    const { code, output } = await runShell(block, env)
    t.equal(code, 0, `${block}\n${output}`)
  }
})
