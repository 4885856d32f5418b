// npm start and npm run demo: run everything on one machine, from nothing to a printed curl command, until Ctrl-C.
import { randomBytes } from 'node:crypto'
import { existsSync } from 'node:fs'
import { link, mkdir, readFile, rm, writeFile } from 'node:fs/promises'
import { delimiter, join, relative, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { pathToFileURL } from 'node:url'
import { readConfig as readArchiverConfig } from '../archiver/config.ts'
import { readConfig as readNotifierConfig } from '../notifier/config.ts'
import { readConfig as readServerConfig } from '../server/config.ts'
import { Cluster, clusterMajor, isFree, placeFor, type Role } from './cluster.ts'
import { plainEnv, reachable, startConfig, type StartConfig } from './config.ts'
import { repository } from '../lib/repository.ts'
import { curlLines, demoDevice, psqlLine, shellQuote } from './demo-device.ts'
import { openDatabase } from '../lib/database.ts'
import { startDemo } from './demo.ts'
import { migrate } from '../cli/migrate.ts'
import { ask, urlFor } from './own-server.ts'
import { ownCluster } from './own-cluster.ts'
import { requirePostgres } from './packages.ts'
import { isAlive } from '../lib/process.ts'
import { say, step } from '../lib/progress.ts'
import { Service } from './service.ts'
import { reportFailure, SettingsError, UsageError } from '../lib/errors.ts'

const local = join(repository, '.local')
const envFile = join(local, 'env')
const serviceFile = join(local, 'pg_service.conf')
const DATABASE = 'fleet'

/** Where to connect, and the environment of the children. */
interface Database {
  adminUrl: string
  ownerUrl: string
  /** For the printed psql commands: the program, and the databases to which it connects, quoted for the shell. */
  psql: string
  reader: string
  dba: string
  env: Record<string, string | undefined>
}

/** Everything that runs, in the order in which it was started. It is stopped in reverse order. */
class Running {
  readonly services: Service[] = []
  cluster: Cluster | undefined
  readonly #stop = new AbortController()
  #askedAt = 0
  #watch: NodeJS.Timeout | undefined

  constructor() {
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
      process.on(signal, () => this.#onSignal())
    }
    // The terminal may be closed; we still have to stop in order.
    process.stdout.on('error', () => {})
    process.stderr.on('error', () => {})
  }

  /** Aborted when the user wants us to stop, or when we cannot continue. In that case the reason is the error. */
  get stopped() {
    return this.#stop.signal
  }

  fail(error: Error) {
    this.#stop.abort(error)
  }

  /** Runs a step, unless we should stop. */
  async step<T>(what: string, work: () => Promise<T>) {
    this.stopped.throwIfAborted()
    const result = await step(what, work)
    this.stopped.throwIfAborted()
    return result
  }

  /** Restarts Postgres if it dies. */
  watchCluster(cluster: Cluster) {
    let restarting = false
    this.#watch = setInterval(
      () =>
        void (async () => {
          if (restarting || this.stopped.aborted || (await cluster.pid())) return
          restarting = true
          try {
            await step(`PostgreSQL ended unexpectedly (see ${cluster.log}); starting it again`, () => cluster.start())
          } catch (error) {
            this.fail(error as Error)
          }
          restarting = false
        })(),
      1000,
    )
  }

  async stopAll() {
    clearInterval(this.#watch)
    for (const service of this.services) await step(`Stopping the ${service.name}`, () => service.stop())
    const cluster = this.cluster
    if (cluster) await step('Stopping PostgreSQL', () => cluster.stop())
  }

  #onSignal() {
    if (!this.#askedAt) {
      this.#askedAt = Date.now()
      this.#stop.abort()
      say('')
    } else if (Date.now() - this.#askedAt > 1000) {
      // npm passes on a Ctrl-C that the terminal has already sent to us. A second signal within a second is the same one.
      say('\nStopping at once; PostgreSQL will recover at the next start.')
      for (const service of this.services) service.kill()
      void this.cluster?.stop('immediate').catch(() => {})
    }
  }
}

