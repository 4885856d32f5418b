// Makes, starts and stops a private PostgreSQL cluster, for npm start, npm test and npm run migrate:commit.
import { execFileSync, spawn, type ChildProcess } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { closeSync, existsSync, fchownSync, openSync } from 'node:fs'
import {
  access,
  chmod,
  chown,
  constants,
  mkdir,
  mkdtemp,
  open,
  readFile,
  readlink,
  realpath,
  rename,
  rm,
  stat,
  statfs,
  symlink,
  writeFile,
} from 'node:fs/promises'
import { createServer } from 'node:net'
import { availableParallelism, freemem, tmpdir, totalmem } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { movedClock, plainEnv } from './config.ts'
import { openDatabase } from '../lib/database.ts'
import type { Postgres } from './packages.ts'
import { hasEnded, isAlive } from '../lib/process.ts'
import { say } from '../lib/progress.ts'
import { scramVerifier } from './scram.ts'

/** The roles that the setup makes. In a private cluster each can log in. */
export const ROLES = [
  'fleet_owner',
  'fleet_server',
  'fleet_archiver',
  'fleet_reader',
  'fleet_dba',
  'fleet_verifier',
  'fleet_notifier',
] as const
export type Role = 'postgres' | (typeof ROLES)[number]

export interface ClusterOptions {
  /** Its directory. The user that it runs as must be able to enter it; see placeFor. */
  dir: string
  postgres: Postgres
  /** The databases to make in it. */
  databases: string[]
  /** The one of these databases that has pg_cron. */
  cronDatabase: string
  /** max_connections; 200 by default. */
  connections?: number
  /** For tests: a crash of the machine loses its data. With fsync off, databases are made quickly. */
  throwaway?: boolean
  /**
   * The directory of a cluster that saveTemplate() wrote. create() copies it, with its databases, roles and passwords, in place of
   * making new ones.
   */
  template?: string
  /** For tests: more settings, which replace those of the same name. */
  settings?: Record<string, string | number>
  /** For tests: the passwords of another cluster, instead of new ones. */
  passwords?: Record<string, string>
  /** For tests: more environment variables for Postgres, such as those of a clock that jumps. */
  env?: Record<string, string>
}

interface Kept {
  port: number
  passwords: Record<string, string>
}

interface User {
  uid: number
  gid: number
}

/** A cluster that could not be made, started or stopped. If Postgres did not start, the message has the end of its log. */
class ClusterError extends Error {}

/**
 * The user that Postgres runs as: postgres if this process runs as root, because Postgres refuses to run as root. Otherwise
 * undefined, which means the user of this process.
 */
export function clusterUser(): User | undefined {
  if (process.getuid?.() !== 0) return undefined
  try {
    const id = (flag: string) => Number(execFileSync('id', [flag, 'postgres'], { encoding: 'utf8', stdio: 'pipe' }))
    return { uid: id('-u'), gid: id('-g') }
  } catch (cause) {
    throw new ClusterError(
      'Postgres does not run as root, and there is no user postgres to run it as. Create one: useradd --system --user-group postgres',
      { cause },
    )
  }
}

/**
 * The directory of a cluster that should be at `wanted`. If the cluster's user cannot get there (for example to a clone in a home
 * directory of mode 0700), it is a directory under `elsewhere`, and `wanted` becomes a link to it. The place then stays the same
 * even if the permissions change.
 */
export async function placeFor(wanted: string, elsewhere = '/var/lib', user = clusterUser()): Promise<string> {
  const clone = await realpath(dirname(wanted))
  const target = await readlink(wanted).catch(() => undefined)
  if (target) {
    const place = resolve(clone, target)
    const home = await readFile(join(place, 'clone'), 'utf8').catch(() => clone)
    // A copy of a clone must not share the original's cluster; a clone that was moved keeps it.
    if (home === clone || !existsSync(join(home, 'pg')) || (await realpath(join(home, 'pg'))) !== place) return place
    await rm(wanted)
  } else if (!user || canEnter(clone, user)) {
    return wanted
  } else if (existsSync(join(wanted, 'data'))) {
    throw new ClusterError(
      `the user postgres, who runs the cluster in ${wanted}, can no longer enter ${clone}; allow it with chmod a+x`,
    )
  }
  const place = join(elsewhere, `nexmdm-${createHash('sha256').update(clone).digest('hex').slice(0, 12)}`)
  await mkdir(place, { recursive: true, mode: 0o700 })
  await writeFile(join(place, 'clone'), clone)
  await symlink(place, wanted)
  say(`The user postgres cannot enter ${clone}, so the cluster is in ${place} (${wanted} links there).`)
  return place
}

