/*
 * Measures the views that dashboards read, as fleet_reader, for a fleet in cohorts with a history: some days of heartbeats, 90
 * days of availability, a year of archives, the usual history of pg_cron, samples of silence, and a week of error budgets. One
 * device in a hundred is offline, and one in two hundred reports that its Unity app is down. The others send again before each
 * query, because they become late with time. Queries run one at a time on an open connection. Each runs --repeats times a round,
 * or for --seconds, but at least twice.
 */
import postgres, { type Sql } from 'postgres'
import { say, step } from '../lib/progress.ts'
import { generator } from '../testing/random.ts'
import { atMost, median, percentile, type Figure } from './figure.ts'
import { readOptions } from './options.ts'
import { hearFrom, withStore, type Store } from './store.ts'

const options = {
  devices: { otherwise: 10_000, what: 'devices in the fleet' },
  cohorts: { otherwise: 20, what: 'cohorts of the fleet' },
  days: { otherwise: 3, what: 'days of heartbeats before now' },
  beats: { otherwise: 96, what: 'heartbeats of each device per day' },
  rounds: { otherwise: 3, what: 'number of rounds' },
  repeats: { otherwise: 100, what: 'how often each query runs in a round' },
  seconds: { otherwise: 4, what: 'seconds after which a query is not repeated in that round' },
} as const

/** The most ms for the 95th percentile of a view that a page polls. */
const TARGET = 20

interface Query {
  name: string
  ask: () => Promise<unknown>
  target?: number
}

export async function benchViews(args: string[]): Promise<Figure[]> {
  const given = readOptions('bench -- views', args, options)
  return withStore(async store => {
    await makeFleet(store, given)
    await makePast(store)
    const sql = postgres(store.cluster.url('fleet_reader', 'fleet'), { max: 1, onnotice: () => {} })
    try {
      return await measure(store, await queries(sql, given.devices), given)
    } finally {
      await sql.end({ timeout: 1 })
    }
  })
}

async function makeFleet(
  { admin }: Store,
  { devices, cohorts, days, beats }: { devices: number; cohorts: number; days: number; beats: number },
) {
  await step(`Enrolling ${devices.toLocaleString('en')} devices`, async () => {
    await admin`
      insert into fleet.devices (alias, cohort, token_hash, enrolled_at)
      select 'view-' || n, 'cohort-' || n % ${cohorts}::integer, sha256(convert_to('view-' || n, 'UTF8')), now() - interval '30 days'
      from generate_series(1, ${devices}::integer) n
    `
    await admin`vacuum (analyze) fleet.devices`
  })
  for (let day = days; day >= 1; day--) {
    // The latest heartbeat is a quarter of an hour old, so a device that sends none afterwards is offline.
    await step(
      `Sending their heartbeats, day ${days - day + 1} of ${days}`,
      () => admin`
      insert into fleet.device_heartbeats (ts, received_at, device_id, signal_dbm, battery_pct, unity_running, network_type, agent_version, ip)
      select t.ts, t.ts, d.device_id, -61, 80, true, 'wifi', '3.1.0', '10.0.0.1'
      from fleet.devices d
      cross join generate_series(0, ${beats - 1}::integer) m
      cross join lateral (
        select now() - interval '15 minutes' - (${day}::integer - (m + 1) / ${beats}::float8) * interval '1 day'
          - d.device_id % 60 * interval '100 ms' as ts
      ) t
      on conflict do nothing
    `,
    )
  }
  await step(
    'Rolling up the days',
    () => admin`
    select fleet.roll_up(day::date)
    from generate_series(date_trunc('day', now() - ${days}::integer * interval '1 day', 'UTC'), now() - interval '1 day', interval '1 day') as day
  `,
  )
  await step('Running VACUUM and ANALYZE', async () => {
    await hearFrom(admin)
    await admin`vacuum (analyze) fleet.device_last_status`
    await admin`analyze fleet.device_heartbeats`
    await admin`call fleet.mark_silent()`
    await admin`checkpoint`
  })
}

