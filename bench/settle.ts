// Settles a day of heartbeats, round by round, and compares it with the day as it arrived: what a device's day costs to read, how
// many bytes a row takes, and what readers and ingest notice meanwhile.
import { setTimeout as sleep } from 'node:timers/promises'
import type { Sql } from 'postgres'
import { say, step } from '../lib/progress.ts'
import { HEARTBEATS_A_DAY, loadDay } from './archive.ts'
import { atMost, median, percentile, type Figure } from './figure.ts'
import { startSender } from './heartbeats.ts'
import { readOptions } from './options.ts'
import { schedule } from './schedule.ts'
import type { Sent } from './sender.ts'
import { enroll, startServer, withStore } from './store.ts'

/** The first seconds of each measurement, which do not count. */
const WARMUP = 5

/** Devices whose day is read, in each round and state. */
const READS = 200

const options = {
  rows: { otherwise: 2_880_000, what: 'heartbeats in the day' },
  rounds: { otherwise: 3, what: 'number of rounds' },
  devices: { otherwise: 30_000, what: 'devices that send a heartbeat a minute meanwhile' },
  quiet: { otherwise: 20, what: 'seconds of the quiet measurement of a round' },
} as const

/** The targets of the ratios are the project's own (issue "Settled days"). */
export async function benchSettle(args: string[]): Promise<Figure[]> {
  const given = readOptions('bench -- settle', args, options)
  return withStore(async store => {
    const { admin } = store
    // The job would settle the day between the rounds.
    await admin`update cron.job set schedule = '0 0 1 1 *'`
    await admin`update fleet.settings set settle_max_wait = '10 minutes'`
    const devices = await enroll(store, given.devices)
    const owners = Math.ceil(given.rows / HEARTBEATS_A_DAY)
    const rows = owners * HEARTBEATS_A_DAY
    const partition = await step(`Loading a day of ${rows.toLocaleString('en')} heartbeats`, () => loadDay(admin, owners))
    await admin.unsafe(`create table public.as_it_arrived as table fleet.${partition}`)

    const server = await startServer(store)
    const sender = startSender()
    const fleet = { devices: given.devices, interval: 60, jitter: 15, retries: 0 }
    const [calm, busy]: [Sent[], Sent[]] = [[], []]
    const [before, after]: [DayReads[], DayReads[]] = [[], []]
    const [bytesBefore, bytesAfter, took, waits, otherWaits]: [number[], number[], number[], number[], number[]] = [
      [],
      [],
      [],
      [],
      [],
    ]
    try {
      await sender.connect(server.port, 1_000, devices)
      for (let round = 1; round <= given.rounds; round++) {
        if (round > 1) await admin`select fleet.unsettle_partition(${partition})`
        // In the order of time, row by row into both indexes, as ingest does it.
        await admin.unsafe(`truncate fleet.${partition}`)
        await admin.unsafe(`insert into fleet.${partition} select * from public.as_it_arrived order by ts`)
        await admin.unsafe(`vacuum (freeze, analyze) fleet.${partition}`)
        bytesBefore.push(await bytesPerRow(admin, partition, rows))
        before.push(await readDays(admin, partition, owners))

        await admin`checkpoint`
        calm.push(await sender.open(schedule({ ...fleet, duration: WARMUP + given.quiet }), WARMUP))

        await admin`checkpoint`
        // This is longer than settling takes. It is stopped when the day is settled.
        const sending = sender.open(schedule({ ...fleet, duration: 600 }), WARMUP)
        await sleep(WARMUP * 1000)
        const readers = [
          keepReading(admin, ownerDay(partition), () => 1 + Math.floor(Math.random() * owners)),
          keepReading(admin, 'select count(*) from fleet.device_day($1::bigint)', () => devices[0]!.device_id),
        ]
        await admin`call fleet.nightly()`
        sender.stop()
        busy.push(await sending)
        const [wait, otherWait] = await Promise.all(readers.map(reader => reader.stop()))
        waits.push(wait!)
        otherWaits.push(otherWait!)
        const [settled] = await admin<{ ms: string }[]>`
          select duration_ms as ms from fleet.events
          where event = 'partition.settle' and partition_name = ${partition} order by at desc limit 1`
        if (
          (await admin`select from fleet.hb_partitions where partition_name = ${partition} and settled_at is null`).length > 0 ||
          !settled
        )
          throw new Error(`${partition} was not settled`)
        took.push(Number(settled.ms) / 1000)

        await admin.unsafe(`vacuum (freeze, analyze) fleet.${partition}`)
        bytesAfter.push(await bytesPerRow(admin, partition, rows))
        after.push(await readDays(admin, partition, owners))
        say(
          `round ${round}: settled in ${took.at(-1)?.toFixed(1)} s; a device's day ${before.at(-1)?.ms.toFixed(1)} ms and then ` +
            `${after.at(-1)?.ms.toFixed(1)} ms; p99 ${calm.at(-1)?.latency.p99.toFixed(1)} ms and ${busy.at(-1)?.latency.p99.toFixed(1)} ms`,
        )
      }
    } finally {
      sender.end()
      await server.stop()
    }
    const ratio = (over: number[], under: number[]) => median(over.map((value, round) => value / (under[round] ?? NaN)))
    const ms = (reads: DayReads[]) => reads.map(read => read.ms)
    const p99 = (sent: Sent[]) => sent.map(({ latency }) => latency.p99)
    return [
      { name: "pages of a device's day as it arrived", measured: median(before.map(read => read.pages)), unit: '' },
      { name: "pages of a device's settled day", measured: median(after.map(read => read.pages)), unit: '', target: atMost(25) },
      { name: "a device's day as it arrived, median", measured: median(ms(before)), unit: 'ms' },
      { name: "a device's settled day, median", measured: median(ms(after)), unit: 'ms' },
      { name: 'as it arrived / settled, in ms', measured: ratio(ms(before), ms(after)), unit: '' },
      { name: 'a row as it arrived', measured: median(bytesBefore), unit: 'bytes' },
      { name: 'a settled row', measured: median(bytesAfter), unit: 'bytes' },
      { name: 'settled / as it arrived, in bytes', measured: ratio(bytesAfter, bytesBefore), unit: '', target: atMost(0.68) },
      { name: 'settling', measured: rows / median(took), unit: 'rows/s' },
      { name: 'longest wait of a reader of that day', measured: Math.max(...waits) / 1000, unit: 's', target: atMost(15) },
      { name: "longest wait of a reader of today's heartbeats", measured: Math.max(...otherWaits) / 1000, unit: 's' },
      { name: 'ingest p99 quiet', measured: median(p99(calm)), unit: 'ms' },
      { name: 'ingest p99 while a day settles', measured: median(p99(busy)), unit: 'ms' },
      { name: 'ingest p99 while a day settles / quiet', measured: ratio(p99(busy), p99(calm)), unit: '', target: atMost(2) },
      { name: 'errors', measured: [...calm, ...busy].reduce((sum, { errors }) => sum + errors, 0), unit: '', target: atMost(0) },
    ]
  })
}