function canEnter(directory: string, user: User) {
  try {
    execFileSync('sh', ['-c', 'cd "$1"', 'sh', directory], { ...user, cwd: '/', stdio: 'ignore' })
    return true
  } catch {
    return false
  }
}

/** The major version of the cluster in a directory; undefined if there is none yet. */
export async function clusterMajor(dir: string) {
  const text = await readFile(join(dir, 'data', 'PG_VERSION'), 'utf8').catch(() => undefined)
  return text === undefined ? undefined : Number(text)
}

export class Cluster {
  readonly dir: string
  readonly data: string
  readonly log: string
  port = 0
  /** The port that it had before this start, if it is another now. */
  movedFrom: number | undefined
  #options: ClusterOptions
  #kept: Kept = { port: 0, passwords: {} }
  #user = clusterUser()
  #child: ChildProcess | undefined
  #sockets: string | undefined

  constructor(options: ClusterOptions) {
    this.#options = options
    this.dir = options.dir
    this.data = join(options.dir, 'data')
    this.log = join(options.dir, 'postgres.log')
  }

  /** The URL with which a role logs in. Only after the cluster has started. */
  url(role: Role, database: string) {
    const password = this.#kept.passwords[role]
    if (!password) throw new ClusterError(`there is no password for role ${role} in ${this.dir}`)
    return `postgres://${role}:${password}@127.0.0.1:${this.port}/${database}`
  }