async function start(config: StartConfig, running: Running, isDemo: boolean) {
  if (config.portIsFixed && !(await isFree(config.port, config.host))) {
    throw new Error(`PORT ${config.port} of ${config.host} is taken by another process; nothing was started`)
  }
  const isGiven = config.databaseUrl !== undefined && !(await isOwnDatabase(config.databaseUrl))
  const db = isGiven ? givenDatabase(config) : await privateDatabase(running, config)
  const { cluster } = running
  const lines: string[] = []
  try {
    await running.step('Migrating the database', () =>
      migrate(db.adminUrl, {
        log: line => lines.push(line),
        ...(cluster && { afterSetup: () => cluster.allowLogins(), ownerUrl: db.ownerUrl }),
      }),
    )
  } finally {
    for (const line of lines) say(line)
  }

  const port = config.portIsFixed ? config.port : await nextFreePort(config)
  const { adminKey, shown } = config.adminKey
    ? { adminKey: config.adminKey, shown: 'the one in ADMIN_KEY' }
    : await keptAdminKey()
  const archiveUrl = config.archiveUrl ?? (await localArchive())
  const env = {
    ...db.env,
    PORT: String(port),
    HOST: config.host,
    ADMIN_KEY: adminKey,
    ARCHIVE_URL: archiveUrl,
    // Other commands, which read the file of settings, may run in another directory.
    TLS_CERT: config.certFile && resolve(config.certFile),
    TLS_KEY: db.env.TLS_KEY && resolve(db.env.TLS_KEY),
  }
  await mkdir(join(local, 'log'), { recursive: true, mode: 0o700 })
  if (cluster) {
    await writeServiceFile(cluster)
    await writeEnvFile({ ...env, DATABASE_URL: db.adminUrl, PGSERVICEFILE: serviceFile })
  }
  const { certFile } = config
  const here = `${certFile === undefined ? 'http' : 'https'}://${reachable(config.host)}:${port}`
  const url = await urlFor(reachable(config.host), port, certFile)
  const server = service(running, 'server', 'server/main.ts', env)
  const archiver = service(running, 'archiver', 'archiver/main.ts', env)
  const notifier = service(running, 'notifier', 'notifier/main.ts', env)
  await running.step('Starting the server, the archiver and the notifier', async () => {
    await Promise.all([server.start(), archiver.start(), notifier.start()])
    await untilReady(`${here}/readyz`, certFile, server, running.stopped)
    archiver.isReady = true
    notifier.isReady = true
  })

  const sql = openDatabase(db.ownerUrl, { max: 2, connection: { role: 'fleet_owner', TimeZone: 'UTC' } })
  try {
    const device = await demoDevice(sql, join(local, 'demo-device.json'))
    say(`
Ops page    ${url}/
Admin key   ${shown}
Heartbeats  ${url}/v1/heartbeat
Archive     ${archiveUrl}
Logs        ${relative(process.cwd(), join(local, 'log')) || '.'}/${cluster ? ` and ${cluster.log}` : ''}

Send a heartbeat as ${device.alias}:

${curlLines(url, device)
  .map(line => `  ${line}`)
  .join('\n')}

See it in the store, from another terminal${cluster ? '' : ' that has the same DATABASE_URL'}:

${cluster ? `  set -a; . ${shellWord(envFile)}; set +a\n` : ''}  ${psqlLine(db.psql, db.reader, device)}

Work as a DBA, as docs/operate.md and RUNBOOK.md show${cluster ? ', from the same terminal' : ''}:

  ${db.psql} ${db.dba}

Ctrl-C stops everything; the data stays.
`)
    if (isDemo) await startDemo(sql, url, join(local, 'demo.json'), running.stopped)
    if (!running.stopped.aborted) await new Promise(resolve => running.stopped.addEventListener('abort', resolve))
  } finally {
    await sql.end({ timeout: 1 })
  }
}

/** Makes the cluster under .local if there is none yet, and starts it. */
async function privateDatabase(running: Running, config: StartConfig): Promise<Database> {
  // First the packages: they create the user postgres, on whom the place depends.
  const packages = await requirePostgres(await clusterMajor(join(local, 'pg')))
  const dir = await placeFor(join(local, 'pg'))
  const { workers, poolMax } = readServerConfig(childSettings(config))
  // Each worker has its pool and up to three connections for operations. The rest is for the archiver and for people.
  const connections = Math.max(200, workers * (poolMax + 3) + 50)
  const cluster = new Cluster({ dir, postgres: packages, databases: [DATABASE], cronDatabase: DATABASE, connections })
  if (!cluster.exists()) await running.step(`Making a PostgreSQL ${packages.major} cluster in ${dir}`, () => cluster.create())
  running.stopped.throwIfAborted()
  running.cluster = cluster
  const how = await running.step(`Starting PostgreSQL ${packages.major}`, () => cluster.start())
  if (cluster.movedFrom !== undefined) {
    say(
      `Port ${cluster.movedFrom} is taken by another process, so PostgreSQL uses ${cluster.port}. Terminals that have read .local/env must read it again.`,
    )
  }
  if (how === 'reused') say('PostgreSQL was still running from an earlier start that was killed. It keeps running.')
  running.watchCluster(cluster)
  return {
    adminUrl: cluster.url('postgres', DATABASE),
    ownerUrl: cluster.url('fleet_owner', DATABASE),
    psql: onPath('psql') ? 'psql' : cluster.program('psql'),
    reader: 'service=fleet_reader',
    dba: 'service=fleet_dba',
    env: privateEnv(config.env, role => cluster.url(role, DATABASE)),
  }
}