/** Adds what a store has after a year: the rows that views read in addition to the devices. */
async function makePast({ admin }: Store) {
  await step('Making a year of archives, and the usual history of jobs and samples', async () => {
    await admin`
      insert into fleet.hb_partitions (
        partition_name, range_start, range_end, state, step, row_count, bytes_size, min_ts, max_ts, checksum_sha256, content_checksum,
        archive_url, archive_bytes, archived_at, proven_at, dropped_at
      )
      select 'device_heartbeats_p' || to_char(d.day, 'YYYY_MM_DD'), d.day, d.day + interval '1 day', 'dropped', 'proven', 14400000, 0,
        d.day, d.day, repeat('0', 64), 1, 'file:///archive/' || d.day::date, 100000000, now(), now(), now()
      from (
        select date_trunc('day', min(range_start), 'UTC') - n * interval '1 day' as day
        from fleet.hb_partitions, generate_series(1, 365) n
        group by n
      ) d
    `
    await admin`
      insert into cron.job_run_details (jobid, job_pid, database, username, command, status, return_message, start_time, end_time)
      select j.jobid, 1, j.database, j.username, j.command, 'succeeded', 'CALL', r.at, r.at + interval '100 ms'
      from cron.job j
      cross join lateral generate_series(
        now() - case when j.schedule like '* %' then interval '2 days' else interval '14 days' end, now() - interval '1 minute', case
        when j.schedule like '* %' then interval '1 minute'
        when j.schedule like '*/10 %' then interval '10 minutes'
        when split_part(j.schedule, ' ', 2) = '*' then interval '1 hour'
        else interval '1 day'
      end) as r (at)
      order by r.at
    `
    await admin`
      insert into fleet.device_availability_daily (
        device_id, day, heartbeat_interval, expected, seen, beats, longest_gap, first_ts, last_ts, rolled_up_at
      )
      select d.device_id, n.day, '60 seconds', 1440, 1440 - d.device_id % 20, 1440, '75 seconds', n.day, n.day + interval '23:59:30', now()
      from fleet.devices d
      cross join (select (now() at time zone 'UTC')::date - g from generate_series(1, 90) g) n (day)
      on conflict do nothing
    `
    await admin`
      insert into fleet.rolled_up_days (day, devices)
      select day, count(*) from fleet.device_availability_daily group by day
      on conflict do nothing
    `
    await admin`
      insert into fleet.slo_counts (slo, minute, server, good, bad)
      select slo, date_trunc('minute', now()) - n * interval '1 minute', server, 1000, 1
      from generate_series(0, 7 * 24 * 60) n
      cross join unnest(array['heartbeat_writes', 'dispatch_log']) slo
      cross join unnest(array['one', 'two', 'three', 'four']) server
    `
    await admin`
      insert into fleet.silence_samples (cohort, sampled_at, active, gone_quiet)
      select c.cohort, now() - n * interval '10 minutes', 100, n % 3
      from (select distinct cohort from fleet.devices union all select '(all)') c
      cross join generate_series(1, 1150) n
    `
    await admin`update fleet.silence_watch set sampled_at = '-infinity'`
    await admin`select fleet.watch_silence()`
    await admin`analyze`
  })
}

async function queries(sql: Sql, devices: number): Promise<Query[]> {
  const random = generator(devices)
  const device = () => 1 + Math.floor(random() * devices)
  const polled = [
    'devices_offline',
    'unity_down',
    'fleet_summary',
    'fleet_silence',
    'missed_beats',
    'partition_health',
    'storage_growth',
    'archives',
    'job_health',
    'slo',
    'storage_history',
    'fleet_trend',
  ]
  const others = await sql<{ name: string }[]>`
    select relname as name from pg_class
    where relnamespace = 'fleet'::regnamespace and relkind = 'v' and has_table_privilege(oid, 'select')
      and relname <> all (${`{${polled.join()},device_availability,device_status_legacy}`}::text::text[])
    order by 1
  `
  return [
    {
      name: 'device_status, one device',
      ask: () => sql`select * from fleet.device_status where device_id = ${device()}`,
      target: TARGET,
    },
    {
      name: 'device_status, a page of 100',
      ask: () => sql`select * from fleet.list_devices(null, null, ${device()}, 100)`,
      target: TARGET,
    },
    {
      name: 'device_availability, a year of one device',
      ask: () => sql`select * from fleet.device_availability where device_id = ${device()} and day > current_date - 365`,
      target: TARGET,
    },
    {
      name: 'device_availability(), 30 days of one device',
      ask: () => sql`select * from fleet.device_availability(current_date - 30, current_date, ${device()})`,
      target: TARGET,
    },
    {
      name: 'device_availability(), 30 days before today, of all',
      ask: () => sql`select * from fleet.device_availability(current_date - 30, current_date - 1)`,
    },
    ...polled.map(view => ({ name: view, ask: () => sql`select * from fleet.${sql(view)}`, target: TARGET })),
    ...others.map(({ name }) => ({ name: `${name}, all of it`, ask: () => sql`select * from fleet.${sql(name)}` })),
  ]
}

async function measure(
  { admin }: Store,
  asked: Query[],
  given: { devices: number; rounds: number; repeats: number; seconds: number },
): Promise<Figure[]> {
  const took = new Map<string, number[]>(asked.map(({ name }) => [name, []]))
  for (let round = 1; round <= given.rounds; round++) {
    for (const { name, ask } of asked) {
      await hearFrom(admin)
      if (round === 1) await ask()
      const until = performance.now() + given.seconds * 1000
      for (let turn = 0; turn < given.repeats && (turn < 2 || performance.now() < until); turn++) {
        const started = performance.now()
        await ask()
        took.get(name)!.push(performance.now() - started)
      }
    }
    say(`  round ${round} of ${given.rounds}`)
  }
  return asked.flatMap(({ name, target }): Figure[] => {
    const times = took.get(name)!
    const about = `${given.devices.toLocaleString('en')}: ${name}`
    return [
      { name: `${about}, p50`, measured: median(times), unit: 'ms' },
      {
        name: `${about}, p95`,
        measured: percentile(times, 95),
        unit: 'ms',
        ...(target === undefined ? {} : { target: atMost(target) }),
      },
    ]
  })
}
