/*
 * A million devices on one machine: each sends once a minute, more or less by a quarter. In the phase `mixed` half of the devices
 * send through gateways, which send a batch of --batch heartbeats once a minute, and half for themselves; in the phase `single`
 * all send for themselves. In the middle of each phase the server is stopped with SIGTERM and started again.
 *
 * The sender (fleet-sender.ts) is an open loop: latency is counted from the time at which a heartbeat was due, so a slow server is
 * not hidden by sending less. It sends again what was not acknowledged, as devices do, for a minute, or an interval if that is
 * longer; after that the heartbeat is lost, which is an error. It runs on the same processors as the server and Postgres, so first
 * it is measured alone, against a bare HTTP server.
 *
 * After each phase every acknowledged heartbeat is looked up in the database: a row with its device and its exact `ts`.
 *
 * Before a phase a short run shows whether the server carries the rate: nothing is lost, and p99 is below --most ms. If it does not,
 * or with --search, the highest rate that it carries is searched for, in short runs, and a phase whose rate it does not carry runs at
 * nine tenths of that.
 */
import { resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { freePort } from '../local/cluster.ts'
import { repository } from '../lib/repository.ts'
import { UsageError } from '../lib/errors.ts'
import { say, step } from '../lib/progress.ts'
import { startBare } from './bare-server.ts'
import { atLeast, atMost, type Figure } from './figure.ts'
import { BUCKET_S, findAcknowledged, startFleet } from './fleet.ts'
import type { FleetOrder, FleetReport } from './fleet-order.ts'
import { readOptions } from './options.ts'
import { usageOf } from './processes.ts'
import { enrollMany, startServer, withStore, type Store } from './store.ts'

const MODES = ['mixed', 'single'] as const
type Mode = (typeof MODES)[number]

const OPTIONS = {
  server: { otherwise: '', what: 'checkout whose server is measured; this one by default' },
  devices: { otherwise: 1_000_000, what: 'enrolled devices, all of which send' },
  rate: { otherwise: undefined, what: 'heartbeats a second that all devices send together; by default each sends once a minute' },
  seconds: { otherwise: 300, least: 10, what: 'seconds of a phase, with the restart in the middle' },
  minutes: { otherwise: undefined, what: 'the same in minutes' },
  only: { otherwise: '', what: `only one phase: ${MODES.join(' or ')}` },
  batch: { otherwise: 100, what: "heartbeats in a gateway's batch" },
  connections: { otherwise: 1_000, what: 'most connections, which the devices share' },
  most: { otherwise: 250, what: 'ms that p99 must stay below' },
  search: { otherwise: false, what: 'search for the highest rate even if the server carries this one' },
  step: { otherwise: 20, least: 5, what: 'seconds of a run of the search' },
  steps: { otherwise: 8, what: 'most runs of the search' },
  ceiling: { otherwise: 200_000, what: 'heartbeats with which the sender alone is measured' },
  workers: { otherwise: undefined, what: "processes of the server, instead of the server's default" },
} as const

/** The search ends when the rate that fails is at most this many times the one that does not. */
const CLOSE = 1.06
/** What a run of the search has not delivered by then, it does not carry. */
const SEARCH_PATIENCE_S = 10

type Given = ReturnType<typeof readOptions<typeof OPTIONS>>

/** What all runs on a store share. */
interface Bench {
  given: Given
  store: Store
  fleet: ReturnType<typeof startFleet>
  serve: (port?: number) => ReturnType<typeof startServer>
}

export async function benchMillion(args: string[]): Promise<Figure[]> {
  const given = readOptions('bench -- million', args, OPTIONS)
  if (given.only !== '' && !MODES.includes(given.only as Mode))
    throw new UsageError(`--only takes ${MODES.join(' or ')}, got ${given.only}`)
  const seconds = given.minutes === undefined ? given.seconds : 60 * given.minutes
  const rate = given.rate ?? given.devices / 60
  if (0.75 * intervalOf(given, rate) < BUCKET_S)
    throw new UsageError(`${given.devices} devices can send ${(0.75 * given.devices) / BUCKET_S} heartbeats a second at most`)
  if (given.devices < 2 * given.batch) throw new UsageError('--devices must be at least twice --batch')
  const root = given.server === '' ? repository : resolve(given.server)
  return withStore(async store => {
    await enrollMany(store, given.devices, gatewaysOf(given))
    const fleet = startFleet()
    const env: Record<string, string> = given.workers ? { WORKERS: String(given.workers) } : {}
    const bench = { given, store, fleet, serve: (port?: number) => startServer(store, { root, env, port }) }
    try {
      const figures = await measureSender(bench)
      for (const mode of MODES) {
        if (given.only !== '' && given.only !== mode) continue
        const { carried, failed } = await search(bench, mode, rate)
        if (given.search || carried < rate)
          figures.push({ name: `${mode}: highest rate with a p99 below ${given.most} ms`, measured: carried, unit: '/s' })
        figures.push(...(await runPhase(bench, mode, carried >= rate ? rate : 0.9 * (carried || failed), seconds)))
      }
      return figures
    } finally {
      fleet.end()
    }
  }, root)
}

function gatewaysOf({ devices, batch }: Given) {
  return Math.floor(devices / 2 / batch)
}

/** Seconds from one heartbeat of a device to its next. */
function intervalOf({ devices }: Given, rate: number) {
  return devices / rate
}

function orderOf(given: Given, mode: Mode, rate: number, port: number, seconds: number): FleetOrder {
  const { devices, batch, connections } = given
  const gateways = mode === 'mixed' ? gatewaysOf(given) : 0
  const interval = intervalOf(given, rate)
  const singles = devices - gateways * batch
  return {
    port,
    connections,
    singles,
    gateways,
    batch,
    interval,
    jitter: interval / 4,
    seconds,
    patience: Math.max(60, interval),
  }
}

/** What the sender can send at most, when a server does nothing but read and answer on the same processors. */
async function measureSender({ given: { connections, ceiling, batch }, fleet }: Bench): Promise<Figure[]> {
  const port = await freePort(true)
  const bare = await startBare(port, 2, 'reads')
  try {
    const burst = { port, connections, gateways: 0, batch, interval: 0, jitter: 0, seconds: 1, patience: 300 }
    const run = (singles: number) => fleet.send({ ...burst, singles })
    await step('Measuring the sender alone', () => run(Math.ceil(ceiling / 4)))
    const { acknowledged, seconds, cpuSeconds, problems } = await run(ceiling)
    if (acknowledged < ceiling) throw new Error(`the sender alone lost heartbeats: ${JSON.stringify(problems)}`)
    return [
      { name: 'sender alone, single heartbeats to a bare server', measured: ceiling / seconds, unit: '/s' },
      { name: 'sender alone, CPU of the sender for each heartbeat', measured: (1e6 * cpuSeconds) / ceiling, unit: 'µs' },
    ]
  } finally {
    await bare.stop()
  }
}

async function runPhase(bench: Bench, mode: Mode, rate: number, seconds: number): Promise<Figure[]> {
  const { given, store, fleet, serve } = bench
  const warmup = Math.min(10, seconds / 10)
  say(`${mode}: ${Math.round(rate).toLocaleString('en')} heartbeats a second for ${seconds} s`)
  let server = await serve()
  try {
    const rssStart = (await usageOf(server.pid)).rssMb
    await fleet.rest()
    await store.admin`checkpoint`
    const order = orderOf(given, mode, rate, server.port, seconds)
    const usage = async () => ({
      server: (await usageOf(server.pid)).cpuSeconds,
      postgres: (await usageOf((await store.cluster.pid()) ?? 0)).cpuSeconds,
      sender: (await usageOf(fleet.pid)).cpuSeconds,
    })
    const run = fleet.send(order)
    run.catch(() => {})
    // The sender plans everything before it starts. Its report says when that was.
    const pause = (duration: number) => Promise.race([sleep(duration * 1000), run])
    await pause(warmup)
    fleet.part('before')
    const usedFrom = await usage()
    await pause(seconds / 2 - warmup)
    const usedUntil = await usage()
    fleet.part('restart')
    const stoppedAt = Date.now()
    const { port } = server
    const rssBefore = (await usageOf(server.pid)).rssMb
    await server.stop()
    server = await serve(port)
    const downtime = (Date.now() - stoppedAt) / 1000
    const window = Math.min(60, seconds / 2 - warmup)
    await pause(window - downtime)
    fleet.part('after')
    const report = await run
    const rssEnd = (await usageOf(server.pid)).rssMb
    tellProblems(report)
    const found = await step('Looking up each acknowledged heartbeat', () => findAcknowledged(store, order, report))

    const part = (name: string) => report.parts.find(found => found.name === name)!
    const at = (stoppedAt - report.startedAt) / 1000
    const before = stored(report, at - window, at)
    const after = stored(report, at, at + window)
    // A server that stores nothing has no ratio; 0 misses its target.
    const ratio = before > 0 ? after / before : 0
    const counted = Math.max(1, stored(report, warmup, at))
    const cpu = (of: 'server' | 'postgres' | 'sender') => (1e6 * (usedUntil[of] - usedFrom[of])) / counted
    const offered = report.parts.reduce((sum, { offered: count }) => sum + count, 0)
    const { latency } = part('before')
    const label = (name: string) => `${mode}: ${name}`
    say(
      `  stored ${Math.round(before / window)}/s, p99 ${latency.p99.toFixed(1)} ms; from the restart on ${ratio.toFixed(2)} of that; ${report.lost} lost, ${found.missing} missing`,
    )
    return [
      { name: label('offered'), measured: offered / seconds, unit: '/s' },
      { name: label('stored before the restart'), measured: before / window, unit: '/s' },
      { name: label('lost, of all'), measured: report.lost, unit: '', target: atMost(0) },
      { name: label('requests sent again'), measured: report.retries, unit: '' },
      { name: label('acknowledged'), measured: report.acknowledged, unit: '' },
      { name: label('acknowledged, but not in the database'), measured: found.missing, unit: '', target: atMost(0) },
      { name: label('in the database, but the answer was lost'), measured: found.others, unit: '' },
      { name: label('p50 before the restart'), measured: latency.p50, unit: 'ms' },
      { name: label('p99 before the restart'), measured: latency.p99, unit: 'ms', target: atMost(given.most) },
      { name: label('p99.9 before the restart'), measured: latency.p999, unit: 'ms' },
      {
        name: label(`p99 in the ${Math.round(window)} s from the restart on`),
        measured: part('restart').latency.p99,
        unit: 'ms',
      },
      // If the server was away for longer than that, nothing was due later.
      ...(part('after').offered > 0 ? [{ name: label('p99 after that'), measured: part('after').latency.p99, unit: 'ms' }] : []),
      { name: label('the server was away'), measured: downtime, unit: 's' },
      {
        name: label(`stored in the ${Math.round(window)} s from the restart on / before`),
        measured: ratio,
        unit: '',
        target: atLeast(0.9),
      },
      { name: label('CPU of the server for each heartbeat'), measured: cpu('server'), unit: 'µs' },
      { name: label('CPU of Postgres for each heartbeat'), measured: cpu('postgres'), unit: 'µs' },
      { name: label('CPU of the sender for each heartbeat'), measured: cpu('sender'), unit: 'µs' },
      { name: label('delay of the sender itself, p99'), measured: report.senderDelay.p99, unit: 'ms' },
      { name: label('memory of the server at the start'), measured: rssStart, unit: 'MB' },
      { name: label('memory of the server before the restart'), measured: rssBefore, unit: 'MB' },
      { name: label('memory of the server at the end'), measured: rssEnd, unit: 'MB' },
    ]
  } finally {
    await server.stop()
  }
}

/**
 * Runs of `step` seconds each. Without --search they end as soon as a rate is carried.
 * @returns the highest rate that was carried, 0 if none was, and the lowest that was not
 */
async function search(bench: Bench, mode: Mode, from: number) {
  const { given, store, fleet, serve } = bench
  const server = await serve()
  const warmup = Math.min(5, given.step / 4)
  const highest = (0.75 * given.devices) / BUCKET_S
  let carried = 0
  let failed = Infinity
  let rate = from
  try {
    for (let steps = 0; steps < given.steps && failed / carried > CLOSE && carried < highest; steps++) {
      if (carried >= from && !given.search) break
      const order = { ...orderOf(given, mode, rate, server.port, given.step), patience: SEARCH_PATIENCE_S }
      await fleet.rest()
      await store.admin`checkpoint`
      const run = fleet.send(order)
      run.catch(() => {})
      await Promise.race([sleep(warmup * 1000), run])
      fleet.part('measured')
      const report = await run
      const { latency } = report.parts.find(({ name }) => name === 'measured')!
      const { missing } = await findAcknowledged(store, order, report)
      if (missing > 0) throw new Error(`${missing} acknowledged heartbeats are not in the database`)
      const isCarried = latency.p99 < given.most && report.lost === 0
      say(
        `  ${mode}, ${Math.round(rate).toLocaleString('en')}/s: p99 ${latency.p99.toFixed(0)} ms, ${report.lost} lost${isCarried ? '' : ': too much'}`,
      )
      if (isCarried) carried = rate
      else failed = rate
      rate = Math.min(highest, failed === Infinity ? carried * 1.15 : carried === 0 ? failed * 0.7 : Math.sqrt(carried * failed))
    }
  } finally {
    await server.stop()
  }
  return { carried, failed }
}

/** Heartbeats that were acknowledged between two times, in seconds after the start. Parts of a second count in proportion. */
function stored({ perSecond }: FleetReport, from: number, until: number) {
  let sum = 0
  for (let second = Math.max(0, Math.floor(from)); second < Math.min(until, perSecond.length); second++)
    sum += perSecond[second]! * (Math.min(until, second + 1) - Math.max(from, second))
  return sum
}

function tellProblems({ problems }: FleetReport) {
  for (const [problem, count] of Object.entries(problems)) say(`  ${count} requests failed: ${problem}`)
}
