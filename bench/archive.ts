// Takes a day of heartbeats through the whole archive cycle and back, and compares that with plain tools, round by round.
import { spawn } from 'node:child_process'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { pathToFileURL } from 'node:url'
import type { Sql } from 'postgres'
import { plainEnv } from '../local/config.ts'
import { nodeArgs } from '../lib/repository.ts'
import { say, step } from '../lib/progress.ts'
import { atMost, median, type Figure } from './figure.ts'
import { startSender } from './heartbeats.ts'
import { readOptions } from './options.ts'
import { postmasterOf } from './processes.ts'
import { schedule } from './schedule.ts'
import type { Sent } from './sender.ts'
import { enroll, startServer, withStore, type Store } from './store.ts'

/** The heartbeats of one device in a day at the default interval. */
export const HEARTBEATS_A_DAY = 1_440

/** The first seconds of each measurement, which do not count. */
const WARMUP = 5

const options = {
  rows: { otherwise: 2_880_000, what: 'heartbeats in the day' },
  rounds: { otherwise: 3, what: 'number of rounds' },
  settled: { otherwise: false, what: 'the rows lie in the order of (device_id, ts), as those of a settled day do' },
  ingest: { otherwise: false, what: 'measure instead how an archive affects heartbeats' },
  devices: { otherwise: 30_000, what: 'for --ingest: devices, each of which sends a heartbeat a minute' },
  quiet: { otherwise: 60, what: 'for --ingest: seconds of the quiet measurement' },
} as const

/** More rows mean more devices. The targets of the ratios are the project's own (issue "An archive that can be trusted"). */
export async function benchArchive(args: string[]): Promise<Figure[]> {
  const given = readOptions('bench -- archive', args, options)
  return withStore(store => (given.ingest ? measureIngest(store, given) : measureCycle(store, given)))
}

