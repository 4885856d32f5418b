import { execFile, spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { readFile, stat } from 'node:fs/promises'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { promisify } from 'node:util'
import t, { type Test } from 'tap'
import { freePort } from './cluster.ts'
import { plainEnv } from './config.ts'
import { waitFor, withClone, withDatabase } from '../testing/database.ts'

const run = promisify(execFile)

interface Started {
  output: () => string
  /** What the shell gets when a printed line is pasted. */
  paste: (program: 'curl' | 'psql') => Promise<string>
  signal: (signal: NodeJS.Signals) => void
  exited: Promise<number | null>
}

/** npm start in a clone, with an environment as empty as a shell's can be. */
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
  const paste = async (program: string) => {
    const line = new RegExp(`^ {2}(${program} .*)$`, 'm').exec(output)?.[1]
    if (!line) throw new Error(`no ${program} line was printed:\n${output}`)
    const { stdout } = await run('sh', ['-c', line], { env: { PATH: plainEnv().PATH } })
    return stdout
  }
  return { output: () => output, paste, signal: signal => child.kill(signal), exited }
}

/** The processes whose command line names the clone. */
async function processes(clone: string) {
  const { stdout } = await run('ps', ['-eo', 'pid=,args='])
  return stdout.split('\n').filter(line => line.includes(clone))
}

const clone = await withClone(t)

t.test('DATABASE_URL set: that database is used and no cluster is made', async t => {
  const db = await withDatabase(t, 'template0')
  const port = await freePort(true)
  const started = await npmStart(t, clone, { DATABASE_URL: db.url('postgres'), PORT: String(port), ADMIN_KEY: 'k'.repeat(32) })
  t.match(JSON.parse(await started.paste('curl')), { result: 'stored' })
  t.match(await started.paste('psql'), /demo-1/)
  t.match(started.output(), `http://127.0.0.1:${port}\n`)
  t.match(started.output(), /admin key +the one in ADMIN_KEY/)
  t.notMatch(started.output(), 'k'.repeat(32), 'who set it knows it')
  t.notOk(existsSync(join(clone, '.local/pg')))
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
  t.equal(await other.exited, 2, 'those of the server and the archiver as well')
  t.match(other.output(), /ADMIN_KEY[^]*LOG_LEVEL/)
  t.notOk(existsSync(join(clone, '.local/start.pid')))
})

t.test('a PORT that is taken is said before anything is made', async t => {
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

t.test('a fresh clone with an empty environment', async t => {
  let first = ''
  let adminKey = ''

  await t.test('npm start prints a curl and a psql line that work as pasted', async t => {
    const started = await npmStart(t, clone)
    t.match(started.output(), /Making a PostgreSQL \d+ cluster/)
    t.match(JSON.parse(await started.paste('curl')), { result: 'stored' })
    t.match(await started.paste('psql'), /demo-1 +\| online +\|.*87/)
    first = /^ {2}curl .*$/m.exec(started.output())?.[0] ?? ''
    adminKey = (await readFile(join(clone, '.local/admin-key'), 'utf8')).trim()
    t.match(adminKey, /^[0-9a-f]{48}$/)
    t.match(started.output(), `admin key  ${adminKey}\n             (printed this once; it is kept in .local/admin-key)`)

    for (const file of ['admin-key', 'demo-device.json', 'pg/cluster.json', 'log/server.log']) {
      t.equal((await stat(join(clone, '.local', file))).mode & 0o077, 0, `${file} is for its owner alone`)
    }

    const second = await npmStart(t, clone)
    t.equal(await second.exited, 1)
    t.match(second.output(), /npm start runs already for this clone/)
    t.match(await started.paste('psql'), /demo-1/, 'which leaves the first alone')

    started.signal('SIGTERM')
    t.equal(await started.exited, 0)
    t.match(started.output(), /Stopping the server[^]*Stopping the archiver[^]*Stopping PostgreSQL/)
    t.strictSame(await processes(clone), [], 'no process is left')
  })

  await t.test('a second start takes seconds and keeps the data', async t => {
    const began = Date.now()
    const started = await npmStart(t, clone)
    t.ok(Date.now() - began < 20_000, `it took ${Date.now() - began} ms`)
    t.notMatch(started.output(), /Making a PostgreSQL/)
    t.notMatch(started.output(), adminKey, 'the admin key is printed at the first start only')
    t.match(started.output(), 'admin key  in .local/admin-key, made at an earlier start')
    const url = /Heartbeats are taken at (\S+)/.exec(started.output())?.[1]
    t.equal((await fetch(`${url}/v1/devices`, { headers: { 'x-admin': adminKey } })).status, 200, 'and it is the same')
    t.equal(/^ {2}curl .*$/m.exec(started.output())?.[0]?.replace(/:\d+\//, ''), first.replace(/:\d+\//, ''), 'the same device')
    t.match(await started.paste('psql'), /demo-1 +\| \w+ +\|.*87/)

    const supervisor = Number(await readFile(join(clone, '.local/start.pid'), 'utf8'))
    process.kill(supervisor, 'SIGKILL')
    await started.exited
    await waitFor(async () => !(await processes(clone)).some(line => /(server|archiver)\/main\.ts/.test(line)), {
      what: () => 'the server and the archiver to notice that npm start was killed',
    })
  })

  await t.test('a start after a kill takes up the Postgres that was left', async t => {
    const started = await npmStart(t, clone)
    t.match(started.output(), /still running from an earlier start/)
    // A quick machine is still in the ten seconds of the first heartbeat.
    t.match(JSON.parse(await started.paste('curl')), { result: /^(stored|duplicate)$/ })
    const [server] = (await processes(clone)).filter(line => line.includes('server/main.ts')).map(line => parseInt(line))
    process.kill(server ?? 0, 'SIGKILL')
    await waitFor(
      async () =>
        started.paste('curl').then(
          answer => answer.includes('"result"'),
          () => false,
        ),
      {
        what: () => 'the server to be started again',
      },
    )
    t.match(started.output(), /The server ended unexpectedly \(SIGKILL\)/)

    // As a Ctrl-C in a terminal: once from the terminal, once passed on by npm.
    started.signal('SIGINT')
    started.signal('SIGINT')
    t.equal(await started.exited, 0)
    t.notMatch(started.output(), /Stopping at once/)
    t.strictSame(await processes(clone), [], 'no process is left')
  })
})
