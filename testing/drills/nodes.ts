/*
 * npm run drills:nodes [-- --count N --seed S]: as npm run drills, for a store that is distributed with Citus: kills nodes, cuts the
 * network between them, moves shards, adds a worker in the middle, while devices and a gateway send. After each fault it checks that
 * every acknowledged heartbeat is stored once, that nothing else is stored, and that last status is from the newest heartbeat. Every
 * 20 faults, and at the end, a day is archived and dropped, all archives are read back, and no node has a prepared transaction left.
 *
 * The exit code is 1 if something is lost, or does not recover by itself.
 */
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import postgres, { type Sql } from 'postgres'
import { readOptions, runProgram } from '../../bench/options.ts'
import { postmasterOf, treeOf } from '../../bench/processes.ts'
import { startProgram, startServer, type Server, type Store } from '../../bench/store.ts'
import { distribute } from '../../cli/distribute.ts'
import { rebalance } from '../../cli/rebalance.ts'
import { withHost } from '../../lib/database-url.ts'
import { explain, UsageError } from '../../lib/errors.ts'
import { elapsed, say, step } from '../../lib/progress.ts'
import type { Cluster } from '../../local/cluster.ts'
import { requirePostgres } from '../../local/packages.ts'
import { daysAgo, fillDay } from '../archiver.ts'
import { waitFor } from '../database.ts'
import { hasCitus, makeNodes, NO_CITUS, type Nodes } from '../nodes.ts'
import { generator } from '../random.ts'
import { contentOf } from '../rows.ts'
import { wireTo, type Wire } from './cut.ts'
import { Agents } from './agents.ts'
import { between, oneOf } from './faults.ts'
import { Loss } from './invariants.ts'

const options = {
  count: { otherwise: 200, what: 'number of faults' },
  seed: { otherwise: undefined, least: 0, what: 'seed of the random numbers; by default a different one each day' },
  devices: { otherwise: 80, what: 'devices that send by themselves, and as many behind a gateway' },
  every: { otherwise: 20, what: 'faults after which a day is archived, and everything is read back' },
  report: { otherwise: 'testing/drills/NODES.md', what: 'file for the report' },
} as const

/** A third worker is prepared, and added in the middle. */
const WORKERS = 3

type Random = () => number

interface Place {
  name: string
  cluster: Cluster
  wire: Wire
}

interface Stage {
  nodes: Nodes
  coordinator: Place
  /** Those that were added to the store. */
  workers: Place[]
  spare: Place | undefined
  server: Server
  agents: Agents
  admin: string
  store: Store
}

interface Fault {
  kind: string
  strike: (stage: Stage, random: Random) => Promise<string>
}

const faults: Fault[] = [
  { kind: 'worker killed (SIGKILL) and restarted', strike: (stage, random) => kill(oneOf(random, stage.workers), random) },
  { kind: 'coordinator killed (SIGKILL) and restarted', strike: (stage, random) => kill(stage.coordinator, random) },
  { kind: 'network to a worker cut', strike: (stage, random) => cut(oneOf(random, stage.workers), random) },
  { kind: 'network to the coordinator cut', strike: (stage, random) => cut(stage.coordinator, random) },
  { kind: 'shards moved', strike: (stage, random) => move(stage, random) },
  { kind: 'worker killed while shards move', strike: killWhileMoving },
  { kind: 'coordinator killed during maintenance', strike: killDuringMaintenance },
  { kind: 'server killed (SIGKILL) and restarted', strike: killServer },
]

await runProgram(main)

async function main(args: string[]) {
  const given = readOptions('drills:nodes --', args, options)
  const seed = given.seed ?? Math.floor(Date.now() / 86_400_000)
  const packages = await requirePostgres()
  if (!hasCitus(packages)) throw new UsageError(NO_CITUS)
  const endings: (() => unknown)[] = []
  try {
    const stage = await step('Starting a coordinator, two workers and a server', () => start(given.devices, endings))
    return await drill(stage, { ...given, seed }, endings)
  } finally {
    for (const end of endings.reverse()) await end()
  }
}

