// Troubles made for real, one by one: fleet.check() names each and nothing else, and its remedy, run as printed, ends it.
import { spawn } from 'node:child_process'
import { rename, rm, writeFile } from 'node:fs/promises'
import { delimiter } from 'node:path'
import { pathToFileURL } from 'node:url'
import type { Sql } from 'postgres'
import t from 'tap'
import { makeDirectory } from '../archiver/testing.ts'
import { clusterUser } from '../local/cluster.ts'
import { plainEnv, repository } from '../local/config.ts'
import { testCluster, waitFor, withCluster } from '../local/testing.ts'
import { asRole, daysAgo, enroll, ingest, partitionAt, value, type Beat } from './testing.ts'

interface Trouble {
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

t.setTimeout(900_000)

/** In ms: one look takes a tenth of a second of CPU, which the other tests want too. */
const every = 400

t.test('check() names each trouble, and its remedy ends it', { timeout: 900_000 }, async t => {
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
      cwd: asPostgres ? '/' : repository, ...asPostgres ? clusterUser() : {}, detached: true, stdio: 'ignore',
      env: {
        ...plainEnv(), PATH: [testCluster().postgres.bin, plainEnv().PATH].join(delimiter),
        ARCHIVER_DATABASE_URL: db.url('fleet_archiver'), ARCHIVE_URL: pathToFileURL(`${directory}/archive`).href,
      },
    })
    const ended = new Promise(resolve => child.once('close', resolve))
    if (/it stays/.test(remedy)) {
      // Ends the group when its input ends, be it that this process is killed.
      // eslint-disable-next-line no-restricted-syntax -- the number of a process
      const guard = spawn('sh', ['-c', `read _; kill -s KILL -- -${child.pid}`], { detached: true, stdio: ['pipe', 'ignore', 'ignore'] })
      group.stop = () => guard.stdin.end()
    } else await ended
  }

  async function run(remedy: string) {
    if (remedy.startsWith('# in a shell')) return shell(remedy)
    const session = /^-- as superuser/.test(remedy) ? admin : /^-- as fleet_owner/.test(remedy) ? owner : dba
    for (const line of remedy.split('\n').filter(line => !line.startsWith('--'))) await session.unsafe(line)
  }

  const check = (later = '0') => dba<{ check_name: string, status: string, detail: string, remedy: string | null }[]>`
    select * from fleet.check(now() + ${later}::interval) where status <> 'ok'
  `
  const names = async (later?: string) => (await check(later)).map(row => row.check_name)

  /** Follows the remedies, the first one first, until none of these checks is left. */
  async function mend(checks: string[], later?: string) {
    let seen = ''
    for (let round = 0; round < 2 + 2 * checks.length; round++) {
      // What follows from another trouble may go with it, in a moment.
      if (round > 0) await waitFor(async () => (await names(later)).every(name => !checks.includes(name)), { patience: 1000, every }).catch(() => {})
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
      await waitFor(async () => {
        const now = await tried(() => check(later))
        return now !== undefined && (!now.some(row => row.check_name === before)
          || now.some(row => row.check_name === before && JSON.stringify(row.remedy) !== seen))
      }, { patience: 100_000, every, what: () => `${before} to be ok after:\n${first?.remedy ?? ''}` })
    }
    t.same((await names(later)).filter(name => checks.includes(name)), [])
  }

  // The devices of this test send only when there is a reason to.
  await dba`update fleet.settings set ingest_gap = '1 day'`
  await mend(await names())
  t.same(await check(), [], 'a cluster set as the guidelines say, with an archiver: all is well')

  const [first, ...others] = await enroll(sql, 150) as [number, ...number[]]
  const all = [first, ...others]
  const good = (devices: number[]): Beat[] => devices.map(device_id => ({ device_id, ts: new Date().toISOString() }))
  await ingest(sql, good(all))
  const day = (days: number) => partitionAt(sql, daysAgo(days))
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
  const minuteJob = () => waitFor(
    async () => await value(sql`select last_success is not null from fleet.job_health where jobname = 'fleet-mark-silent'`) === true,
    { patience: 90_000, what: () => 'the job of each minute to have run' },
  )
  const nextName = (name: string, days: number) => {
    const [, y, m, d] = /(\d{4})(?:_?)(\d\d)(?:_?)(\d\d)$/.exec(name) ?? []
    const next = new Date(Date.UTC(Number(y), Number(m) - 1, Number(d) + days)).toISOString().slice(0, 10)
    return name.replace(/\d[\d_]*$/, next.replaceAll('-', name.includes('_p20') && /\d_\d/.test(name) ? '_' : ''))
  }

  const troubles: Trouble[] = [
    {
      what: 'more days are wanted ahead than were made', checks: ['partitions_ahead'],
      inject: () => dba`select fleet.set_premake(20)`,
    },
    {
      what: 'a hole between partitions', checks: ['partition_gaps'],
      inject: () => dba`select fleet.create_partitions(current_date + 30, current_date + 31)`,
    },
    {
      what: 'a table is in the way of a partition', checks: ['partition_obstacles'],
      inject: async () => admin.unsafe(`create table fleet.${nextName(await day(-31), 1)} (x integer)`),
    },
    {
      what: 'today\'s partition was detached by hand', checks: ['partition_catalog', 'partition_today'],
      inject: async () => owner.unsafe(`alter table fleet.device_heartbeats detach partition fleet.${await day(0)}`),
    },
    {
      what: 'a partition\'s table is gone', checks: ['partition_tables'],
      inject: async () => unguarded(`drop table fleet.${await day(20)}`),
    },
    {
      what: 'a partition was renamed', checks: ['partition_names'],
      inject: async () => owner.unsafe(`alter table fleet.${await day(12)} rename to old_heartbeats`),
    },
    {
      what: 'somebody made a default partition', checks: ['default_partition'],
      inject: () => admin`create table fleet.everything_else partition of fleet.device_heartbeats default`,
    },
    {
      what: 'a partition lost its key, and took duplicates', checks: ['partition_indexes'],
      inject: async () => {
        const name = await day(0)
        const index = await value(admin`select indexrelid::regclass::text from pg_index where indisunique and indrelid = ${`fleet.${name}`}::regclass`) as string
        await admin.unsafe(`drop index ${index}`)
        await admin.unsafe(`insert into fleet.${name} select * from fleet.${name} limit 50`)
      },
    },
    {
      what: 'the index for reading is gone', checks: ['partition_indexes'],
      inject: () => admin`drop index fleet.device_heartbeats_device_id_ts_idx`,
    },
    {
      what: 'the guard is off', checks: ['guard'],
      inject: () => admin`alter event trigger fleet_guard_drop disable`,
    },
    {
      what: 'a trigger is off, and last status is not kept', checks: ['last_status', 'triggers'],
      inject: async () => {
        await admin`alter table fleet.device_heartbeats disable trigger device_heartbeats_record_last_status`
        await admin`update fleet.device_last_status set last_ts = last_ts - interval '1 hour'`
      },
    },
    {
      what: 'last status was lost', checks: ['last_status'],
      inject: () => admin`delete from fleet.device_last_status`,
    },
    {
      what: 'devices send what is too old', checks: ['quarantine'],
      inject: () => ingest(sql, [...good(all), ...all.map(device_id => ({ device_id, ts: daysAgo(10) }))]),
    },
    {
      what: 'a device fills its quarantine', checks: ['quarantine_full'],
      inject: async () => {
        await dba`update fleet.settings set quarantine_per_device = 3`
        await ingest(sql, [...good([first]), ...[1, 2, 3, 4].map(day => ({ device_id: first, ts: daysAgo(-day) }))])
      },
    },
    {
      what: 'clocks are wrong', checks: ['clocks'],
      inject: () => ingest(sql, all.slice(0, 5).map(device_id => ({ device_id, ts: daysAgo(-9) }))),
      beside: () => ingest(sql, all.slice(0, 5).map(device_id => ({ device_id, ts: new Date(Date.now() + 30_000).toISOString() }))),
    },
    {
      what: 'a cohort goes quiet', checks: ['silent_cohorts'],
      inject: async () => {
        await admin`update fleet.devices set cohort = 'yard' where device_id = any (${all.slice(0, 20)})`
        await ingest(sql, good(all))
        // A day of samples, and no gap since.
        await admin`
          insert into fleet.silence_samples (cohort, sampled_at, active, gone_quiet)
          select c, now() - n * interval '10 minutes', 20, 0 from unnest(array['yard', 'default', '(all)']) c, generate_series(10, 200) n
        `
        await admin`update fleet.silence_watch set looked_at = now(), gap_from = null, gap_to = null, sampled_at = '-infinity'`
        await admin`select fleet.watch_silence()`
        await admin`update fleet.device_last_status set last_ts = now() - interval '4 minutes' where device_id = any (${all.slice(0, 12)})`
      },
      beside: async () => {
        await ingest(sql, good(all))
        await admin`delete from fleet.silence_usual`
        await admin`delete from fleet.silence_samples`
      },
    },
    {
      what: 'nothing comes in', checks: ['heartbeats'],
      inject: async () => {
        await dba`update fleet.settings set ingest_gap = '3 minutes'`
        await admin`update fleet.device_last_status set last_received_at = now() - interval '4 minutes'`
      },
      beside: async () => {
        await ingest(sql, good(all))
        await dba`update fleet.settings set ingest_gap = '1 day'`
      },
    },
    {
      what: 'the owner may not see the activity of others', checks: ['monitoring', 'scheduler'],
      inject: () => admin`revoke pg_monitor from fleet_owner`,
    },
    {
      what: 'a job is switched off', checks: ['jobs'],
      inject: () => admin`update cron.job set active = false where jobname = 'fleet-nightly'`,
    },
    {
      what: 'a job is missing', checks: ['jobs'],
      inject: () => owner`select cron.unschedule('fleet-reconcile')`,
    },
    {
      what: 'the role of a job was dropped', checks: ['scheduler', 'scheduler_roles'],
      inject: async () => {
        await admin`create role leaver login`
        await admin`insert into cron.job (schedule, command, database, username, jobname) values ('0 0 1 1 *', 'select 1', 'fleet', 'leaver', 'report')`
        await admin`drop role leaver`
      },
    },
    {
      what: 'the launcher of pg_cron is gone', checks: ['scheduler'],
      inject: () => admin`select pg_terminate_backend(pid) from pg_stat_activity where backend_type = 'pg_cron launcher'`,
    },
    {
      what: 'a night was missed', checks: ['nights'],
      inject: async () => {
        await minuteJob()  // or none of the jobs ever ran in all that time
        await admin`update fleet.hb_partitions set created_at = created_at - interval '2 days'`
      },
    },
    {
      what: 'maintenance is stuck', checks: ['locks_of_maintenance'], later: '3 hours',
      inject: () => session(`select fleet.begin_run('maintain')`),
    },
    {
      what: 'a session locks last status, and others wait', checks: ['blocking'],
      inject: async () => {
        await session('begin', 'lock table fleet.device_last_status in exclusive mode')
        void asRole(t, db, 'fleet_owner').unsafe('update fleet.device_last_status set status = status where false').catch(() => {})
      },
    },
    {
      what: 'a session forgot its transaction', checks: ['idle_in_transaction'], later: '20 minutes',
      inject: () => session('begin', 'select 1'),
    },
    {
      what: 'a query does not end', checks: ['long_transactions'], later: '2 hours',
      inject: async () => void asRole(t, db, 'fleet_owner').unsafe('select pg_sleep(900)').catch(() => {}),
    },
    {
      what: 'a prepared transaction was forgotten', checks: ['prepared_transactions'], later: '20 minutes',
      inject: () => asRole(t, db, 'postgres').unsafe(`begin; create table public.half (x integer); prepare transaction 'half done'`),
    },
    {
      what: 'a replica is gone, its slot is not', checks: ['replication_slots'],
      inject: async () => {
        await admin`select pg_create_physical_replication_slot('standby', true)`
        for (let segment = 0; segment < 18; segment++) {
          await admin`select pg_logical_emit_message(false, 'test', 'x')`
          await admin`select pg_switch_wal()`
        }
      },
    },
    {
      what: 'autovacuum is off for last status, which fills with dead rows', checks: ['autovacuum', 'dead_rows'],
      inject: async () => {
        await owner`alter table fleet.device_last_status set (autovacuum_enabled = false, fillfactor = 100)`
        // Dead beside an old snapshot, so that none is pruned on the way.
        const old = await session('begin isolation level repeatable read', 'select 1')
        for (let round = 0; round < 60; round++) await admin`update fleet.device_last_status set battery_pct = ${round % 100}`
        await old.unsafe('commit')
        // An idle session tells of its rows only after 10 s.
        await admin`select pg_stat_force_next_flush()`
      },
    },
    {
      what: 'a past day was not vacuumed', checks: ['partitions_vacuumed'],
      inject: async () => {
        await owner.unsafe(`alter table fleet.${await day(3)} set (autovacuum_enabled = false)`)
        await sql`
          insert into fleet.device_heartbeats (ts, received_at, device_id)
          select date_trunc('day', now()) - interval '3 days' + n * interval '10 seconds', now(), d
          from generate_series(0, 8000) n, generate_series(1, 3) d
        `
      },
    },
    {
      what: 'settings are not as the guidelines say',
      checks: ['setting_autovacuum_naptime', 'setting_log_min_duration_statement', 'setting_work_mem'],
      inject: async () => {
        await admin`alter system set autovacuum_naptime = '10min'`
        await admin`alter system set log_min_duration_statement = -1`
        await admin`alter system set work_mem = '1MB'`
        await admin`select pg_reload_conf()`
      },
    },
    {
      what: 'an archive fails', checks: ['archive_failed'],
      inject: async () => {
        await rename(`${directory}/archive`, `${directory}/away`).catch(() => {})
        await writeFile(`${directory}/archive`, 'no directory')
        await dba`select fleet.archive_partition(${await day(60)})`
      },
      beside: async () => {
        await rm(`${directory}/archive`)
        await rename(`${directory}/away`, `${directory}/archive`).catch(() => {})
      },
    },
    {
      what: 'the archiver is gone, and its work waits', checks: ['archive_backlog', 'archiver'],
      inject: async () => {
        group.stop()
        const name = await day(61)
        await dba`select fleet.archive_partition(${name})`
        await admin`update fleet.archivers set last_seen_at = now() - interval '1 hour'`
        await admin`update fleet.hb_partitions set detached_at = now() - interval '1 day' where partition_name = ${name}`
      },
    },
    {
      what: 'old days are not retired', checks: ['retention'],
      inject: () => dba`select fleet.set_retention('80 days')`,
    },
    {
      what: 'past days are not rolled up', checks: ['rollups'],
      inject: () => admin`update fleet.devices set enrolled_at = enrolled_at - interval '5 days'`,
    },
    {
      what: 'late heartbeats are not counted', checks: ['rollups'], later: '4 hours',
      inject: () => ingest(sql, good(all).map(beat => ({ ...beat, ts: daysAgo(1) }))),
    },
    {
      what: 'a job is late', checks: ['jobs'],
      inject: async () => {
        await minuteJob()
        await admin`update cron.job_run_details set start_time = start_time - interval '1 hour', end_time = end_time - interval '1 hour'`
      },
    },
  ]
  t.ok(troubles.length >= 20, `${troubles.length} troubles`)

  for (const { what, checks, later, inject, beside } of troubles) {
    const before = await names(later)
    await inject()
    // Seen from later on, whatever runs just now has run for long: until it is gone, there is one more.
    let found: string[] = []
    const differs = (expected: string[]) => waitFor(async () => {
      found = (await tried(() => names(later)) ?? ['restarting']).filter(name => !before.includes(name)).sort()
      return found.join() === expected.join()
    }, { every }).catch(() => {})
    await differs(checks)
    t.same(found, checks, what)
    await beside?.()
    await mend(checks, later)
    await quiet()
    await differs([])
    t.same(found, [], `${what}: all is well again`)
  }
})

t.test('check() answers whatever is broken', async t => {
  const db = await withCluster(t)
  const { admin } = db
  const dba = asRole(t, db, 'fleet_dba')
  const failed = async () => (await dba`select check_name from fleet.check() where detail like 'could not look%'`).map(row => row.check_name as string)
  await admin`alter table fleet.settings rename to mislaid`
  t.same(await failed(), ['check_partitions', 'check_ingest', 'check_silence', 'check_archive', 'check_storage'])
  await admin`alter table fleet.mislaid rename to settings`
  const locker = asRole(t, db, 'fleet_owner')
  await locker`begin`
  await locker`lock table fleet.hb_partitions, fleet.device_last_status, fleet.events in access exclusive mode`
  t.ok((await failed()).includes('check_ingest'), 'what is locked is not waited for')
  await locker`rollback`
  await admin`drop extension pg_cron`
  await admin`drop function fleet_guard.lost_jobs()`
  await admin`drop function fleet_guard.memory_bytes()`
  await admin`revoke pg_monitor from fleet_owner`
  t.same(await failed(), [])
})

/** The answer, or undefined while Postgres restarts. */
function tried<T>(ask: () => Promise<T>) {
  return ask().catch(() => undefined)
}