/** Whether a URL is that of this clone's cluster, in a terminal that has read .local/env. Its port may be another now. */
async function isOwnDatabase(url: string) {
  const own = await ownCluster()
  return own !== undefined && new URL(own.cluster.url('postgres', DATABASE)).password === new URL(url).password
}

/** Gives each child its own login, no matter which other databases the environment names. The children do not get the owner's. */
function privateEnv(env: StartConfig['env'], url: (role: Role) => string): StartConfig['env'] {
  return {
    ...env,
    DATABASE_URL: undefined,
    READ_DATABASE_URL: undefined,
    SERVER_DATABASE_URL: url('fleet_server'),
    OPS_DATABASE_URL: url('fleet_server'),
    ARCHIVER_DATABASE_URL: url('fleet_archiver'),
    NOTIFIER_DATABASE_URL: url('fleet_notifier'),
    VERIFIER_DATABASE_URL: undefined,
  }
}

/** The database that DATABASE_URL names. */
function givenDatabase({ databaseUrl = '', env }: StartConfig): Database {
  say('DATABASE_URL is set: that database is used, and no cluster is made.')
  return { adminUrl: databaseUrl, ownerUrl: databaseUrl, psql: 'psql', reader: '"$DATABASE_URL"', dba: '"$DATABASE_URL"', env }
}

function service(running: Running, name: string, script: string, env: Record<string, string | undefined>) {
  const made = new Service({
    name,
    script,
    env,
    log: join(local, 'log', `${name}.log`),
    onFailure: error => running.fail(error),
  })
  running.services.push(made)
  return made
}

async function untilReady(url: string, certFile: string | undefined, server: Service, stopped: AbortSignal) {
  const timeoutMs = 60_000
  const end = Date.now() + timeoutMs
  while (
    !(await ask(url, { timeoutMs: 2000, certFile }).then(
      answer => answer.status === 200,
      () => false,
    ))
  ) {
    stopped.throwIfAborted()
    if (Date.now() > end) {
      throw new Error(
        `${url} did not answer 200 within ${timeoutMs / 1000} s. The end of the server's log:\n${await server.logTail()}`,
      )
    }
    await sleep(100)
  }
  server.isReady = true
}

async function nextFreePort({ port, host }: StartConfig) {
  for (let next = port; next < port + 100; next++) {
    if (!(await isFree(next, host))) continue
    if (next !== port) say(`Port ${port} is taken by another process, so the server uses ${next}. Set PORT to choose one.`)
    return next
  }
  throw new Error(`ports ${port} to ${port + 99} of ${host} are all taken; set PORT`)
}

