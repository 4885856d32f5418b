// npm run distribute -- --add and --rebalance: another worker for a distributed store, and shards that move to it while heartbeats
// come in.
import type { Sql } from 'postgres'
import { elapsed, say } from '../lib/progress.ts'
import { grantAgain } from './distributed-sql.ts'
import {
  addNodes,
  checkLogins,
  checkMoves,
  checkNode,
  checkVersion,
  knownWorkers,
  lockNodes,
  megabytes,
  node,
  type Node,
} from './nodes.ts'

export interface RebalanceOptions {
  /** host or host:port of each worker to add, as the other nodes reach it; none if shards only move. */
  add?: string[]
  /** host:port of the coordinator, as the workers reach it; those of its URL by default. */
  coordinator?: string | undefined
  /** Checks and shows the moves, and changes nothing. */
  isDryRun?: boolean
  /** Receives each line. */
  log?: (line: string) => void
  /** Called after each step and each move, for a test that stops there. */
  afterStep?: (name: string) => void
}

/** All that is stored of some of the devices: a shard of each table and of each partition. */
interface Move {
  shard: string
  bytes: number
  from: string
  from_host: string
  from_port: number
  to: string
  to_host: string
  to_port: number
}

/**
 * Adds workers to the distributed store at `adminUrl`, whose user is a superuser on every node, and moves shards until each has as
 * many. Heartbeats come in meanwhile. May be stopped at any time and called again.
 * @throws an Error that says what is missing and what to do
 */
export async function rebalance(adminUrl: string, options: RebalanceOptions = {}) {
  const { add = [], isDryRun = false, log = say, afterStep = () => {} } = options
  const coordinator = node(adminUrl, options.coordinator)
  const added = add.map(worker => node(adminUrl, worker))
  const nodes = [coordinator, ...added]
  try {
    await checkNode(coordinator, coordinator)
    if (!isDryRun) await lockNodes(coordinator, log)
    await checkDistributed(coordinator)
    const known = await knownWorkers(coordinator)
    for (const name of known) if (nodes.every(other => other.name !== name)) nodes.push(node(adminUrl, name))
    for (const each of nodes) if (each !== coordinator) await checkNode(each, coordinator)
    await checkMoves(nodes)
    const fresh = added.filter(({ name }) => !known.includes(name))
    if (!isDryRun) for (const each of fresh) await each.sql`create extension if not exists citus`
    const logins = await checkLogins(nodes)

    if (isDryRun) {
      if (!logins) log('The logins between the nodes were not checked, because the extension citus is not in each database yet.')
      if (fresh.length > 0) await showShare(coordinator, known.length, fresh, log)
      else show(await plannedMoves(coordinator.sql), log)
      log('Nothing was changed.')
      return
    }
    if (fresh.length > 0) {
      await addNodes(coordinator, fresh)
      await coordinator.sql`set role fleet_owner`
      for (const { name } of fresh) await coordinator.sql`select fleet.audit('store.node_added', ${`node:${name}`})`
      await coordinator.sql`reset role`
      afterStep('nodes')
    }
    await coordinator.sql`set role fleet_owner`
    // Also if an earlier run was stopped here.
    if (added.length > 0) await grantAgain(coordinator.sql)
    await coordinator.sql`reset role`
    afterStep('rights')
    await coordinator.sql`select replicate_reference_tables('force_logical')`
    afterStep('reference tables')
    await moveShards(coordinator.sql, log, afterStep)
    log('Each worker has its share of the shards.')
  } finally {
    for (const each of nodes) await each.sql.end({ timeout: 5 })
  }
}

async function checkDistributed(coordinator: Node) {
  const { name, sql } = coordinator
  await checkVersion(coordinator)
  const [is] = await sql<{ distributed: boolean; done: boolean }[]>`
    select fleet.is_distributed() as distributed, not exists (select from fleet.distribution_plan() where not is_done) as done`
  if (!is!.distributed)
    throw new Error(
      `${name}: the store is not distributed yet. Name its first workers: npm run distribute -- --workers host1,host2`,
    )
  if (!is!.done)
    throw new Error(`${name}: the store is only in part distributed. Run npm run distribute -- --workers … again first.`)
}

async function plannedMoves(sql: Sql) {
  // All tables have the same distribution, so that of one table says where the shards of all of them go.
  return await sql<Move[]>`
    select p.shardid::text as shard, p.sourcename || ':' || p.sourceport as from, p.sourcename as from_host, p.sourceport as from_port,
      p.targetname || ':' || p.targetport as to, p.targetname as to_host, p.targetport as to_port,
      (
        select coalesce(sum(s.shard_size), 0)::double precision
        from pg_dist_shard o
        join pg_dist_shard c on c.shardminvalue = o.shardminvalue
        join pg_dist_partition d on d.logicalrelid = c.logicalrelid and d.partmethod = 'h'
        join citus_shards s on s.shardid = c.shardid
        where o.shardid = p.shardid
      ) as bytes
    from get_rebalance_table_shards_plan('fleet.device_last_status', rebalance_strategy => 'by_shard_count') p
    where p.table_name = 'fleet.device_last_status'::regclass`
}

function show(moves: Move[], log: (line: string) => void) {
  if (moves.length === 0) log('Each worker has its share of the shards; none would move.')
  for (const move of moves) log(`  shard ${move.shard}, ${megabytes(move.bytes)}: ${move.from} → ${move.to}`)
}

/** What would move to nodes that Citus does not know yet. */
async function showShare({ sql }: Node, workers: number, fresh: Node[], log: (line: string) => void) {
  const [all] = await sql<{ shards: number; bytes: number }[]>`
    select count(*) filter (where s.table_name = 'fleet.device_last_status'::regclass)::integer as shards,
      coalesce(sum(s.shard_size), 0)::double precision as bytes
    from citus_shards s
    join pg_dist_partition d on d.logicalrelid = s.table_name and d.partmethod = 'h'`
  const share = 1 / (workers + fresh.length)
  for (const { name } of fresh)
    log(
      `Would add ${name} and move about ${Math.floor(all!.shards * share)} of ${all!.shards} shards there, ${megabytes(all!.bytes * share)}.`,
    )
}

async function moveShards(sql: Sql, log: (line: string) => void, afterStep: (name: string) => void) {
  // What a move that was stopped has left.
  await sql`call citus_cleanup_orphaned_resources()`
  const moves = await plannedMoves(sql)
  for (const [nth, move] of moves.entries()) {
    const began = performance.now()
    const what = `shard ${move.shard} (${nth + 1} of ${moves.length}), ${megabytes(move.bytes)}: ${move.from} → ${move.to}`
    log(`${what} …`)
    // There is no replica identity in the heartbeats, which are only inserted.
    await sql`select citus_move_shard_placement(
      ${move.shard}, ${move.from_host}, ${move.from_port}, ${move.to_host}, ${move.to_port}, 'force_logical')`
    log(`${what}: ${elapsed(began)}`)
    afterStep(move.shard)
  }
}
