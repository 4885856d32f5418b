// Makes what the scenarios measure: a durable cluster with the same settings as npm start's, and servers on it.
import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { setTimeout as sleep } from 'node:timers/promises'
import postgres, { type Sql } from 'postgres'
import { freePort, throwawayCluster, type Cluster } from '../local/cluster.ts'
import { isInTests, plainEnv } from '../local/config.ts'
import { built, nodeArgs, repository } from '../lib/repository.ts'
import { migrate } from '../cli/migrate.ts'
import { requirePostgres } from '../local/packages.ts'
import { testCluster } from '../testing/database.ts'
import { DEVICE_TOKEN, GATEWAY_TOKEN, TOKEN_DIGITS } from './fleet-order.ts'
import { describeError, UsageError } from '../lib/errors.ts'
import { hasEnded } from '../lib/process.ts'
import { step } from '../lib/progress.ts'

export interface Store {
  cluster: Cluster
  /** A session as superuser. */
  admin: Sql
}

/**
 * Makes a store, runs `work` with it, and removes it. fsync, synchronous_commit and full_page_writes are on.
 * @param root the checkout whose migrations make it, including the one that is being written there
 * @param env more environment variables of Postgres
 */
export async function withStore<T>(
  work: (store: Store) => Promise<T>,
  root = repository,
  env: Record<string, string> = {},
): Promise<T> {
  const packages = await requirePostgres()
  // In npm test the store is a copy of one that is migrated already.
  const template = root === repository && isInTests() ? testCluster().template : undefined
  const { cluster, end } = await throwawayCluster({
    postgres: packages,
    databases: ['fleet'],
    cronDatabase: 'fleet',
    durable: true,
    env,
    ...(template === undefined ? {} : { template }),
  })
  const admin = postgres(cluster.url('postgres', 'fleet'), { max: 4, onnotice: () => {} })
  try {
    if (template === undefined) {
      const migration = await migrationOf(root)
      await migration(cluster.url('postgres', 'fleet'), { current: true, log: () => {} })
      await cluster.allowLogins()
    }
    return await work({ cluster, admin })
  } finally {
    await admin.end({ timeout: 1 })
    await end()
  }
}

async function migrationOf(root: string) {
  if (root === repository) return migrate
  const other = (await import(pathToFileURL(built('cli/migrate.ts', root)).href).catch((cause: unknown) => {
    throw new UsageError(`${root} cannot be measured: npm run build was not run there (${describeError(cause)})`)
  })) as { migrate: typeof migrate }
  return other.migrate
}

export interface Device {
  device_id: number
  token: string
}

/** Enrolls devices with fleet.create_device(), and vacuums their table as autovacuum would. */
export async function enroll({ admin }: Store, count: number, prefix = 'bench'): Promise<Device[]> {
  return step(`Enrolling ${count.toLocaleString('en')} devices`, async () => {
    const devices = await admin<{ device_id: string; token: string }[]>`
      select d.device_id, d.token
      from generate_series(1, ${count}::integer) n
      cross join lateral fleet.create_device(${prefix}::text || '-' || n) d
      order by d.device_id
    `
    await admin`vacuum (analyze) fleet.devices`
    await admin`vacuum (analyze) fleet.device_last_status`
    return devices.map(({ device_id, token }) => ({ device_id: Number(device_id), token }))
  })
}

/**
 * Enrolls the devices 1 to `count` of an empty store, and the gateways 1 to `gateways`, with one statement each. The token of each
 * is made of its number, so that senders need not keep a million tokens.
 */
export async function enrollMany({ admin }: Store, count: number, gateways = 0) {
  await step(`Enrolling ${count.toLocaleString('en')} devices`, async () => {
    const [enrolled] = await admin<{ count: number }[]>`
      with enrolled as (
        insert into fleet.devices (alias, token_hash)
        select 'bench-' || n, fleet.hash_token(${DEVICE_TOKEN}::text || lpad(to_hex(n), ${TOKEN_DIGITS}::integer, '0'))
        from generate_series(1, ${count}::integer) n
        returning device_id, alias
      ), inserted as (
        insert into fleet.device_last_status (device_id, is_silent)
        select device_id, false from enrolled
      )
      select count(*)::integer as count from enrolled where alias = 'bench-' || device_id
    `
    if (enrolled!.count !== count) throw new Error('the ids of the new devices do not start at 1')
    await admin`
      insert into fleet.gateways (gateway_name, token_hash)
      select 'bench-' || n, fleet.hash_token(${GATEWAY_TOKEN}::text || lpad(to_hex(n), ${TOKEN_DIGITS}::integer, '0'))
      from generate_series(1, ${gateways}::integer) n
    `
    await admin`vacuum (analyze) fleet.devices`
    await admin`vacuum (analyze) fleet.device_last_status`
  })
}

