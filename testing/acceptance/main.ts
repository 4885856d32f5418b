/*
 * npm run acceptance [-- --small] [--dir DIRECTORY]: runs the acceptance tests A to E of the project's founding document, and the
 * criteria of the documents that came with it, by number, on one store: 100M heartbeats of 10,000 devices over 95 days, and then
 * the fleet at its intervals. The results of each step are kept in the directory, so that an interrupted run continues with the
 * next step. A criterion that is not met is a FAIL in the table, and the exit code is 1.
 */
import { existsSync } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { availableParallelism, tmpdir, totalmem } from 'node:os'
import { join, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { elapsed, say } from '../../lib/progress.ts'
import { balanced, consistency, duplicates, fastPath, load, roster, throttle } from './fleet.ts'
import { generate, plans, retire } from './lifecycle.ts'
import { freeBytes, openRunStore, type RunStore } from './store.ts'
import { tableOf, type Line } from './table.ts'
import { readOptions, runProgram } from '../../bench/options.ts'
import { UsageError } from '../../lib/errors.ts'

const options = {
  small: { otherwise: false, what: 'every step in about a minute, with 100,000 heartbeats of 800 devices and shorter loads' },
  dir: {
    otherwise: '',
    what: "directory of the store, which is kept; by default always the same one in the system's temporary directory",
  },
  part: { otherwise: 100, what: "percent of each load's usual time; the table shows the times" },
  again: { otherwise: '', what: 'a step to repeat, with all steps after it' },
  report: { otherwise: 'testing/acceptance/RESULTS.md', what: 'file for the table' },
} as const

interface Plan {
  rows: number
  days: number
  expired: number
  devices: number
  /** GB that must be free. */
  disk: number
  /** The minutes that it roughly takes. */
  minutes: number
}

const full: Plan = { rows: 100_000_000, days: 95, expired: 5, devices: 10_000, disk: 40, minutes: 45 }
const small: Plan = { rows: 100_000, days: 93, expired: 3, devices: 800, disk: 2, minutes: 1 }

await runProgram(main)

async function main(args: string[]) {
  const given = readOptions('acceptance --', args, options)
  const plan = given.small ? small : full
  const isTemporary = given.small && given.dir === ''
  const directory =
    given.dir !== ''
      ? resolve(given.dir)
      : isTemporary
        ? await mkdtemp(join(tmpdir(), 'nexmdm-acceptance-'))
        : join(tmpdir(), 'nexmdm-acceptance')
  const { disk, minutes, ...sizes } = plan
  const free = (await freeBytes(directory)) / 1e9
  say(
    `${sizes.rows.toLocaleString('en')} heartbeats of ${sizes.devices.toLocaleString('en')} devices over ${sizes.days} days, then the loads: ` +
      `this takes about ${minutes} min and ${disk} GB in ${directory}, where ${free.toFixed(0)} GB are free.`,
  )
  if (!existsSync(join(directory, 'state.json')) && free < disk) {
    throw new Error(`${directory} has ${free.toFixed(0)} GB free, but ${disk} GB are needed; choose a --dir on a larger disk`)
  }
  const store = await openRunStore(directory, { ...sizes, part: given.part })
  let ending: Promise<unknown> | undefined
  for (const signal of ['SIGINT', 'SIGTERM'] as const)
    process.once(signal, () => {
      ending ??= store.end().finally(() => process.exit(1))
    })
  try {
    return await runSteps(store, stepsOf(plan, given.small, given.part), given, args)
  } finally {
    await (ending ??= store.end())
    if (isTemporary) await rm(directory, { recursive: true, force: true })
  }
}

type Steps = Record<string, (store: RunStore) => Promise<Line[]>>

function stepsOf(plan: Plan, isSmall: boolean, part: number): Steps {
  const { devices } = plan
  /** The duration of a load: the time that the criterion names, or a few seconds with --small. With a note if it is shorter. */
  const timed = (seconds: number, smallSeconds: number) => {
    const duration = isSmall ? smallSeconds : Math.max(10, Math.round((seconds * part) / 100))
    return { duration, note: duration === seconds ? undefined : `For ${duration} s instead of ${seconds}` }
  }
  // Each load has its own devices, so that none sends twice in a bucket.
  let first = 0
  const take = (count: number) => {
    const from = first
    first += count
    return { first: from, devices: count }
  }
  const fleet = (about: string, count: number, interval: number, jitter: number, seconds: number, source: string) => {
    const { duration, note } = timed(seconds, 3)
    const some = take(isSmall ? 90 : count)
    // With --small, a few seconds would not show the usual interval.
    const cadence = isSmall
      ? { devices: some.devices, interval: 15, jitter: Math.min(jitter, 5) }
      : { devices: count, interval, jitter }
    return async (store: RunStore) =>
      load(store, {
        first: some.first,
        source,
        warmup: isSmall ? 1 : 10,
        note,
        p95: 150,
        p99: 300,
        about: isSmall ? `${some.devices} devices every 15 s instead of ${about}` : about,
        fleet: { ...cadence, duration, retries: 1 },
      })
  }
  const others = take(isSmall ? 90 : 2_000)
  /** All devices, once the bucket of each device's last heartbeat has passed. */
  const everybody = async () => {
    if (isSmall) return take(200)
    await sleep(10_000)
    return { first: 0, devices }
  }
  return {
    generate: store => generate(store, plan),
    plans: store => plans(store),
    retire: store => retire(store, plan),
    'fast-path': store => fastPath(store, isSmall ? 20 : 200),
    'five-minutes': fleet('2,000 devices every 5 min ± 15 s', 2_000, 300, 15, 310, '000 C'),
    'scenario-1': fleet('500 devices every 60 s', 500, 60, 0, 310, '001 1'),
    'scenario-2': fleet('2,000 devices every 60 s ± 15 s', 2_000, 60, 15, 610, '001 2, 002'),
    roster: async store => {
      const all = await everybody()
      const { duration, note } = timed(310, 4)
      return roster(store, {
        first: all.first,
        warmup: isSmall ? 1 : 10,
        note,
        fleet: { devices: all.devices, interval: 10, jitter: 0, duration, retries: 0 },
      })
    },
    balanced: store =>
      balanced(store, {
        first: others.first,
        fleet: { devices: others.devices, interval: 15, jitter: 5, duration: timed(60, 3).duration, retries: 1 },
      }),
    throttle: async store => {
      const all = await everybody()
      const { duration, note } = timed(60, 4)
      return throttle(store, {
        seconds: duration,
        calm: isSmall ? 3 : 15,
        note,
        first: all.first,
        fleet: { devices: all.devices, interval: 10, jitter: 0, duration: 0, retries: 0 },
      })
    },
    duplicates: store => duplicates(store, isSmall ? 20 : 200),
    consistency: store => consistency(store),
  }
}

async function runSteps(store: RunStore, steps: Steps, given: { again: string; report: string; small: boolean }, args: string[]) {
  const { kept } = store
  const names = Object.keys(steps)
  if (given.again !== '') {
    const from = names.indexOf(given.again)
    if (from < 0) throw new UsageError(`--again needs one of ${names.join(', ')}`)
    for (const name of names.slice(from)) delete kept.done[name]
  }
  for (const [index, name] of names.entries()) {
    const head = `${index + 1} of ${names.length}, ${name}`
    const before = kept.done[name]
    if (before) {
      say(`${head}: done on ${before.at}`)
      continue
    }
    say(`${head} ...`)
    const started = performance.now()
    const lines = await steps[name]!(store)
    kept.done[name] = { at: new Date().toISOString(), seconds: (performance.now() - started) / 1000, lines }
    await store.keep()
    for (const { source, criterion, target, measured, verdict } of lines)
      say(`  ${verdict.padEnd(7)} ${source}: ${criterion}: ${measured} (${target})`)
    say(`${head}: ${elapsed(started)}`)
  }
  const done = names.map(name => kept.done[name]!)
  const lines = done.flatMap(({ lines }) => lines)
  const count = (verdict: Line['verdict']) => lines.filter(line => line.verdict === verdict).length
  const command = [
    'npm run acceptance',
    ...(args.length > 0 ? ['--', ...args.filter((arg, at) => arg !== '--report' && args[at - 1] !== '--report')] : []),
  ].join(' ')
  const [version] = await store.admin<{ version: string }[]>`select current_setting('server_version') as version`
  const minutes = Math.round(done.reduce((sum, { seconds }) => sum + seconds, 0) / 60)
  const report = `# Acceptance

\`${command}\` ran on ${done[0]!.at.slice(0, 10)} in ${minutes} min: ${count('PASS')} PASS, ${count('FAIL')} FAIL. It ran on
${availableParallelism()} processors with ${Math.round(totalmem() / 2 ** 30)} GB, which the sender shares, with PostgreSQL ${version!.version}, durable.

The first column names the founding document and its test or section. Latency is measured from the time at which a heartbeat should have
been sent. A line for which no document requires a value says *shown*.

${names.map((name, index) => `## ${index + 1}. ${name}\n\n${tableOf(done[index]!.lines)}`).join('\n\n')}
`
  await writeFile(resolve(given.report), report)
  say(`${count('PASS')} PASS, ${count('FAIL')} FAIL; written to ${resolve(given.report)}`)
  return count('FAIL') > 0 ? 1 : 0
}
