// npm run tick: does the jobs of the store where there is no pg_cron. See docs/install.md.
import { setTimeout as sleep } from 'node:timers/promises'
import { pathToFileURL } from 'node:url'
import { parseArgs } from 'node:util'
import type { Sql } from 'postgres'
import { lastRun } from '../lib/cron.ts'
import { openDatabase } from '../lib/database.ts'
import { describeError, reportFailure, UsageError } from '../lib/errors.ts'
import { say } from '../lib/progress.ts'
import { databaseUrl } from '../local/config.ts'

const USAGE = `usage: DATABASE_URL=postgres://fleet_owner@… npm run tick [-- --forever]
  runs each job of the store that has become due since it last began, at once and beside each other, and waits for them
  --forever  does so at each full minute, until it is told to end`

/** These take one lock, so one of them waits for the other. */
const ONE_AFTER_ANOTHER = ['fleet-maintain', 'fleet-nightly']

export interface Ticked {
  jobname: string
  /** Undefined if the job succeeded. */
  error?: string
}

/**
 * Runs the jobs that are due, each in a session of its own. A job that has never run is due.
 * @param url of the database of the store, with a member of fleet_owner; not through a pool that shares sessions
 * @returns the jobs that ran; not those that were not due, or that another tick runs
 */
export async function tick(url: string): Promise<Ticked[]> {
  const sql = open(url)
  let jobs
  try {
    jobs = await sql<{ jobname: string; schedule: string; now: Date }[]>`
      select d.jobname, d.schedule, clock_timestamp() as now from fleet.job_definitions() d
      -- There is no such history.
      where d.jobname <> 'fleet-prune-cron-history'
    `
  } finally {
    await sql.end({ timeout: 5 })
  }
  const due = jobs.map(({ jobname, schedule, now }) => {
    const time = lastRun(schedule, now)
    if (time === undefined) throw new Error(`${jobname}: nobody knows when ${JSON.stringify(schedule)} is`)
    return { jobname, time }
  })
  const ran = await Promise.all([
    ...due.filter(({ jobname }) => !ONE_AFTER_ANOTHER.includes(jobname)).map(job => runAll(url, [job])),
    runAll(
      url,
      due.filter(({ jobname }) => ONE_AFTER_ANOTHER.includes(jobname)),
    ),
  ])
  return ran.flat()
}

async function runAll(url: string, jobs: { jobname: string; time: Date }[]) {
  const ran: Ticked[] = []
  for (const { jobname, time } of jobs) {
    const job = await runIfDue(url, jobname, time)
    if (job) ran.push(job)
  }
  return ran
}

async function runIfDue(url: string, jobname: string, due: Date): Promise<Ticked | undefined> {
  const sql = open(url)
  try {
    const [job] = await sql<{ command: string | null }[]>`select fleet.begin_job(${jobname}, ${due}) as command`
    if (job!.command === null) return undefined
    let error: string | undefined
    await sql.unsafe(job!.command).catch((cause: unknown) => {
      error = describeError(cause)
    })
    await sql`select fleet.end_job(${jobname}, ${error ?? null})`
    return error === undefined ? { jobname } : { jobname, error }
  } catch (cause) {
    // The locks of a lost session are gone, so the job begins again when it is next due.
    return { jobname, error: describeError(cause) }
  } finally {
    await sql.end({ timeout: 5 })
  }
}

/** One session, so that the lock of the job is held by the session that does it. */
function open(url: string): Sql {
  return openDatabase(url, {
    max: 1,
    idle_timeout: 0,
    max_lifetime: null,
    connection: { application_name: 'nexmdm tick', TimeZone: 'UTC', role: 'fleet_owner' },
  })
}

async function tickOnce(url: string) {
  const ran = await tick(url)
  for (const { jobname, error } of ran) say(error === undefined ? `${jobname}: done` : `${jobname} failed: ${error}`)
  return ran.every(({ error }) => error === undefined)
}

/** A job that takes long does not keep the next minute from its jobs. At the end it is finished. */
async function tickForever(url: string, signal: AbortSignal) {
  const running = new Set<Promise<unknown>>()
  while (!signal.aborted) {
    const one = tickOnce(url).catch((error: unknown) => say(`This minute failed: ${describeError(error)}`))
    running.add(one)
    void one.finally(() => running.delete(one))
    await sleep(60_000 - (Date.now() % 60_000), undefined, { signal }).catch(() => {})
  }
  await Promise.all(running)
}

async function main() {
  try {
    let isForever
    try {
      isForever = parseArgs({ options: { forever: { type: 'boolean', default: false } } }).values.forever
    } catch (error) {
      throw new UsageError(`${(error as Error).message}\n${USAGE}`)
    }
    const url = databaseUrl()
    if (!isForever) {
      if (!(await tickOnce(url))) process.exitCode = 1
      return
    }
    const ending = new AbortController()
    for (const signal of ['SIGTERM', 'SIGINT'] as const) process.once(signal, () => ending.abort())
    await tickForever(url, ending.signal)
  } catch (error) {
    process.exitCode = reportFailure(error)
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) await main()
