// How pages of lists are read, by the plans that auto_explain shows: by indexes, in order, and no more rows than a page needs.
import postgres from 'postgres'
import t from 'tap'
import { withDatabase } from '../../testing/database.ts'

const DEVICES = 12_000
const LIMIT = 50
const STATUSES = ['online', 'late', 'offline', 'new', 'clock_skewed', 'unity_down', 'revoked', null] as const
/** One is larger than list_devices() reads device by device, and the others are smaller. */
const COHORTS = [null, 'large', 'small-7'] as const

interface Plan {
  'Node Type': string
  'Relation Name'?: string
  'Actual Rows': number
  'Actual Loops': number
  'Rows Removed by Filter'?: number
  Plans?: Plan[]
}

t.test('a page of a list reads what it shows, for each status and in each place', async t => {
  const db = await withDatabase(t)
  const { admin } = db
  await admin`
    insert into fleet.devices (alias, cohort, token_hash, revoked_at)
    select 'device-' || n, case when n % 3 > 0 then 'large' else 'small-' || n / 3 % 41 end, sha256(n::text::bytea),
      case when n % 50 = 6 then now() end
    from generate_series(1, ${DEVICES}::integer) n`
  // In a hundred devices: 2 late, 2 offline, 2 new, 1 with a wrong clock, 2 with Unity down, 2 revoked; the rest is online.
  await admin`
    update fleet.device_last_status
    set last_ts = s.heard_at, last_received_at = s.heard_at, unity_running = device_id % 50 <> 5,
      status = case when device_id % 100 = 4 then 'clock_skewed' when device_id % 50 = 5 then 'unity_down' else 'ok' end
    from (values (1, interval '4 minutes'), (2, interval '1 hour')) late (n, ago)
    right join generate_series(0, 49) m on m = late.n
    cross join lateral (select now() - coalesce(late.ago, interval '5 s') as heard_at) s
    where device_id % 50 = m and m <> 3`
  await admin`call fleet.mark_silent()`
  for (const table of ['devices', 'device_last_status']) await admin`vacuum (analyze) fleet.${admin(table)}`

  const plans: { query: string; plan: Plan }[] = []
  const session = postgres(db.url('postgres'), {
    max: 1,
    onnotice: ({ message }) => {
      const json = message?.slice(message.indexOf('{'))
      if (!message?.startsWith('duration:') || json === undefined) return
      const { 'Query Text': query, Plan: plan } = JSON.parse(json) as { 'Query Text': string; Plan: Plan }
      plans.push({ query, plan })
    },
  })
  t.teardown(() => session.end({ timeout: 1 }))
  await session`load 'auto_explain'`
  for (const [name, value] of Object.entries({
    log_min_duration: '0',
    log_analyze: 'on',
    log_timing: 'off',
    log_nested_statements: 'on',
    log_format: 'json',
    log_level: 'notice',
  }))
    await session`select set_config(${'auto_explain.' + name}, ${value}, false)`

  /** The nodes that read devices or their last status, and those that sort. */
  const nodesOf = (plan: Plan): Plan[] => [plan, ...(plan.Plans ?? []).flatMap(nodesOf)].filter(node => node['Actual Loops'] > 0)
  const readsOf = (plan: Plan) =>
    nodesOf(plan).filter(node => ['devices', 'device_last_status'].includes(node['Relation Name'] ?? ''))
  const rowsOf = (plan: Plan) =>
    readsOf(plan).reduce(
      (rows, node) => rows + (node['Actual Rows'] + (node['Rows Removed by Filter'] ?? 0)) * node['Actual Loops'],
      0,
    )
  const explained = async (ask: () => Promise<unknown>, query: RegExp) => {
    plans.length = 0
    await ask()
    return plans.filter(one => query.test(one.query)).map(({ plan }) => plan)
  }

  for (const status of STATUSES)
    for (const cohort of COHORTS)
      for (const after of [0, DEVICES / 2, DEVICES - 150, DEVICES]) {
        const what = `${status ?? 'any'}, cohort ${cohort ?? 'any'}, after ${after}`
        let ids: number[] = []
        const [plan, ...others] = await explained(async () => {
          const rows = await session<{ id: number }[]>`
            select device_id::int as id from fleet.list_devices(${status}, null, ${after}, ${LIMIT}, ${cohort})`
          ids = rows.map(({ id }) => id)
        }, /^select [dr]\.\* from /)
        t.equal(others.length, 0, what)
        const bad = nodesOf(plan!).filter(
          node => /Sort|Hash/.test(node['Node Type']) || (readsOf(node).includes(node) && !/^Index/.test(node['Node Type'])),
        )
        t.same(
          bad.map(node => node['Node Type']),
          [],
          `${what}: only by an index, in its order`,
        )
        // Each candidate is read up to three times. A cohort of 100 devices is read to its end; of a large one two in three match.
        // Late devices have no index: up to 50 others are read for each of them.
        const candidates = cohort === 'small-7' ? 100 : cohort === 'large' ? 2 * LIMIT : LIMIT + 10
        const bound = status === 'late' ? 50 * candidates : 6 * candidates
        t.ok(rowsOf(plan!) <= bound, `${what}: ${rowsOf(plan!)} rows, at most ${bound}`)

        const plain = await admin<{ id: number }[]>`
          select device_id::int as id
          from (
            select device_id, cohort, status, unity_running from fleet.device_status
            union all
            select device_id, cohort, 'revoked', null from fleet.devices where revoked_at is not null
          ) d
          where device_id > ${after} and (${cohort}::text is null or cohort = ${cohort})
            and (
              status = ${status} or ${status}::text is null and status <> 'revoked'
              or ${status} = 'unity_down' and unity_running is false and status in ('online', 'late', 'clock_skewed')
            )
          order by device_id limit ${LIMIT}`
        t.same(
          ids,
          plain.map(({ id }) => id),
          `${what}: the devices themselves`,
        )
        if (after === 0) t.ok(ids.length > 0, `${what}: there are such devices`)
      }

  for (const view of ['devices_offline', 'unity_down']) {
    const [plan] = await explained(() => session.unsafe(`select * from fleet.${view} limit 10`), /limit 10/)
    t.ok(rowsOf(plan!) <= 400, `the first of ${view}: ${rowsOf(plan!)} rows`)
    t.notOk(
      nodesOf(plan!).some(node => node['Node Type'] === 'Seq Scan' && readsOf(node).includes(node)),
      view,
    )
  }
})
