// npm run test:citus: a coordinator and two workers, on which withDatabase() makes distributed stores. See docs/scale-out.md.
import { execFileSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { distribute } from '../cli/distribute.ts'
import { migrate } from '../cli/migrate.ts'
import { isInTests, plainEnv, testClusterFile } from '../local/config.ts'
import { ROLES, throwawayCluster, type Cluster, type Role } from '../local/cluster.ts'
import { openDatabase } from '../lib/database.ts'
import { repository } from '../lib/repository.ts'
import { requirePostgres, type Postgres } from '../local/packages.ts'

export const NO_CITUS =
  'there is no Citus for the PostgreSQL of the tests: build it from https://github.com/citusdata/citus, run make install, and test again'

/** npm run test:citus runs the tests in these folders, but for LEFT_OUT. */
const FOLDERS = [
  'server/ingest',
  'server/fleet',
  'sql/ingest',
  'sql/status',
  'sql/partitions',
  'sql/archive',
  'sql/availability',
  'sql/transitions',
  'sql/devices',
  'sql/erase',
  'sql/checks',
  'sql/silence',
  'sql/webhooks',
  'sql/metrics',
  'sql/jobs',
  'archiver',
  'notifier',
]

const NO_STORE = 'it needs no store'
const OWN_CLUSTER = 'it has a cluster of its own, which is a plain store'

/** The files in FOLDERS that say nothing of a distributed store, and why. Single tests say it with plainOnly(). */
const LEFT_OUT: Record<string, string> = {
  'archiver/archive/manifest.test.ts': NO_STORE,
  'archiver/config.test.ts': NO_STORE,
  'archiver/progress.test.ts': NO_STORE,
  'archiver/restart.test.ts': OWN_CLUSTER,
  'archiver/store/file-store.test.ts': NO_STORE,
  'archiver/store/s3-store.test.ts': NO_STORE,
  'notifier/addresses.test.ts': NO_STORE,
  'notifier/config.test.ts': NO_STORE,
  'notifier/deliver.test.ts': NO_STORE,
  'server/fleet/device-reads.test.ts': 'it compares with reads from the heartbeats, which are refused',
  'server/ingest/fields.test.ts': NO_STORE,
  'server/ingest/item.test.ts': NO_STORE,
  'server/ingest/spread.test.ts': NO_STORE,
  'server/ingest/timestamp.test.ts': NO_STORE,
  'sql/checks/check-postgres.test.ts': OWN_CLUSTER,
  'sql/checks/runbook.test.ts': 'it reads the runbook',
  'sql/partitions/settle-crash.test.ts': OWN_CLUSTER,
  'sql/partitions/settle.test.ts':
    'it looks into the pages of one node, and for a constraint that has another name in each shard',
  'sql/status/list-plans.test.ts': 'it reads the plans of one node',
}

/**
 * The test files to run: those that are named, in folders without LEFT_OUT, or all.
 * @param log receives a line for each file that is left out
 */
export async function testsOfDistributed(wanted: string[], log: (line: string) => void) {
  const isOption = (arg: string) => arg.startsWith('-')
  const places = wanted.some(arg => !isOption(arg)) ? wanted : [...wanted, ...FOLDERS]
  const files = await Promise.all(
    places.map(async place => {
      if (isOption(place) || /\.tsx?$/.test(place)) return [place]
      const names = await readdir(join(repository, place), { recursive: true })
      return names
        .filter(name => /\.test\.ts$/.test(name))
        .sort()
        .map(name => join(place, name))
        .filter(file => {
          if (LEFT_OUT[file] !== undefined) log(`Left out: ${file}: ${LEFT_OUT[file]}`)
          return LEFT_OUT[file] === undefined
        })
    }),
  )
  return files.flat()
}

const WORKERS = 2
/** Two on each worker, so that a statement also finds two shards on one node. */
const SHARDS = 4
const CRON_DATABASE = 'fleet'

/** Whether Citus is where this PostgreSQL keeps its extensions. */
export function hasCitus(postgres: Postgres) {
  const sharedir = execFileSync(join(postgres.bin, 'pg_config'), ['--sharedir'], { encoding: 'utf8', env: plainEnv() }).trim()
  return existsSync(join(sharedir, 'extension', 'citus.control'))
}

/** Whether the stores of this run are distributed. */
export const isDistributed =
  isInTests() && (JSON.parse(readFileSync(testClusterFile(), 'utf8')) as { workers?: number[] }).workers !== undefined

/** For the option `skip` of a test that cannot run on a distributed store: the reason there, false on a plain store. */
export function plainOnly(reason: string): string | false {
  return isDistributed && `not on a distributed store: ${reason}`
}

/** The views that say the status of a device. A distributed store refuses the second. */
export const STATUS_VIEWS = ['device_status', 'device_status_legacy'].slice(0, isDistributed ? 1 : 2)

/** The functions that list devices. A distributed store refuses the second. */
export const DEVICE_LISTS = ['list_devices', 'list_devices_legacy'].slice(0, isDistributed ? 1 : 2)

/** Makes the nodes of a test run, with a distributed store of the name `template` to copy, to which nobody connects. */
export async function makeDistributedCluster(template: string) {
  const postgres = await requirePostgres()
  const log = () => {}
  const ends: (() => Promise<void>)[] = []
  const end = async () => {
    await Promise.all(ends.map(stop => stop()))
  }
  try {
    const coordinator = await node(postgres, ends)
    const passwords = Object.fromEntries(
      (['postgres', ...ROLES] as const).map(role => [role, new URL(coordinator.url(role, template)).password]),
    ) as Record<Role, string>
    const workers = await Promise.all(Array.from({ length: WORKERS }, () => node(postgres, ends, passwords)))
    const nodes = [coordinator, ...workers]
    await Promise.all(
      nodes.map(async each => {
        const sql = openDatabase(each.url('postgres', 'postgres'), { max: 1 })
        await sql.unsafe(`create database ${template} template template0`)
        if (each === coordinator) await migrate(each.url('postgres', template), { current: true, log })
        else await sql.unsafe(await readFile(join(repository, 'sql/setup/roles.sql'), 'utf8'))
        await each.allowLogins()
        // Each session of a test has sessions on the workers.
        for (const role of ['fleet_reader', 'fleet_dba', 'fleet_archiver'])
          await sql.unsafe(`alter role ${role} connection limit 400`)
        await sql.end({ timeout: 5 })
        const store = openDatabase(each.url('postgres', template), { max: 1 })
        await store`create extension citus`
        for (const [role, password] of Object.entries(passwords))
          await store`insert into pg_catalog.pg_dist_authinfo (nodeid, rolename, authinfo) values (0, ${role}, ${`password=${password}`})`
        await store.end({ timeout: 5 })
      }),
    )
    await distribute(coordinator.url('postgres', template), {
      workers: workers.map(worker => `127.0.0.1:${worker.port}`),
      shards: SHARDS,
      log,
    })
    await Promise.all(
      nodes.map(async each => {
        const sql = openDatabase(each.url('postgres', 'postgres'), { max: 1 })
        await sql.unsafe(`alter database ${template} with allow_connections false is_template true`)
        await sql.end({ timeout: 5 })
        // Citus has a process in each database that was used. It would keep this one from being copied.
        await each.stop()
        await each.start()
      }),
    )
    const description = {
      host: '127.0.0.1',
      port: coordinator.port,
      postgres,
      passwords,
      template: '',
      workers: workers.map(worker => worker.port),
    }
    return { cluster: coordinator, description, end }
  } catch (error) {
    await end()
    throw error
  }
}

async function node(postgres: Postgres, ends: (() => Promise<void>)[], passwords?: Record<string, string>): Promise<Cluster> {
  const { cluster, end } = await throwawayCluster({
    postgres,
    databases: [CRON_DATABASE],
    cronDatabase: CRON_DATABASE,
    connections: 800,
    ...(passwords ? { passwords } : {}),
    settings: {
      shared_preload_libraries: passwords ? 'citus' : 'citus, pg_cron',
      max_prepared_transactions: 800,
      // Citus has a process in each database.
      max_worker_processes: 100,
      'citus.node_conninfo': 'sslmode=disable',
      'citus.recover_2pc_interval': -1,
      'citus.defer_shard_delete_interval': -1,
      'citus.enable_statistics_collection': 'off',
    },
  })
  ends.push(end)
  return cluster
}
