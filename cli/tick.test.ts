import { spawnSync } from 'node:child_process'
import t from 'tap'
import { nodeArgs } from '../lib/repository.ts'
import { plainEnv } from '../local/config.ts'
import { waitFor, withCronDatabase, withDatabase, type TestDatabase } from '../testing/database.ts'
import { asRole, value } from '../testing/fleet.ts'
import { tick } from './tick.ts'

const JOBS = ['fleet-archive-wake', 'fleet-erase', 'fleet-maintain', 'fleet-mark-silent', 'fleet-nightly', 'fleet-reconcile']

const names = (ran: Awaited<ReturnType<typeof tick>>) => ran.map(({ jobname }) => jobname).sort()

/** Lets the last run of each job look as if it had been `age` ago. */
async function age({ sql }: TestDatabase, interval: string) {
  await sql`
    update fleet.ticked_jobs set started_at = started_at - ${interval}::interval, last_success = last_success - ${interval}::interval`
}

async function check({ admin }: TestDatabase, name: string) {
  const [row] = await admin`select status, detail, remedy from fleet.check() where check_name = ${name}`
  return row!
}

t.test('without pg_cron, a tick runs each job that is due', async t => {
  const db = await withDatabase(t)
  t.match(await check(db, 'scheduler'), { status: 'warn', detail: /npm run tick was never run/ })
  const first = await tick(db.url('fleet_owner'))
  t.same(
    first.filter(({ error }) => error !== undefined),
    [],
  )
  for (const job of JOBS) t.ok(names(first).includes(job), job)
  t.match(await check(db, 'scheduler'), { status: 'ok', detail: 'npm run tick runs the jobs' })
  t.match(await check(db, 'jobs'), { status: 'ok', detail: 'all jobs run' })
  t.same(
    (await db.sql`select jobname, status from fleet.job_health where status <> 'ok'`).map(row => row.jobname as string),
    [],
  )
  t.ok((await value(db.sql`select count(*) from fleet.events where event = 'nightly.end' and is_ok`)) === '1')
  t.same(await db.sql`select from fleet.audit_log where action like '%.started'`, [], 'a job is not audited as a deed of people')

  // Whatever minute it is, a job is not due twice in the same minute, and only those of each minute in the next.
  t.notOk(names(await tick(db.url('fleet_owner'))).includes('fleet-nightly'))
  await age(db, '25 hours')
  for (const job of JOBS) t.ok(names(await tick(db.url('fleet_owner'))).includes(job) || (await hasRunAgain(db, job)), job)
})

async function hasRunAgain({ sql }: TestDatabase, job: string) {
  return await value(sql`select started_at > now() - interval '5 minutes' from fleet.ticked_jobs where jobname = ${job}`)
}

t.test('two ticks at once run each job once', async t => {
  const db = await withDatabase(t)
  const both = await Promise.all([tick(db.url('fleet_owner')), tick(db.url('fleet_owner'))])
  const ran = both.flatMap(names).filter(job => job !== 'fleet-mark-silent')
  t.same(ran.toSorted(), [...new Set(ran)].sort())
  t.ok(ran.includes('fleet-nightly'))
  t.equal(await value(db.sql`select count(*) from fleet.events where event = 'nightly.start'`), '1')
})

t.test('a job that fails is reported, and succeeds when it is next due', async t => {
  const db = await withDatabase(t)
  const holder = asRole(t, db, 'fleet_owner')
  await holder`select pg_advisory_lock(hashtextextended('fleet.maintenance', 0))`
  const run = () =>
    spawnSync(process.execPath, [...nodeArgs('cli/tick.ts')], {
      env: { ...plainEnv(), DATABASE_URL: db.url('fleet_owner') },
      encoding: 'utf8',
    })
  const failed = run()
  t.equal(failed.status, 1, failed.stderr)
  t.match(failed.stdout, /^fleet-nightly failed: .*maintenance is already running/m)
  t.match(await db.sql`select status, last_message from fleet.job_health where jobname = 'fleet-nightly'`, [
    { status: 'failed', last_message: /maintenance is already running/ },
  ])
  t.match(await check(db, 'jobs'), { status: 'fail', detail: /fleet-nightly is failed/, remedy: /call fleet.nightly\(\);/ })
  await holder`select pg_advisory_unlock(hashtextextended('fleet.maintenance', 0))`
  await age(db, '1 day')
  const again = run()
  t.equal(again.status, 0, again.stdout + again.stderr)
  t.match(await check(db, 'jobs'), { status: 'ok' })
})

t.test('a job whose session is lost is done again', async t => {
  const db = await withDatabase(t)
  await tick(db.url('fleet_owner'))
  await age(db, '1 day')
  const locker = asRole(t, db, 'fleet_owner')
  await locker.unsafe('begin; lock table fleet.storage_daily in access exclusive mode')
  const ticking = tick(db.url('fleet_owner'))
  await waitFor(
    async () =>
      (
        await db.admin`
          select pg_terminate_backend(pid) from pg_stat_activity
          where datname = current_database() and query like 'call fleet.nightly%' and wait_event_type = 'Lock'`
      ).length > 0,
  )
  await locker`rollback`
  const ran = await ticking
  t.match(
    ran.filter(({ error }) => error !== undefined),
    [{ jobname: 'fleet-nightly', error: /CONNECTION|terminating/ }],
  )
  await age(db, '1 day')
  t.match(await tick(db.url('fleet_owner')), [])
  t.ok(await hasRunAgain(db, 'fleet-nightly'))
  t.match(await db.sql`select status from fleet.job_health where jobname = 'fleet-nightly'`, [{ status: 'ok' }])
})

t.test('when the ticks stop, check() says so', async t => {
  const db = await withDatabase(t)
  await tick(db.url('fleet_owner'))
  await age(db, '10 minutes')
  // Postgres of the tests may have started a moment ago, and then no job is late.
  await db.admin`
    create or replace function fleet.postgres_started_at() returns timestamptz language sql stable
    as $$ select pg_catalog.now() - interval '1 day' $$`
  t.match(await check(db, 'scheduler'), { status: 'fail', detail: /npm run tick last began a job 00:10/, remedy: /npm run tick/ })
  t.match(await check(db, 'jobs'), { status: 'fail', detail: /fleet-mark-silent is late/ })
})

t.test('what cannot work is refused with a sentence', async t => {
  const cron = withCronDatabase(t)
  t.match(await tick(cron.url('fleet_owner')), [{ error: /pg_cron runs the jobs of this database/ }])
  t.same(await cron.sql`select from fleet.ticked_jobs`, [])
  const db = await withDatabase(t)
  await t.rejects(db.sql`select fleet.begin_job('fleet-x', now())`, { code: 'FL404' })
  await t.rejects(db.sql`select fleet.begin_job(null, now())`, { code: 'FL404' })
  await t.rejects(tick(db.url('fleet_dba')), { message: /permission denied to set role|role "fleet_owner"/ })
  const { status, stderr } = spawnSync(process.execPath, [...nodeArgs('cli/tick.ts'), '--always'], {
    env: { ...plainEnv(), DATABASE_URL: db.url('fleet_owner') },
    encoding: 'utf8',
  })
  t.equal(status, 2)
  t.match(stderr, /--always.*\nusage: DATABASE_URL/)
})