async function start(devices: number, endings: (() => unknown)[]): Promise<Stage> {
  const nodes = await makeNodes({
    postgres: await requirePostgres(),
    workers: WORKERS,
    durable: true,
    // A node that does not answer is given up soon, and what a lost node has left is looked after.
    settings: { 'citus.recover_2pc_interval': '3s', 'citus.node_connection_timeout': '3s', shared_buffers: '128MB' },
  })
  endings.push(nodes.end)
  const places: Place[] = []
  for (const [n, cluster] of [nodes.coordinator, ...nodes.workers].entries()) {
    const wire = await wireTo(cluster.port)
    endings.push(wire.end)
    places.push({ name: n === 0 ? 'coordinator' : `worker ${n}`, cluster, wire })
  }
  const [coordinator, ...workers] = places as [Place, ...Place[]]
  const spare = workers.pop()
  const admin = throughWire(coordinator, coordinator.cluster.url('postgres', 'fleet'))
  const direct = postgres(coordinator.cluster.url('postgres', 'fleet'), { max: 2, onnotice: () => {}, fetch_types: false })
  endings.push(() => direct.end({ timeout: 1 }))
  const store = { cluster: coordinator.cluster, admin: direct }
  const agents = await Agents.enroll(direct, devices)
  await distribute(admin, { workers: workers.map(({ wire }) => wire.address), shards: 4, log: () => {} })
  const server = await startServer(store, { env: serverEnv(coordinator) })
  const stage = { nodes, coordinator, workers, spare, server, agents, admin, store }
  endings.push(() => stage.server.stop())
  return stage
}

function throughWire({ wire }: Place, url: string) {
  return withHost(url, '127.0.0.1', wire.port)
}

function serverEnv(coordinator: Place) {
  const url = throughWire(coordinator, coordinator.cluster.url('fleet_server', 'fleet'))
  return { SERVER_DATABASE_URL: url, OPS_DATABASE_URL: url, WORKERS: '1', DEVICE_REQUESTS_PER_MINUTE: '100000' }
}

async function drill(
  stage: Stage,
  { count, seed, every, report }: { count: number; seed: number; every: number; report: string },
  endings: (() => unknown)[],
) {
  const started = performance.now()
  const done = new Map<string, { times: number; seconds: number }>()
  const directory = await mkdtemp(join(tmpdir(), 'fleet-node-drills-'))
  endings.push(() => rm(directory, { recursive: true, force: true }))
  let archives = 0
  let problem: string | undefined
  let kind = 'start'
  stage.agents.send(() => stage.server.url)
  endings.push(() => stage.agents.stop())
  try {
    await stage.agents.more(stage)
    for (let number = 1; number <= count; number++) {
      const random = generator(seed * 1_000_003 + number)
      const before = performance.now()
      const isMiddle = number === Math.ceil(count / 2)
      const fault = isMiddle ? { kind: 'worker added', strike: addWorker } : faults[(number - 1) % faults.length]!
      kind = `${number}, ${fault.kind}`
      const said = await fault.strike(stage, random)
      await stage.agents.more(stage)
      await check(stage)
      const entry = done.get(fault.kind) ?? { times: 0, seconds: 0 }
      done.set(fault.kind, { times: entry.times + 1, seconds: entry.seconds + (performance.now() - before) / 1000 })
      say(`${String(number).padStart(5)}  ${fault.kind}: ${said}; everything is there after ${elapsed(before)}`)
      if (number % every === 0 || number === count)
        archives = await step('Archiving a day, and reading everything back', () =>
          checkAll(stage, directory, Math.ceil(number / every)),
        )
    }
    await stage.agents.stop()
    await check(stage, true)
  } catch (error) {
    problem = `${error instanceof Loss ? 'LOST' : 'FAILED'} at fault ${kind}:\n${explain(error)}\nThe server printed:\n${stage.server.output()}`
  }
  const made = [...done.values()].reduce((sum, { times }) => sum + times, 0)
  const minutes = (performance.now() - started) / 60_000
  const { acknowledged, refused } = stage.agents
  const text = `# Drills of a distributed store

\`npm run drills:nodes -- --count ${count} --seed ${seed}\` (${new Date().toISOString().slice(0, 10)}) made ${made} faults in ${Math.round(minutes)} minutes, on a
coordinator and two workers, and a third one from the middle on, all on one machine, each durable and behind a wire that can be cut.

${problem === undefined ? 'Nothing was lost.' : `**${problem}**`}

- ${acknowledged.toLocaleString('en')} heartbeats were acknowledged, each is stored exactly once, and nothing is stored that was not sent.
  ${refused.toLocaleString('en')} requests got 503 or no answer, and were sent again.
- Last status was from the newest heartbeat of each device.
- ${archives} archives were read back at the end, every byte and row, and no prepared transaction was left on any node.

| fault | times | seconds each, with its checks |
|---|---|---|
${[...done]
  .sort(([a], [b]) => a.localeCompare(b))
  .map(([name, { times, seconds }]) => `| ${name} | ${times} | ${(seconds / times).toFixed(1)} |`)
  .join('\n')}
`
  say(`\n${text}`)
  await writeFile(resolve(report), text)
  return problem === undefined ? 0 : 1
}

