/*
 * npm run drills [-- --count N --seed S --from K]: makes random faults in a whole system under load. After each it checks that
 * every acknowledged heartbeat is stored once, last status is from the newest heartbeat, no day is missing, and every archive is
 * what was written. Every 25 faults, and at the end, it lets the archivers finish their work and reads everything back.
 *
 * Fault number K of a seed is the same in each run: its kind, its victims, its pauses. What the processes are doing at that
 * moment is not.
 * The exit code is 1 if something is lost, or does not recover by itself. The output then has the command that repeats it.
 */
import { chmod, mkdtemp, realpath, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { faketime, makeClock } from '../clock.ts'
import { explain, UsageError } from '../../lib/errors.ts'
import { elapsed, say, step } from '../../lib/progress.ts'
import { repository } from '../../lib/repository.ts'
import { generator } from '../random.ts'
import { waitFor } from '../database.ts'
import { faults, type Fault } from './faults.ts'
import { checkAll, checkNow, Loss, type Beat } from './invariants.ts'
import { System } from './system.ts'
import { percentile } from '../../bench/figure.ts'
import { readOptions, runProgram } from '../../bench/options.ts'
import { withStore, type Store } from '../../bench/store.ts'

const options = {
  count: { otherwise: 100, what: 'number of faults' },
  seed: { otherwise: undefined, least: 0, what: 'seed of the random numbers; by default a different one each day' },
  from: { otherwise: 1, what: 'number of the first fault; with --count 1, the only one' },
  devices: { otherwise: 1_500, what: 'devices that send during the faults' },
  interval: { otherwise: 14, least: 10, what: 'seconds between the heartbeats of a device' },
  every: { otherwise: 25, what: 'faults after which everything is read back' },
  only: { otherwise: '', what: 'only the kinds of faults whose names contain this text' },
  'no-s3': { otherwise: false, what: 'leave out the S3 store and its faults' },
  report: { otherwise: 'testing/drills/RESULTS.md', what: 'file for the report' },
} as const

interface Done {
  kind: string
  /** The highest p99 that is allowed, in ms. */
  p99: number | undefined
  faults: number
  seconds: number
  /** The archives and restores that failed during it and were tried again. */
  failures: number
  /** The latencies of heartbeats that were due during it and accepted, then or later; in ms. */
  latencies: number[]
}

/** The answers to heartbeats. */
class Log {
  readonly beats: Beat[] = []
  /** The period of each fault, in ms since 1970, and the list for the latencies of heartbeats that were due in it. */
  #faults: { from: number; to: number; latencies: number[] }[] = []

  /** Collects the answers since the last call. */
  async collect(system: System) {
    const fresh = await system.acknowledged()
    for (const { device_id, ts, status, due, latency } of fresh) {
      this.beats.push({ device_id, ts, status })
      this.#faults.findLast(({ from, to }) => from <= due && due <= to)?.latencies.push(latency)
    }
    return fresh.length
  }

  /** Makes a fault and records its period. */
  async during<T>(latencies: number[], work: () => Promise<T>) {
    const fault = { from: Date.now(), to: Infinity, latencies }
    this.#faults.push(fault)
    try {
      return await work()
    } finally {
      fault.to = Date.now()
    }
  }
}

await runProgram(main)

async function main(args: string[]) {
  const given = readOptions('drills --', args, options)
  const seed = given.seed ?? Math.floor(Date.now() / 86_400_000)
  await faketime.install()
  const directory = await mkdtemp(join(await realpath(tmpdir()), 'fleet-drills-clock-'))
  await chmod(directory, 0o755) // Postgres is another user
  const clock = await makeClock(directory, 'postgres', true)
  const run = async (store: Store) => {
    const system = await System.start(store, { devices: given.devices, interval: given.interval, s3: !given['no-s3'], clock })
    let ending: Promise<void> | undefined
    for (const signal of ['SIGINT', 'SIGTERM'] as const)
      process.once(signal, () => {
        ending ??= system.end().then(() => process.exit(1))
      })
    try {
      return await drill(system, { ...given, seed })
    } finally {
      await system.end()
    }
  }
  try {
    return await withStore(run, repository, clock?.env)
  } finally {
    await rm(directory, { recursive: true, force: true })
  }
}

interface Given {
  count: number
  seed: number
  from: number
  every: number
  report: string
  only: string
  'no-s3': boolean
}

/** The command that repeats faults `from` to `from` + `count` - 1. */
function command({ count, seed, from, only, 'no-s3': noS3 }: Given) {
  const more = [from > 1 ? ` --from ${from}` : '', only ? ` --only '${only}'` : '', noS3 ? ' --no-s3' : '']
  return `npm run drills -- --count ${count} --seed ${seed}${more.join('')}`
}

async function drill(system: System, given: Given) {
  const { count, seed, from } = given
  const started = performance.now()
  const wanted = faults.filter(({ kind }) => kind.includes(given.only))
  if (wanted.length === 0) throw new UsageError(`--only ${given.only}: no kind of fault has this in its name`)
  const possible = wanted.filter(({ without }) => !without?.(system))
  const left = wanted.filter(fault => !possible.includes(fault)).map(({ kind, without }) => `${kind}: ${without?.(system) ?? ''}`)
  for (const line of left) say(`left out: ${line}`)
  say(`Seed ${seed}, faults ${from} to ${from + count - 1}`)
  await step('Filling and archiving some days', async () => {
    await system.addWork(8, generator(seed))
    await moreBeats(system, new Log())
  })

  const log = new Log()
  const table = new Map<string, Done>()
  let archives = 0
  let problem: string | undefined
  let number = from
  try {
    for (; number < from + count; number++) {
      const fault = faultOf(possible, seed, number)
      const before = performance.now()
      const done = table.get(fault.kind) ?? {
        kind: fault.kind,
        p99: fault.p99,
        faults: 0,
        seconds: 0,
        failures: 0,
        latencies: [],
      }
      table.set(fault.kind, done)
      const { said, failures } = await strike(system, fault, generator(seed * 1_000_003 + number), log, done)
      done.faults++
      done.failures += failures
      done.seconds += (performance.now() - before) / 1000
      say(`${String(number).padStart(5)}  ${fault.kind}: ${said}; everything is there after ${elapsed(before)}`)
      if ((number - from + 1) % given.every === 0 || number === from + count - 1) {
        archives = await step(
          `Reading everything back: ${log.beats.length.toLocaleString('en')} heartbeats, each day, each archive`,
          () => checkAll(system, log.beats, generator(number)),
        )
      }
    }
  } catch (error) {
    problem =
      `${error instanceof Loss ? 'LOST' : 'FAILED'} at fault ${number}, ${faultOf(possible, seed, number).kind}:\n${explain(error)}\n` +
      `To repeat it: ${command({ ...given, count: number - from + 1 })}`
  }
  const slow = [...table.values()].find(
    ({ p99, latencies }) => p99 !== undefined && latencies.length >= 100 && percentile(latencies, 99) > p99,
  )
  if (slow) {
    problem ??= `FAILED: ${slow.kind}: 99 % of the heartbeats that were due during it and accepted waited up to ${percentile(slow.latencies, 99).toFixed(0)} ms, but at most ${slow.p99} are allowed`
  }
  const report = describe({
    given,
    left,
    all: log.beats,
    archives,
    told: new Set(system.told.receiver.received.map(({ headers }) => headers['webhook-id'])).size,
    problem,
    table: [...table.values()],
    seconds: (performance.now() - started) / 1000,
  })
  say(`\n${report}`)
  await writeFile(resolve(given.report), report)
  return problem === undefined ? 0 : 1
}

/** Each round has every kind once, in a different order. */
function faultOf(possible: Fault[], seed: number, number: number) {
  const round = Math.floor((number - 1) / possible.length)
  const random = generator(seed * 7_919 + round)
  const order = possible.map(fault => ({ fault, at: random() })).sort((a, b) => a.at - b.at)
  return order[(number - 1) % possible.length]!.fault
}

async function strike(system: System, fault: Fault, random: () => number, log: Log, { latencies }: Done) {
  await log.collect(system)
  const from = log.beats.length
  const before = await failedSoFar(system)
  const fallen = await system.told.fall(random)
  let said
  try {
    said = await log.during(latencies, () => fault.strike(system, random))
  } catch (cause) {
    throw new Error('the fault could not be made', { cause })
  }
  await log.collect(system)
  await moreBeats(system, log)
  await system.told.rise(fallen)
  await checkNow(system, log.beats.slice(from))
  system.mustLive()
  await system.hurry()
  return { said, failures: (await failedSoFar(system)) - before }
}

/** The number of archives and restores that have failed so far. */
async function failedSoFar(system: System) {
  const [row] = await system.ask(
    sql => sql<{ count: number }[]>`
    select count(*)::integer as count from fleet.events where not is_ok and event like 'partition.%'
  `,
  )
  return row!.count
}

/** Waits until the server accepts heartbeats again by itself. */
async function moreBeats(system: System, log: Log) {
  let more = 0
  await waitFor(
    async () => {
      more += await log.collect(system)
      return more >= 30
    },
    { what: () => `heartbeats to be accepted again; the server printed:\n${system.server.output()}` },
  )
}

function describe({
  given,
  left,
  all,
  archives,
  told,
  problem,
  table,
  seconds,
}: {
  given: Given
  left: string[]
  all: Beat[]
  archives: number
  told: number
  problem: string | undefined
  table: Done[]
  seconds: number
}) {
  const made = table.reduce((sum, { faults }) => sum + faults, 0)
  const answered = (status: number) => all.filter(beat => beat.status === status).length.toLocaleString('en')
  return `# Failure drills

\`${command(given)}\` (${new Date().toISOString().slice(0, 10)}) made ${made} faults in ${Math.round(seconds / 60)} minutes,
${((60 * made) / seconds).toFixed(0)} a minute, while a fleet sent heartbeats. They hit a durable cluster,
a server with two workers, archivers, one for each kind of store, and two notifiers.

${problem === undefined ? 'Nothing was lost.' : `**${problem}**`}

- ${answered(201)} heartbeats were answered as stored, ${answered(200)} as duplicates, ${answered(202)} as quarantined.
  After each fault those sent during it were checked, and every ${given.every} faults all of them. Each was stored exactly once.
- Last status was from the newest heartbeat of each device. No day was missing in \`data_coverage\`,
  and each day that counts as online was attached.
- ${told.toLocaleString('en')} messages reached the receiver of a webhook: one for each time that a device went offline or came back,
  in the order of the device, repeats with the same id.
- ${archives} archives were read back at the end, every byte and row. Each past day had the content that was written,
  in the database or in its archive.

| fault | times | seconds each, with its checks | archives and restores that failed | heartbeats due during it and accepted | p99 of these |
|---|---|---|---|---|---|
${table
  .sort((a, b) => a.kind.localeCompare(b.kind))
  .map(
    ({ kind, faults, seconds, failures, latencies }) =>
      `| ${kind} | ${faults} | ${(seconds / faults).toFixed(1)} | ${failures} | ${latencies.length.toLocaleString('en')} | ${latencies.length < 100 ? '' : `${percentile(latencies, 99).toFixed(0)} ms`} |`,
  )
  .join('\n')}
${left.length > 0 ? `\nLeft out: ${left.join('; ')}.\n` : ''}`
}