/** Measures the cycle that the archiver does for one partition: freeze, export, upload, read back, prove, drop. */
async function measureCycle(
  { cluster, admin }: Store,
  given: { rows: number; rounds: number; settled: boolean },
): Promise<Figure[]> {
  const devices = Math.ceil(given.rows / HEARTBEATS_A_DAY)
  const rows = devices * HEARTBEATS_A_DAY
  const { rounds, settled } = given
  const work = await mkdtemp(join(tmpdir(), 'fleet-bench-'))
  try {
    say(`Loading a day of ${rows} heartbeats of ${devices} devices ...`)
    const partition = await loadDay(admin, devices)
    const csv = join(work, 'day.csv')
    const psql = cluster.program('psql')
    const url = cluster.url('postgres', 'fleet')
    const shell = (command: string) => run('sh', ['-c', command], { PGURL: url, PSQL: psql })
    await shell(`"$PSQL" -qX "$PGURL" -c "copy fleet.${partition} to stdout (format csv)" > ${csv}`)
    const gzipBytes = Number((await shell(`gzip -c < ${csv} | wc -c`)).output)

    const env = {
      ARCHIVER_DATABASE_URL: cluster.url('fleet_archiver', 'fleet'),
      ARCHIVE_URL: pathToFileURL(join(work, 'archive')).href,
    }
    const archiver = () => run(process.execPath, [...nodeArgs('archiver/main.ts'), '--once'], env)
    const idle = await archiver()

    const copyOut: number[] = []
    const cycle: number[] = []
    const cpu: number[] = []
    const copyIn: number[] = []
    const restore: number[] = []
    let peak = 0
    let parquetBytes = 0
    for (let round = 1; round <= rounds; round++) {
      await arrange(admin, partition, settled)
      copyOut.push((await shell(`"$PSQL" -qX "$PGURL" -c "copy fleet.${partition} to stdout" > /dev/null`)).seconds)

      await admin`select fleet.archive_partition(${partition})`
      const ended = await endedCpuSeconds(admin)
      const archived = await archiver()
      cpu.push(archived.cpuSeconds - idle.cpuSeconds + (await endedCpuSeconds(admin)) - ended)
      peak = Math.max(peak, archived.peakMb)
      const [took] = await admin<{ seconds: number; bytes: number }[]>`
        select extract(epoch from max(at) filter (where event = 'partition.drop')
          - max(at) filter (where event = 'partition.archive.start'))::float8 as seconds,
          (select archive_bytes from fleet.hb_partitions where partition_name = ${partition})::float8 as bytes
        from fleet.events where partition_name = ${partition}
      `
      if (!took?.seconds) throw new Error(`${partition} was not dropped:\n${archived.output}`)
      cycle.push(took.seconds)
      parquetBytes = took.bytes

      await admin.unsafe(`
        drop table if exists public.plain;
        create table public.plain (like fleet.device_heartbeats);
        create index on public.plain (device_id, ts desc);
        create unique index on public.plain (device_id, date_bin('10 seconds', ts, timestamptz '2000-01-01 00:00:00+00'));
      `)
      copyIn.push((await shell(`"$PSQL" -qX "$PGURL" -c "\\copy public.plain from ${csv} (format csv)"`)).seconds)

      await admin`select fleet.request_restore((select range_start::date from fleet.hb_partitions where partition_name = ${partition}))`
      const restored = await archiver()
      peak = Math.max(peak, restored.peakMb)
      restore.push(Math.max(restored.seconds - idle.seconds, 0.001))
      const [back] = await admin<{ n: string }[]>`select count(*) as n from fleet.device_heartbeats`
      if (Number(back?.n) !== rows) throw new Error(`restored ${back?.n ?? 'no'} rows of ${rows}:\n${restored.output}`)
      await admin`select fleet.release_partition(${partition})`
      say(
        `round ${round}: COPY out ${copyOut.at(-1)?.toFixed(1)} s, proven cycle ${cycle.at(-1)?.toFixed(1)} s with ${cpu.at(-1)?.toFixed(1)} CPU seconds, ` +
          `COPY in ${copyIn.at(-1)?.toFixed(1)} s, restore ${restore.at(-1)?.toFixed(1)} s`,
      )
    }
    const ratio = (plain: number[], ours: number[]) => median(plain.map((seconds, round) => seconds / (ours[round] ?? NaN)))
    return [
      { name: 'COPY TO STDOUT > /dev/null', measured: rows / median(copyOut), unit: 'rows/s' },
      { name: 'proven cycle: freeze to drop', measured: rows / median(cycle), unit: 'rows/s' },
      {
        name: 'proven cycle / COPY out, in rows/s',
        measured: ratio(copyOut, cycle),
        unit: '',
        target: { at: 'least', value: settled ? 0.5 : 0.4 },
      },
      {
        name: 'CPU seconds of the cycle, for 2.88M rows',
        measured: (median(cpu) * 2_880_000) / rows,
        unit: 's',
        target: { at: 'most', value: settled ? 8 : 10 },
      },
      { name: 'COPY FROM into the indexed table', measured: rows / median(copyIn), unit: 'rows/s' },
      { name: 'restore: fetch to attached', measured: rows / median(restore), unit: 'rows/s' },
      { name: 'restore / COPY in, in rows/s', measured: ratio(copyIn, restore), unit: '', target: { at: 'least', value: 0.5 } },
      { name: 'csv | gzip', measured: gzipBytes / rows, unit: 'bytes/row' },
      { name: 'Parquet', measured: parquetBytes / rows, unit: 'bytes/row' },
      { name: 'Parquet / csv.gz, in bytes', measured: parquetBytes / gzipBytes, unit: '', target: { at: 'most', value: 0.6 } },
      { name: 'peak memory of the archiver', measured: peak, unit: 'MB', target: { at: 'most', value: 450 } },
    ]
  } finally {
    await rm(work, { recursive: true, force: true })
  }
}

/**
 * A server takes 500 heartbeats a second from 30,000 devices, each sent at its time, first in a quiet minute and then while the
 * archiver takes a day through the whole cycle. Then the day is restored for the next round, which is not measured. Latency is
 * measured from the time at which a heartbeat should have been sent.
 */