async function kill({ name, cluster }: Place, random: Random) {
  await sleep(between(random, 0, 400))
  process.kill(await livingPostmaster(cluster), 'SIGKILL')
  const pause = between(random, 50, 3_000)
  await sleep(pause)
  await cluster.start()
  return `${name}, away for ${pause} ms`
}

async function cut({ name, wire }: Place, random: Random) {
  const lasts = between(random, 300, 9_000)
  wire.cut()
  await sleep(lasts)
  wire.mend()
  return `${name}, for ${lasts} ms`
}

/** Moves a shard of each table, with the rows of a part of the devices, while they send. */
async function move(stage: Stage, random: Random) {
  const [shard, from, to] = await planOf(stage, random)
  await withAdmin(stage, sql => moveShard(sql, shard, from, to))
  return `shard ${shard} from ${from.name} to ${to.name}`
}

async function killWhileMoving(stage: Stage, random: Random) {
  const [shard, from, to] = await planOf(stage, random)
  const moving = withAdmin(stage, sql => moveShard(sql, shard, from, to)).then(
    () => 'the move had ended before',
    () => 'the move failed',
  )
  await sleep(between(random, 0, 4_000))
  const victim = oneOf(random, [from, to])
  await kill(victim, random)
  const said = await moving
  await waitFor(() =>
    withAdmin(stage, async sql => (await sql`select public.citus_cleanup()`.catch(() => [])) !== undefined).catch(() => false),
  )
  return `${victim.name}; ${said}`
}

async function moveShard(sql: Sql, shard: string, from: Place, to: Place) {
  await sql`
    select citus_move_shard_placement(
      ${shard}::bigint, '127.0.0.1', ${from.wire.port}, '127.0.0.1', ${to.wire.port}, shard_transfer_mode => 'force_logical'
    )`
}

async function planOf(stage: Stage, random: Random): Promise<[shard: string, from: Place, to: Place]> {
  const shards = await withAdmin(stage, async sql => [
    ...(await sql<{ shard: string; port: number }[]>`
      select shardid as shard, nodeport as port from citus_shards where table_name = 'fleet.device_last_status'::regclass order by 1`),
  ])
  const { shard, port } = oneOf(random, shards)
  const from = stage.workers.find(({ wire }) => wire.port === port)!
  const to = oneOf(
    random,
    stage.workers.filter(worker => worker !== from),
  )
  return [shard, from, to]
}

async function killDuringMaintenance(stage: Stage, random: Random) {
  const running = withAdmin(stage, async sql => {
    await sql`set role fleet_owner`
    await sql`call fleet.mark_silent()`
    await sql`call fleet.maintain()`
    await sql`call fleet.nightly()`
  }).then(
    () => 'it had ended before',
    () => 'it was cut off',
  )
  await sleep(between(random, 0, 2_000))
  await kill(stage.coordinator, random)
  return await running
}

