import { existsSync } from 'node:fs'
import { realpath } from 'node:fs/promises'
import { join } from 'node:path'
import { repository } from '../lib/repository.ts'
import { Cluster, clusterMajor } from './cluster.ts'
import { findPostgres } from './packages.ts'

/** The cluster that npm start made for this clone, and whether it runs; undefined if there is none. Starts nothing. */
export async function ownCluster() {
  const dir = await realpath(join(repository, '.local', 'pg')).catch(() => undefined)
  if (dir === undefined || !existsSync(join(dir, 'cluster.json'))) return undefined
  const postgres = await findPostgres(await clusterMajor(dir))
  if (!postgres) return undefined
  const cluster = new Cluster({ dir, postgres, databases: ['fleet'], cronDatabase: 'fleet' })
  return { cluster, isRunning: await cluster.attach() }
}
