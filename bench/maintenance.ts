/*
 * Measures how maintenance affects heartbeats. A server takes 500 a second. Each is sent at its time, and its latency is measured
 * from then, in three measurements in turn:
 *
 * quiet: nothing else happens
 * nights: fleet.nightly() runs again and again; each run makes a partition and detaches a day
 * reader: the same, while a session keeps a query over the whole parent open. Detaching has to wait, and gives up.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import postgres from 'postgres'
import { say, step } from '../lib/progress.ts'
import { atMost, median, type Figure } from './figure.ts'
import { startSender } from './heartbeats.ts'
import { readOptions } from './options.ts'
import { schedule } from './schedule.ts'
import type { Sent } from './sender.ts'
import { enroll, startServer, withStore } from './store.ts'

/** The nightly runs of all rounds detach fewer days than there are, and make no more than may be made in advance. */
const DAYS = 80
const NIGHTS = 76

const options = {
  rounds: { otherwise: 3, what: 'number of rounds' },
  seconds: { otherwise: 30, what: 'seconds of each measurement' },
  warmup: { otherwise: 5, what: 'seconds at the start of each measurement that do not count' },
  devices: { otherwise: 30_000, what: 'devices, each of which sends a heartbeat a minute' },
  rows: { otherwise: 50_000, what: 'heartbeats of each past day' },
} as const

export async function benchMaintenance(args: string[]): Promise<Figure[]> {
  const { rounds, seconds, warmup, devices: count, rows } = readOptions('bench -- maintenance', args, options)
  return withStore(async store => {
    const { admin, cluster } = store
    const devices = await enroll(store, count)
    await step(
      `Loading ${DAYS} days of ${rows.toLocaleString('en')} heartbeats`,
      () => admin`
      insert into fleet.device_heartbeats (ts, received_at, device_id, battery_pct)
      select t.ts, t.ts, n % 1000, n % 100
      from generate_series(1, ${DAYS}::integer) as day
      cross join generate_series(0, ${rows - 1}::integer) as n
      cross join lateral (
        select date_trunc('day', now(), 'UTC') - day * interval '1 day' + n / 1000 * interval '1 day' / (${rows}::integer / 1000 + 1) as ts
      ) t
    `,
    )
    await admin`vacuum (analyze) fleet.device_heartbeats`
    const server = await startServer(store)
    const sender = startSender()
    const owner = postgres(cluster.url('fleet_owner', 'fleet'), { max: 1, onnotice: () => {} })
    const reader = postgres(cluster.url('fleet_reader', 'fleet'), { max: 1, onnotice: () => {} })
    const sent: Record<'quiet' | 'nights' | 'reader', Sent[]> = { quiet: [], nights: [], reader: [] }
    let night = 0
    const nights: number[] = []

    const during = async (work: (isOver: () => boolean) => Promise<void>) => {
      await admin`checkpoint`
      const sending = sender.open(
        schedule({ devices: count, interval: 60, jitter: 15, retries: 0, duration: warmup + seconds }),
        warmup,
      )
      let over = false
      const [result] = await Promise.all([
        sending.finally(() => {
          over = true
        }),
        work(() => over),
      ])
      return result
    }
    const keepNights = async (isOver: () => boolean) => {
      const before = night
      await sleep(warmup * 1000)
      while (!isOver()) {
        night++
        if (night > NIGHTS) throw new Error(`more than ${NIGHTS} nightly runs would be made; use fewer --rounds or --seconds`)
        await owner`select fleet.set_premake(${14 + night})`
        await owner`call fleet.nightly(null, ${`${DAYS - night} days`}::interval)`
        // This pause stands for a day.
        await sleep(2_500)
      }
      nights.push(night - before)
    }
    try {
      await sender.connect(server.port, 1_000, devices)
      for (let round = 1; round <= rounds; round++) {
        sent.quiet.push(await during(async () => {}))
        sent.nights.push(await during(keepNights))
        await reader`begin`
        await reader`select count(*) from fleet.device_heartbeats where ts > now() - interval '1 minute'`
        sent.reader.push(await during(keepNights))
        await reader`rollback`
        const p99 = (which: keyof typeof sent) => `${sent[which].at(-1)?.latency.p99.toFixed(1)} ms ${which}`
        say(`round ${round}: p99 ${p99('quiet')}, ${p99('nights')}, ${p99('reader')}`)
      }
      const [detached] = await admin<{ count: number }[]>`
        select count(*)::int as count from fleet.events where event = 'partition.detach'
      `
      const of = (which: keyof typeof sent, what: keyof Sent['latency']) =>
        median(sent[which].map(({ latency }) => latency[what]))
      return [
        { name: 'nightly runs', measured: nights.reduce((sum, one) => sum + one, 0), unit: '' },
        { name: 'days that they detached', measured: detached?.count ?? 0, unit: '' },
        ...(['p50', 'p99', 'max'] as const).flatMap(what =>
          (['quiet', 'nights', 'reader'] as const).map((which): Figure => ({
            name: `ingest ${what}, ${which}`,
            measured: of(which, what),
            unit: 'ms',
          })),
        ),
        {
          name: 'errors',
          measured: Object.values(sent)
            .flat()
            .reduce((sum, { errors }) => sum + errors, 0),
          unit: '',
          target: atMost(0),
        },
      ]
    } finally {
      sender.end()
      await Promise.all([owner.end({ timeout: 1 }), reader.end({ timeout: 1 })])
      await server.stop()
    }
  })
}
