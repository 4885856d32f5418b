import { execFile, spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { readFile, stat } from 'node:fs/promises'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { promisify } from 'node:util'
import t, { type Test } from 'tap'
import { blocksOf, readPage, runShell } from '../testing/pages.ts'
import { freePort } from './cluster.ts'
import { plainEnv } from './config.ts'
import { withAuthority } from '../testing/certificates.ts'
import { waitFor, withClone, withDatabase } from '../testing/database.ts'
import { shellTools } from '../testing/shell-tools.ts'

const run = promisify(execFile)

interface Started {
  output: () => string
  /**
   * Pastes a printed command into a shell and returns the output. curl runs by itself, psql after the line that reads the
   * settings.
   */
  paste: (program: 'curl' | 'psql', env?: Record<string, string>) => Promise<string>
  signal: (signal: NodeJS.Signals) => void
  exited: Promise<number | null>
}

/** Runs npm start in a clone, with an almost empty environment. */
async function npmStart(t: Test, clone: string, env: Record<string, string> = {}, ready = /Ctrl-C stops/): Promise<Started> {
  const child = spawn('npm', ['start'], {
    cwd: clone,
    env: { PATH: plainEnv().PATH, HOME: clone, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let output = ''
  child.stdout.on('data', (chunk: Buffer) => {
    output += chunk.toString()
  })
  child.stderr.on('data', (chunk: Buffer) => {
    output += chunk.toString()
  })
  const exited = new Promise<number | null>(resolve => child.once('close', resolve))
  let hasEnded = false
  void exited.then(() => {
    hasEnded = true
  })
  t.teardown(async () => {
    if (!hasEnded) child.kill('SIGTERM')
    await exited
  })
  await waitFor(async () => hasEnded || ready.test(output), {
    timeoutMs: 90_000,
    what: () => `npm start; it printed:\n${output}`,
  })
  const paste = async (program: string, more: Record<string, string> = {}) => {
    const command = new RegExp(`^ {2}${program} .*?[^\\\\]$`, 'ms').exec(output)?.[0]
    if (!command) throw new Error(`no ${program} line was printed:\n${output}`)
    const settings = program === 'psql' ? /^ {2}set -a; .*$/m.exec(output)?.[0] : undefined
    const { stdout } = await run('sh', ['-c', [settings, command].filter(Boolean).join('\n')], {
      cwd: '/',
      env: { PATH: plainEnv().PATH, ...more, ...(env.DATABASE_URL !== undefined && { DATABASE_URL: env.DATABASE_URL }) },
    })
    return stdout
  }
  return { output: () => output, paste, signal: signal => child.kill(signal), exited }
}

/** The processes whose command line names the clone. */
async function processes(clone: string) {
  const { stdout } = await run('ps', ['-eo', 'pid=,args='])
  return stdout.split('\n').filter(line => line.includes(clone))
}

/** The token of the device in the printed curl command. */
function token(output: string) {
  return /Bearer (nxd_\w+)'/.exec(output)?.[1] ?? ''
}

const clone = await withClone(t)

t.test('DATABASE_URL set: that database is used and no cluster is made', { skip: shellTools.without }, async t => {
  const db = await withDatabase(t, 'template0')
  const port = await freePort(true)
  const started = await npmStart(t, clone, { DATABASE_URL: db.url('postgres'), PORT: String(port), ADMIN_KEY: 'k'.repeat(32) })
  t.match(JSON.parse(await started.paste('curl')), { result: 'stored' })
  t.match(await started.paste('psql'), /demo-1/)
  t.match(started.output(), `Ops page    http://127.0.0.1:${port}/\n`)
  t.match(started.output(), /Admin key +the one in ADMIN_KEY/)
  t.notMatch(started.output(), 'k'.repeat(32), 'the key from the environment is not printed')
  t.notOk(existsSync(join(clone, '.local/pg')))
  started.signal('SIGTERM')
  t.equal(await started.exited, 0)
})

t.test('with a certificate the server speaks HTTPS, and the printed commands do', { skip: shellTools.without }, async t => {
  const db = await withDatabase(t, 'template0')
  const { caFile, issue } = await withAuthority(t)
  const { cert, key } = await issue('here')
  const port = await freePort(true)
  const env = { DATABASE_URL: db.url('postgres'), PORT: String(port), TLS_CERT: cert, TLS_KEY: key, ADMIN_KEY: 'k'.repeat(32) }
  const started = await npmStart(t, clone, env)
  t.match(started.output(), `Ops page    https://127.0.0.1:${port}/\n`)
  t.match(JSON.parse(await started.paste('curl', { CURL_CA_BUNDLE: caFile })), { result: 'stored' })
  await t.rejects(started.paste('curl'), { message: /certificate/ }, 'an authority that nobody trusts')
  const { stdout } = await run('npm', ['run', 'check'], {
    cwd: clone,
    env: { PATH: plainEnv().PATH, HOME: clone, ...env },
  }).catch((error: { stdout: string }) => error)
  t.match(stdout, /pool_health +\d+ of \d+ connections in use/)
  started.signal('SIGTERM')
  t.equal(await started.exited, 0)
})

t.test('wrong settings are named together, and nothing is made', async t => {
  const started = await npmStart(t, clone, { PORT: '80800', ARCHIVE_URL: 'ftp://x', DATABASE_URL: 'mysql://secret' })
  t.equal(await started.exited, 2)
  t.match(started.output(), /^ {2}PORT: .*80800/m)
  t.match(started.output(), /^ {2}ARCHIVE_URL: /m)
  t.match(started.output(), /^ {2}DATABASE_URL: /m)
  t.notMatch(started.output(), 'secret')
  const other = await npmStart(t, clone, { ADMIN_KEY: 'short', LOG_LEVEL: 'loud' })
  t.equal(await other.exited, 2, 'also for the settings of the server and the archiver')
  t.match(other.output(), /ADMIN_KEY[^]*LOG_LEVEL/)
  t.notOk(existsSync(join(clone, '.local/start.pid')))
})

t.test('a PORT that is taken is reported before anything is made', async t => {
  const taken = createServer()
  await new Promise<void>(resolve => taken.listen(0, '127.0.0.1', resolve))
  t.teardown(() => taken.close())
  const address = taken.address()
  const port = typeof address === 'object' && address ? address.port : 0
  const started = await npmStart(t, clone, { PORT: String(port) })
  t.equal(await started.exited, 1)
  t.match(started.output(), `PORT ${port} of 127.0.0.1 is taken`)
  t.notOk(existsSync(join(clone, '.local/pg')))
})

t.test('a fresh clone with an empty environment', { skip: shellTools.without }, async t => {
  let first = ''
  let adminKey = ''

  await t.test('npm start prints a curl and a psql line that work as pasted', async t => {
    const started = await npmStart(t, clone)
    t.match(started.output(), /Making a PostgreSQL \d+ cluster/)
    t.match(JSON.parse(await started.paste('curl')), { result: 'stored' })
    t.match(await started.paste('psql'), /^alias +\| demo-1$[^]*^status +\| online$[^]*^battery_pct +\| 87$/m)
    first = token(started.output())
    adminKey = (await readFile(join(clone, '.local/admin-key'), 'utf8')).trim()
    t.match(adminKey, /^[0-9a-f]{48}$/)
    t.match(started.output(), `Admin key   ${adminKey}\n            (printed only this once; kept in .local/admin-key)`)

    for (const file of ['admin-key', 'env', 'pg_service.conf', 'demo-device.json', 'pg/cluster.json', 'log/server.log']) {
      t.equal((await stat(join(clone, '.local', file))).mode & 0o077, 0, `only its owner can read ${file}`)
    }

    const [before = '', summary = ''] = started.output().split(/^(?=Ops page)/m)
    const [page] = /http\S+$/m.exec(summary) ?? []
    t.match(summary, /^Ops page +http/, 'the address of the ops page comes first')
    t.match(await (await fetch(page!)).text(), /API key with the scope/, 'and it is the page')
    t.notMatch(started.output(), /^\s*\.+( |$)/m, 'no line begins with the dots of a step')
    t.match(before, /^Starting the server, the archiver and the notifier \.+ \d+\.\d s$/m)
    t.same(
      summary.split('\n').filter(line => /^ {2}(curl|psql| )/.test(line) && line.length > 100),
      [],
      'the commands fit a terminal',
    )

    // In one terminal, as a reader does; the port may be another here.
    const [starting, ...commands] = blocksOf(await readPage('README.md'), 'sh')
    t.equal(starting, 'npm start\n')
    t.equal(commands.length, 3)
    const { code, output } = await runShell(commands.join('').replaceAll('http://127.0.0.1:8080/', page!), {}, { cwd: clone })
    t.equal(code, 0, output)
    t.match(
      output,
      /^\{"result":"stored",[^]*alias,status,last_ts,battery_pct$[^]*^lobby-tablet-7,online,.*,81$/m,
      'the commands of README.md',
    )

    const second = await npmStart(t, clone)
    t.equal(await second.exited, 1)
    t.match(second.output(), /npm start already runs for this clone/)
    t.match(await started.paste('psql'), /demo-1/, 'which does not disturb the first')

    started.signal('SIGTERM')
    t.equal(await started.exited, 0)
    t.match(started.output(), /Stopping the server[^]*Stopping the archiver[^]*Stopping the notifier[^]*Stopping PostgreSQL/)
    t.strictSame(await processes(clone), [], 'no process is left')
  })

  await t.test('a second start takes seconds and keeps the data', async t => {
    // In a terminal that has read .local/env, while another process has the port of Postgres.
    const [, databaseUrl] = /^DATABASE_URL='(.*)'$/m.exec(await readFile(join(clone, '.local/env'), 'utf8'))!
    const { port } = new URL(databaseUrl!)
    const other = createServer().listen(Number(port), '127.0.0.1')
    t.teardown(() => other.close())
    const began = Date.now()
    const started = await npmStart(t, clone, { DATABASE_URL: databaseUrl! })
    t.ok(Date.now() - began < 20_000, `it took ${Date.now() - began} ms`)
    t.notMatch(started.output(), /Making a PostgreSQL|DATABASE_URL is set/)
    t.match(started.output(), new RegExp(`Port ${port} is taken by another process, so PostgreSQL uses \\d+`))
    t.notMatch(started.output(), adminKey, 'the admin key is printed at the first start only')
    t.match(started.output(), 'Admin key   in .local/admin-key, made at an earlier start')
    const url = /^Ops page +(\S+)\/$/m.exec(started.output())?.[1]
    t.equal((await fetch(`${url}/v1/devices`, { headers: { 'x-admin': adminKey } })).status, 200, 'and it is the same')
    t.equal(token(started.output()), first, 'the same device')
    t.match(await started.paste('psql'), /^alias +\| demo-1$[^]*^battery_pct +\| 87$/m)

    const supervisor = Number(await readFile(join(clone, '.local/start.pid'), 'utf8'))
    process.kill(supervisor, 'SIGKILL')
    await started.exited
    await waitFor(async () => !(await processes(clone)).some(line => /(server|archiver|notifier)\/main\.js/.test(line)), {
      what: () => 'the server, the archiver and the notifier to notice that npm start was killed',
    })
  })

  await t.test('a start after a kill reuses the Postgres that still runs', async t => {
    const started = await npmStart(t, clone)
    t.match(started.output(), /still running from an earlier start/)
    // On a quick machine the ten seconds of the first heartbeat have not passed yet.
    t.match(JSON.parse(await started.paste('curl')), { result: /^(stored|duplicate)$/ })
    const [server] = (await processes(clone)).filter(line => line.includes('server/main.js')).map(line => parseInt(line))
    process.kill(server ?? 0, 'SIGKILL')
    await waitFor(
      async () =>
        started.paste('curl').then(
          answer => answer.includes('"result"'),
          () => false,
        ),
      {
        what: () => 'the server to be restarted',
      },
    )
    t.match(started.output(), /The server ended unexpectedly \(SIGKILL\)/)

    // Like Ctrl-C in a terminal: one signal from the terminal, one passed on by npm.
    started.signal('SIGINT')
    started.signal('SIGINT')
    t.equal(await started.exited, 0)
    t.notMatch(started.output(), /Stopping at once/)
    t.strictSame(await processes(clone), [], 'no process is left')
  })
})
