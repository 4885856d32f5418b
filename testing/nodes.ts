// A coordinator and workers of Citus: clusters of their own on loopback, which log in at each other with passwords.
import { execFileSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { migrate } from '../cli/migrate.ts'
import { ROLES, throwawayCluster, type Cluster, type Role } from '../local/cluster.ts'
import { plainEnv } from '../local/config.ts'
import type { Postgres } from '../local/packages.ts'
import { openDatabase } from '../lib/database.ts'
import { repository } from '../lib/repository.ts'

/** What is missing where hasCitus() is false. No package of Debian has it. */
export const NO_CITUS =
  'there is no Citus for the PostgreSQL of the tests: build it from https://github.com/citusdata/citus, run make install, and try again'

export interface Nodes {
  coordinator: Cluster
  workers: Cluster[]
  /** The workers as npm run distribute wants them. */
  hosts: string[]
  passwords: Record<string, string>
  /** Ends all of them, and removes them. */
  end: () => Promise<void>
}

/** Whether Citus is where this PostgreSQL keeps its extensions. */
export function hasCitus({ bin }: Postgres) {
  const sharedir = execFileSync(join(bin, 'pg_config'), ['--sharedir'], { encoding: 'utf8', env: plainEnv() }).trim()
  return existsSync(join(sharedir, 'extension', 'citus.control'))
}

export interface NodesOptions {
  postgres: Postgres
  workers: number
  /** The database with the store; `fleet` by default, which also has pg_cron. */
  store?: string
  connections?: number
  /** Keeps fsync and full page writes on. */
  durable?: boolean
  settings?: Record<string, string | number>
  /** More environment variables for Postgres of the workers. */
  workerEnv?: Record<string, string>
}

/**
 * Makes a coordinator whose database `store` is migrated and not distributed, and workers whose database of that name is empty. No
 * node trusts another: each knows the passwords of the others' roles from pg_dist_authinfo, which only superusers read.
 */
export async function makeNodes(options: NodesOptions): Promise<Nodes> {
  const { store = 'fleet', workers: count } = options
  const ends: (() => Promise<void>)[] = []
  const end = async () => {
    await Promise.all(ends.map(stop => stop()))
  }
  const add = async (passwords?: Record<string, string>) => {
    const made = await addNode(options, passwords)
    ends.push(made.end)
    return made.cluster
  }
  try {
    const coordinator = await add()
    const passwords = Object.fromEntries((['postgres', ...ROLES] as const).map(role => [role, passwordOf(coordinator, role)]))
    await migrate(coordinator.url('postgres', store), { current: true, log: () => {} })
    await coordinator.allowLogins()
    await letIn(coordinator, store, passwords)
    const workers: Cluster[] = []
    for (let nth = 0; nth < count; nth++) {
      const worker = await add(passwords)
      await prepareWorker(worker, store)
      await letIn(worker, store, passwords)
      workers.push(worker)
    }
    return { coordinator, workers, hosts: workers.map(hostOf), passwords, end }
  } catch (error) {
    await end()
    throw error
  }
}

/** host:port, as npm run distribute wants it. */
export function hostOf({ port }: Cluster) {
  return `127.0.0.1:${port}`
}

async function addNode(
  { postgres, store = 'fleet', connections, durable, settings, workerEnv }: NodesOptions,
  passwords?: Record<string, string>,
) {
  return await throwawayCluster({
    postgres,
    databases: [...new Set(['fleet', store])],
    cronDatabase: 'fleet',
    ...(passwords ? { passwords } : {}),
    ...(passwords && workerEnv ? { env: workerEnv } : {}),
    ...(connections === undefined ? {} : { connections }),
    ...(durable === undefined ? {} : { durable }),
    settings: {
      // Only the coordinator has jobs.
      shared_preload_libraries: passwords ? 'citus' : 'citus, pg_cron',
      max_prepared_transactions: 200,
      'citus.node_conninfo': 'sslmode=prefer',
      // Shards move by logical replication.
      wal_level: 'logical',
      max_wal_senders: 20,
      max_replication_slots: 20,
      max_logical_replication_workers: 16,
      max_sync_workers_per_subscription: 2,
      max_worker_processes: 40,
      ...settings,
    },
  })
}

async function prepareWorker(worker: Cluster, store: string) {
  const sql = openDatabase(worker.url('postgres', store), { max: 1 })
  try {
    await sql.unsafe(await readFile(join(repository, 'sql/setup/roles.sql'), 'utf8'))
  } finally {
    await sql.end({ timeout: 5 })
  }
  await worker.allowLogins()
}

/** Makes the extension, and lets the node log in at any other. */
async function letIn(node: Cluster, store: string, passwords: Record<string, string>) {
  const sql = openDatabase(node.url('postgres', store), { max: 1 })
  try {
    await sql`create extension citus`
    for (const [role, password] of Object.entries(passwords))
      await sql`insert into pg_catalog.pg_dist_authinfo (nodeid, rolename, authinfo) values (0, ${role}, ${`password=${password}`})`
  } finally {
    await sql.end({ timeout: 5 })
  }
}

function passwordOf(cluster: Cluster, role: Role) {
  return new URL(cluster.url(role, 'fleet')).password
}