async function measureIngest(
  store: Store,
  given: { rows: number; rounds: number; quiet: number; devices: number },
): Promise<Figure[]> {
  const { rows, rounds, quiet } = given
  const { admin, cluster } = store
  const work = await mkdtemp(join(tmpdir(), 'fleet-bench-'))
  const env = {
    ARCHIVER_DATABASE_URL: cluster.url('fleet_archiver', 'fleet'),
    ARCHIVE_URL: pathToFileURL(join(work, 'archive')).href,
  }
  const archiver = () => run(process.execPath, [...nodeArgs('archiver/main.ts'), '--once'], env)
  const fleet = { devices: given.devices, interval: 60, jitter: 15, retries: 0 }
  const devices = await enroll(store, fleet.devices)
  const partition = await step(`Loading a day of ${rows.toLocaleString('en')} heartbeats`, () =>
    loadDay(admin, Math.ceil(rows / HEARTBEATS_A_DAY)),
  )
  const server = await startServer(store)
  const sender = startSender()
  try {
    await sender.connect(server.port, 1_000, devices)
    const calm: Sent[] = []
    const busy: Sent[] = []
    for (let round = 1; round <= rounds; round++) {
      await admin`checkpoint`
      calm.push(await sender.open(schedule({ ...fleet, duration: WARMUP + quiet }), WARMUP))

      await admin`checkpoint`
      // This is longer than any archive takes. It is stopped when the archive is done.
      const sending = sender.open(schedule({ ...fleet, duration: 600 }), WARMUP)
      await sleep(WARMUP * 1000)
      await admin`select fleet.archive_partition(${partition})`
      const archived = await archiver()
      sender.stop()
      busy.push(await sending)

      const [state] = await admin<{ state: string }[]>`select state from fleet.hb_partitions where partition_name = ${partition}`
      if (state?.state !== 'dropped')
        throw new Error(`${partition} is ${state?.state ?? 'gone'}, not dropped:\n${archived.output}`)
      await admin`select fleet.request_restore((select range_start::date from fleet.hb_partitions where partition_name = ${partition}))`
      await archiver()
      await admin`select fleet.release_partition(${partition})`
      say(
        `round ${round}: p99 ${calm.at(-1)?.latency.p99.toFixed(1)} ms quiet, ${busy.at(-1)?.latency.p99.toFixed(1)} ms during ${archived.seconds.toFixed(1)} s of archiving`,
      )
    }
    const of = (sent: Sent[], which: keyof Sent['latency']) => median(sent.map(({ latency }) => latency[which]))
    return [
      ...(['p50', 'p99', 'p999', 'max'] as const).flatMap((which): Figure[] => [
        { name: `ingest ${which} quiet`, measured: of(calm, which), unit: 'ms' },
        { name: `ingest ${which} during archive`, measured: of(busy, which), unit: 'ms' },
      ]),
      {
        name: 'ingest p99 during archive / quiet',
        measured: median(busy.map(({ latency }, round) => latency.p99 / (calm[round]?.latency.p99 ?? NaN))),
        unit: '',
      },
      { name: 'errors', measured: [...calm, ...busy].reduce((sum, { errors }) => sum + errors, 0), unit: '', target: atMost(0) },
    ]
  } finally {
    sender.end()
    await server.stop()
    await rm(work, { recursive: true, force: true })
  }
}

