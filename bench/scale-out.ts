/**
 * npm run bench -- scale-out: what a heartbeat costs Postgres on Citus, by the node that is given the batch, beside a plain store.
 * The nodes are clusters on this machine, so this compares CPU and says nothing of the rate that several machines reach.
 *
 * straight: pgbench sends the writer's statement, with batches
 *   (a) of any devices, to the coordinator
 *   (b) of any devices, to the workers
 *   (c) of devices that the worker has, to that worker
 *   (d) of devices of one shard, to the worker that has it
 * routed: wrk sends single heartbeats, and a gateway's batches of any devices, to a server on the coordinator's URL
 */
import { writeFile } from 'node:fs/promises'
import { resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import postgres from 'postgres'
import { distribute } from '../cli/distribute.ts'
import { UsageError } from '../lib/errors.ts'
import { say, step } from '../lib/progress.ts'
import type { Cluster } from '../local/cluster.ts'
import { requirePostgres } from '../local/packages.ts'
import { hasCitus, makeNodes, NO_CITUS } from '../testing/nodes.ts'
import { atMost, median, type Figure } from './figure.ts'
import { readOptions } from './options.ts'
import { clientsOf, pgbench, type Client } from './pgbench.ts'
import { plot } from './plot.ts'
import { postmasterOf, usageOf } from './processes.ts'
import { enroll, startServer, withStore, type Device, type Store } from './store.ts'
import { runWrk, wrkScript } from './wrk.ts'

const OPTIONS = {
  workers: { otherwise: [1, 2, 4], what: 'stores with so many workers; each is measured in turns' },
  shards: { otherwise: 8, what: 'shards of each table' },
  rounds: { otherwise: 5, what: 'rounds' },
  seconds: { otherwise: 8, what: 'seconds of a measurement' },
  devices: { otherwise: 16_000, what: 'devices of each store' },
  batch: { otherwise: 500, what: 'heartbeats in a batch' },
  only: { otherwise: '', what: 'only the ways whose names contain this, and the plain store' },
  plot: { otherwise: 'docs/scale-out.svg', what: 'file for the plot of the model' },
} as const

const PLAIN = 'plain'
const WAYS = ['(a) coordinator', '(b) any worker', '(c) its worker', '(d) its worker, one shard'] as const
const ROUTED = ['routed singles', 'routed batches'] as const

/** CPU in µs a heartbeat of each cluster, the coordinator first. */
type Cost = number[]

interface Way {
  name: string
  /** Sends, and returns how many heartbeats were stored. */
  send: () => Promise<number>
  clusters: Cluster[]
  costs: Cost[]
}

export async function benchScaleOut(args: string[]): Promise<Figure[]> {
  const options = readOptions('bench -- scale-out', args, OPTIONS)
  if (options.devices % (options.shards * options.batch) !== 0)
    throw new UsageError('--devices must be a multiple of shards times batch')
  if (!hasCitus(await requirePostgres())) throw new UsageError(NO_CITUS)
  const ends: (() => Promise<void>)[] = []
  try {
    return await withStore(async store => {
      const ways = [await plainWay(store, options)]
      for (const count of options.workers)
        ways.push(...(await scaledWays(count, options, ends)).filter(({ name }) => name.includes(options.only)))
      for (let round = 0; round <= options.rounds; round++) {
        for (const way of round % 2 === 0 ? ways : ways.toReversed()) {
          const cost = await costOf(way, options.seconds / 2)
          // The first round fills caches and plans.
          if (round > 0) way.costs.push(cost)
        }
        say(`round ${round} of ${options.rounds}`)
      }
      if (options.only === '') await writeFile(resolve(options.plot), modelOf(ways, options.workers))
      return figuresOf(ways, options.workers)
    })
  } finally {
    for (const end of ends.reverse()) await end()
  }
}

type Options = ReturnType<typeof readOptions<typeof OPTIONS>>

async function plainWay(store: Store, { devices, batch, seconds }: Options): Promise<Way> {
  await store.admin`update cron.job set active = false`
  const ids = (await enroll(store, devices)).map(({ device_id }) => device_id)
  const straight = pgbench(store, clientsOf(store, ids, 2))
  return { name: PLAIN, clusters: [store.cluster], costs: [], send: async () => (await straight(batch, seconds)).rows }
}

async function scaledWays(count: number, options: Options, ends: (() => Promise<void>)[]): Promise<Way[]> {
  const { batch, seconds, shards } = options
  const { coordinator, workers, hosts, end } = await step(`Starting a coordinator and ${count} workers`, async () =>
    makeNodes({ postgres: await requirePostgres(), workers: count, durable: true, settings: { shared_buffers: '512MB' } }),
  )
  ends.push(end)
  const admin = postgres(coordinator.url('postgres', 'fleet'), { max: 2, onnotice: () => {} })
  ends.push(() => admin.end({ timeout: 1 }))
  const store = { cluster: coordinator, admin }
  // Before it is distributed, because afterwards each device is enrolled on all nodes.
  const devices = await enroll(store, options.devices)
  await distribute(coordinator.url('postgres', 'fleet'), { workers: hosts, shards, log: () => {} })
  // Only ingest is measured: the jobs cost the same, no matter how many heartbeats there are.
  await admin`update cron.job set active = false`
  const places = await admin<{ device_id: string; shard: string; port: number }[]>`
    with placed as materialized (
      select d.device_id, get_shard_id_for_distribution_column('fleet.device_last_status', d.device_id) as shard from fleet.devices d
    )
    select p.device_id, p.shard, s.nodeport as port
    from placed p
    join citus_shards s on s.shardid = p.shard
    order by p.shard, p.device_id
  `
  const urlOf = (cluster: Cluster) => cluster.url('fleet_server', 'fleet')
  const ids = devices.map(({ device_id }) => device_id)
  const own = workers.map(worker => places.filter(({ port }) => port === worker.port).map(({ device_id }) => Number(device_id)))
  const byShard = own.map(mine => wholeBatches(mine, new Map(places.map(p => [Number(p.device_id), p.shard])), batch))
  const share = Math.floor(ids.length / count)
  const clients: Record<(typeof WAYS)[number], Client[]> = {
    '(a) coordinator': clientsOf(store, ids, 2),
    '(b) any worker': workers.map((worker, n) => ({ url: urlOf(worker), deviceIds: ids.slice(n * share, (n + 1) * share) })),
    // In the order of the ids, so that each batch has devices of all shards of the worker.
    '(c) its worker': workers.map((worker, n) => ({ url: urlOf(worker), deviceIds: own[n]!.toSorted((a, b) => a - b) })),
    '(d) its worker, one shard': workers.map((worker, n) => ({ url: urlOf(worker), deviceIds: byShard[n]! })),
  }
  const clusters = [coordinator, ...workers]
  const straight = WAYS.map((name, nth): Way => {
    const send = pgbench(store, clients[name], 6 - nth)
    return { name: named(name, count), clusters, costs: [], send: async () => (await send(batch, seconds)).rows }
  })
  return [...straight, ...(await routedWays(count, store, devices, clusters, options, ends))]
}

/** Only as many devices of each shard as whole batches have, so that no batch has devices of two. */
function wholeBatches(ids: number[], shardOf: Map<number, string>, batch: number) {
  const shards = [...new Set(ids.map(id => shardOf.get(id)))].map(shard => ids.filter(id => shardOf.get(id) === shard))
  return shards.flatMap(mine => mine.slice(0, mine.length - (mine.length % batch)))
}

async function routedWays(
  count: number,
  store: Store,
  devices: Device[],
  clusters: Cluster[],
  { batch, seconds }: Options,
  ends: (() => Promise<void>)[],
): Promise<Way[]> {
  const server = await startServer(store, { env: { DEVICE_REQUESTS_PER_MINUTE: '100000', WORKERS: '1' } })
  ends.push(() => server.stop())
  const [gateway] = await store.admin<{ token: string }[]>`select fleet.create_gateway_token('bench') as token`
  const ids = devices.map(({ device_id }) => device_id)
  const scripts = {
    'routed singles': singles(devices.map(({ token }) => token)),
    'routed batches': batches(gateway!.token, ids, batch),
  }
  return await Promise.all(
    ROUTED.map(async (name): Promise<Way> => {
      const script = await wrkScript(`scale-out-${count}-${name.replace(' ', '-')}`, scripts[name])
      ends.push(script.remove)
      const size = name === 'routed singles' ? 1 : batch
      const connections = name === 'routed singles' ? 256 : 8
      let sent = 0
      const send = async () => {
        const { requests } = await runWrk(server.url, script.file, { connections, seconds, first: sent })
        sent += requests + connections
        const metrics = await server.metrics()
        for (const counter of ['hb_deduplicated_total', 'hb_quarantined_total'])
          if (metrics.get(counter)) throw new Error(`${counter} is ${metrics.get(counter)}; every heartbeat has to be stored`)
        return requests * size
      }
      return { name: named(name, count), clusters, costs: [], send }
    }),
  )
}

const BEAT = '"battery_pct":%d,"network_type":"wifi","unity_running":true,"signal_dbm":-61,"agent_version":"3.1.0"}'

/** The devices take turns, each ten seconds further than the last time, from two hours ago on. */
function singles(tokens: string[]) {
  return lua(
    tokens.map(token => `"${token}"`),
    'singles',
    2,
    `  local of = own[n % #own + 1]
  local turn = math.floor(n / #own)
  n = n + 1
  return wrk.format("POST", "/v1/heartbeat", { ["Authorization"] = "Bearer " .. of, ["Content-Type"] = "application/json" },
    ('{"ts":"%s",${BEAT}'):format(at(turn), turn % 101))`,
  )
}

/** As above, from one day ago on. */
function batches(token: string, ids: number[], batch: number) {
  return lua(
    ids.map(String),
    'batches',
    24,
    `  local items = {}
  for item = 1, ${batch} do
    local each = n * ${batch} + item - 1
    local turn = math.floor(each / #own)
    items[item] = ('{"device_id":%d,"ts":"%s",${BEAT}'):format(own[each % #own + 1], at(turn), turn % 101)
  end
  n = n + 1
  return wrk.format("POST", "/v1/heartbeats", { ["Authorization"] = "Bearer ${token}", ["Content-Type"] = "application/json" },
    "[" .. table.concat(items, ",") .. "]")`,
  )
}

function lua(own: string[], name: string, hours: number, body: string) {
  const start = Math.floor(Date.now() / 1000) - hours * 3600
  return `
-- ${name}
local own = {${own.join(',')}}
local n = tonumber(os.getenv("FIRST")) or 0
local function at(turn) return os.date("!%Y-%m-%dT%H:%M:%SZ", ${start} + 10 * turn) end
function request()
${body}
end
`
}

async function costOf({ clusters, send }: Way, restSeconds: number): Promise<Cost> {
  const idle = await restOf(clusters, restSeconds)
  const before = await Promise.all(clusters.map(cpuOf))
  const started = performance.now()
  const rows = await send()
  // Sessions that just ended are counted when they are gone.
  await sleep(200)
  const seconds = (performance.now() - started) / 1000
  const after = await Promise.all(clusters.map(cpuOf))
  return after.map((cpu, n) => ((cpu - before[n]! - idle[n]! * seconds) * 1e6) / rows)
}

/** CPU seconds a second of each cluster while nobody uses it: Citus looks for transactions to recover, and autovacuum for tables. */
async function restOf(clusters: Cluster[], seconds: number) {
  const before = await Promise.all(clusters.map(cpuOf))
  await sleep(seconds * 1000)
  const after = await Promise.all(clusters.map(cpuOf))
  return after.map((cpu, n) => (cpu - before[n]!) / seconds)
}

async function cpuOf({ data }: Cluster) {
  return (await usageOf(await postmasterOf(data))).cpuSeconds
}

const named = (name: string, workers: number) => `${name}, ${workers} worker${workers === 1 ? '' : 's'}`

function figuresOf(ways: Way[], workers: number[]): Figure[] {
  const all = (way: Way) => way.costs.map(cost => cost.reduce((sum, each) => sum + each, 0))
  const find = (name: string) => ways.find(way => way.name === name)
  const plain = all(find(PLAIN)!)
  const most = Math.max(...workers)
  const two = workers.includes(2) ? 2 : most
  const ratio = (values: number[], base: number[]) => median(values.map((value, n) => value / base[n]!))
  const figures: Figure[] = ways.map(way => ({
    name: `${way.name}: Postgres's CPU a heartbeat`,
    measured: median(all(way)),
    unit: 'µs',
  }))
  for (const way of ways) {
    if (way.name === PLAIN) continue
    const target = way.name.startsWith('routed singles')
      ? { target: atMost(0.5) }
      : way.name.startsWith('routed batches')
        ? { target: atMost(0.2) }
        : {}
    figures.push({
      name: `${way.name}: of that the coordinator`,
      measured: median(way.costs.map(([first]) => first!)),
      unit: 'µs',
      ...target,
    })
  }
  for (const name of [...WAYS, ROUTED[1]]) {
    const way = find(named(name, two))
    if (!way) continue
    figures.push({
      name: `${way.name} ÷ plain`,
      measured: ratio(all(way), plain),
      unit: '',
      ...(name.startsWith('(c)') ? { target: atMost(1.6) } : {}),
    })
  }
  const [fewer, more] = [find(named(WAYS[2], two)), find(named(WAYS[2], most))]
  if (two < most && fewer && more)
    figures.push({
      name: `(c) its worker: ${most} workers ÷ ${two}`,
      measured: ratio(all(more), all(fewer)),
      unit: '',
      target: atMost(1.05),
    })
  return figures
}

/** What the model assumes of each machine, and of servers. */
const MODEL = {
  cores: 8,
  /** Of its CPU, for ingest. */
  share: 0.5,
  /** Heartbeats a second of a process of the server; see RESULTS.md, compare. */
  perProcess: 9_000,
  /** Connections of each process to each node; see server/ingest/nodes.ts. */
  connections: 4,
  /** µs a heartbeat of the coordinator, from runs of 40 seconds: shorter ones cannot tell it from nothing. */
  coordinator: 0.1,
}

/**
 * How many devices fit, once a minute each, by the CPU of the workers and by that of the coordinator, and how many connections the
 * servers that they need have to each node.
 */
function modelOf(ways: Way[], workers: number[]) {
  const most = Math.max(...workers)
  const { costs } = ways.find(way => way.name === named(ROUTED[1], most))!
  const onWorkers = median(costs.map(cost => cost.slice(1).reduce((sum, each) => sum + each, 0)))
  const plain = median(ways.find(way => way.name === PLAIN)!.costs.map(([cost]) => cost!))
  const devices = (cpu: number, machines: number) => (60 * machines * MODEL.cores * MODEL.share * 1e6) / cpu
  const nodes = [1, 2, 4, 10, 20, 40, 100, 200, 400, 1_000]
  const fit = (machines: number) => Math.min(devices(onWorkers, machines), devices(MODEL.coordinator, 1))
  return plot({
    title: 'Devices that a distributed store carries (a model)',
    x: 'workers of 8 cores, half of which do ingest',
    y: 'devices, once a minute; connections of a node',
    isLogarithmic: true,
    series: [
      { name: "devices, by the workers' CPU", points: nodes.map(n => [n, devices(onWorkers, n)]) },
      { name: "by the coordinator's CPU", points: nodes.map(n => [n, devices(MODEL.coordinator, 1)]) },
      { name: 'on a plain store', points: nodes.map(n => [n, devices(plain, 1)]) },
      {
        name: 'connections of servers to a node',
        points: nodes.map(n => [n, Math.ceil(fit(n) / 60 / MODEL.perProcess) * MODEL.connections]),
      },
    ],
  })
}
