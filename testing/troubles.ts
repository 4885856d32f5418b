// Makes real troubles one at a time. fleet.check() must name each and nothing else, and its remedy, run as printed, must end it.
import { spawn } from 'node:child_process'
import { delimiter } from 'node:path'
import { pathToFileURL } from 'node:url'
import type { Sql } from 'postgres'
import type { Test } from 'tap'
import { makeDirectory } from './archiver.ts'
import { clusterUser, type Role } from '../local/cluster.ts'
import { plainEnv } from '../local/config.ts'
import { repository } from '../lib/repository.ts'
import { testCluster, waitFor, withCluster } from './database.ts'
import { asRole, enroll, ingest, value, type Beat } from './fleet.ts'

export interface Trouble {
  /** What happened. */
  what: string
  /** The checks that must report it, and no other. */
  checks: string[]
  /** How much later the check looks, if the trouble is that something lasts. */
  later?: string
  inject: (t: Test) => Promise<unknown>
  /** What people do besides the remedy, if it asks for that: fix the cause, set the clocks. */
  besides?: () => Promise<unknown>
}

export type HealthyStore = Awaited<ReturnType<typeof withHealthyStore>>

/** In ms. A check takes a tenth of a second of CPU, which the other tests need too. */
const POLL_MS = 400

/** A cluster of the test's own in which every check is ok, with an archiver and 150 devices that have sent a heartbeat. */
export async function withHealthyStore(t: Test) {
  const db = await withCluster(t)
  const { sql, admin, cluster } = db
  await admin`alter system set max_prepared_transactions = 4`
  await admin`alter system set wal_level = 'replica'`
  await admin`alter system set max_wal_senders = 4`
  await admin`alter system set autovacuum_freeze_max_age = 100000`
  // Only the job that runs each minute stays; the others would fix what the checks should find.
  const quiet = () => admin`update cron.job set schedule = '0 0 1 1 *' where jobname <> 'fleet-mark-silent'`
  await quiet()
  await cluster.stop()
  await cluster.start()

  const directory = await makeDirectory(t)
  const login = (role: Role, connection?: Record<string, string>) => asRole(t, db, role, connection)
  const dba = login('fleet_dba')
  const owner = login('fleet_owner')
  /** What ends the archiver and the notifier that remedies started. */
  const stops = new Map<'archiver' | 'notifier', () => void>()
  t.teardown(() => {
    for (const stop of stops.values()) stop()
  })

  /** Runs the lines of a remedy for a shell. The archiver and the notifier keep running. */
  async function shell(remedy: string) {
    const asPostgres = /as the user of Postgres/.test(remedy)
    const child = spawn('sh', ['-c', remedy], {
      cwd: asPostgres ? '/' : repository,
      ...(asPostgres ? clusterUser() : {}),
      detached: true,
      stdio: 'ignore',
      env: {
        ...plainEnv(),
        PATH: [testCluster().postgres.bin, plainEnv().PATH].join(delimiter),
        DATABASE_URL: db.url('postgres'),
        ARCHIVER_DATABASE_URL: db.url('fleet_archiver'),
        VERIFIER_DATABASE_URL: db.url('fleet_verifier'),
        NOTIFIER_DATABASE_URL: db.url('fleet_notifier'),
        WEBHOOK_ALLOW: '127.0.0.1',
        ARCHIVE_URL: pathToFileURL(`${directory}/archive`).href,
        TMPDIR: directory, // it is killed, so it removes nothing
      },
    })
    const ended = new Promise(resolve => child.once('close', resolve))
    if (/it keeps running/.test(remedy)) {
      // Kills the group when its input ends, also if this process is killed.
      // eslint-disable-next-line no-restricted-syntax -- the number of a process
      const guard = spawn('sh', ['-c', `read _; kill -s KILL -- -${child.pid}`], {
        detached: true,
        stdio: ['pipe', 'ignore', 'ignore'],
      })
      stops.set(/npm run notifier/.test(remedy) ? 'notifier' : 'archiver', () => guard.stdin.end())
    } else t.equal(await ended, 0, remedy)
  }

  async function run(remedy: string) {
    if (remedy.startsWith('# in a shell')) return shell(remedy)
    const session = /^-- as superuser/.test(remedy) ? admin : /^-- as fleet_owner/.test(remedy) ? owner : dba
    for (const line of remedy.split('\n').filter(line => !line.startsWith('--'))) await session.unsafe(line)
  }

  // Only the owner may pass a later time.
  const check = (later = '0') => (later === '0' ? dba : owner)<
    { check_name: string; status: string; detail: string; remedy: string | null }[]
  >`
    select * from fleet.check(now() + ${later}::interval) where status <> 'ok'
  `
  const names = async (later?: string) => (await check(later)).map(row => row.check_name)

  /** Follows the remedies, the first one first, until all of these checks are ok. */
  async function follow(checks: string[], later?: string) {
    let seen = ''
    for (let round = 0; round < 20; round++) {
      // What follows from another trouble may end with it after a moment.
      if (round > 0)
        await waitFor(async () => (await names(later)).every(name => !checks.includes(name)), {
          timeoutMs: 1000,
          every: POLL_MS,
        }).catch(() => {})
      // A restart ends the sessions.
      const found = (await tried(() => check(later)))?.filter(row => checks.includes(row.check_name))
      if (found?.length === 0) return
      const [first] = found ?? []
      if (first && seen !== JSON.stringify(first.remedy)) {
        t.ok(first.remedy, `${first.check_name} has a remedy`)
        await run(first.remedy ?? '')
        seen = JSON.stringify(first.remedy)
      }
      const before = first?.check_name ?? ''
      await waitFor(
        async () => {
          const now = await tried(() => check(later))
          return (
            now !== undefined &&
            (!now.some(row => row.check_name === before) ||
              now.some(row => row.check_name === before && JSON.stringify(row.remedy) !== seen))
          )
        },
        { timeoutMs: 100_000, every: POLL_MS, what: () => `${before} to be ok after:\n${first?.remedy ?? ''}` },
      )
    }
    t.same(
      (await names(later)).filter(name => checks.includes(name)),
      [],
    )
  }

  // The devices of this test send only when there is a reason to.
  await dba`update fleet.settings set ingest_gap = '1 day'`
  await follow(await names())
  t.same(await check(), [], 'in a cluster that follows the guidelines, with an archiver, every check is ok')

  const [first, ...others] = (await enroll(sql, 150)) as [number, ...number[]]
  const all = [first, ...others]
  const good = (devices: number[]): Beat[] => devices.map(device_id => ({ device_id, ts: new Date().toISOString() }))
  await ingest(sql, good(all))
  /** Runs a statement that the guard would refuse. */
  const unguarded = async (statement: string) => {
    await admin.unsafe('alter event trigger fleet_guard_drop disable')
    await admin.unsafe(statement)
    await admin.unsafe('alter event trigger fleet_guard_drop enable always')
  }
  /** A session that runs these statements and stays until somebody ends it. */
  const session = async (...statements: string[]): Promise<Sql> => {
    const other = login('fleet_owner')
    for (const statement of statements) await other.unsafe(statement)
    return other
  }
  const minuteJob = () =>
    waitFor(
      async () =>
        (await value(sql`select last_success is not null from fleet.job_health where jobname = 'fleet-mark-silent'`)) === true,
      { timeoutMs: 90_000, what: () => 'the job of each minute to have run' },
    )

  /** Makes each trouble, expects its checks and no others, follows their remedies, and expects that all is as before. */
  async function goThrough(troubles: Trouble[]) {
    for (const { what, checks, later, inject, besides } of troubles) {
      const before = await names(later)
      await inject(t)
      // At a later time, whatever runs now has run for long, so there may be one more check until it has ended.
      let found: string[] = []
      const differs = (expected: string[]) =>
        waitFor(
          async () => {
            found = ((await tried(() => names(later))) ?? ['restarting']).filter(name => !before.includes(name)).sort()
            return found.join() === expected.join()
          },
          { every: POLL_MS },
        ).catch(() => {})
      await differs(checks)
      t.same(found, checks, what)
      const remedies = (await tried(() => check(later)))?.filter(row => checks.includes(row.check_name)) ?? []
      await besides?.()
      // Some remedies only show where to look, and what people do then is enough. They must run all the same.
      if (besides && (await tried(() => names(later)))?.every(name => !checks.includes(name)))
        for (const { remedy } of remedies) await run(remedy ?? '')
      await follow(checks, later)
      await quiet()
      await differs([])
      t.same(found, [], `${what}: all is well again`)
    }
  }
  return {
    ...db,
    dba,
    owner,
    login,
    directory,
    all,
    first,
    good,
    unguarded,
    session,
    minuteJob,
    goThrough,
    endArchiver: () => stops.get('archiver')?.(),
    endNotifier: () => stops.get('notifier')?.(),
  }
}

/** The answer, or undefined while Postgres restarts. */
function tried<T>(ask: () => Promise<T>) {
  return ask().catch(() => undefined)
}
