// npm run distribute: spreads a store over several machines with Citus. See docs/scale-out.md.
import { pathToFileURL } from 'node:url'
import { parseArgs } from 'node:util'
import type { Sql } from 'postgres'
import { databaseUrl } from '../local/config.ts'
import { reportFailure, UsageError } from '../lib/errors.ts'
import { say } from '../lib/progress.ts'
import { installDistributed } from './distributed-sql.ts'
import { addNodes, checkLogins, checkNode, checkVersion, lockNodes, megabytes, node, type Node } from './nodes.ts'
import { rebalance } from './rebalance.ts'

const USAGE =
  'usage: DATABASE_URL=postgres://… npm run distribute -- --workers host1[:port],host2 [--coordinator host[:port]] [--shards 32] [--dry-run]\n' +
  '       DATABASE_URL=postgres://… npm run distribute -- --add host3[:port] | --rebalance [--coordinator host[:port]] [--dry-run]'

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
    if (!isDryRun) await lockNodes(coordinator, log)
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

/** What the store itself must have. Once the first step is done there is no way back, and no question. */
async function checkStore(coordinator: Node) {
  const { sql } = coordinator
  await checkVersion(coordinator)
  const [is] = await sql<{ distributed: boolean }[]>`select fleet.is_distributed() as distributed`
  if (is!.distributed) return
  const problems = await sql<{ problem: string; remedy: string }[]>`
    select problem, remedy from fleet.distribution_problems() where problem not like 'the extension citus%'`
  if (problems.length > 0)
    throw new Error(['The store cannot be distributed now:', ...problems.map(p => `  ${p.problem}. ${p.remedy}`)].join('\n'))
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

/** The arguments of the command: for distribute(), or with `add` or `isRebalance` for rebalance(). */
export function readArguments(args: string[]): DistributeOptions & { add?: string[]; isRebalance?: boolean } {
  try {
    const { values } = parseArgs({
      args,
      options: {
        workers: { type: 'string' },
        add: { type: 'string' },
        rebalance: { type: 'boolean', default: false },
        coordinator: { type: 'string' },
        shards: { type: 'string' },
        'dry-run': { type: 'boolean', default: false },
      },
    })
    const list = (text = '') => text.split(',').filter(Boolean)
    const common = { isDryRun: values['dry-run'], coordinator: values.coordinator }
    if (values.add !== undefined || values.rebalance) {
      if (values.workers !== undefined || values.shards !== undefined)
        throw new Error(
          '--workers and --shards are for a store that is not distributed yet, and --add and --rebalance for one that is',
        )
      const add = list(values.add)
      if (values.add !== undefined && add.length === 0) throw new Error('--add names no host')
      return { ...common, workers: [], add, isRebalance: true }
    }
    const workers = list(values.workers)
    const shards = Number(values.shards ?? '32')
    if (workers.length === 0) throw new Error('--workers names no host')
    if (!Number.isInteger(shards) || shards < 1 || shards > 1024) throw new Error('--shards is a number from 1 to 1024')
    return { ...common, workers, shards }
  } catch (error) {
    throw new UsageError(`${(error as Error).message}\n${USAGE}`)
  }
}

async function main() {
  try {
    const { isRebalance, add, ...options } = readArguments(process.argv.slice(2))
    if (isRebalance) await rebalance(databaseUrl(), { ...options, ...(add ? { add } : {}) })
    else await distribute(databaseUrl(), options)
  } catch (error) {
    process.exitCode = reportFailure(error)
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) await main()
