/*
 * Measures single heartbeats of this server beside what they are compared with, in turns, with wrk. Each round measures, with each
 * number of processes and of connections:
 *
 * server: this server, with --devices[0] devices that take turns
 * without: the same server, whose batches are not sent to Postgres (without-database.ts)
 * parses: a bare node:http server that reads the body, parses it and gives the same answer (bare.ts)
 * reads: a bare node:http server that only reads the body before it answers: what HTTP itself costs
 *
 * and, with the most processes: `server` with each other number of devices, in a store of its own; all of them with a new
 * connection for each heartbeat; and `server` before and after a restart. wrk saturates them: a connection sends again as soon as it
 * has an answer. It runs on the same processors. CPU is that of all processes of the server and of Postgres, read from /proc.
 *
 * A device's `ts` starts in the past and advances by a bucket with each of its turns, up to about now, so that every heartbeat is
 * stored and advances last status. Those of yesterday cost more, because they are recorded as late. The devices do not come in the
 * order of their ids. After each server the rows in the database are counted.
 *
 * Ratios are computed within a round, and their median is quoted.
 */
import { resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { freePort } from '../local/cluster.ts'
import { repository } from '../lib/repository.ts'
import { UsageError } from '../lib/errors.ts'
import { say } from '../lib/progress.ts'
import { startBare } from './bare-server.ts'
import { atLeast, atMost, median, type Figure } from './figure.ts'
import { DEVICE_TOKEN, TOKEN_DIGITS } from './fleet-order.ts'
import { readOptions } from './options.ts'
import { cpuPercent, usageOf } from './processes.ts'
import { enrollMany, startServer, withStore, type Server, type Store } from './store.ts'
import { runWrk, wrkScript } from './wrk.ts'

const OPTIONS = {
  server: { otherwise: '', what: 'checkout whose server is measured; this one by default' },
  rounds: { otherwise: 3, what: 'number of rounds' },
  seconds: { otherwise: 6, what: 'seconds of each measurement' },
  warmup: { otherwise: 2, what: 'seconds before each measurement' },
  restart: { otherwise: 60, what: 'seconds that are measured after a restart' },
  devices: { otherwise: [10_000, 1_000_000], what: 'enrolled devices that take turns, each number in a store of its own' },
  connections: { otherwise: [64, 256, 1_024], what: 'connections of wrk' },
  workers: { otherwise: [1, 2], what: 'processes of each server' },
  only: { otherwise: '', what: 'only one of them: server, without, parses or reads' },
} as const

const KINDS = ['server', 'without', 'parses', 'reads'] as const
type Kind = (typeof KINDS)[number]
type Given = ReturnType<typeof readOptions<typeof OPTIONS>>

/** Connections of the measurements with a new connection for each heartbeat, of the ratio of stores and of the restart. */
const COMMON_CONNECTIONS = 256

/** At most this many µs of Postgres for each heartbeat, by connections. */
const POSTGRES_MICROS: Record<number, number> = { 64: 35, 256: 22 }
const OF_WITHOUT: Record<number, number> = { 256: 0.6, 1024: 0.7 }
const OF_PARSES = 1.3

/** The bucket of the dedupe key, in seconds. */
const BUCKET_S = 10
/** More heartbeats a second than any server has stored here. */
const MOST_PER_SECOND = 25_000

/** A store with its devices, and how many heartbeats were sent to it. */
interface Stand {
  store: Store
  devices: number
  scripts: Record<'keep' | 'close', Awaited<ReturnType<typeof wrkScript>>>
  sent: number
}

interface Measured {
  rate: number
  serverCpu: number
  postgresCpu: number
  p99: number
  rssMb: number
}

/** What was measured, by its label: one for each round. */
type Results = Map<string, Measured[]>

export async function benchTargets(args: string[]): Promise<Figure[]> {
  const given = readOptions('bench -- targets', args, OPTIONS)
  if (given.only !== '' && !KINDS.includes(given.only as Kind))
    throw new UsageError(`--only takes ${KINDS.join(', ')}, got ${given.only}`)
  const root = given.server === '' ? repository : resolve(given.server)
  const stands: Stand[] = []
  const withStands = async (sizes: readonly number[]): Promise<Figure[]> => {
    const [devices, ...others] = sizes
    if (devices === undefined) return measureAll(given, root, stands)
    return withStore(async store => {
      await enrollMany(store, devices)
      const from = Math.floor(Date.now() / 1000) - BUCKET_S * Math.ceil((mostSeconds(given) * MOST_PER_SECOND) / devices)
      const script = (header: string) =>
        wrkScript(`targets-${devices}-${header === '' ? 'keep' : 'close'}`, luaOf(devices, from, header))
      const scripts = { keep: await script(''), close: await script('Connection: close\\r\\n') }
      stands.push({ store, devices, scripts, sent: 0 })
      try {
        return await withStands(others)
      } finally {
        await Promise.all(Object.values(scripts).map(({ remove }) => remove()))
      }
    }, root)
  }
  return withStands(given.devices)
}

async function measureAll(given: Given, root: string, stands: Stand[]): Promise<Figure[]> {
  const most = Math.max(...given.workers)
  const results: Results = new Map()
  const senderCpu: number[] = []
  const restarts: number[] = []
  const kinds = KINDS.filter(kind => given.only === '' || kind === given.only)

  /** Measures with wrk, and keeps the result under its label. */
  const measure = async (label: string, target: Target, connections: number, way: keyof Stand['scripts'] = 'keep') => {
    const { stand, pid, url } = target
    const send = async (seconds: number) => {
      const sent = await runWrk(url, stand.scripts[way].file, { connections, seconds, first: target.first() })
      target.sent(sent.requests, connections)
      return sent
    }
    await stand.store.admin`checkpoint`
    await send(given.warmup)
    const postgres = (await stand.store.cluster.pid()) ?? 0
    const before = await Promise.all([usageOf(pid), usageOf(postgres)])
    const { requests, seconds, p99, cpuSeconds } = await send(given.seconds)
    const after = await Promise.all([usageOf(pid), usageOf(postgres)])
    if (requests === 0) throw new Error(`${label}: nothing was answered within ${given.seconds} s`)
    senderCpu.push(cpuPercent(cpuSeconds, seconds))
    const micros = (which: 0 | 1) => (1e6 * (after[which].cpuSeconds - before[which].cpuSeconds)) / requests
    const measured = { rate: requests / seconds, serverCpu: micros(0), postgresCpu: micros(1), p99, rssMb: after[0].rssMb }
    results.set(label, [...(results.get(label) ?? []), measured])
    say(
      `  ${label}: ${whole(measured.rate)}/s, CPU ${measured.serverCpu.toFixed(1)} and ${measured.postgresCpu.toFixed(1)} µs, p99 ${p99.toFixed(1)} ms`,
    )
    return measured.rate
  }

  for (let round = 1; round <= given.rounds; round++) {
    say(`round ${round}: CPU is of the server and of Postgres for each heartbeat`)
    for (const workers of given.workers) {
      for (const kind of round % 2 === 1 ? kinds : kinds.toReversed()) {
        await withTarget(kind, stands[0]!, workers, root, async target => {
          for (const connections of given.connections) await measure(labelOf(kind, workers, connections), target, connections)
          if (workers === most) await measure(`${kind}, a new connection for each heartbeat`, target, COMMON_CONNECTIONS, 'close')
        })
      }
    }
    if (!kinds.includes('server')) continue
    for (const stand of stands.slice(1)) {
      await withTarget('server', stand, most, root, async target => {
        for (const connections of given.connections) await measure(sizeLabel(stand, connections), target, connections)
      })
    }
    const largest = stands.at(-1)!
    const common = given.connections.includes(COMMON_CONNECTIONS) ? COMMON_CONNECTIONS : given.connections[0]!
    let before = NaN
    await withTarget('server', largest, most, root, async target => {
      before = await measure('before a restart', target, common)
    })
    await withTarget('server', largest, most, root, async target => {
      const { requests, seconds } = await runWrk(target.url, largest.scripts.keep.file, {
        connections: common,
        seconds: given.restart,
        first: target.first(),
      })
      target.sent(requests, common)
      restarts.push(requests / seconds / before)
    })
  }

  return [
    ...[...results].flatMap(([label, list]): Figure[] => {
      const figure = (name: string, value: keyof Measured, unit: string) => ({
        name: `${label}: ${name}`,
        measured: median(list.map(measured => measured[value])),
        unit,
      })
      return [
        figure('heartbeats', 'rate', '/s'),
        figure('CPU of the server', 'serverCpu', 'µs'),
        ...(/^server|devices|restart/.test(label) ? [figure('CPU of Postgres', 'postgresCpu', 'µs')] : []),
        figure('p99', 'p99', 'ms'),
        figure('memory', 'rssMb', 'MB'),
      ]
    }),
    ...ratios(given, stands, results, restarts),
    { name: 'CPU of the sender, of all processors, highest', measured: Math.max(...senderCpu), unit: '%' },
  ]
}

/** The seconds for which heartbeats are sent to one store. */
function mostSeconds({ rounds, workers, connections, warmup, seconds, restart }: Given) {
  const measurements = workers.length * connections.length + 2
  return rounds * (measurements * (warmup + seconds) + restart)
}

function ratios(given: Given, stands: Stand[], results: Results, restarts: number[]): Figure[] {
  const most = Math.max(...given.workers)
  const least = Math.min(...given.workers)
  const figures: Figure[] = []
  const ratio = (name: string, value: keyof Measured, one: string, other: string, target?: Figure['target']) => {
    const mine = results.get(one)
    const others = results.get(other)
    if (!mine || !others) return
    const measured = median(mine.map((measured, round) => measured[value] / (others[round]?.[value] ?? NaN)))
    figures.push({ name, measured, unit: '', ...(target ? { target } : {}) })
  }
  for (const connections of given.connections) {
    const is = (wanted: number, target: Figure['target']) => (connections === wanted ? target : undefined)
    const server = labelOf('server', most, connections)
    const [first, ...others] = stands
    for (const stand of others) {
      const sizes = `${whole(stand.devices)} / ${whole(first!.devices)} devices, ${connections}`
      ratio(`heartbeats, ${sizes}`, 'rate', sizeLabel(stand, connections), server, is(COMMON_CONNECTIONS, atLeast(0.9)))
      ratio(`memory, ${sizes}`, 'rssMb', sizeLabel(stand, connections), server, is(COMMON_CONNECTIONS, atMost(1.1)))
    }
    const parses = labelOf('parses', most, connections)
    ratio(`server's CPU / bare, parses, ${connections}`, 'serverCpu', server, parses, is(COMMON_CONNECTIONS, atMost(OF_PARSES)))
    ratio(
      `server's CPU without the database / bare, parses, ${connections}`,
      'serverCpu',
      labelOf('without', most, connections),
      parses,
    )
    const wanted = OF_WITHOUT[connections]
    ratio(
      `heartbeats / without the database, ${connections}`,
      'rate',
      server,
      labelOf('without', most, connections),
      wanted === undefined ? undefined : atLeast(wanted),
    )
    const micros = results.get(server)?.map(({ postgresCpu }) => postgresCpu)
    const limit = POSTGRES_MICROS[connections]
    if (micros && limit !== undefined)
      figures.push({
        name: `CPU of Postgres for each heartbeat, ${connections}`,
        measured: median(micros),
        unit: 'µs',
        target: atMost(limit),
      })
    if (least < most)
      ratio(
        `heartbeats, ${most} workers / ${least}, ${connections}`,
        'rate',
        server,
        labelOf('server', least, connections),
        is(64, atLeast(1)),
      )
  }
  if (restarts.length > 0)
    figures.push({
      name: `heartbeats, first ${given.restart} s after a restart / before`,
      measured: median(restarts),
      unit: '',
      target: atLeast(0.9),
    })
  return figures
}

/** A server that is running, and what wrk sends to it. */
interface Target {
  stand: Stand
  pid: number
  url: string
  /** The number of the next request. */
  first: () => number
  /** Those in flight at the end may have been stored, too. */
  sent: (answered: number, connections: number) => void
}

/** Starts a server of this kind, and checks afterwards what it left in the database, so that no result is of something else. */
async function withTarget(kind: Kind, stand: Stand, workers: number, root: string, work: (target: Target) => Promise<void>) {
  const stores = kind === 'server'
  let next = stores ? stand.sent : 0
  let answered = 0
  let inFlight = 0
  const target = {
    stand,
    first: () => next,
    sent(requests: number, connections: number) {
      next += requests + connections
      answered += requests
      inFlight += connections
      if (stores) stand.sent = next
    },
  }
  const rowsBefore = await countRows(stand)
  if (kind === 'parses' || kind === 'reads') {
    const port = await freePort(true)
    const program = await startBare(port, workers, kind)
    try {
      await work({ ...target, pid: program.pid, url: `http://127.0.0.1:${port}` })
    } finally {
      await program.stop()
    }
  } else {
    const server = await startServer(stand.store, {
      root,
      variant: stores ? undefined : 'without-database.ts',
      // Few devices send what a fleet would. The requests are still counted.
      env: { WORKERS: String(workers), DEVICE_REQUESTS_PER_MINUTE: '100000' },
    })
    try {
      await work({ ...target, pid: server.pid, url: server.url })
      await sleep(200)
      await requireNoDuplicates(server)
    } finally {
      await server.stop()
    }
  }
  const rows = (await countRows(stand)) - rowsBefore
  if (stores ? rows < answered || rows > answered + inFlight : rows !== 0)
    throw new Error(`${kind}: ${answered} heartbeats were acknowledged, and ${rows} are in the database`)
}

async function countRows({ store: { admin } }: Stand) {
  const [found] = await admin<{ rows: number }[]>`select count(*)::integer as rows from fleet.device_heartbeats`
  return found!.rows
}

/** A duplicate costs less than a heartbeat that is stored, so it would make a rate meaningless. */
async function requireNoDuplicates(server: Server) {
  const metrics = await server.metrics()
  for (const counter of ['hb_deduplicated_total', 'hb_quarantined_total']) {
    if (metrics.get(counter)) throw new Error(`${counter} is ${metrics.get(counter)}; every heartbeat has to be stored`)
  }
}

/**
 * For wrk. Request n is of device n × stride modulo their number, so every device comes once in a turn, and the ones that come
 * together are not neighbours in a table. Nothing is kept for a device, and only the number in its token is made for each request.
 */
function luaOf(devices: number, from: number, header: string) {
  const prefix = DEVICE_TOKEN + '0'.repeat(TOKEN_DIGITS - 12)
  return `
local n = tonumber(os.getenv("FIRST"))
local head = "POST /v1/heartbeat HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\n${header}Authorization: Bearer ${prefix}"
local beat = '{"ts":"%s","battery_pct":%d,"network_type":"wifi","unity_running":true,"signal_dbm":-61,"agent_version":"3.1.0"}'
local turn, tail
function request()
  local device = n % ${devices} * ${strideOf(devices)} % ${devices} + 1
  local now = math.floor(n / ${devices})
  n = n + 1
  if now ~= turn then
    turn = now
    local body = beat:format(os.date("!%Y-%m-%dT%H:%M:%SZ", ${from} + ${BUCKET_S} * turn), turn % 101)
    tail = "\\r\\nContent-Type: application/json\\r\\nContent-Length: " .. #body .. "\\r\\n\\r\\n" .. body
  end
  return head .. ("%012x"):format(device) .. tail
end
`
}

/** About 0.62 of the devices, without a divisor in common with their number. */
function strideOf(devices: number) {
  const divisor = (a: number, b: number): number => (b === 0 ? a : divisor(b, a % b))
  let stride = Math.max(1, Math.floor(0.618 * devices))
  while (divisor(stride, devices) !== 1) stride--
  return stride
}

function labelOf(kind: Kind, workers: number, connections: number) {
  return `${kind}, ${workers} ${workers === 1 ? 'worker' : 'workers'}, ${connections} connections`
}

function sizeLabel({ devices }: Stand, connections: number) {
  return `${whole(devices)} devices, ${connections} connections`
}

function whole(value: number) {
  return Math.round(value).toLocaleString('en')
}
