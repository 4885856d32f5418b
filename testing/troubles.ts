// Troubles made for real, one by one: fleet.check() names each and nothing else, and its remedy, run as printed, ends it.
import { spawn } from 'node:child_process'
import { delimiter } from 'node:path'
import { pathToFileURL } from 'node:url'
import type { Sql } from 'postgres'
import type { Test } from 'tap'
import { makeDirectory } from './archiver.ts'
import { clusterUser } from '../local/cluster.ts'
import { plainEnv, repository } from '../local/config.ts'
import { testCluster, waitFor, withCluster } from './database.ts'
import { asRole, daysAgo, enroll, ingest, partitionAt, value, type Beat } from './fleet.ts'

export interface Trouble {
  /** What happened. */
  what: string
  /** The checks that say so, and no other. */
  checks: string[]
  /** How much later the check looks, where what is wrong is that it lasts. */
  later?: string
  inject: () => Promise<unknown>
  /** What people do beside the remedy, where that asks for it: mend the cause, set the clocks. */
  beside?: () => Promise<unknown>
}

/** In ms: one look takes a tenth of a second of CPU, which the other tests want too. */
const POLL_MS = 400

/** A cluster of the test's own, where all is well, with 150 devices that sent, and an archiver; what makes troubles there, and what goes through them. */
export async function withoutTroubles(t: Test) {
  const db = await withCluster(t)
  const { sql, admin, cluster } = db
  await admin`alter system set max_prepared_transactions = 4`
  await admin`alter system set wal_level = 'replica'`
  await admin`alter system set max_wal_senders = 4`
  // Only the job of each minute runs beside the test; the others would mend what is to be found.
  const quiet = () => admin`update cron.job set schedule = '0 0 1 1 *' where jobname <> 'fleet-mark-silent'`
  await quiet()
  await cluster.stop()
  await cluster.start()

  const directory = await makeDirectory(t)
  const dba = asRole(t, db, 'fleet_dba')
  const owner = asRole(t, db, 'fleet_owner')
  const group: { stop: () => void } = { stop: () => {} }
  t.teardown(() => group.stop())

  /** Runs the lines of a shell's remedy; the archiver stays. */
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
        ARCHIVER_DATABASE_URL: db.url('fleet_archiver'),
        ARCHIVE_URL: pathToFileURL(`${directory}/archive`).href,
        TMPDIR: directory, // it is killed, and removes nothing
      },
    })
    const ended = new Promise(resolve => child.once('close', resolve))
    if (/it stays/.test(remedy)) {
      // Ends the group when its input ends, be it that this process is killed.
      // eslint-disable-next-line no-restricted-syntax -- the number of a process
      const guard = spawn('sh', ['-c', `read _; kill -s KILL -- -${child.pid}`], {
        detached: true,
        stdio: ['pipe', 'ignore', 'ignore'],
      })
      group.stop = () => guard.stdin.end()
    } else await ended
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

  /** Follows the remedies, the first one first, until none of these checks is left. */
  async function mend(checks: string[], later?: string) {
    let seen = ''
    for (let round = 0; round < 2 + 2 * checks.length; round++) {
      // What follows from another trouble may go with it, in a moment.
      if (round > 0)
        await waitFor(async () => (await names(later)).every(name => !checks.includes(name)), {
          timeoutMs: 1000,
          every: POLL_MS,
        }).catch(() => {})
      // A restart takes the sessions with it.
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
  await mend(await names())
  t.same(await check(), [], 'a cluster set as the guidelines say, with an archiver: all is well')

  const [first, ...others] = (await enroll(sql, 150)) as [number, ...number[]]
  const all = [first, ...others]
  const good = (devices: number[]): Beat[] => devices.map(device_id => ({ device_id, ts: new Date().toISOString() }))
  await ingest(sql, good(all))
  const day = (days: number) => partitionAt(sql, daysAgo(days))
  /** A statement that the guard would refuse. */
  const unguarded = async (statement: string) => {
    await admin.unsafe('alter event trigger fleet_guard_drop disable')
    await admin.unsafe(statement)
    await admin.unsafe('alter event trigger fleet_guard_drop enable always')
  }
  /** A session that does this and stays, until somebody ends it. */
  const session = async (...statements: string[]): Promise<Sql> => {
    const other = asRole(t, db, 'fleet_owner')
    for (const statement of statements) await other.unsafe(statement)
    return other
  }
  const minuteJob = () =>
    waitFor(
      async () =>
        (await value(sql`select last_success is not null from fleet.job_health where jobname = 'fleet-mark-silent'`)) === true,
      { timeoutMs: 90_000, what: () => 'the job of each minute to have run' },
    )

  /** Makes each trouble, looks for its checks and no others, follows their remedies, and looks whether all is as before. */
  async function goThrough(troubles: Trouble[]) {
    for (const { what, checks, later, inject, beside } of troubles) {
      const before = await names(later)
      await inject()
      // Seen from later on, whatever runs just now has run for long: until it is gone, there is one more.
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
      await beside?.()
      await mend(checks, later)
      await quiet()
      await differs([])
      t.same(found, [], `${what}: all is well again`)
    }
  }
  return {
    ...db,
    dba,
    owner,
    directory,
    all,
    first,
    good,
    day,
    unguarded,
    session,
    minuteJob,
    goThrough,
    endArchiver: () => group.stop(),
  }
}

/** The answer, or undefined while Postgres restarts. */
function tried<T>(ask: () => Promise<T>) {
  return ask().catch(() => undefined)
}
