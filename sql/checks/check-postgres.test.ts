// fleet.check(): what may be wrong with the jobs, sessions and settings of Postgres.
import t from 'tap'
import { withoutTroubles } from '../../testing/troubles.ts'
import { asRole, startedAgo } from '../../testing/fleet.ts'

t.setTimeout(600_000)

t.test('check() names each trouble with Postgres, and its remedy ends it', { timeout: 600_000 }, async t => {
  const db = await withoutTroubles(t)
  const { admin, owner, session, minuteJob, goThrough } = db
  await goThrough([
    {
      what: 'the owner may not see the activity of others',
      checks: ['monitoring', 'scheduler'],
      inject: () => admin`revoke pg_monitor from fleet_owner`,
    },
    {
      what: 'a job is switched off',
      checks: ['jobs'],
      inject: () => admin`update cron.job set active = false where jobname = 'fleet-nightly'`,
    },
    {
      what: 'a job is missing',
      checks: ['jobs'],
      inject: () => owner`select cron.unschedule('fleet-reconcile')`,
    },
    {
      what: 'the role of a job was dropped',
      checks: ['scheduler', 'scheduler_roles'],
      inject: async () => {
        await admin`create role leaver login`
        await admin`insert into cron.job (schedule, command, database, username, jobname) values ('0 0 1 1 *', 'select 1', 'fleet', 'leaver', 'report')`
        await admin`drop role leaver`
      },
    },
    {
      what: 'the launcher of pg_cron is gone',
      checks: ['scheduler'],
      inject: () => admin`select pg_terminate_backend(pid) from pg_stat_activity where backend_type = 'pg_cron launcher'`,
    },
    {
      what: 'maintenance is stuck',
      checks: ['locks_of_maintenance'],
      later: '3 hours',
      inject: () => session(`select fleet.begin_run('maintain')`),
    },
    {
      what: 'a session locks last status, and others wait',
      checks: ['blocking'],
      inject: async () => {
        await session('begin', 'lock table fleet.device_last_status in exclusive mode')
        void asRole(t, db, 'fleet_owner')
          .unsafe('update fleet.device_last_status set status = status where false')
          .catch(() => {})
      },
    },
    {
      what: 'a session forgot its transaction',
      checks: ['idle_in_transaction'],
      later: '20 minutes',
      inject: () => session('begin', 'select 1'),
    },
    {
      what: 'a query does not end',
      checks: ['long_transactions'],
      later: '2 hours',
      inject: async () =>
        void asRole(t, db, 'fleet_owner')
          .unsafe('select pg_sleep(900)')
          .catch(() => {}),
    },
    {
      what: 'a prepared transaction was forgotten',
      checks: ['prepared_transactions'],
      later: '20 minutes',
      inject: () =>
        asRole(t, db, 'postgres').unsafe(`begin; create table public.half (x integer); prepare transaction 'half done'`),
    },
    {
      what: 'a replica is gone, its slot is not',
      checks: ['replication_slots'],
      inject: async () => {
        await admin`select pg_create_physical_replication_slot('standby', true)`
        for (let segment = 0; segment < 18; segment++) {
          await admin`select pg_logical_emit_message(false, 'test', 'x')`
          await admin`select pg_switch_wal()`
        }
      },
    },
    {
      what: 'autovacuum is off for last status, which fills with dead rows',
      checks: ['autovacuum', 'dead_rows'],
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
      what: 'settings are not as the guidelines say',
      checks: ['setting_autovacuum_naptime', 'setting_log_min_duration_statement', 'setting_work_mem'],
      inject: async () => {
        await admin`alter system set autovacuum_naptime = '10min'`
        await admin`alter system set log_min_duration_statement = -1`
        await admin`alter system set work_mem = '1MB'`
        await admin`select pg_reload_conf()`
      },
    },
    // These two wait for a minute to begin, which has by now.
    {
      what: 'a night was missed',
      checks: ['nights'],
      inject: async () => {
        await minuteJob() // or none of the jobs ever ran in all that time
        await admin`update fleet.hb_partitions set created_at = created_at - interval '2 days'`
      },
    },
    {
      what: 'a job is late',
      checks: ['jobs'],
      inject: async () => {
        await minuteJob()
        await admin`update cron.job_run_details set start_time = start_time - interval '1 hour', end_time = end_time - interval '1 hour'`
        // Postgres has just started: no job is late yet, and none was until it did.
        t.match(await owner`select status from fleet.check() where check_name = 'jobs'`, [{ status: 'ok' }])
        t.same(await owner`select jobname from fleet.job_health where status = 'late'`, [])
        t.same(
          await owner`select jobname from fleet.scheduler_ages() where age > interval '50 minutes' and jobname in ('fleet-archive-wake', 'fleet-mark-silent')`,
          [],
        )
        await startedAgo(admin, '1 day')
      },
    },
  ])
})
