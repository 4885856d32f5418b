import t from 'tap'
import { withDatabase } from '../../testing/database.ts'
import { asRole, startedAgo } from '../../testing/fleet.ts'

t.test('fleet.slo shows the error budgets of the last hour', async t => {
  const db = await withDatabase(t)
  const server = asRole(t, db, 'fleet_server')
  const reader = asRole(t, db, 'fleet_reader')
  const record = (name: string, minutesAgo: number, good: number, bad: number, slo = 'heartbeat_writes') => server`
    select fleet.record_slo(${name}, json_build_array(json_build_object(
      'slo', ${slo}::text, 'minute', date_trunc('minute', now()) - make_interval(mins => ${minutesAgo}), 'good', ${good}::bigint, 'bad', ${bad}::bigint
    )))
  `
  const look = () =>
    reader`select slo, good::int, bad::int, ratio::float8, budget_left::float8, status from fleet.slo order by slo desc`
  t.same(await look(), [
    { slo: 'heartbeat_writes', good: 0, bad: 0, ratio: null, budget_left: 1, status: 'idle' },
    { slo: 'dispatch_log', good: 0, bad: 0, ratio: null, budget_left: 1, status: 'idle' },
  ])
  t.same(await reader`select slo, target::float8, period::text from fleet.slo order by slo desc`, [
    { slo: 'heartbeat_writes', target: 0.005, period: '01:00:00' },
    { slo: 'dispatch_log', target: 0.002, period: '01:00:00' },
  ])

  await record('a', 61, 0, 1_000_000)
  await record('a', 30, 9_000, 10)
  await record('b', 30, 990, 0)
  await record('b', 1, 0, 10, 'dispatch_log')
  t.same(
    await look(),
    [
      { slo: 'heartbeat_writes', good: 9_990, bad: 10, ratio: 0.001, budget_left: 0.8, status: 'ok' },
      { slo: 'dispatch_log', good: 0, bad: 10, ratio: 1, budget_left: -499, status: 'fail' },
    ],
    'of both processes, without older minutes',
  )

  await record('a', 30, 9_000, 10)
  await record('a', 30, 8_000, 9)
  t.match((await look())[0], { good: 9_990, bad: 10 }, 'totals that are sent again or late are not counted twice')

  await record('a', 30, 9_000, 40)
  t.match((await look())[0], { bad: 40, status: 'warn' })
  await record('a', 29, 0, 20)
  t.match((await look())[0], { bad: 60, status: 'fail' })
  await t.rejects(reader`select * from fleet.slo_counts`, { code: '42501' })

  await db.sql`select fleet.prune(now() + interval '6 days 23 hours')`
  t.same((await db.sql`select distinct server from fleet.slo_counts`).length, 2)
  await db.sql`select fleet.prune(now() + interval '8 days')`
  t.same(await db.sql`select from fleet.slo_counts`, [])
})

t.test('the age of each job is known even if pg_cron is in another database', async t => {
  const { sql, admin } = await withDatabase(t)
  const ages = async () =>
    Object.fromEntries(
      (
        await sql`
    select labels ->> 'job' as job, round(value / 3600)::int as hours from fleet.metric_values() where metric = 'scheduler_last_run_age_seconds'
  `
      ).map(({ job, hours }) => [job as string, hours as number]),
    )
  await sql`update fleet.hb_partitions set created_at = now() - interval '5 hours'`
  t.same(await ages(), { 'fleet-maintain': 5, 'fleet-nightly': 5, 'fleet-reconcile': 5 }, 'jobs that never ran count from setup')
  await sql`call fleet.maintain()`
  await sql`select fleet.reconcile()`
  t.match(await ages(), { 'fleet-maintain': 0, 'fleet-reconcile': 0 })

  await admin`update fleet.events set at = at - interval '3 hours'`
  await startedAgo(admin, '1 minute')
  const scheduler = async () => (await sql`select status, detail from fleet.check() where check_name = 'scheduler'`)[0]
  t.match(
    await ages(),
    { 'fleet-maintain': 0, 'fleet-reconcile': 0, 'fleet-nightly': 5 },
    'Postgres has just started; a job that never ran is as old as the store',
  )
  t.match(await scheduler(), { status: 'ok', detail: /the hourly maintenance runs/ })
  await startedAgo(admin, '1 day')
  t.match(await ages(), { 'fleet-maintain': 3, 'fleet-reconcile': 3, 'fleet-nightly': 5 })
  t.match(await scheduler(), { status: 'warn', detail: /no maintenance ran in the last two hours/ })
})