/** Loads a plausible day: each device sends about once a minute, with its own phase and jitter, slow changes and some noise. */
export async function loadDay(admin: Sql, devices: number) {
  const [found] = await admin<{ partition_name: string }[]>`
    select partition_name from fleet.hb_partitions where range_start = date_trunc('day', now(), 'UTC') - interval '10 days'
  `
  const partition = found?.partition_name ?? ''
  await admin.unsafe(`
    select setseed(0.42);
    insert into fleet.${partition} (ts, received_at, device_id, signal_dbm, battery_pct, unity_running, network_type, agent_version, ip)
    select b.ts, b.ts + interval '40 ms' + random() * interval '160 ms', b.device_id,
      -60 - b.device_id % 30 + (random() * 8)::int, 100 - (b.minute / 14 + b.device_id) % 100, random() > 0.01,
      case when b.device_id % 5 = 0 then 'lte' else 'wifi' end, '3.' || b.device_id % 4 || '.0',
      ('10.' || b.device_id / 250 || '.0.' || b.device_id % 250)::inet
    from (
      select d.device_id, m.minute,
        date_trunc('day', now(), 'UTC') - interval '10 days' + m.minute * interval '1 day' / ${HEARTBEATS_A_DAY}
          + (d.device_id * 37 % 1000) * interval '10 ms' + random() * interval '5 seconds' as ts
      from generate_series(0, ${HEARTBEATS_A_DAY - 1}) as m (minute)
      cross join generate_series(1, ${devices}) as d (device_id)
    ) b
  `)
  await admin.unsafe(`vacuum (analyze) fleet.${partition}`)
  return partition
}

/** Puts the rows of a day in the order in which they arrived, or in that of (device_id, ts). */
export async function arrange(admin: Sql, partition: string, settled: boolean) {
  await admin.unsafe(`
    create index arranged on fleet.${partition} (${settled ? 'device_id, ts' : 'received_at'});
    cluster fleet.${partition} using arranged;
    drop index fleet.arranged`)
  await admin.unsafe(`vacuum (analyze) fleet.${partition}`)
  await admin`checkpoint`
}

/** Clock ticks in a second; Linux has 100 on every platform that Node runs on. */
const TICKS = 100

/** The CPU seconds of all processes of a cluster that have ended, such as the sessions of an archiver. */
async function endedCpuSeconds(admin: Sql) {
  // The processes of these sessions end soon after their client.
  await sleep(500)
  const [found] = await admin<{ directory: string }[]>`select current_setting('data_directory') as directory`
  const postmaster = await postmasterOf(found?.directory ?? '')
  const [, , user, system] = await cpuTicks(postmaster)
  return (user + system) / TICKS
}

/** From /proc: the ticks of a process in its own code and in the kernel, and the same of its children that have ended. */
async function cpuTicks(pid: number) {
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8')
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  return fields.slice(11, 15).map(Number) as [number, number, number, number]
}

/**
 * Runs a program until it ends. Returns its output, its seconds, its CPU seconds, and its highest resident memory in MB as Linux
 * reports it.
 */
export function run(program: string, args: string[], env: Record<string, string>) {
  return new Promise<{ output: string; seconds: number; cpuSeconds: number; peakMb: number }>((resolve, reject) => {
    const started = performance.now()
    const child = spawn(program, args, { env: { ...plainEnv(), ...env }, stdio: ['ignore', 'pipe', 'pipe'] })
    let output = ''
    let peakMb = 0
    let cpuSeconds = 0
    child.stdout.on('data', (chunk: Buffer) => {
      output += chunk.toString()
    })
    child.stderr.on('data', (chunk: Buffer) => {
      output += chunk.toString()
    })
    const watch = setInterval(() => {
      void cpuTicks(child.pid ?? 0).then(
        ([user, system]) => {
          cpuSeconds = (user + system) / TICKS
        },
        () => {},
      )
      void readFile(`/proc/${child.pid}/status`, 'utf8').then(
        status => {
          const highest = /VmHWM:\s+(\d+) kB/.exec(status)?.[1]
          peakMb = Math.max(peakMb, Number(highest ?? 0) / 1024)
        },
        () => {},
      )
    }, 50)
    child.once('error', reject)
    child.once('close', code => {
      clearInterval(watch)
      const seconds = (performance.now() - started) / 1000
      if (code === 0) resolve({ output, seconds, cpuSeconds, peakMb })
      else reject(new Error(`${program} ended with ${code}:\n${output}`))
    })
  })
}
