// What can go wrong with the jobs, sessions, settings and files of Postgres, for sql/checks/check-postgres.test.ts.
import { truncate } from 'node:fs/promises'
import { daysAgo, partitionAt, startedAgo, value } from './fleet.ts'
import type { HealthyStore, Trouble } from './troubles.ts'

export function troublesOfPostgres(store: HealthyStore): Trouble[] {
  const { sql, admin, dba, owner, cluster, login, session, minuteJob } = store
  let oldest: Awaited<ReturnType<typeof session>> | undefined
  let yesterday = ''

  return [
    {
      what: 'the owner may not see the activity of other roles',
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
        void login('fleet_owner')
          .unsafe('update fleet.device_last_status set status = status where false')
          .catch(() => {})
      },
    },
    {
      what: 'a session left a transaction open',
      checks: ['idle_in_transaction'],
      later: '20 minutes',
      inject: () => session('begin', 'select 1'),
    },
    {
      what: 'a query does not end',
      checks: ['long_transactions'],
      later: '2 hours',
      inject: async () =>
        void login('fleet_owner')
          .unsafe('select pg_sleep(900)')
          .catch(() => {}),
    },
    {
      what: 'a prepared transaction was left behind',
      checks: ['prepared_transactions'],
      later: '20 minutes',
      inject: () => login('postgres').unsafe(`begin; create table public.half (x integer); prepare transaction 'half done'`),
    },
    {
      what: 'a login that should see one cohort was granted another role',
      checks: ['readers'],
      inject: async () => {
        await dba`select fleet.create_reader('partner', array['default'])`
        await admin`grant fleet_reader to partner`
      },
    },
    {
      what: 'a partition, which has no policy, was granted to these logins',
      checks: ['readers'],
      inject: async () =>
        admin.unsafe(`grant select on fleet.${await partitionAt(sql, new Date().toISOString())} to fleet_cohort_reader`),
    },
    {
      what: 'their policies are switched off',
      checks: ['readers'],
      inject: async () => {
        for (const table of ['devices', 'device_heartbeats'])
          await owner.unsafe(`alter table fleet.${table} disable row level security`)
      },
    },
    {
      what: 'a view was made again with the rights of its owner',
      checks: ['readers'],
      inject: () => owner`alter view fleet.missed_beats reset (security_invoker)`,
    },
    {
      what: 'a reader has no login, as after the restore of a dump',
      checks: ['readers'],
      inject: () => admin`drop role partner`,
    },
    {
      what: 'a login has no row in fleet.readers',
      checks: ['readers'],
      inject: () => owner`delete from fleet.readers`,
    },
    {
      what: 'a replica is gone, but its slot is not',
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
      what: 'there are more server workers than connections for them',
      checks: ['connections'],
      inject: async () => {
        const workers = Math.ceil(Number(await value(admin`show max_connections`)) / 13)
        for (let worker = 0; worker < workers; worker++) await login('postgres', { application_name: 'nexmdm report' })`select 1`
      },
    },
    {
      what: 'autovacuum is off for last status, which fills with dead rows',
      checks: ['autovacuum', 'dead_rows'],
      inject: async () => {
        await owner`alter table fleet.device_last_status set (autovacuum_enabled = false, fillfactor = 100)`
        // An old snapshot keeps the dead rows from being pruned by the updates themselves.
        const old = await session('begin isolation level repeatable read', 'select 1')
        for (let round = 0; round < 60; round++) await admin`update fleet.device_last_status set battery_pct = ${round % 100}`
        await old.unsafe('commit')
        // An idle session reports its rows only after 10 s.
        await admin`select pg_stat_force_next_flush()`
      },
    },
    {
      what: 'an old snapshot keeps rows from being frozen',
      checks: ['wraparound'],
      inject: async () => {
        oldest = await session('begin isolation level repeatable read', 'select 1')
        // autovacuum_freeze_max_age is 100,000 here.
        const other = login('postgres', { synchronous_commit: 'off' })
        await other.unsafe('do $$ begin for n in 1..155000 loop perform pg_current_xact_id(); commit; end loop; end $$')
      },
      besides: () => oldest!.end({ timeout: 5 }),
    },
    {
      what: 'a day takes much more space than the days before',
      checks: ['disk'],
      inject: async () => {
        yesterday = await partitionAt(sql, daysAgo(1))
        const [file] = await admin<{ path: string }[]>`
          select current_setting('data_directory') || '/' || pg_relation_filepath(${`fleet.${yesterday}`}::regclass) as path`
        // Empty pages that take no space on disk.
        await truncate(file!.path, 2 ** 30)
      },
      besides: () => admin.unsafe(`vacuum fleet.${yesterday}`),
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
      what: 'settings let a crash lose heartbeats, or tables fill with dead rows',
      checks: ['setting_autovacuum', 'setting_fsync', 'setting_full_page_writes'],
      inject: async () => {
        for (const name of ['autovacuum', 'fsync', 'full_page_writes']) await admin.unsafe(`alter system set ${name} = off`)
        await admin`select pg_reload_conf()`
      },
    },
    {
      what: 'Postgres was given little memory',
      checks: ['setting_effective_cache_size', 'setting_shared_buffers'],
      inject: async () => {
        for (const name of ['effective_cache_size', 'shared_buffers']) await admin.unsafe(`alter system set ${name} = '16MB'`)
        await cluster.stop()
        await cluster.start()
      },
    },
    // These two wait for the next full minute, so they come last.
    {
      what: 'a night was missed',
      checks: ['nights'],
      inject: async () => {
        await minuteJob() // otherwise no job has ever run in all that time
        await admin`update fleet.hb_partitions set created_at = created_at - interval '2 days'`
      },
    },
    {
      what: 'a job is late',
      checks: ['jobs'],
      inject: async t => {
        await minuteJob()
        await admin`update cron.job_run_details set start_time = start_time - interval '1 hour', end_time = end_time - interval '1 hour'`
        // Postgres has just started, so no job is late yet.
        t.match(await owner`select status from fleet.check() where check_name = 'jobs'`, [{ status: 'ok' }])
        t.same(await owner`select jobname from fleet.job_health where status = 'late'`, [])
        t.same(
          await owner`
            select jobname from fleet.scheduler_ages()
            where age > interval '50 minutes' and jobname in ('fleet-archive-wake', 'fleet-mark-silent')`,
          [],
        )
        await startedAgo(admin, '1 day')
      },
    },
  ]
}
