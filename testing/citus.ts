// A coordinator and workers of Citus for a test.
import type { Test } from 'tap'
import type { Cluster } from '../local/cluster.ts'
import { client, open, testCluster, type TestDatabase } from './database.ts'
import { hasCitus, makeNodes, NO_CITUS } from './nodes.ts'

/** Why the tests that need Citus are skipped; false if they run. No package of Debian has it, so they are skipped in CI, too. */
export const withoutCitus: string | false = hasCitus(testCluster().postgres) ? false : NO_CITUS

export interface CitusNodes extends TestDatabase {
  coordinator: Cluster
  workers: Cluster[]
  /** The workers as npm run distribute wants them. */
  hosts: string[]
}

export interface CitusOptions {
  workers?: number
  /** More environment variables for Postgres of the workers. */
  env?: Record<string, string>
}

/** As makeNodes(), with the database `fleet`. They end in teardown. */
export async function withCitus(t: Test, { workers = 2, env }: CitusOptions = {}): Promise<CitusNodes> {
  const nodes = await makeNodes({ postgres: testCluster().postgres, workers, ...(env ? { workerEnv: env } : {}) })
  t.teardown(nodes.end)
  const { coordinator, hosts } = nodes
  return { ...open(t, 'fleet', role => coordinator.url(role, 'fleet')), coordinator, workers: nodes.workers, hosts }
}

/** A session as superuser on a worker. It ends in teardown. */
export function onWorker(t: Test, worker: Cluster, role: 'postgres' | 'fleet_owner' | 'fleet_server' = 'postgres') {
  const sql = client(worker.url(role, 'fleet'), 2)
  t.teardown(() => sql.end({ timeout: 1 }))
  return sql
}
