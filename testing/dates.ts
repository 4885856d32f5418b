// npm run test:dates [-- --short | files…]: runs npm test at each of the dates at which programs tend to fail. --short, as in
// .ci/run, runs a few files at a few of the dates.
import { spawn, type ChildProcess } from 'node:child_process'
import { currentEnv } from '../local/config.ts'
import { nodeArgs, repository } from '../lib/repository.ts'
import { say } from '../lib/progress.ts'

export interface TestDate {
  /** In UTC, in the form that npm test -- --at accepts. */
  at: string
  what: string
  /** The TZ of the processes, if the date matters only in one time zone. */
  zone?: string
  isShort?: boolean
}

/** The files that depend most on the calendar, for --short. */
const SHORT_FILES = [
  'testing/clock.test.ts',
  'sql/setup/setup.test.ts',
  'sql/partitions/lifecycle.test.ts',
  'sql/partitions/zones.test.ts',
  'sql/availability/availability.test.ts',
  'sql/checks/runbook.test.ts',
]

/** The next date of each kind after `now`, so that none of them is ever in the past. */
export function datesToTest(now: Date): TestDate[] {
  const monday = next(now, date => date.getUTCDay() === 1)
  const threeYears = new Date(now)
  threeYears.setUTCFullYear(now.getUTCFullYear() + 3)
  return [
    { at: `${next(now, isDay(2, 29))}T12:00Z`, what: 'a leap day', isShort: true },
    { at: `${next(now, isDay(3, 1))}T00:01Z`, what: 'the first of March' },
    { at: `${next(now, isDay(12, 31))}T23:58Z`, what: 'the last minutes of a year, and the first of the next', isShort: true },
    { at: `${next(now, isSunday(3, 25))}T00:58Z`, what: 'summer time begins in Europe', zone: 'Europe/Berlin' },
    { at: `${next(now, isSunday(10, 25))}T00:58Z`, what: 'summer time ends in Europe', zone: 'Europe/Berlin' },
    { at: `${next(now, isSunday(3, 8))}T06:58Z`, what: 'summer time begins in New York', zone: 'America/New_York' },
    {
      at: `${next(now, isSunday(11, 1))}T05:58Z`,
      what: 'summer time ends in New York, on a Sunday',
      zone: 'America/New_York',
      isShort: true,
    },
    { at: `${next(now, isDay(4, 30))}T23:58Z`, what: 'a 30th, the last day of its month' },
    { at: `${next(now, isDay(1, 31))}T13:00Z`, what: 'a 31st, before the shortest month' },
    { at: `${monday}T00:01Z`, what: 'a Monday' },
    { at: `${threeYears.toISOString().slice(0, 16)}Z`, what: 'in three years' },
  ]
}

/** The first matching day that is at least two days away, so that a test run does not overtake it. */
function next(now: Date, isWanted: (date: Date) => boolean) {
  const date = new Date(now.getTime())
  do date.setUTCDate(date.getUTCDate() + 1)
  while (!isWanted(date) || date.getTime() - now.getTime() < 2 * 86_400_000)
  return date.toISOString().slice(0, 10)
}

function isDay(month: number, day: number) {
  return (date: Date) => date.getUTCMonth() + 1 === month && date.getUTCDate() === day
}

/** The Sunday in the week that begins on this day. */
function isSunday(month: number, first: number) {
  return (date: Date) =>
    date.getUTCDay() === 0 && date.getUTCMonth() + 1 === month && date.getUTCDate() >= first && date.getUTCDate() < first + 7
}

let running: ChildProcess | undefined
let stopping = false

/** Runs npm test at each date and prints a summary. The exit code is 1 if a run failed. */
async function testDates(args: string[]) {
  const isShort = args.includes('--short')
  const files = isShort ? SHORT_FILES : args
  const sum = { total: 0, pass: 0, fail: 0, skip: 0 }
  const lines: string[] = []
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.on(signal, () => {
      stopping = true
      running?.kill('SIGTERM')
    })
  }
  for (const { at, what, zone } of datesToTest(new Date()).filter(date => date.isShort || !isShort)) {
    if (stopping) break
    say(`\n== ${at}: ${what}`)
    const { code, counts } = await runAt(at, zone, files)
    for (const name of ['total', 'pass', 'fail', 'skip'] as const) sum[name] += counts[name] ?? 0
    const again = `${zone ? `TZ=${zone} ` : ''}npm test -- --at ${at}`
    lines.push(`${code === 0 ? 'ok  ' : 'FAIL'}  ${again}   ${what}: ${counts.pass ?? 0} of ${counts.total ?? 0}`)
    if (code !== 0) process.exitCode = 1
  }
  if (stopping) process.exitCode = 1
  say(`\n${lines.join('\n')}`)
  say(
    `# { total: ${sum.total}, pass: ${sum.pass}${sum.fail ? `, fail: ${sum.fail}` : ''}${sum.skip ? `, skip: ${sum.skip}` : ''} }`,
  )
}

function runAt(at: string, zone: string | undefined, files: string[]) {
  return new Promise<{ code: number; counts: Record<string, number> }>((resolve, reject) => {
    const child = spawn(process.execPath, [...nodeArgs('testing/run.ts'), '--at', at, ...files], {
      cwd: repository,
      env: { ...currentEnv(), ...(zone && { TZ: zone }) },
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    running = child
    let tail = ''
    child.stdout.on('data', (chunk: Buffer) => {
      process.stdout.write(chunk)
      tail = (tail + chunk.toString()).slice(-10_000)
    })
    child.once('error', reject)
    child.once('close', code => {
      const said = /^# \{ (.*) \}$/m.exec(tail)?.[1] ?? ''
      const counts = [...said.matchAll(/(\w+): (\d+)/g)].map(([, name = '', count]) => [name, Number(count)] as const)
      resolve({ code: code ?? 1, counts: Object.fromEntries(counts) })
    })
  })
}

if (process.argv[1] === import.meta.filename) await testDates(process.argv.slice(2))
