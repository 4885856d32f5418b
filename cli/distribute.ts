// npm run distribute: spreads a store over several machines with Citus. See docs/scale-out.md.
import { pathToFileURL } from 'node:url'
import { parseArgs } from 'node:util'
import type { Sql } from 'postgres'
import { databaseUrl } from '../local/config.ts'
import { openDatabase } from '../lib/database.ts'
import { reportFailure, UsageError } from '../lib/errors.ts'
import { say, step } from '../lib/progress.ts'
import { endDeadlocksSoon } from './deadlocks.ts'
import { installDistributed } from './distributed-sql.ts'

const USAGE =
  'usage: DATABASE_URL=postgres://… npm run distribute -- --workers host1[:port],host2 [--coordinator host[:port]] [--shards 32] [--dry-run]'

/** The roles as which the coordinator logs in at the workers: Citus asks them in the name of the login that asks it. */
const ROLES = ['fleet_owner', 'fleet_server', 'fleet_archiver', 'fleet_reader', 'fleet_dba', 'fleet_verifier']

export interface DistributeOptions {
  /** host or host:port of each worker, as the other nodes reach it. The database and the login are those of the coordinator. */
  workers: string[]
  /** host:port of the coordinator, as the workers reach it; those of its URL by default. */
  coordinator?: string | undefined
  shards?: number
  /** Checks and shows the plan, and changes nothing. */
  isDryRun?: boolean
  /** Receives each line. */
  log?: (line: string) => void
  /** Called after each step, for a test that stops there. */
  afterStep?: (name: string) => void
}

interface Node {
  name: string
  host: string
  port: number
  sql: Sql
}

interface PlannedStep {
  step: string
  kind: string
  bytes: number | null
  is_done: boolean
}

/**
 * Distributes the store at `adminUrl`, whose user is a superuser on every node. May be stopped at any time and called again.
 * @throws an Error that says what is missing and what to do
 */
export async function distribute(adminUrl: string, options: DistributeOptions) {
  const { shards = 32, isDryRun = false, log = say, afterStep = () => {} } = options
  const coordinator = node(adminUrl, options.coordinator)
  const workers = options.workers.map(worker => node(adminUrl, worker))
  const nodes = [coordinator, ...workers]
  try {
    for (const each of nodes) await checkNode(each, coordinator)
    await checkStore(coordinator)
    if (!isDryRun) for (const each of nodes) await each.sql`create extension if not exists citus`
    const logins = await checkLogins(nodes)
    await showPlan(coordinator, workers, shards, log)
    if (isDryRun) {
      if (!logins) log('The logins between the nodes were not checked, because the extension citus is not in each database yet.')
      log('Nothing was changed.')
      return
    }

    await addNodes(coordinator, workers)
    for (const each of nodes) await endDeadlocksSoon(each.sql)
    afterStep('nodes')
    await coordinator.sql`set role fleet_owner`
    for (const { step: name } of await plan(coordinator.sql)) {
      const [row] = await coordinator.sql<{ what: string }[]>`select fleet.distribute_step(${name}, ${shards}) as what`
      log(`${name}: ${row!.what}`)
      afterStep(name)
    }
    const files = await installDistributed(coordinator.sql)
    log(`sql/distributed: ${files} files`)
    afterStep('sql/distributed')
    await open(coordinator.sql)
    await coordinator.sql`reset role`
    log(`The store is distributed over ${workers.length} workers. What to look after now is in docs/scale-out.md.`)
  } finally {
    for (const each of nodes) await each.sql.end({ timeout: 5 })
  }
}

function node(adminUrl: string, address?: string): Node {
  const url = new URL(adminUrl)
  if (address !== undefined) {
    const [, host, port = '5432'] = /^([^:]+|\[.*\])(?::(\d+))?$/.exec(address) ?? []
    if (host === undefined) throw new UsageError(`${JSON.stringify(address)} is no host or host:port\n${USAGE}`)
    url.hostname = host
    url.port = port
  }
  const host = url.hostname
  const port = Number(url.port || 5432)
  return { name: `${host}:${port}`, host, port, sql: openDatabase(url.href, { max: 1, connection: { TimeZone: 'UTC' } }) }
}

