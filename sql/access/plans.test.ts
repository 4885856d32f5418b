// What the policies cost: nothing for those who see everything, whose plans do not change, and an index for those who see a little.
import type { ISql, Sql } from 'postgres'
import t from 'tap'
import { withDatabase } from '../../testing/database.ts'
import { createReader } from '../../testing/readers.ts'

const DEVICES = 6000
const DAY = `ts >= now() - interval '1 day'`

/** For all who see every device. */
const VIEWS = [
  'select * from fleet.device_status where device_id = 42',
  `select * from fleet.device_status where alias = 'device-42'`,
  `select * from fleet.device_status where cohort = 'small-7'`,
  'select * from fleet.device_status where battery_pct < 20',
  `select * from fleet.device_status where last_received_at < now() - interval '1 hour'`,
  'select status, count(*) from fleet.device_status group by status',
  'select * from fleet.device_status order by device_id limit 10',
  'select * from fleet.devices_offline',
  'select * from fleet.devices_offline limit 10',
  'select * from fleet.fleet_summary',
  'select * from fleet.recent_changes limit 20',
  'select * from fleet.unreadable_fields',
]
/** For dashboards. */
const TABLES = [
  'select * from fleet.unity_down limit 10',
  'select * from fleet.missed_beats',
  'select * from fleet.device_availability where device_id = 42 and day > current_date - 365',
  'select * from fleet.device_availability where day = current_date - 1',
  `select * from fleet.device_heartbeats where device_id = 42 and ${DAY} order by ts`,
  `select date_bin('10 minutes', ts, '2000-01-01Z') as time, count(*) from fleet.device_heartbeats where ${DAY} group by 1`,
  `select d.cohort, count(*) from fleet.devices d join fleet.device_heartbeats h using (device_id) where ${DAY} group by 1`,
  'select * from fleet.device_transitions where device_id = 42 order by transition_id desc limit 10',
  `select cohort, count(*) from fleet.device_transitions where event = 'offline' and at > now() - interval '7 days' group by 1`,
  'select * from fleet.device_commands where device_id = 42',
]

const explain = async (sql: ISql, query: string) =>
  (await sql.unsafe(`explain ${query}`)).map(row => row['QUERY PLAN'] as string).join('\n')

t.test('for everybody who sees all devices, the policies and the rights of the login change no plan', async t => {
  const db = await withDatabase(t)
  const { admin } = db
  await fill(admin)
  const logins = {
    fleet_owner: [...VIEWS, ...TABLES],
    fleet_reader: [...VIEWS, ...TABLES],
    fleet_dba: [...VIEWS, ...TABLES],
    fleet_server: VIEWS,
  }
  const plans = async (sql: ISql) => {
    const found: string[] = []
    for (const [role, queries] of Object.entries(logins)) {
      await sql.unsafe(`set local session authorization ${role}`)
      for (const query of queries) found.push(`${role}: ${query}\n${await explain(sql, query)}`)
      await sql`reset session authorization`
    }
    return found
  }
  // In one transaction, because the rows that are expected in the last hour depend on now().
  const { now, before } = await admin.begin(async sql => {
    const now = await plans(sql)
    // As before: no policies, and views with the rights of their owner.
    await sql.unsafe(`do $$ declare v_name text; begin
      for v_name in select distinct p.polrelid::regclass from pg_policy p loop
        execute format('alter table %s disable row level security', v_name);
      end loop;
      for v_name in select c.oid::regclass from pg_class c where 'security_invoker=true' = any (c.reloptions) loop
        execute format('alter view %s set (security_invoker = false)', v_name);
      end loop;
    end $$`)
    return { now, before: await plans(sql) }
  })
  t.ok(
    now.some(plan => /device_last_status_silent_idx/.test(plan)),
    'there is something to see',
  )
  t.notOk(
    now.some(plan => /SubPlan|seen_cohorts\(\)\)/.test(plan)),
    'no policy is left in a plan',
  )
  for (const [n, plan] of now.entries()) t.equal(plan, before[n], plan.split('\n')[0]!)
})

t.test('a reader of a small cohort finds its devices by an index', async t => {
  const db = await withDatabase(t)
  await fill(db.admin)
  const { sql } = await createReader(t, db, ['small-7'])
  // In all of these, last status and heartbeats are read for its devices only.
  for (const query of [
    'select * from fleet.device_status',
    `select * from fleet.device_status where alias = 'device-42'`,
    'select * from fleet.device_status where device_id = 42',
    'select * from fleet.fleet_summary',
    'select * from fleet.missed_beats',
    `select * from fleet.device_heartbeats where device_id = 42 and ${DAY} order by ts`,
  ]) {
    const plan = await explain(sql, query)
    t.notMatch(
      plan,
      /Seq Scan on (devices|device_last_status|device_heartbeats_p\w+) (?!.*cost=0\.00\.\.0\.00)/,
      `${query}\n${plan}`,
    )
    if (!/= 42|device-42/.test(query)) t.match(plan, /devices_cohort_idx[^]*Index Cond: \(cohort = ANY/, query)
  }
  for (const query of ['select * from fleet.devices_offline', 'select * from fleet.unity_down']) {
    const rows = await sql.unsafe(`explain (analyze, timing off, summary off) ${query}`)
    const plan = rows.map(row => row['QUERY PLAN'] as string).join('\n')
    t.notMatch(plan, /Seq Scan on (devices|device_last_status) (?!.*never executed)/, plan)
  }
})

/** 6,000 devices, half of them in one cohort; in each hundred some are late, offline, new, skewed or have Unity down. */
async function fill(admin: Sql) {
  await admin`
    insert into fleet.devices (alias, cohort, token_hash, revoked_at)
    select 'device-' || n, case when n % 2 > 0 then 'large' else 'small-' || n / 2 % 97 end, sha256(n::text::bytea),
      case when n % 50 = 6 then now() end
    from generate_series(1, ${DEVICES}::integer) n`
  await admin`
    update fleet.device_last_status
    set last_ts = s.heard_at, last_received_at = s.heard_at, unity_running = device_id % 50 <> 5, battery_pct = device_id % 100,
      status = case when device_id % 100 = 4 then 'clock_skewed' when device_id % 50 = 5 then 'unity_down' else 'ok' end
    from (values (1, interval '4 minutes'), (2, interval '1 hour')) late (n, ago)
    right join generate_series(0, 49) m on m = late.n
    cross join lateral (select now() - coalesce(late.ago, interval '5 s') as heard_at) s
    where device_id % 50 = m and m <> 3`
  await admin`
    insert into fleet.device_heartbeats (ts, device_id, battery_pct)
    select now() - g * interval '10 minutes', d.device_id, 50 from fleet.devices d, generate_series(1, 5) g`
  await admin`
    insert into fleet.device_transitions (position, device_id, cohort, at, since, event, status, previous_status)
    select d.device_id, d.device_id, d.cohort, now() - d.device_id * interval '10 s', now(), 'offline', 'offline', 'late'
    from fleet.devices d`
  await admin`
    insert into fleet.device_availability_daily (device_id, day, expected, seen, beats, heartbeat_interval, longest_gap)
    select d.device_id, current_date - g, 1440, 1400, 1400, '1 minute', '5 minutes' from fleet.devices d, generate_series(1, 3) g`
  await admin`call fleet.mark_silent()`
  await admin`vacuum analyze`
}