export interface ServerOptions {
  /** The clone that it runs from; this one by default. */
  root?: string
  /** A file in bench/ that changes the server before it starts. */
  variant?: string
  env?: Record<string, string>
  /** Any free port by default. */
  port?: number
}

export interface Server extends Program {
  port: number
  url: string
  adminKey: string
  /** The counters and gauges of /metrics, summed over their labels. */
  metrics: () => Promise<Map<string, number>>
}

/** A program of this repository that runs as a process. It ends when this process ends, no matter how. */
export interface Program {
  pid: number
  /** The end of its output. */
  output: () => string
  hasEnded: () => boolean
  exited: Promise<void>
  kill: (signal: NodeJS.Signals) => void
  /** Asks it to end, and kills it if it has not ended after 30 s. */
  stop: () => Promise<void>
}

export function startProgram(
  script: string,
  {
    imports = [],
    args = [],
    env,
    root = repository,
  }: {
    imports?: string[]
    args?: string[]
    env: Record<string, string | undefined>
    root?: string
  },
): Program {
  const preloaded = imports.flatMap(name => ['--import', built(name, root)])
  const child = spawn(process.execPath, [...preloaded, ...nodeArgs(script, root), ...args], {
    cwd: root,
    env: { ...plainEnv(), ...env },
    // The IPC channel makes it end when this process ends.
    stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
  })
  let output = ''
  const keep = (chunk: Buffer) => {
    output = (output + chunk.toString()).slice(-3_000)
  }
  child.stdout?.on('data', keep)
  child.stderr?.on('data', keep)
  const exited = new Promise<void>(resolve => {
    child.once('exit', () => resolve())
  })
  return {
    pid: child.pid ?? 0,
    output: () => output,
    hasEnded: () => hasEnded(child),
    exited,
    kill: signal => {
      child.kill(signal)
    },
    async stop() {
      if (!hasEnded(child)) child.kill('SIGTERM')
      const timer = setTimeout(() => child.kill('SIGKILL'), 30_000)
      await exited
      clearTimeout(timer)
    },
  }
}

/** Starts the server as npm run server does, with its worker processes. */
export async function startServer(
  { cluster }: Store,
  { variant, env = {}, port: wanted, root = repository }: ServerOptions = {},
): Promise<Server> {
  const port = wanted ?? (await freePort(true))
  const url = `http://127.0.0.1:${port}`
  const adminKey = randomBytes(24).toString('hex')
  const database = cluster.url('fleet_server', 'fleet')
  const program = startProgram('server/main.ts', {
    root,
    imports: variant === undefined ? [] : [join('bench', variant)],
    env: {
      SERVER_DATABASE_URL: database,
      OPS_DATABASE_URL: database,
      ADMIN_KEY: adminKey,
      PORT: String(port),
      LOG_LEVEL: 'info',
      ...env,
    },
  })
  // Waits for every worker: one that is alone would get all the connections, and keep them.
  const isComplete = () => {
    const workers = Number(/"server.listening".*"workers":(\d+)/.exec(program.output())?.[1])
    return workers === 1 || program.output().split('"worker.started"').length - 1 === workers
  }

  const deadline = Date.now() + 30_000
  while (
    !isComplete() ||
    !(await fetch(`${url}/readyz`).then(
      answer => answer.ok,
      () => false,
    ))
  ) {
    if (program.hasEnded() || Date.now() > deadline) {
      program.kill('SIGKILL')
      throw new Error(`the server did not become ready:\n${program.output()}`)
    }
    await sleep(50)
  }
  return {
    ...program,
    port,
    url,
    adminKey,
    async metrics() {
      const answer = await fetch(`${url}/metrics`, { headers: { 'x-admin': adminKey } })
      if (!answer.ok) throw new Error(`/metrics answered ${answer.status}:\n${await answer.text()}`)
      return parseMetrics(await answer.text())
    },
  }
}

/** Makes all devices except one in a hundred send a heartbeat just now. One in 200 reports that its Unity app is down. */
export async function hearFrom(admin: Sql) {
  await admin`
    insert into fleet.device_heartbeats (ts, device_id, signal_dbm, battery_pct, unity_running, network_type, agent_version, ip)
    select now() - device_id % 40 * interval '1 second', device_id, -61, 80, device_id % 200 <> 7, 'wifi', '3.1.0', '10.0.0.1'
    from fleet.devices
    where device_id % 100 <> 1
    on conflict do nothing
  `
}

function parseMetrics(text: string) {
  const values = new Map<string, number>()
  for (const line of text.split('\n')) {
    const [, name, value] = /^([a-z_]+)(?:\{.*\})? (\S+)$/.exec(line) ?? []
    if (name !== undefined) values.set(name, (values.get(name) ?? 0) + Number(value))
  }
  return values
}