/** Lets a shell run the other commands on this cluster: `set -a; . .local/env; set +a`. */
async function writeEnvFile(env: Record<string, string | undefined>) {
  const names = [
    'DATABASE_URL',
    'SERVER_DATABASE_URL',
    'OPS_DATABASE_URL',
    'ARCHIVER_DATABASE_URL',
    'NOTIFIER_DATABASE_URL',
    'WEBHOOK_ALLOW',
    'ARCHIVE_URL',
    'HOST',
    'PORT',
    'TLS_CERT',
    'TLS_KEY',
    'ADMIN_KEY',
    'PGSERVICEFILE',
  ]
  const lines = names.map(name => `${name}='${(env[name] ?? '').replaceAll("'", `'\\''`)}'\n`)
  await writeFile(envFile, lines.join(''), { mode: 0o600 })
}

/**
 * Writes the file that libpq reads as PGSERVICEFILE, so that `psql service=fleet_dba` works without a password in the command.
 */
async function writeServiceFile(cluster: Cluster) {
  const sections = (['fleet_reader', 'fleet_dba', 'fleet_owner', 'postgres'] as const).map(role => {
    const { hostname, port, username, password, pathname } = new URL(cluster.url(role, DATABASE))
    return `[${role}]\nhost=${hostname}\nport=${port}\nuser=${username}\npassword=${password}\ndbname=${pathname.slice(1)}\n`
  })
  await writeFile(serviceFile, sections.join('\n'), { mode: 0o600 })
}

/** A path for the shell, in quotes only if it needs them. */
function shellWord(path: string) {
  return /^[\w./-]+$/.test(path) ? path : shellQuote(path)
}

/**
 * The admin key of this clone, and the text to print about it. The key is printed only once, because terminals are recorded and
 * shared.
 */
async function keptAdminKey() {
  const file = join(local, 'admin-key')
  const place = relative(process.cwd(), file)
  const kept = await readFile(file, 'utf8').catch(() => '')
  if (kept.trim()) return { adminKey: kept.trim(), shown: `in ${place}, made at an earlier start` }
  const adminKey = randomBytes(24).toString('hex')
  await writeFile(file, `${adminKey}\n`, { mode: 0o600 })
  return { adminKey, shown: `${adminKey}\n            (printed only this once; kept in ${place})` }
}

async function localArchive() {
  const directory = join(local, 'archive')
  await mkdir(directory, { recursive: true, mode: 0o700 })
  return pathToFileURL(directory).href
}

function onPath(program: string) {
  return (plainEnv().PATH ?? '').split(delimiter).some(directory => existsSync(join(directory, program)))
}

/** Prevents a second npm start in the same clone. */
async function lock() {
  const file = join(local, 'start.pid')
  const own = `${file}.${process.pid}`
  for (;;) {
    try {
      // A link appears with its content, or fails because the file exists.
      await writeFile(own, String(process.pid))
      await link(own, file)
      return () => rm(file, { force: true })
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error
    } finally {
      await rm(own, { force: true })
    }
    const pid = Number(await readFile(file, 'utf8').catch(() => '0'))
    if (await isStart(pid)) throw new Error(`npm start already runs for this clone, as process ${pid}; nothing was started`)
    await rm(file, { force: true }) // left by a start that was killed
  }
}

async function isStart(pid: number) {
  if (!pid || pid === process.pid || !isAlive(pid)) return false
  // The number may belong to another process by now. Without /proc nobody can tell.
  const command = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => 'local/start.js')
  return command.includes('local/start.js')
}

/** The settings of the children before anything is made. Those that npm start provides are filled in. */
function childSettings({ databaseUrl, adminKey, archiveUrl, env }: StartConfig) {
  const given = databaseUrl ? env : privateEnv(env, () => 'postgres://127.0.0.1')
  return {
    ...given,
    ADMIN_KEY: adminKey ?? randomBytes(24).toString('hex'),
    ARCHIVE_URL: archiveUrl ?? pathToFileURL(local).href,
  }
}

function judgeChildren(config: StartConfig) {
  const settings = childSettings(config)
  const problems = [readServerConfig, readArchiverConfig, readNotifierConfig].flatMap(read => {
    try {
      read(settings)
      return []
    } catch (error) {
      if (!(error instanceof SettingsError)) throw error
      return error.problems
    }
  })
  if (problems.length) throw new SettingsError([...new Set(problems)])
}

async function main() {
  const args = process.argv.slice(2)
  if (args.some(arg => arg !== '--demo')) throw new UsageError('usage: npm start, or npm run demo')
  const config = startConfig()
  const isDemo = args.includes('--demo')
  if (isDemo && config.certFile !== undefined)
    throw new SettingsError(['TLS_CERT: the devices of npm run demo speak HTTP only; unset TLS_CERT and TLS_KEY'])
  judgeChildren(config)
  // Postgres runs as the user postgres and has to enter this directory. The secrets in it are files of mode 0600.
  await mkdir(local, { recursive: true, mode: 0o755 })
  const unlock = await lock()
  const running = new Running()
  try {
    await start(config, running, isDemo)
  } catch (error) {
    if (!running.stopped.aborted) running.fail(error as Error)
  } finally {
    await running.stopAll()
    await unlock()
  }
  const { reason } = running.stopped as { reason: unknown }
  if (!(reason instanceof DOMException)) throw reason
  say('Stopped; the data stays.')
}

try {
  await main()
  process.exit(0)
} catch (error) {
  process.exit(reportFailure(error))
}
