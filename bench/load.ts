/*
 * Measures a server on a durable cluster under the load of a simulated fleet, in which each device sends at its own times.
 *
 * Latency is measured from the time at which a heartbeat should have been sent. A device whose turn comes late because the server
 * (or the sender) was busy has waited, so a slow server is not hidden by sending less. Latencies go into an HDR histogram of
 * three significant digits (Node's own). The first --warmup seconds are sent but not measured. CPU is that of all processes of
 * the server and of Postgres, in percent of all processors. The sender is another process and not included. Devices share
 * --connections keep-alive connections, as behind a proxy; a device always uses the same one.
 *
 * Presets: `small` and `fleet` are scenarios 1 and 2 of the performance validation, `slow` is acceptance test C, `fast` is 1,000
 * heartbeats a second, `roster` is 10,000 devices, and `memory` is the server's size at 1,000, 10,000 and 100,000 devices.
 * Scenario 3, the offline list, is in the scenario `reads`.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { say } from '../lib/progress.ts'
import { atLeast, atMost, type Figure } from './figure.ts'
import { startSender, tellProgress } from './heartbeats.ts'
import { readOptions } from './options.ts'
import { cpuPercent, iowait, usageOf, type Usage } from './processes.ts'
import { peakRate, schedule, type Fleet } from './schedule.ts'
import type { Sent } from './sender.ts'
import { enroll, startServer, withStore, type Device, type Server, type Store } from './store.ts'
import { UsageError } from '../lib/errors.ts'

interface Preset extends Omit<Fleet, 'retries'> {
  warmup: number
  targets: Partial<Record<'p95' | 'p99' | 'cpu' | 'growth', number>>
}

const presets: Record<string, Preset> = {
  small: { devices: 500, interval: 60, jitter: 0, duration: 130, warmup: 10, targets: { p95: 150, p99: 300 } },
  fleet: { devices: 2_000, interval: 60, jitter: 15, duration: 190, warmup: 10, targets: { p95: 150, p99: 20, cpu: 15 } },
  slow: { devices: 2_000, interval: 300, jitter: 15, duration: 310, warmup: 10, targets: { p95: 150, p99: 300, cpu: 70 } },
  fast: { devices: 60_000, interval: 60, jitter: 15, duration: 310, warmup: 10, targets: { p95: 150, p99: 50, growth: 1.15 } },
  // Measured from the second round of the fleet, because a server that has just started must look up each token once.
  roster: { devices: 10_000, interval: 60, jitter: 15, duration: 255, warmup: 75, targets: { p95: 150, p99: 300 } },
}

const options = {
  preset: { otherwise: 'fleet', what: `${Object.keys(presets).join(', ')} or memory` },
  devices: { otherwise: undefined, what: "devices that send, instead of the preset's" },
  interval: { otherwise: undefined, what: 'seconds between the heartbeats of a device' },
  jitter: { otherwise: undefined, least: 0, what: 'seconds by which a heartbeat may be early or late' },
  duration: { otherwise: undefined, what: 'seconds in total, including the warmup' },
  warmup: { otherwise: undefined, least: 0, what: 'seconds at the start that do not count' },
  retries: { otherwise: 1, least: 0, what: 'percent of the heartbeats that are sent twice' },
  connections: { otherwise: 1_000, what: 'most connections, which the devices share' },
  sizes: { otherwise: [1_000, 10_000, 100_000], what: 'for memory: the numbers of devices' },
  seconds: { otherwise: 20, what: 'for memory: the least seconds that a round of all devices takes' },
  workers: { otherwise: undefined, what: "processes of the server, instead of the server's default" },
  'dry-run': { otherwise: false, what: 'only show what would be sent' },
} as const

export async function benchLoad(args: string[]): Promise<Figure[]> {
  const given = readOptions('bench -- load', args, options)
  const env: Record<string, string> = given.workers ? { WORKERS: String(given.workers) } : {}
  if (given.preset === 'memory') {
    if (!given['dry-run']) return measureMemory(given, env)
    return given.sizes.map(size => ({ name: `heartbeats of ${size.toLocaleString('en')} devices`, measured: 2 * size, unit: '' }))
  }
  const preset = presets[given.preset]
  if (!preset) throw new UsageError(`--preset takes ${Object.keys(presets).join(', ')} or memory, got ${given.preset}`)
  const fleet = {
    devices: given.devices ?? preset.devices,
    interval: given.interval ?? preset.interval,
    jitter: given.jitter ?? preset.jitter,
    duration: given.duration ?? preset.duration,
    retries: given.retries,
  }
  const warmup = Math.min(given.warmup ?? preset.warmup, fleet.duration / 2)
  if (fleet.interval - fleet.jitter < 10) {
    throw new UsageError(
      '--interval minus --jitter must be at least 10 s, because the store keeps only one heartbeat in a 10-second bucket',
    )
  }
  const planned = schedule(fleet)
  say(`${fleet.devices.toLocaleString('en')} devices, every ${fleet.interval} s ± ${fleet.jitter} s, for ${fleet.duration} s`)
  const plan: Figure[] = [
    { name: 'heartbeats, including retries', measured: planned.at.length, unit: '' },
    { name: 'mean rate', measured: planned.at.length / fleet.duration, unit: '/s' },
    { name: 'rate in the fullest second', measured: peakRate(planned), unit: '/s' },
  ]
  if (given['dry-run']) return plan

  return withStore(async store => {
    const { sent, used } = await sendFleet(store, await enroll(store, fleet.devices), fleet, {
      warmup,
      connections: given.connections,
      env,
    })
    return [...plan, ...figures(preset, fleet, sent, used)]
  })
}

/**
 * Starts a server and sends to it as the fleet does.
 * @returns the results, and the usage of processors and the counters; with `records`, each heartbeat that was answered with 2xx
 */
