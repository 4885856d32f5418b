// Faults after which another copy of the store has the place of the first, at the same address: a standby, or what a dump restored.
import { execFile } from 'node:child_process'
import { readFile, rename, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import postgres, { type Sql } from 'postgres'
import { migrate } from '../../cli/migrate.ts'
import { repository } from '../../lib/repository.ts'
import { throwawayCluster, type Cluster } from '../../local/cluster.ts'
import { plainEnv } from '../../local/config.ts'
import { requirePostgres } from '../../local/packages.ts'
import { waitFor } from '../database.ts'
import { pgRestore } from '../dumps.ts'
import type { System } from './system.ts'

const run = promisify(execFile)

/** The primary dies, and a standby that has confirmed each commit is promoted. */
export async function promoteStandby(system: System, random: () => number) {
  const { cluster } = system.store
  const standby = await another(cluster)
  try {
    await system.ask(async sql => {
      await sql.unsafe(`alter system set synchronous_standby_names = '*'`)
      await sql`select pg_reload_conf()`
    })
    await waitFor(
      () => system.ask(async sql => (await sql`select from pg_stat_replication where sync_state = 'sync'`).length > 0),
      {
        what: () => 'the standby to confirm commits',
      },
    )
    await system.addWork(3, random)
    await sleep(200 + 1_500 * random())
    process.kill((await cluster.pid())!, 'SIGKILL')
    await waitFor(async () => (await cluster.pid()) === undefined)
    await withSession(standby.cluster, sql => sql`select pg_promote()`)
    await takePlace(cluster, standby.cluster)
  } finally {
    await standby.end()
  }
  return 'the primary killed, the standby promoted'
}

/** As RUNBOOK.md says, the store is dumped and restored into another cluster. Meanwhile nobody may write. */
export async function dumpAndRestore(system: System, random: () => number) {
  const { cluster } = system.store
  await system.addWork(3, random)
  await sleep(600 * random())
  const fresh = await another()
  try {
    await system.ask(async sql => {
      // This does not bind superusers.
      await sql.unsafe('alter database fleet connection limit 0')
      await waitFor(
        async () =>
          (
            await sql`
              select pg_terminate_backend(a.pid, 5000)
              from pg_stat_activity a
              join pg_roles r on r.rolname = a.usename and not r.rolsuper
              where a.datname = current_database()`
          ).length === 0,
        { what: () => 'all sessions to end' },
      )
    })
    const dump = join(system.directory, 'store.dump')
    const from = cluster.url('postgres', 'fleet')
    await run(cluster.program('pg_dump'), ['-Fc', '--exclude-table-data=cron.*', '-f', dump, from], { env: plainEnv() })
    await restore(dump, fresh.cluster, new URL(from).password)
    await takePlace(cluster, fresh.cluster)
  } finally {
    await fresh.end()
  }
  await cluster.allowLogins()
  await migrate(cluster.url('postgres', 'fleet'), { current: true, log: () => {} })
  await system.ask(sql => sql`call fleet.maintain()`)
  return 'into another cluster'
}

/** @param password of the superuser, afterwards */
async function restore(dump: string, cluster: Cluster, password: string) {
  const roles = await readFile(join(repository, 'sql/setup/roles.sql'), 'utf8')
  await withSession(cluster, sql => sql.unsafe(roles))
  await pgRestore(cluster, cluster.url('postgres', 'fleet'), dump, { options: ['--jobs=2'] })
  await withSession(cluster, sql => sql.unsafe(`alter role postgres password '${password}'`)) // only letters, digits, - and _
  await rm(dump)
}

/** A cluster with an empty database, or a standby of `primary`. */
async function another(primary?: Cluster) {
  return throwawayCluster({
    postgres: await requirePostgres(),
    databases: ['fleet'],
    cronDatabase: 'fleet',
    durable: true,
    ...(primary ? { primary } : {}),
  })
}

/** Removes the data of a cluster, and starts it with that of another. */
async function takePlace(cluster: Cluster, other: Cluster) {
  await Promise.all([cluster.stop('immediate'), other.stop()])
  const { port } = cluster
  await rm(cluster.data, { recursive: true, force: true })
  await rename(other.data, cluster.data)
  await cluster.start()
  if (cluster.port !== port) throw new Error(`the cluster has port ${cluster.port} now and not ${port}`)
}

async function withSession<T>(cluster: Cluster, use: (sql: Sql) => Promise<T>) {
  const sql = postgres(cluster.url('postgres', 'fleet'), { max: 1, fetch_types: false, onnotice: () => {} })
  try {
    return await use(sql)
  } finally {
    await sql.end({ timeout: 1 })
  }
}
