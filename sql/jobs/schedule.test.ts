import postgres from 'postgres'
import t from 'tap'
import { migrate } from '../../cli/migrate.ts'
import { waitFor, withCluster, withDatabase } from '../../testing/database.ts'
import { plainOnly } from '../../testing/distributed.ts'
import { asRole, enroll, ingest, value } from '../../testing/fleet.ts'

const JOBS = [
  'fleet-archive-wake',
  'fleet-erase',
  'fleet-maintain',
  'fleet-mark-silent',
  'fleet-nightly',
  'fleet-prune-cron-history',
  'fleet-reconcile',
  'fleet-vacuum',
]

// In a cluster of its own, so that other tests do not see its jobs. pg_cron 1.4 fires at full minutes, so this takes up to two.
const ownCluster = plainOnly('it has a cluster of its own')
t.test('pg_cron runs the jobs as the owner', { timeout: 300_000, skip: ownCluster }, async t => {
  const db = await withCluster(t)
  const { sql, admin } = db
  t.same(
    (await sql`select jobname from fleet.job_health order by jobname`).map(row => row.jobname as string),
    JOBS,
  )
  await sql`select fleet.schedule_jobs()`
  await sql`select cron.schedule('fleet-forgotten', '0 0 1 1 *', 'select 1')`
  await sql`select fleet.schedule_jobs()`
  t.same(
    await admin`select jobname, username, database from cron.job order by jobname`,
    JOBS.map(jobname => ({ jobname, username: 'fleet_owner', database: 'fleet' })),
    'each job is scheduled once, and jobs that are not defined are removed',
  )

  // As if watch_silence() had run in the minutes before, so that its next run takes a sample.
  await ingest(
    sql,
    (await enroll(sql, 3)).map(device_id => ({ device_id })),
  )
  await admin`update fleet.silence_watch set looked_at = now(), gap_from = null, gap_to = null, sampled_at = '-infinity'`

  // A second store in the cluster, in a database without pg_cron. The remedy of check() is run in the database that has it.
  await admin`create database elsewhere`
  await migrate(db.cluster.url('postgres', 'elsewhere'), { current: true, log: () => {} })
  const elsewhere = postgres(db.cluster.url('fleet_owner', 'elsewhere'), { max: 1, onnotice: () => {} })
  t.teardown(() => elsewhere.end({ timeout: 5 }))
  const remedy = (await value(elsewhere`select remedy from fleet.check() where check_name = 'scheduler'`)) as string
  t.match(remedy, /^-- as superuser, in database fleet\n/)
  for (const time of ['once', 'twice']) {
    await admin.unsafe(remedy)
    await sql`select fleet.schedule_jobs()`
    t.same(
      await admin`select jobname, username from cron.job where database = 'elsewhere' or jobname like '%@%' order by jobname`,
      JOBS.map(job => ({ jobname: `${job}@elsewhere`, username: job.includes('prune') ? 'postgres' : 'fleet_owner' })),
      time,
    )
  }
  t.equal(await value(admin`select count(*) from cron.job`), '16', 'neither store removes the jobs of the other')

  // The real jobs, every minute, so that pg_cron starts what it starts in production.
  await admin`update cron.job set schedule = '* * * * *' where jobname <> 'fleet-prune-cron-history'`
  await sql`select fleet.set_retention('80 days')`
  await sql`select fleet.set_premake(16)`
  await waitFor(
    async () =>
      (await value(admin`
    select count(distinct jobid) from cron.job_run_details where status in ('succeeded', 'failed')
  `)) === '15',
    { timeoutMs: 200_000, what: () => 'seven jobs to run here, and eight for the other store' },
  )
  t.not(
    await value(elsewhere`select count(*) from fleet.events where event in ('maintain.end', 'nightly.end') and is_ok`),
    '0',
    'the other store is maintained',
  )
  t.same(
    await admin`
    select j.jobname, d.return_message from cron.job_run_details d join cron.job j using (jobid)
    -- Two runs of maintenance begin in the same second here, so one may find the other running.
    where d.status = 'failed' and d.return_message not like '%maintenance is already running%'
  `,
    [],
  )
  await admin`update fleet.hb_partitions set created_at = now() - interval '1 year'`
  const ages = await sql<
    { jobname: string; is_old: boolean }[]
  >`select jobname, age > interval '1 day' as is_old from fleet.scheduler_ages()`
  t.ok(ages.length >= 6)
  t.same(
    ages.filter(({ is_old }) => is_old),
    [],
    'no job is as old as the store, not even the one that has not run yet',
  )
  await waitFor(async () => (await value(sql`select active from fleet.silence_samples where cohort = '(all)'`)) === 3, {
    timeoutMs: 90_000,
  })
  await sql`call fleet.nightly()`
  const retired = (await value(sql`select count(*)::int from fleet.hb_partitions where state = 'detached'`)) as number
  t.ok([10, 11].includes(retired), `${retired} days; one more if the store was set up before midnight`)
  t.ok(Number(await value(sql`select count(*) from fleet.events where event in ('maintain.end', 'nightly.end') and is_ok`)) >= 2)
  t.not(await value(sql`select count(*) from fleet.events where event = 'reconciliation.completed'`), '0')

  await admin`
    insert into cron.job_run_details (jobid, database, username, command, status, start_time, end_time)
    select 0, ago, 'fleet_owner', j.command, status, now() - ago::interval, now() - ago::interval
    from unnest(array['1 day', '3 days', '15 days']) ago
    cross join (values ('call fleet.mark_silent()', 'succeeded'), ('call fleet.mark_silent()', 'failed'), ('call fleet.nightly()', 'succeeded')) j (command, status)
  `
  const prune = await value(sql`select command from fleet.job_definitions() where jobname = 'fleet-prune-cron-history'`)
  await sql.unsafe(String(prune))
  t.same(
    await admin`select command, status, array_agg(database order by database) as kept from cron.job_run_details where jobid = 0 group by 1, 2 order by 1, 2`,
    [
      { command: 'call fleet.mark_silent()', status: 'failed', kept: ['1 day', '3 days'] },
      { command: 'call fleet.mark_silent()', status: 'succeeded', kept: ['1 day'] },
      { command: 'call fleet.nightly()', status: 'succeeded', kept: ['1 day', '3 days'] },
    ],
    'only the part of the history that is still useful is kept',
  )

  await admin.begin(async transaction => {
    const scheduler = () => transaction`select status, detail, remedy from fleet.check_scheduler() where check_name = 'scheduler'`
    t.match(await scheduler(), [{ status: 'ok' }])
    await transaction`
      insert into cron.job_run_details (jobid, runid, database, username, command, status, start_time, end_time)
      select jobid, nextval('cron.runid_seq'), database, username, command, 'succeeded', now() + interval '3 hours', now() + interval '3 hours'
      from cron.job where jobname = 'fleet-mark-silent'`
    t.match(await scheduler(), [
      { status: 'fail', detail: /clock of Postgres ran ahead .* runs no job before 20/, remedy: /pg_ctl restart/ },
    ])
    await transaction`rollback and chain`
  })

  await admin`update cron.job set active = false where jobname = 'fleet-erase'`
  t.same(
    (await sql`select jobname from fleet.schedule_jobs() where not is_scheduled`).map(row => row.jobname as string),
    ['fleet-erase'],
    'a job that somebody has disabled stays so',
  )

  // Newer versions of pg_cron are started again after a second.
  await admin`select pg_terminate_backend(pid) from pg_stat_activity where backend_type = 'pg_cron launcher'`
  let found: unknown
  await waitFor(async () => {
    const [check] = await sql`select status, detail, remedy from fleet.check_scheduler() where check_name = 'scheduler'`
    found = check
    return check?.status === 'fail'
  })
  t.match(found, { detail: /launcher is gone/, remedy: /pg_ctl restart/ })
})

t.test('if pg_cron is in another database, schedule_jobs() says what to run there', async t => {
  const db = await withDatabase(t)
  const dba = asRole(t, db, 'fleet_dba')
  const rows = await dba`select * from fleet.schedule_jobs()`
  t.same(
    rows.map(row => [row.jobname as string, row.is_scheduled as boolean]).sort(),
    JOBS.map(job => [job, false]),
  )
  t.match(await dba`select distinct status from fleet.job_health`, [{ status: 'missing' }])
  // In a transaction that is rolled back, because the other test files share the roles.
  const unprivileged = asRole(t, db, 'postgres').unsafe(
    'begin; revoke pg_monitor from fleet_owner; set local role fleet_dba; select * from fleet.schedule_jobs(); rollback',
  )
  await t.resolves(unprivileged, 'also if the name of that database is hidden')
})
