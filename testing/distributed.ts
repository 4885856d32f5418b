// npm run test:citus: a coordinator and two workers, on which withDatabase() makes distributed stores. See docs/scale-out.md.
import { readFileSync } from 'node:fs'
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { distribute } from '../cli/distribute.ts'
import { migrate } from '../cli/migrate.ts'
import { isInTests, testClusterFile } from '../local/config.ts'
import { openDatabase } from '../lib/database.ts'
import { repository } from '../lib/repository.ts'
import { requirePostgres } from '../local/packages.ts'
import { makeNodes } from './nodes.ts'

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
const EACH_CHANGE = 'it expects each transition, and the job of a distributed store notes what it finds each minute'
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
  'server/ingest/nodes.test.ts': 'its nodes are plain stores that it makes',
  'server/ingest/spread.test.ts': NO_STORE,
  'server/ingest/timestamp.test.ts': NO_STORE,
  'sql/checks/check-postgres.test.ts': OWN_CLUSTER,
  'sql/checks/runbook.test.ts': 'it reads the runbook',
  'sql/partitions/settle-crash.test.ts': OWN_CLUSTER,
  'sql/partitions/settle.test.ts':
    'it looks into the pages of one node, and for a constraint that has another name in each shard',
  'sql/status/list-plans.test.ts': 'it reads the plans of one node',
  'sql/transitions/reasons.test.ts': EACH_CHANGE,
  'sql/transitions/transitions-property.test.ts': EACH_CHANGE,
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

/** Makes the nodes of a test run, with two stores to copy, to which nobody connects: `template` is distributed, `plain` is not. */
export async function makeDistributedCluster(template: string, plain: string) {
  const postgres = await requirePostgres()
  const nodes = await makeNodes({
    postgres,
    workers: WORKERS,
    store: template,
    connections: 800,
    settings: {
      max_prepared_transactions: 800,
      // Citus has a process in each database.
      max_worker_processes: 100,
      'citus.node_conninfo': 'sslmode=disable',
      'citus.recover_2pc_interval': -1,
      'citus.defer_shard_delete_interval': -1,
      'citus.enable_statistics_collection': 'off',
    },
  })
  const { coordinator, workers, hosts, passwords, end } = nodes
  try {
    const maintenance = openDatabase(coordinator.url('postgres', 'postgres'), { max: 1 })
    await maintenance.unsafe(`create database ${plain} template template0`)
    await migrate(coordinator.url('postgres', plain), { current: true, log: () => {} })
    await maintenance.unsafe(`alter database ${plain} with allow_connections false is_template true`)
    await maintenance.end({ timeout: 5 })
    await distribute(coordinator.url('postgres', template), { workers: hosts, shards: SHARDS, log: () => {} })
    await Promise.all(
      [coordinator, ...workers].map(async each => {
        const sql = openDatabase(each.url('postgres', 'postgres'), { max: 1 })
        // Each session of a test has sessions on the workers.
        for (const role of ['fleet_reader', 'fleet_dba', 'fleet_archiver'])
          await sql.unsafe(`alter role ${role} connection limit 400`)
        await sql.unsafe(`alter database ${template} with allow_connections false is_template true`)
        await sql.end({ timeout: 5 })
        // The process of Citus in this database would keep it from being copied.
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