export async function sendFleet(
  store: Store,
  devices: Device[],
  fleet: Fleet,
  {
    warmup,
    connections,
    env = {},
    records = false,
    meanwhile = async () => {},
  }: {
    warmup: number
    connections: number
    env?: Record<string, string>
    records?: boolean
    meanwhile?: (server: Server) => Promise<void>
  },
) {
  const server = await startServer(store, { env })
  const sender = startSender()
  try {
    await sender.connect(server.port, connections, devices)
    await store.admin`checkpoint`
    const watch = watchUsage(store, server, warmup)
    const [sent] = await Promise.all([
      sender.open(schedule(fleet), warmup, tellProgress(fleet.duration - warmup), records),
      meanwhile(server),
    ])
    const used = await watch.end()
    tellProblems(sent)
    return { sent, used, beats: records ? await sender.acknowledged() : [] }
  } finally {
    sender.end()
    await server.stop()
  }
}

export type Used = Awaited<ReturnType<ReturnType<typeof watchUsage>['end']>>

function figures({ targets }: Preset, fleet: Fleet, { latency, errors, ok, seconds }: Sent, used: Used): Figure[] {
  const target = (most: number | undefined) => (most === undefined ? {} : { target: atMost(most) })
  const { counted } = used
  const written = counted('hb_writes_total')
  return [
    { name: 'answered', measured: ok / seconds, unit: '/s' },
    { name: 'errors', measured: errors, unit: '', target: atMost(0) },
    { name: 'latency p50', measured: latency.p50, unit: 'ms' },
    { name: 'latency p95', measured: latency.p95, unit: 'ms', ...target(targets.p95) },
    { name: 'latency p99', measured: latency.p99, unit: 'ms', ...target(targets.p99) },
    { name: 'latency p99.9', measured: latency.p999, unit: 'ms' },
    { name: 'latency max', measured: latency.max, unit: 'ms' },
    {
      name: 'CPU of server and Postgres, of all processors',
      measured: used.serverCpu + used.postgresCpu,
      unit: '%',
      ...target(targets.cpu),
    },
    { name: 'CPU of the server', measured: used.serverCpu, unit: '%' },
    { name: 'CPU of Postgres', measured: used.postgresCpu, unit: '%' },
    { name: 'iowait', measured: used.iowait, unit: '%' },
    { name: 'connections to Postgres, highest', measured: used.connections, unit: '' },
    {
      name: 'pool efficiency: statements that found a free connection',
      measured: 100 * (1 - counted('db_pool_waits_total') / Math.max(1, counted('db_pool_statements_total'))),
      unit: '%',
      target: atLeast(90),
    },
    // Duplicates must be exactly the heartbeats that were sent twice.
    { name: 'duplicates', measured: (100 * counted('hb_deduplicated_total')) / Math.max(1, written), unit: '%' },
    { name: 'expected duplicates', measured: (100 * fleet.retries) / (100 + fleet.retries), unit: '%' },
    { name: 'hb_writes_failed_total', measured: counted('hb_writes_failed_total'), unit: '', target: atMost(0) },
    { name: 'memory of the server at a fifth', measured: used.rssEarly, unit: 'MB' },
    { name: 'memory of the server at the end', measured: used.rssLate, unit: 'MB' },
    { name: 'memory at the end / at a fifth', measured: used.rssLate / used.rssEarly, unit: '', ...target(targets.growth) },
  ]
}