/** What each node must have, by itself. */
async function checkNode({ name, sql }: Node, coordinator: Node) {
  const [found] = await sql<
    {
      major: number
      libraries: string
      available: string | null
      installed: string | null
      prepared: number
      is_superuser: boolean
      missing: string[]
      has_store: boolean
      is_member: boolean
    }[]
  >`
    select current_setting('server_version_num')::integer / 10000 as major,
      current_setting('shared_preload_libraries') as libraries,
      (select default_version from pg_available_extensions where name = 'citus') as available,
      (select extversion from pg_extension where extname = 'citus') as installed,
      current_setting('max_prepared_transactions')::integer as prepared,
      (select rolsuper from pg_roles where rolname = current_user) as is_superuser,
      array(select r from unnest(${ROLES}::text[]) r where to_regrole(r) is null) as missing,
      to_regclass('fleet.hb_partitions') is not null as has_store,
      to_regclass('fleet.settings') is not null and to_regclass('fleet.hb_partitions') is null as is_member
  `.catch((cause: unknown) => {
    throw new Error(`${name} cannot be asked. Can this machine log in there with the user and the database of DATABASE_URL?`, {
      cause,
    })
  })
  const node = found!
  const refuse = (problem: string, remedy: string) => {
    throw new Error(`${name}: ${problem}. ${remedy}`)
  }
  if (!node.is_superuser) refuse('the login is no superuser', 'Citus adds nodes only for one. Use another DATABASE_URL.')
  if (node.available === null) refuse('Citus is not installed', 'Install its package for this version of PostgreSQL.')
  if (!/^\s*"?citus"?\s*(,|$)/.test(node.libraries))
    refuse(
      `shared_preload_libraries is '${node.libraries}' and must begin with citus`,
      `Run: alter system set shared_preload_libraries = ${citusFirst(node.libraries)}; and restart Postgres.`,
    )
  if (node.prepared === 0)
    refuse('max_prepared_transactions is 0', 'Run: alter system set max_prepared_transactions = 200; and restart Postgres.')
  if (node.missing.length > 0)
    refuse(
      `there is no role ${node.missing.join(', ')}`,
      'Run there: psql -f sql/setup/roles.sql, and npm run logins with the same passwords as on the coordinator.',
    )
  const [first] = await coordinator.sql<{ major: number; available: string }[]>`
    select current_setting('server_version_num')::integer / 10000 as major,
      (select default_version from pg_available_extensions where name = 'citus') as available`
  if (node.major !== first!.major || node.available !== first!.available)
    refuse(
      `it has PostgreSQL ${node.major} with Citus ${node.available}, and the coordinator PostgreSQL ${first!.major} with Citus ${first!.available}`,
      'All nodes need the same versions.',
    )
  const isCoordinator = name === coordinator.name
  if (isCoordinator && !node.has_store) refuse('there is no store in this database', 'Run: npm run migrate')
  if (!isCoordinator && node.has_store)
    refuse('there is another store in this database', 'A worker begins with an empty database.')
  if (!isCoordinator && node.is_member) {
    const [known] = await coordinator.sql`select from pg_dist_node where nodename || ':' || nodeport = ${name}`.catch(() => [
      undefined,
    ])
    if (!known) refuse('it has tables of a store', 'A worker begins with an empty database. Drop this one and make it again.')
  }
}

/** shared_preload_libraries with citus at its beginning. The others stay, in their order. */
export function citusFirst(libraries: string) {
  const names = libraries.split(',').map(name => name.trim())
  return ['citus', ...names.filter(name => name !== '' && name !== 'citus')].join(', ')
}

/** What the store itself must have. Once the first step is done there is no way back, and no question. */
async function checkStore({ name, sql }: Node) {
  const [found] = await sql<{ can: boolean }[]>`select to_regprocedure('fleet.distribute_step(text, integer)') is not null as can`
  if (!found!.can) throw new Error(`${name}: the store is older than this version. Run: npm run migrate`)
  const [is] = await sql<{ distributed: boolean }[]>`select fleet.is_distributed() as distributed`
  if (is!.distributed) return
  const problems = await sql<{ problem: string; remedy: string }[]>`
    select problem, remedy from fleet.distribution_problems() where problem not like 'the extension citus%'`
  if (problems.length > 0)
    throw new Error(['The store cannot be distributed now:', ...problems.map(p => `  ${p.problem}. ${p.remedy}`)].join('\n'))
}

/**
 * Whether each node can log in at each other one as each role.
 * @returns false if a database has no Citus yet, so that nothing can be tried
 */