async function killServer(stage: Stage) {
  const { server } = stage
  server.kill('SIGKILL')
  await server.exited
  stage.server = await startServer(stage.store, { port: server.port, env: serverEnv(stage.coordinator) })
  return 'with all that it had not written'
}

async function addWorker(stage: Stage) {
  const { spare, admin } = stage
  if (!spare) throw new Error('there is no worker to add')
  await rebalance(admin, { add: [spare.wire.address], log: () => {} })
  stage.workers.push(spare)
  stage.spare = undefined
  return `${spare.name}, and shards moved to it`
}

/** @throws Loss with a sentence for each problem */
async function check(stage: Stage, isAll = false) {
  const wrong = await withAdmin(stage, sql => stage.agents.problems(sql, isAll))
  if (wrong.length > 0) throw new Loss(wrong.slice(0, 20).join('\n'))
}

/** @returns how many archives were read back */
async function checkAll(stage: Stage, directory: string, nth: number) {
  await check(stage, true)
  for (const { name, cluster } of [stage.coordinator, ...stage.workers])
    await waitFor(
      async () => {
        const sql = postgres(cluster.url('postgres', 'fleet'), { max: 1, fetch_types: false, onnotice: () => {} })
        const left = await sql`select from pg_prepared_xacts`.finally(() => sql.end({ timeout: 1 }))
        return left.length === 0
      },
      { timeoutMs: 60_000, what: () => `${name} to have no prepared transaction` },
    )
  const env = {
    ARCHIVER_DATABASE_URL: stage.coordinator.cluster.url('fleet_archiver', 'fleet'),
    ARCHIVE_URL: `file://${join(directory, 'archive')}`,
  }
  const day = daysAgo(20 + nth)
  const name = await withAdmin(stage, async sql => {
    const [row] = await sql<{ name: string }[]>`
      select partition_name as name from fleet.hb_partitions where range_start = ${`${day}T00:00:00Z`}::timestamptz and state = 'active'`
    if (!row) return undefined
    await sql`select fleet.unsettle_partition(${row.name})`
    await fillDay(sql, day, 500 + nth)
    const content = await contentOf(sql, `fleet.${row.name}`)
    await sql`update fleet.settings set archive_grace = '0'`
    await sql`select fleet.archive_partition(${row.name})`
    return { ...row, content }
  })
  if (name) {
    const archiver = startProgram('archiver/main.ts', { args: ['--once'], env })
    await archiver.exited
    await withAdmin(stage, async sql => {
      await sql`set role fleet_owner`
      const [row] = await sql<{ state: string; row_count: string; rows_sha256: string }[]>`
        select state, row_count::text, rows_sha256 from fleet.hb_partitions where partition_name = ${name.name}`
      if (row?.state !== 'dropped' || row.row_count !== name.content.row_count || row.rows_sha256 !== name.content.rows_sha256)
        throw new Loss(
          `${name.name} is ${JSON.stringify(row)}, but ${JSON.stringify(name.content)} was written:\n${archiver.output()}`,
        )
    })
  }
  const verify = startProgram('archiver/cli.ts', { args: ['verify', '--all'], env })
  await verify.exited
  const read = /^(\d+) archives,/m.exec(verify.output())?.[1]
  if (read === undefined) throw new Loss(`npm run archive -- verify --all:\n${verify.output()}`)
  return Number(read)
}

/** A session of the superuser, which does not go through the wire. */
async function withAdmin<T>({ coordinator }: Stage, use: (sql: Sql) => Promise<T>) {
  const sql = postgres(coordinator.cluster.url('postgres', 'fleet'), {
    max: 1,
    fetch_types: false,
    onnotice: () => {},
    connect_timeout: 5,
  })
  try {
    return await use(sql)
  } finally {
    await sql.end({ timeout: 1 })
  }
}

async function livingPostmaster({ data }: Cluster) {
  const pid = await postmasterOf(data)
  if ((await treeOf(pid)).length === 0) throw new Error('there is no postmaster')
  return pid
}