/** Samples once a second what the server and Postgres use, from the end of the warmup on. */
function watchUsage({ cluster, admin }: Store, server: Server, warmup: number) {
  const seconds: { at: number; server: Usage; postgres: Usage }[] = []
  let connections = 0
  let before = new Map<string, number>()
  let waited: () => Promise<number> = async () => 0
  let ended = false
  const look = async () => {
    const [ours, theirs, [row]] = await Promise.all([
      usageOf(server.pid),
      usageOf((await cluster.pid()) ?? 0),
      admin<{ count: number }[]>`
        select count(*)::integer as count from pg_stat_activity
        where backend_type = 'client backend' and usename = 'fleet_server'
      `,
    ])
    seconds.push({ at: performance.now(), server: ours, postgres: theirs })
    connections = Math.max(connections, row?.count ?? 0)
  }
  const watching = (async () => {
    await sleep(warmup * 1000)
    before = await server.metrics()
    waited = await iowait()
    while (!ended) {
      await look()
      await sleep(1000)
    }
  })()
  return {
    async end() {
      ended = true
      await watching
      await look()
      const first = seconds[0]!
      const last = seconds.at(-1)!
      const early = seconds[Math.floor(seconds.length / 5)]!
      const after = await server.metrics()
      const lasted = (last.at - first.at) / 1000
      return {
        serverCpu: cpuPercent(last.server.cpuSeconds - first.server.cpuSeconds, lasted),
        postgresCpu: cpuPercent(last.postgres.cpuSeconds - first.postgres.cpuSeconds, lasted),
        iowait: await waited(),
        connections,
        rssEarly: early.server.rssMb,
        rssLate: last.server.rssMb,
        counted: (name: string) => (after.get(name) ?? 0) - (before.get(name) ?? 0),
      }
    },
  }
}

/** Starts a new server for each size, to which every device sends twice. */
async function measureMemory(
  { sizes, seconds, connections }: { sizes: number[]; seconds: number; connections: number },
  env: Record<string, string>,
): Promise<Figure[]> {
  const memory: { devices: number; mb: number }[] = []
  await withStore(async store => {
    const devices: Device[] = []
    for (const size of [...sizes].sort((a, b) => a - b)) {
      devices.push(...(await enroll(store, size - devices.length, `to-${size}`)))
      const server = await startServer(store, { env })
      const sender = startSender()
      try {
        await sender.connect(server.port, connections, devices)
        const interval = Math.max(seconds, size / 1_500)
        const sent = await sender.open(
          schedule({ devices: size, interval, jitter: 0, duration: 2 * interval, retries: 0 }),
          0,
          tellProgress(2 * interval),
        )
        tellProblems(sent)
        memory.push({ devices: size, mb: (await usageOf(server.pid)).rssMb })
      } finally {
        sender.end()
        await server.stop()
      }
    }
  })
  const figures: Figure[] = memory.map(({ devices, mb }) => ({
    name: `memory of the server, ${devices.toLocaleString('en')} devices`,
    measured: mb,
    unit: 'MB',
  }))
  memory.slice(1).forEach((now, index) => {
    const before = memory[index]!
    const more = `${before.devices.toLocaleString('en')} to ${now.devices.toLocaleString('en')} devices`
    figures.push({
      name: `more memory per device, ${more}`,
      measured: ((now.mb - before.mb) * 1024) / (now.devices - before.devices),
      unit: 'KB',
    })
    // Memory must not grow faster than the number of devices.
    figures.push({
      name: `times the memory / times the devices, ${more}`,
      measured: now.mb / before.mb / (now.devices / before.devices),
      unit: '',
      target: atMost(1),
    })
  })
  return figures
}

function tellProblems({ problems }: Sent) {
  for (const [problem, count] of Object.entries(problems)) say(`  ${count} requests failed: ${problem}`)
}
