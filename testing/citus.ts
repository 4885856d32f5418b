// A coordinator and workers of Citus for tests: clusters of their own on loopback, which log in at each other with passwords.
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Test } from 'tap'
import { migrate } from '../cli/migrate.ts'
import { ROLES, throwawayCluster, type Cluster } from '../local/cluster.ts'
import { openDatabase } from '../lib/database.ts'
import { repository } from '../lib/repository.ts'
import { client, open, testCluster, type TestDatabase } from './database.ts'
import { hasCitus, NO_CITUS } from './distributed.ts'

/** Why the tests that need Citus are skipped; false if they run. No package of Debian has it, so they are skipped in CI, too. */
export const withoutCitus: string | false = hasCitus(testCluster().postgres) ? false : NO_CITUS

export interface CitusNodes extends TestDatabase {
  coordinator: Cluster
  workers: Cluster[]
  /** The workers as npm run distribute wants them. */
  hosts: string[]
}

/**
 * Makes a coordinator whose database `fleet` is migrated and not distributed, and workers whose database `fleet` is empty. No node
 * trusts another: each knows the passwords of the others' roles from pg_dist_authinfo, which only superusers read.
 */
export async function withCitus(t: Test, { workers: count = 2 } = {}): Promise<CitusNodes> {
  const coordinator = await node(t)
  await migrate(coordinator.url('postgres', 'fleet'), { current: true, log: () => {} })
  await coordinator.allowLogins()
  const passwords = Object.fromEntries((['postgres', ...ROLES] as const).map(role => [role, passwordOf(coordinator, role)]))
  const workers: Cluster[] = []
  for (let nth = 0; nth < count; nth++) workers.push(await node(t, passwords))
  for (const cluster of [coordinator, ...workers]) {
    const sql = openDatabase(cluster.url('postgres', 'fleet'), { max: 1 })
    try {
      if (cluster !== coordinator) {
        await sql.unsafe(await readFile(join(repository, 'sql/setup/roles.sql'), 'utf8'))
        await cluster.allowLogins()
      }
      await sql`create extension citus`
      // For any node.
      for (const [role, password] of Object.entries(passwords))
        await sql`insert into pg_catalog.pg_dist_authinfo (nodeid, rolename, authinfo) values (0, ${role}, ${`password=${password}`})`
    } finally {
      await sql.end({ timeout: 5 })
    }
  }
  return {
    ...open(t, 'fleet', role => coordinator.url(role, 'fleet')),
    coordinator,
    workers,
    hosts: workers.map(worker => `127.0.0.1:${worker.port}`),
  }
}

/** A session as superuser on a worker. It ends in teardown. */
export function onWorker(t: Test, worker: Cluster, role: 'postgres' | 'fleet_owner' | 'fleet_server' = 'postgres') {
  const sql = client(worker.url(role, 'fleet'), 2)
  t.teardown(() => sql.end({ timeout: 1 }))
  return sql
}

async function node(t: Test, passwords?: Record<string, string>) {
  const { cluster, end } = await throwawayCluster({
    postgres: testCluster().postgres,
    databases: ['fleet'],
    cronDatabase: 'fleet',
    ...(passwords ? { passwords } : {}),
    settings: {
      // Only the coordinator has jobs.
      shared_preload_libraries: passwords ? 'citus' : 'citus, pg_cron',
      max_prepared_transactions: 200,
      'citus.node_conninfo': 'sslmode=prefer',
    },
  })
  t.teardown(end)
  return cluster
}

function passwordOf(cluster: Cluster, role: 'postgres' | (typeof ROLES)[number]) {
  return new URL(cluster.url(role, 'fleet')).password
}
