/*
 * Sends 1,000 heartbeats a second for half an hour. Each is sent at its time and its latency is measured from then. A nightly run
 * and the archive of a day happen in between. The plot shows p99 of every ten seconds, the server's memory, and the slowest
 * fdatasync of another file on the same disk. Peaks that p99 and fdatasync have in common come from the disk.
 */
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { pathToFileURL } from 'node:url'
import postgres from 'postgres'
import { say } from '../lib/progress.ts'
import { loadDay } from './archive.ts'
import { watchDisk } from './disk.ts'
import { atMost, median, percentile, type Figure } from './figure.ts'
import { startSender } from './heartbeats.ts'
import { readOptions } from './options.ts'
import { plot, type Series } from './plot.ts'
import { usageOf } from './processes.ts'
import { schedule } from './schedule.ts'
import { enroll, startProgram, startServer, withStore } from './store.ts'

const options = {
  seconds: { otherwise: 1_800, least: 6, what: 'seconds in total' },
  devices: { otherwise: 60_000, what: 'devices, each of which sends a heartbeat a minute' },
  window: { otherwise: 10, what: 'seconds per point of the plot' },
  rows: { otherwise: 2_880_000, what: 'heartbeats of the day that is archived' },
  plot: { otherwise: 'docs/soak.svg', what: 'file for the plot' },
} as const

/** The ms above which a window counts as slow, and those above which the disk does. */
const SLOW = { p99: 100, disk: 50 }

export async function benchSoak(args: string[]): Promise<Figure[]> {
  const given = readOptions('bench -- soak', args, options)
  return withStore(async store => {
    const { admin, cluster } = store
    const devices = await enroll(store, given.devices)
    say(`Loading a day of ${given.rows.toLocaleString('en')} heartbeats ...`)
    const partition = await loadDay(admin, Math.ceil(given.rows / 1_440))
    const directory = await mkdtemp(join(tmpdir(), 'fleet-soak-'))
    const owner = postgres(cluster.url('fleet_owner', 'fleet'), { max: 1, onnotice: () => {} })
    const server = await startServer(store)
    const sender = startSender()
    const disk = await watchDisk(directory)
    try {
      await sender.connect(server.port, 1_000, devices)
      await admin`checkpoint`
      const start = performance.now()
      const now = () => (performance.now() - start) / 1000
      let over = false
      const sending = sender
        .open(
          schedule({ devices: given.devices, interval: 60, jitter: 15, retries: 1, duration: given.seconds }),
          0,
          () => {},
          true,
        )
        .finally(() => {
          over = true
        })

      const p99: Series = { name: 'p99, ms', points: [] }
      const p50: Series = { name: 'p50, ms', points: [] }
      const memory: Series = { name: 'memory of the server, MB', points: [] }
      const fdatasync: Series = { name: 'slowest fdatasync of another file, ms', points: [] }
      const watch = async () => {
        while (!over) {
          await sleep(given.window * 1000)
          const latencies = (await sender.acknowledged()).map(({ latency }) => latency)
          const slowest = disk.takeSlowest()
          if (latencies.length === 0) continue
          p50.points.push([now() / 60, median(latencies)])
          p99.points.push([now() / 60, percentile(latencies, 99)])
          memory.points.push([now() / 60, (await usageOf(server.pid)).rssMb])
          fdatasync.points.push([now() / 60, slowest])
          const every = Math.max(1, Math.round(60 / given.window))
          if (p99.points.length % every === 0)
            say(
              `  ${Math.round(now())} s of ${given.seconds} s: p99 ${p99.points.at(-1)![1].toFixed(1)} ms, ${memory.points.at(-1)![1].toFixed(0)} MB`,
            )
        }
      }
      const spans: { name: string; from: number; to: number }[] = []
      const during = async (name: string, at: number, work: () => Promise<unknown>) => {
        await sleep(Math.max(0, at * given.seconds - now()) * 1000)
        const from = now() / 60
        await work()
        spans.push({ name, from, to: now() / 60 })
      }
      const works = async () => {
        await during('nightly run', 1 / 3, () => owner`call fleet.nightly()`)
        await during('archive', 0.6, async () => {
          await admin`select fleet.archive_partition(${partition})`
          const archiver = startProgram('archiver/main.ts', {
            args: ['--once'],
            env: {
              ARCHIVER_DATABASE_URL: cluster.url('fleet_archiver', 'fleet'),
              ARCHIVE_URL: pathToFileURL(join(directory, 'archive')).href,
            },
          })
          await archiver.exited
          const [state] = await admin<
            { state: string }[]
          >`select state from fleet.hb_partitions where partition_name = ${partition}`
          if (state?.state !== 'dropped')
            throw new Error(`${partition} is ${state?.state ?? 'gone'}, not dropped:\n${archiver.output()}`)
        })
      }
      const [sent] = await Promise.all([sending, watch(), works()])
      await writeFile(
        resolve(given.plot),
        plot({
          title: `${Math.round(given.devices / 60).toLocaleString('en')} heartbeats/s for ${Math.round(given.seconds / 60)} minutes`,
          x: 'minutes',
          y: '',
          series: [p50, p99, memory, fdatasync],
          spans,
        }),
      )
      const slow = p99.points.map(([, ms]) => ms > SLOW.p99)
      const slowDisks = (among: boolean) => fdatasync.points.filter(([, ms], n) => slow[n] === among && ms > SLOW.disk).length
      const half = memory.points.slice(Math.floor(memory.points.length / 5)).map(([, mb]) => mb)
      const early = median(half.slice(0, Math.ceil(half.length / 4)))
      const late = median(half.slice(-Math.ceil(half.length / 4)))
      return [
        { name: 'answered', measured: sent.ok / sent.seconds, unit: '/s' },
        { name: 'errors', measured: sent.errors, unit: '', target: atMost(0) },
        { name: 'latency p50', measured: sent.latency.p50, unit: 'ms' },
        { name: 'latency p99', measured: sent.latency.p99, unit: 'ms', target: atMost(300) },
        { name: `p99 of the worst ${given.window} s`, measured: Math.max(...p99.points.map(([, ms]) => ms)), unit: 'ms' },
        { name: `windows with a p99 over ${SLOW.p99} ms, of ${slow.length}`, measured: slow.filter(Boolean).length, unit: '' },
        { name: `slow windows with an fdatasync over ${SLOW.disk} ms`, measured: slowDisks(true), unit: '' },
        { name: `other windows with an fdatasync over ${SLOW.disk} ms`, measured: slowDisks(false), unit: '' },
        { name: 'latency max', measured: sent.latency.max, unit: 'ms' },
        { name: 'nightly run', measured: 60 * (spans[0]!.to - spans[0]!.from), unit: 's' },
        { name: 'archive', measured: 60 * (spans[1]!.to - spans[1]!.from), unit: 's' },
        { name: 'memory of the server, early', measured: early, unit: 'MB' },
        { name: 'memory of the server, late', measured: late, unit: 'MB' },
        { name: 'memory late / early', measured: late / early, unit: '', target: atMost(1.15) },
      ]
    } finally {
      sender.end()
      await disk.end()
      await owner.end({ timeout: 1 })
      await server.stop()
      await rm(directory, { recursive: true, force: true })
    }
  })
}