interface DayReads {
  /** Medians over the devices. */
  ms: number
  pages: number
}

function ownerDay(partition: string) {
  return `select count(battery_pct) from fleet.${partition} where device_id = $1::bigint`
}

/** Reads the day of some devices, with the columns, and counts the pages. */
async function readDays(admin: Sql, partition: string, owners: number): Promise<DayReads> {
  const [ms, pages]: [number[], number[]] = [[], []]
  for (let n = 0; n < READS; n++) {
    const device = 1 + Math.floor((n * owners) / READS)
    const [answer] = await admin.unsafe<{ 'QUERY PLAN': { Plan: Record<string, number>; 'Execution Time': number }[] }[]>(
      `explain (analyze, buffers, timing off, format json) ${ownerDay(partition).replace('$1', String(device))}`,
    )
    const [plan] = answer!['QUERY PLAN']
    ms.push(plan!['Execution Time'])
    pages.push(plan!.Plan['Shared Hit Blocks']! + plan!.Plan['Shared Read Blocks']!)
  }
  return { ms: percentile(ms, 50), pages: percentile(pages, 50) }
}

async function bytesPerRow(admin: Sql, partition: string, rows: number) {
  const [size] = await admin<{ bytes: string }[]>`select pg_total_relation_size(${`fleet.${partition}`}::regclass) as bytes`
  return Number(size!.bytes) / rows
}

/** Runs a query again and again; `stop` returns the longest time that it took, in ms. */
function keepReading(admin: Sql, query: string, device: () => number) {
  let isOver = false
  const running = (async () => {
    let longest = 0
    while (!isOver) {
      const since = performance.now()
      await admin.unsafe(query, [device()])
      longest = Math.max(longest, performance.now() - since)
      await sleep(20)
    }
    return longest
  })()
  return {
    stop: () => {
      isOver = true
      return running
    },
  }
}
