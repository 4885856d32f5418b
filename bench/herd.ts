/*
 * A fleet after an outage. All devices are due in the same moment, as after --outage seconds in which none of them had an answer, and
 * each sends the heartbeats that it kept, in one request. From then on each sends one heartbeat after the time that the server asks
 * for, to a real server. Twice the interval after the outage, the load that the devices offer is counted in each second: the requests
 * that become due, whether or not the server answers them quickly.
 *
 * In the phase `fixed` the devices wait for their interval whatever the answer says, as they did when the answer was always the same.
 * In the phase `spread` they obey next_interval_s (server/ingest/spread.ts).
 *
 * One second of a fleet that sends at random has a Poisson number of heartbeats: at 1,000 a second, the fullest of 180 seconds has
 * about 8 % more than the mean.
 */
import { fork } from 'node:child_process'
import { resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { built, repository } from '../lib/repository.ts'
import { UsageError } from '../lib/errors.ts'
import { say } from '../lib/progress.ts'
import { atMost, type Figure } from './figure.ts'
import type { HerdOrder, HerdReport } from './herd-order.ts'
import { readOptions } from './options.ts'
import { enrollMany, startServer, withStore, type Store } from './store.ts'

const MODES = ['fixed', 'spread'] as const
type Mode = (typeof MODES)[number]

const OPTIONS = {
  server: { otherwise: '', what: 'checkout whose server is measured; this one by default' },
  devices: { otherwise: 60_000, what: 'devices, all of which are due at once' },
  interval: { otherwise: 60, least: 20, what: 'seconds from one heartbeat of a device to the next' },
  jitter: { otherwise: 0, least: 0, what: 'seconds that a device waits at most longer or shorter than it was asked to' },
  outage: { otherwise: 300, least: 0, what: 'seconds for which the devices kept their heartbeats' },
  intervals: { otherwise: 3, what: 'intervals that are measured, after the first two' },
  connections: { otherwise: 1_000, what: 'most connections, which the devices share' },
  only: { otherwise: '', what: `only one phase: ${MODES.join(' or ')}` },
  workers: { otherwise: undefined, what: "processes of the server, instead of the server's default" },
} as const

type Given = ReturnType<typeof readOptions<typeof OPTIONS>>

export async function benchHerd(args: string[]): Promise<Figure[]> {
  const given = readOptions('bench -- herd', args, OPTIONS)
  if (given.only !== '' && !MODES.includes(given.only as Mode))
    throw new UsageError(`--only takes ${MODES.join(' or ')}, got ${given.only}`)
  if (given.jitter > given.interval / 2) throw new UsageError(`--jitter takes at most half of --interval, got ${given.jitter}`)
  const root = given.server === '' ? repository : resolve(given.server)
  return withStore(async store => {
    await enrollMany(store, given.devices)
    await store.admin`update fleet.devices set heartbeat_interval = ${given.interval}::integer * interval '1 second'`
    await store.admin`vacuum (analyze) fleet.devices`
    const figures: Figure[] = []
    for (const mode of MODES)
      if (given.only === '' || given.only === mode) figures.push(...(await runPhase(store, given, mode, root)))
    return figures
  }, root)
}

async function runPhase(store: Store, given: Given, mode: Mode, root: string): Promise<Figure[]> {
  const { devices, interval, jitter, outage, intervals, connections, workers } = given
  const server = await startServer(store, { root, env: workers ? { WORKERS: String(workers) } : {} })
  try {
    const seconds = (2 + intervals) * interval
    say(`${mode}: ${devices.toLocaleString('en')} devices come back at once, and are watched for ${seconds} s`)
    const run = send({
      port: server.port,
      connections,
      devices,
      interval,
      jitter,
      kept: Math.floor(outage / interval),
      obeys: mode === 'spread',
      seconds,
    })
    const late = watchLate(store, 2 * interval)
    const report = await run.finally(() => late.stop())
    for (const [problem, count] of Object.entries(report.problems)) say(`  ${count} requests failed: ${problem}`)
    const measured = report.offered.subarray(2 * interval)
    const mean = measured.reduce((sum, count) => sum + count, 0) / measured.length
    const peak = Math.max(...measured)
    const label = (name: string) => `${mode}: ${name}`
    return [
      { name: label('until each device had its first answer'), measured: report.drained, unit: 's' },
      { name: label('offered after two intervals, mean'), measured: mean, unit: '/s' },
      { name: label('offered in the fullest second'), measured: peak, unit: '/s' },
      { name: label('offered in the emptiest second'), measured: Math.min(...measured), unit: '/s' },
      { name: label('peak / mean'), measured: peak / mean, unit: '', ...(mode === 'spread' && { target: atMost(1.2) }) },
      { name: label('shortest wait'), measured: report.waits.least, unit: 's' },
      { name: label('longest wait'), measured: report.waits.most, unit: 's' },
      {
        name: label('late or offline after two intervals, most at a time'),
        measured: late.most(),
        unit: '',
        ...(mode === 'spread' && { target: atMost(0) }),
      },
      { name: label('requests sent again'), measured: report.retries, unit: '' },
      { name: label('requests that the sender itself delayed for over 1 s'), measured: report.delayed, unit: '' },
    ]
  } finally {
    await server.stop()
  }
}

async function send(order: HerdOrder): Promise<HerdReport> {
  const child = fork(built('bench/herd-sender.ts'), { execArgv: ['--enable-source-maps'], serialization: 'advanced' })
  try {
    return await new Promise<HerdReport>((resolve, reject) => {
      child.once('error', reject)
      child.once('exit', code => reject(new Error(`the sending process ended with ${code ?? 'a signal'}`)))
      child.once('message', report => resolve(report as HerdReport))
      child.send(order)
    })
  } finally {
    if (child.connected) child.disconnect()
  }
}

/** Counts every few seconds how many devices are late or offline. */
function watchLate({ admin }: Store, afterSeconds: number) {
  const end = new AbortController()
  let most = 0
  const watch = async () => {
    await sleep(afterSeconds * 1_000, undefined, { signal: end.signal })
    while (!end.signal.aborted) {
      const [row] = await admin<{ late: number }[]>`
        select count(*)::integer as late from fleet.device_status where status in ('late', 'offline')`
      most = Math.max(most, row!.late)
      await sleep(5_000, undefined, { signal: end.signal })
    }
  }
  const watching = watch().catch((error: unknown) => {
    if (!end.signal.aborted) throw error
  })
  return {
    most: () => most,
    async stop() {
      end.abort()
      await watching
    },
  }
}