  /** The full path of a program of this PostgreSQL, such as psql. */
  program(name: string) {
    return join(this.#options.postgres.bin, name)
  }

  exists() {
    return existsSync(join(this.data, 'PG_VERSION'))
  }

  /** Makes the cluster and its databases. An interrupted attempt leaves nothing that is used later. */
  async create() {
    const { databases, throwaway, template } = this.#options
    await mkdir(this.dir, { recursive: true, mode: 0o700 })
    await chmod(this.dir, 0o700)
    await this.#give(this.dir)
    if (template !== undefined) {
      await this.#keep({ ...(await readKept(template)), port: 0 })
      await this.#copy(join(template, 'data'), this.data)
      return
    }
    const passwords =
      this.#options.passwords ??
      Object.fromEntries(['postgres', ...ROLES].map(role => [role, randomBytes(24).toString('base64url')]))
    await this.#keep({ port: 0, passwords })

    const fresh = `${this.data}.new`
    await rm(fresh, { recursive: true, force: true })
    const pwfile = join(this.dir, 'pwfile')
    await writeFile(pwfile, `${passwords.postgres}\n`, { mode: 0o600 })
    await this.#give(pwfile)
    const locale = await this.#locale()
    await this.#run('initdb', [
      '-D',
      fresh,
      '-U',
      'postgres',
      '--encoding=UTF8',
      `--locale=${locale}`,
      '--data-checksums',
      // pg_hba.conf then requires this of everyone, over the unix socket, 127.0.0.1 and ::1.
      '--auth=scram-sha-256',
      `--pwfile=${pwfile}`,
      ...(throwaway ? ['--no-sync'] : []),
    ])
    await rm(pwfile)
    const conf = await open(join(fresh, 'postgresql.conf'), 'a')
    await conf.write(
      `\n# fleet.conf is rewritten at each start. Use ALTER SYSTEM for your own settings; it writes postgresql.auto.conf.\ninclude_if_exists = 'fleet.conf'\n`,
    )
    await conf.close()
    // While its database is missing, pg_cron's launcher fails each second. So the databases are made before the first start, by a
    // single-user backend.
    const sql = databases.map(name => `create database "${name}" template template0\n`).join('')
    await this.#run('postgres', ['--single', '-D', fresh, ...(throwaway ? ['-F'] : []), 'postgres'], sql)
    await rename(fresh, this.data)
  }

  /** Stops the cluster, copies it to a directory from which others can be made, and starts it again. */
  async saveTemplate(directory: string) {
    await this.stop()
    await mkdir(directory, { mode: 0o700 })
    await this.#copy(this.data, join(directory, 'data'))
    await writeFile(join(directory, 'cluster.json'), JSON.stringify(this.#kept), { mode: 0o600 })
    await this.start()
  }

  /** Makes it a streaming replica of a running cluster, with the same roles and passwords. */
  async follow(primary: Cluster) {
    await mkdir(this.dir, { recursive: true, mode: 0o700 })
    await chmod(this.dir, 0o700)
    await this.#give(this.dir)
    await this.#keep({ port: 0, passwords: primary.#kept.passwords })
    const fresh = `${this.data}.new`
    await this.#run('pg_basebackup', [
      '-D',
      fresh,
      '-d',
      primary.url('postgres', 'postgres'),
      '--write-recovery-conf',
      '--wal-method=stream',
      '--checkpoint=fast',
    ])
    await rename(fresh, this.data)
  }

  /**
   * Starts it and waits until it accepts connections. A postmaster that is still running, because the start that made it was
   * killed, is reused as it is.
   * @returns whether it was started or reused
   * @throws ClusterError with the end of the log
   */
  async start(): Promise<'started' | 'reused'> {
    this.#kept = await readKept(this.dir)
    // A cluster that was made before a role existed has no password for it.
    const isNew = (role: Role) => this.#kept.passwords[role] === undefined
    if (ROLES.some(isNew)) {
      const added = Object.fromEntries(ROLES.filter(isNew).map(role => [role, randomBytes(24).toString('base64url')]))
      await this.#keep({ ...this.#kept, passwords: { ...this.#kept.passwords, ...added } })
    }
    let running = await this.#postmaster()
    while (running) {
      if (running.status === 'ready') {
        this.port = running.port
        return 'reused'
      }
      // It is starting or stopping, and one that is starting may end instead.
      await sleep(100)
      running = await this.#postmaster()
    }
    const patient = Date.now() + 20_000
    // If a postmaster was killed, its file is still there, and its processes may hold the port until they have noticed.
    const wasKilled = existsSync(join(this.data, 'postmaster.pid'))
    let port = this.#kept.port
    while (port && !(await isFree(port))) {
      if (wasKilled && Date.now() < patient) await sleep(100)
      else port = 0
    }
    port ||= await freePort(this.#options.throwaway)
    for (let attempt = 1; ; attempt++) {
      this.port = port
      await this.#configure()
      const failure = await this.#launch()
      if (!failure) break
      if (/lock file "postmaster.pid" already exists|pre-existing shared memory block/.test(failure) && Date.now() < patient) {
        // If a postmaster was killed, its processes take a moment to notice.
        await sleep(250)
        attempt--
        continue
      }
      // Another process may take the port after we looked and before the postmaster binds it.
      if (attempt === 5 || !/could not (bind|create any TCP)/.test(failure)) {
        throw new ClusterError(`PostgreSQL in ${this.data} did not start. The end of ${this.log}:\n${failure}`)
      }
      port = await freePort(this.#options.throwaway)
    }
    this.movedFrom = undefined
    if (this.port !== this.#kept.port) {
      this.movedFrom = this.#kept.port || undefined
      await this.#keep({ ...this.#kept, port: this.port })
    }
    return 'started'
  }

  /**
   * Connects this object to a running cluster without starting one.
   * @returns whether one is running and ready
   */
  async attach() {
    this.#kept = await readKept(this.dir)
    const running = await this.#postmaster()
    this.port = running?.port ?? 0
    return running?.status === 'ready'
  }

  /**
   * Stops it and waits until it has ended. `fast` ends sessions and writes a checkpoint. `immediate` is like a crash: the next
   * start recovers.
   */
  async stop(mode: 'fast' | 'immediate' = 'fast') {
    const running = await this.#postmaster()
    if (running) {
      const gone = () => this.#postmaster().then(now => now?.pid !== running.pid)
      process.kill(running.pid, mode === 'fast' ? 'SIGINT' : 'SIGQUIT')
      if (!(await until(gone, mode === 'fast' ? 60_000 : 10_000))) {
        process.kill(running.pid, 'SIGQUIT')
        if (!(await until(gone, 10_000))) throw new ClusterError(`postmaster ${running.pid} of ${this.data} does not stop`)
      }
    }
    if (this.#sockets) await rm(this.#sockets, { recursive: true, force: true })
    this.#sockets = undefined
  }

  /** The pid of the running postmaster; undefined if there is none. */
  async pid() {
    return (await this.#postmaster())?.pid
  }

  /** Lets the existing roles log in with the passwords in cluster.json. */
  async allowLogins() {
    const sql = openDatabase(this.url('postgres', this.#options.cronDatabase), { max: 1 })
    try {
      const existing = await sql<{ rolname: string }[]>`select rolname from pg_roles where rolname = any(${[...ROLES]})`
      for (const { rolname } of existing) {
        // The names are constants of ours. The statement contains no password, so a log of statements does not either.
        await sql.unsafe(`alter role ${rolname} login password '${scramVerifier(this.#kept.passwords[rolname]!)}'`)
      }
    } finally {
      await sql.end({ timeout: 5 })
    }
  }

  /** The last lines of the log. */
  async logTail(lines = 25) {
    const text = await readFile(this.log, 'utf8').catch(() => '')
    return text.trimEnd().split('\n').slice(-lines).join('\n')
  }

  async #launch(): Promise<string | undefined> {
    await this.#rotateLog()
    const from = await stat(this.log).then(
      found => found.size,
      () => 0,
    )
    const out = openSync(this.log, 'a', 0o600)
    if (this.#user) fchownSync(out, this.#user.uid, this.#user.gid)
    // In a session of its own, so that Ctrl-C in the terminal reaches only us and we decide in which order to stop.
    const child = spawn(this.program('postgres'), ['-D', this.data], {
      ...this.#user,
      cwd: this.dir,
      env: { ...toolEnv(), ...this.#options.env },
      detached: true,
      stdio: ['ignore', out, out],
    })
    closeSync(out)
    child.unref()
    this.#child = child
    let ended = false
    child.once('exit', () => {
      ended = true
    })
    child.once('error', () => {
      ended = true
    })
    try {
      await this.#ready(() => !ended)
      return undefined
    } catch {
      const text = (await readFile(this.log)).subarray(from).toString()
      return text.trimEnd().split('\n').slice(-25).join('\n')
    }
  }

  /** Waits until the postmaster reports that it is ready. Recovery after a crash can take long, so there is no timeout. */
  async #ready(alive: () => boolean | Promise<boolean>) {
    for (;;) {
      if ((await this.#postmaster())?.status === 'ready') return
      if (!(await alive())) throw new ClusterError(`PostgreSQL in ${this.data} ended while starting:\n${await this.logTail()}`)
      await sleep(30)
    }
  }

  /** The content of postmaster.pid, if that process is alive and ours. miscadmin.h of PostgreSQL describes the lines. */
  async #postmaster() {
    const text = await readFile(join(this.data, 'postmaster.pid'), 'utf8').catch(() => '')
    const [pidLine, , , portLine, , , , status] = text.split('\n')
    const pid = Number(pidLine)
    if (!pid || !isAlive(pid, { isOurs: true })) return undefined
    if (this.#child?.pid === pid && hasEnded(this.#child)) return undefined
    // After a reboot the pid may belong to another process. A postmaster's working directory is its data directory.
    const cwd = await readlink(`/proc/${pid}/cwd`).catch(() => undefined)
    if (existsSync('/proc/self/cwd') && cwd !== (await realpath(this.data))) return undefined
    return { pid, port: Number(portLine), status: status?.trim() ?? '' }
  }

  async #configure() {
    const megabyte = 2 ** 20
    const limit = process.constrainedMemory()
    const memory = limit > 0 && limit < totalmem() ? limit : totalmem()
    const part = (share: number, least: number, most: number) => {
      const size = Math.min(Math.max((memory * share) / megabyte, least), most)
      return `${Math.floor(size)}MB`
    }
    const { throwaway, cronDatabase, connections = 200 } = this.#options
    const settings: Record<string, string | number> = {
      listen_addresses: '127.0.0.1',
      port: this.port,
      unix_socket_directories: await this.#socketDirectory(),
      unix_socket_permissions: '0700',
      password_encryption: 'scram-sha-256',
      max_connections: connections,
      timezone: 'UTC',
      log_timezone: 'UTC',

      shared_buffers: throwaway ? '128MB' : part(0.25, 64, 4096),
      effective_cache_size: part(0.6, 256, 1_000_000),
      work_mem: '8MB',
      maintenance_work_mem: part(0.05, 32, 512),
      autovacuum_naptime: '10s',

      shared_preload_libraries: 'pg_cron',
      'cron.database_name': cronDatabase,
      // Otherwise pg_cron logs in over a socket, which fails because scram requires a password.
      'cron.use_background_workers': 'on',
      // Jobs run in background workers, in addition to those of parallel queries.
      max_worker_processes: 16 + availableParallelism(),
      'cron.max_running_jobs': 8,

      log_min_duration_statement: '250ms',
      log_line_prefix: '%m [%p] %q%u@%d %a ',
      log_checkpoints: throwaway ? 'off' : 'on',
      log_autovacuum_min_duration: throwaway ? '-1' : '10s',
    }
    if (await this.#knowsCronTimezone()) settings['cron.timezone'] = 'GMT'
    if (!throwaway) settings.max_wal_size = '2GB'
    if (throwaway) {
      Object.assign(settings, {
        fsync: 'off',
        full_page_writes: 'off',
        wal_level: 'minimal',
        max_wal_senders: 0,
        max_wal_size: '4GB',
        checkpoint_timeout: '1h',
      })
    }
    Object.assign(settings, this.#options.settings)
    const lines = Object.entries(settings).map(([name, value]) => `${name} = '${String(value).replaceAll(`'`, `''`)}'`)
    const file = join(this.data, 'fleet.conf')
    await writeFile(file, `# Written at each start by local/cluster.ts.\n${lines.join('\n')}\n`, { mode: 0o600 })
    await this.#give(file)
  }

  /** pg_cron has cron.timezone since 1.5. 1.4 always uses GMT and does not know the setting. */
  async #knowsCronTimezone() {
    const sharedir = (await this.#run('pg_config', ['--sharedir'])).trim()
    const control = await readFile(join(sharedir, 'extension', 'pg_cron.control'), 'utf8')
    const version = /default_version\s*=\s*'(\d+)\.(\d+)/.exec(control)
    return version !== null && (Number(version[1]) > 1 || Number(version[2]) >= 5)
  }

  /**
   * The directory for sockets. A socket's path must be shorter than 100 bytes, so this is the cluster's own directory if that
   * fits, otherwise a new one with a short name.
   */
  async #socketDirectory() {
    let sockets = join(this.dir, 'sockets')
    if (Buffer.byteLength(join(sockets, '.s.PGSQL.65535.lock')) < 100) {
      await mkdir(sockets, { recursive: true, mode: 0o700 })
    } else {
      if (this.#sockets) return this.#sockets
      const runtime = this.#user ? undefined : plainEnv().XDG_RUNTIME_DIR
      sockets = await mkdtemp(join(runtime && existsSync(runtime) ? runtime : '/tmp', 'nexmdm-'))
      this.#sockets = sockets
    }
    await this.#give(sockets)
    return sockets
  }

  async #locale() {
    const known = await execute('locale', ['-a'], {}).catch(() => '')
    return /^C\.utf-?8$/im.test(known) ? 'C.UTF-8' : 'C'
  }

  async #rotateLog() {
    const size = await stat(this.log).then(
      found => found.size,
      () => 0,
    )
    if (size > 20 * 2 ** 20) await rename(this.log, `${this.log}.1`)
  }

  async #keep(kept: Kept) {
    const file = join(this.dir, 'cluster.json')
    await writeFile(`${file}.new`, `${JSON.stringify(kept, null, 2)}\n`, { mode: 0o600 })
    await this.#give(`${file}.new`)
    await rename(`${file}.new`, file)
    this.#kept = kept
  }

  async #copy(data: string, target: string) {
    await execute('cp', ['-a', '--reflink=auto', data, `${target}.new`], {})
    await rename(`${target}.new`, target)
  }

  async #give(path: string) {
    if (this.#user) await chown(path, this.#user.uid, this.#user.gid)
  }

  #run(program: string, args: string[], input = '') {
    return execute(this.program(program), args, { ...this.#user, cwd: this.dir }, input)
  }
}

async function readKept(dir: string) {
  return JSON.parse(await readFile(join(dir, 'cluster.json'), 'utf8')) as Kept
}

function toolEnv() {
  return { ...movedClock(), PATH: plainEnv().PATH, LC_ALL: 'C', TZ: 'UTC' }
}

/**
 * Runs a program until it ends.
 * @returns what it printed to stdout
 * @throws ClusterError with its messages
 */
function execute(program: string, args: string[], options: Partial<User> & { cwd?: string }, input = '') {
  return new Promise<string>((resolve, reject) => {
    const child = spawn(program, args, { ...options, env: toolEnv(), stdio: 'pipe' })
    let out = ''
    let messages = ''
    child.stdout.on('data', (chunk: Buffer) => {
      out += chunk.toString()
    })
    child.stderr.on('data', (chunk: Buffer) => {
      messages += chunk.toString()
    })
    child.stdin.on('error', () => {}) // the exit code tells more
    child.stdin.end(input)
    child.on('error', reject)
    child.on('close', code => {
      // A single-user backend reports an error, continues, and ends with code 0.
      if (code === 0 && !/(ERROR|FATAL|PANIC): /.test(messages)) resolve(out)
      else reject(new ClusterError(`${program} ended with code ${code}:\n${(messages || out).trim()}`))
    })
  })
}

async function until(condition: () => Promise<boolean>, milliseconds: number) {
  const end = Date.now() + milliseconds
  while (Date.now() < end) {
    if (await condition()) return true
    await sleep(30)
  }
  return condition()
}

/** Whether this port can be listened on. */
export function isFree(port: number, host = '127.0.0.1') {
  return new Promise<boolean>(resolve => {
    const server = createServer()
    server.once('error', () => resolve(false))
    server.listen({ port, host, exclusive: true }, () => server.close(() => resolve(true)))
  })
}

/**
 * A free port: near 5432 for a cluster that stays, a random one for a throwaway cluster. Both are below the range from which
 * outgoing connections take their ports.
 */
export async function freePort(anywhere = false) {
  for (let attempt = 0; attempt < 200; attempt++) {
    const port = anywhere ? 20_000 + Math.floor(Math.random() * 10_000) : 5433 + attempt
    if (await isFree(port)) return port
  }
  throw new ClusterError('no free port was found on 127.0.0.1')
}

/** A cluster in a temporary directory, started; `end` stops it and removes the directory. */
export interface Throwaway {
  cluster: Cluster
  end: () => Promise<void>
}

/**
 * Makes and starts a cluster that ends with this process, no matter how that ends: a shell waits at the other end of a pipe,
 * which closes even if this process is killed.
 */
export async function throwawayCluster(
  options: Omit<ClusterOptions, 'dir' | 'throwaway'> & { durable?: boolean; primary?: Cluster },
): Promise<Throwaway> {
  const dir = await mkdtemp(join(options.durable ? await realpath(tmpdir()) : await throwawayRoot(), 'nexmdm-test-'))
  const guard = spawn('sh', ['-c', GUARD_SCRIPT, 'guard', dir], { detached: true, stdio: ['pipe', 'ignore', 'ignore'], cwd: '/' })
  guard.unref()
  const guardEnd = new Promise<void>(resolve => {
    guard.once('exit', () => resolve())
  })
  const end = async () => {
    guard.ref()
    guard.stdin.end()
    await guardEnd
  }
  try {
    const cluster = new Cluster({ ...options, dir, throwaway: !options.durable })
    await (options.primary ? cluster.follow(options.primary) : cluster.create())
    await cluster.start()
    return {
      cluster,
      end: async () => {
        await cluster.stop('immediate').catch(() => {})
        await end()
      },
    }
  } catch (error) {
    await end()
    throw error
  }
}

/**
 * Where data that need not survive a crash is kept: in memory if enough is free, otherwise on disk. The database of each test has
 * 1,000 files. Measured over seven test files: 81 CPU seconds on ext4, 58 in memory.
 */
async function throwawayRoot() {
  const memory = '/dev/shm'
  try {
    const { type, bavail, bsize } = await statfs(memory)
    await access(memory, constants.W_OK)
    if (type === TMPFS && Math.min(bavail * bsize, freemem()) > ENOUGH_MEMORY) return memory
  } catch {
    // This system has no /dev/shm.
  }
  return realpath(tmpdir())
}

/** The f_type of a tmpfs; see statfs(2). */
const TMPFS = 0x01021994
/** In bytes. With less free memory, data goes to the disk. */
const ENOUGH_MEMORY = 4 * 1024 ** 3

const GUARD_SCRIPT = `
  cat > /dev/null
  pid=$(head -n 1 "$1/data/postmaster.pid" 2> /dev/null)
  # Skips another process that now has the pid of a postmaster that was killed.
  if [ -n "$pid" ] && { [ ! -e /proc/self ] || [ "$(readlink "/proc/$pid/cwd")" = "$1/data" ]; }; then
    kill -QUIT "$pid" 2> /dev/null && while kill -0 "$pid" 2> /dev/null; do sleep 0.1; done
  fi
  rm -rf "$1"`