async function checkLogins(nodes: Node[]) {
  for (const { sql } of nodes) {
    const [found] = await sql`select from pg_extension where extname = 'citus'`
    if (!found) return false
  }
  for (const from of nodes) {
    for (const to of nodes) {
      for (const role of ROLES) {
        await from.sql.begin(async sql => {
          await sql`set local client_min_messages = error`
          await sql.unsafe(`set local role ${role}`)
          const [row] = await sql<{ ok: boolean }[]>`select citus_check_connection_to_node(${to.host}, ${to.port}) as ok`
          if (!row!.ok)
            throw new Error(
              `${from.name} cannot log in at ${to.name} as ${role}. Give it a line in pg_hba.conf of ${to.name}, and the password on ` +
                `${from.name}: insert into pg_dist_authinfo values (0, '${role}', 'password=…'); Check the host, too: every node must ` +
                `reach every other one, and the coordinator by its --coordinator.`,
            )
        })
      }
    }
  }
  return true
}

async function plan(sql: Sql) {
  return await sql<PlannedStep[]>`
    select step, kind, bytes::double precision as bytes, is_done from fleet.distribution_plan() order by nth`
}

async function showPlan({ sql }: Node, workers: Node[], shards: number, log: (line: string) => void) {
  const steps = await plan(sql)
  const [found] = await sql<{ partitions: number }[]>`select count(*)::integer as partitions from fleet.attached_partitions()`
  const bytes = steps.filter(s => s.kind === 'distributed' && !s.is_done).reduce((sum, s) => sum + (s.bytes ?? 0), 0)
  log(`Workers: ${workers.map(w => w.name).join(', ')}; ${shards} shards of each table.`)
  for (const { step: name, kind, bytes: size, is_done } of steps)
    log(`  ${name}: ${is_done ? 'done' : kind}${size === null || is_done ? '' : `, ${megabytes(size)}`}`)
  // A rough estimate, from a few small stores on two busy cores: 14 ms for a shard of a partition, and 10 MB of heartbeats a second.
  const seconds = (found!.partitions * shards * 14) / 1000 + bytes / 10e6
  if (steps.some(s => !s.is_done))
    log(
      `Each worker needs about ${megabytes(bytes / workers.length)} of disk. Heartbeats are refused with 503 for about ` +
        `${Math.max(2, Math.ceil(seconds / 60))} minutes; devices keep them and send them again.`,
    )
}

function megabytes(bytes: number) {
  return `${Math.ceil(bytes / 1e6)} MB`
}

async function addNodes(coordinator: Node, workers: Node[]) {
  const { sql } = coordinator
  await sql`select citus_set_coordinator_host(${coordinator.host}, ${coordinator.port})
    where not exists (select from pg_dist_node where groupid = 0 and nodename = ${coordinator.host} and nodeport = ${coordinator.port})`
  for (const worker of workers) {
    // As on the coordinator: nobody may call a function only because it exists.
    await worker.sql`alter default privileges for role fleet_owner revoke execute on functions from public`
    await step(`Adding ${worker.name}`, async () => {
      await sql`select citus_add_node(${worker.host}, ${worker.port})
        where not exists (select from pg_dist_node where nodename = ${worker.host} and nodeport = ${worker.port})`
    })
  }
  // Also for the migrations to come: the triggers of reference tables are made on each node, and do something on the coordinator only.
  const [{ database }] = (await sql`select current_database() as database`) as unknown as [{ database: string }]
  await sql.unsafe(`alter database "${database.replaceAll('"', '""')}" set citus.enable_unsafe_triggers = on`)
}

/** Lets the jobs run again. Heartbeats came in again with the rights. */
async function open(owner: Sql) {
  await owner.begin(async sql => {
    await sql`select fleet.sync_partitions()`
    await sql`update fleet.hb_partitions set state = state`
    await sql`select fleet.record_triggers()`
  })
  await owner`select fleet.schedule_jobs()`
  await owner`select fleet.audit('store.distributed', 'store:fleet')`
}

/** The arguments of the command. */
export function readArguments(args: string[]): DistributeOptions {
  try {
    const { values } = parseArgs({
      args,
      options: {
        workers: { type: 'string' },
        coordinator: { type: 'string' },
        shards: { type: 'string', default: '32' },
        'dry-run': { type: 'boolean', default: false },
      },
    })
    const workers = (values.workers ?? '').split(',').filter(Boolean)
    const shards = Number(values.shards)
    if (workers.length === 0) throw new Error('--workers names no host')
    if (!Number.isInteger(shards) || shards < 1 || shards > 1024) throw new Error('--shards is a number from 1 to 1024')
    return { workers, shards, isDryRun: values['dry-run'], coordinator: values.coordinator }
  } catch (error) {
    throw new UsageError(`${(error as Error).message}\n${USAGE}`)
  }
}

async function main() {
  try {
    await distribute(databaseUrl(), readArguments(process.argv.slice(2)))
  } catch (error) {
    process.exitCode = reportFailure(error)
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) await main()
