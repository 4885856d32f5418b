/*
 * Measures the queries of dashboards, with last status and as they were without it (the newest row of each device from a week of
 * heartbeats), round by round, in SQL and over HTTP, for fleets of growing size. Of 200 devices 2 are offline, 2 late, 2 revoked,
 * 1 was never heard from and 1 reports that its Unity app is down; of 500 devices one has a wrong clock. The others are online,
 * and stay so: before a heartbeat becomes overdue, last status is told that the device was heard from. Queries run one at a time
 * on an open connection. Each runs --repeats times a round, or for --seconds, but at least twice.
 */
import { Agent, request } from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import postgres, { type Sql } from 'postgres'
import { say, step } from '../lib/progress.ts'
import { generator } from '../testing/random.ts'
import { atMost, median, percentile, type Figure } from './figure.ts'
import { readOptions } from './options.ts'
import { hearFrom, startServer, withStore, type Server, type Store } from './store.ts'

const options = {
  sizes: { otherwise: [500, 2_000, 10_000, 1_000_000], what: 'numbers of devices' },
  rounds: { otherwise: 3, what: 'number of rounds' },
  repeats: { otherwise: 100, what: 'how often each query runs in a round' },
  seconds: { otherwise: 4, what: 'seconds after which a query is not repeated in that round' },
  cohorts: { otherwise: [3, 10_000], what: 'numbers of cohorts of the fleet; only those that give a cohort 50 devices or more' },
  beats: { otherwise: 60, what: 'earlier heartbeats of each device, one a minute; fewer for more than 100,000 devices' },
} as const

const LEGACY_NEWEST = `
  select distinct on (h.device_id) h.device_id, h.ts, h.unity_running, h.battery_pct, h.agent_version
  from fleet.device_heartbeats h
  where h.ts > now() - interval '7 days'
  order by h.device_id, h.ts desc
`

const STATUSES = ['online', 'late', 'offline', 'new', 'clock_skewed', 'unity_down', 'revoked', null] as const

interface Query {
  /** Queries of the same name are places of one list. The slowest of them counts. */
  name: string
  ask: () => Promise<unknown>
  /** Seconds to wait before each of a few repeats, so that nothing is kept from the last one. */
  pause?: number
  /** The most ms that the 95th percentile may be. */
  target?: number
  /** The name of the query with which it is compared. */
  legacy?: string
}

export async function benchReads(args: string[]): Promise<Figure[]> {
  const given = readOptions('bench -- reads', args, options)
  return withStore(async store => {
    const sql = postgres(store.cluster.url('fleet_reader', 'fleet'), { max: 1, onnotice: () => {} })
    const dba = postgres(store.cluster.url('fleet_dba', 'fleet'), { max: 1, onnotice: () => {} })
    const server = await startServer(store, { env: { WORKERS: '1' } })
    try {
      const figures: Figure[] = []
      for (const size of [...given.sizes].sort((a, b) => a - b)) {
        const [few, ...more] = given.cohorts.filter(cohorts => cohorts * 50 <= Math.max(size, 150)) as [number, ...number[]]
        await grow(store, size, given.beats, few)
        figures.push(...(await measure(store, await queries(sql, dba, server, size), size, few, given)))
        for (const cohorts of more) {
          await regroup(store, cohorts)
          const asked = (await queries(sql, dba, server, size)).filter(({ name }) => !/newest heartbeat|over one|POST/.test(name))
          figures.push(...(await measure(store, asked, size, cohorts, given)))
        }
      }
      return figures
    } finally {
      await sql.end({ timeout: 1 })
      await dba.end({ timeout: 1 })
      await server.stop()
    }
  })
}

/** Enrolls devices with a history until there are `size`. Then all of them except the offline ones send a heartbeat. */
async function grow({ admin }: Store, size: number, beats: number, cohorts: number) {
  await step(`Enrolling up to ${size.toLocaleString('en')} devices, with a history`, async () => {
    // In bulk, because a million calls of fleet.create_device() take minutes.
    await admin`
      insert into fleet.devices (alias, cohort, token_hash, revoked_at)
      select 'read-' || n, 'cohort-' || n % ${cohorts}::integer, sha256(convert_to('read-' || n, 'UTF8')),
        case when n % 100 = 5 then now() end
      from generate_series((select count(*) from fleet.devices) + 1, ${size}::integer) n
    `
    const past = Math.max(1, Math.min(beats, Math.floor(6_000_000 / size)))
    // The latest heartbeat is 13 minutes old, so a device that sends none afterwards is offline. The trigger fills last status,
    // as at ingest.
    await admin`
      insert into fleet.device_heartbeats (ts, received_at, device_id, signal_dbm, battery_pct, unity_running, network_type, agent_version, ip)
      select t.ts, t.ts, ls.device_id, -61, 80, true, 'wifi', '3.1.0', '10.0.0.1'
      from fleet.device_last_status ls
      cross join generate_series(0, ${past - 1}::integer) m
      cross join lateral (
        select now() - interval '13 minutes' - m * interval '1 minute' - ls.device_id % 60 * interval '100 ms' as ts
      ) t
      where ls.last_ts is null
    `
  })
  await step('Sending their heartbeats', async () => {
    await hearFrom(admin)
    await admin`
      update fleet.device_last_status
      set last_ts = case when device_id % 200 <> 3 then last_ts end,
        last_received_at = case when device_id % 200 <> 3 then last_received_at end,
        status = case when device_id % 500 = 4 then 'clock_skewed' when device_id % 200 <> 3 then status end
      where device_id % 500 = 4 or device_id % 200 = 3
    `
    await hearAgain(admin)
    await settle(admin)
  })
}

/** Puts all devices into so many cohorts. */
async function regroup({ admin }: Store, cohorts: number) {
  await step(`Making ${cohorts.toLocaleString('en')} cohorts`, async () => {
    // Without the triggers: no server has a token of these devices.
    await admin.begin(sql => [
      sql`set local session_replication_role = replica`,
      sql`update fleet.devices set cohort = 'cohort-' || device_id % ${cohorts}::integer`,
    ])
    await settle(admin)
  })
}

async function settle(admin: Sql) {
  await admin`vacuum (analyze) fleet.device_last_status`
  await admin`vacuum (analyze) fleet.devices`
  await admin`analyze fleet.device_heartbeats`
  await admin`checkpoint`
}

/** All that are online or late were heard from: just now, or four minutes ago. Then the job runs that pg_cron runs each minute. */
async function hearAgain(admin: Sql) {
  await admin`
    update fleet.device_last_status
    set last_received_at = now() - case when device_id % 100 = 2 then interval '4 minutes' else device_id % 30 * interval '1 s' end
    where device_id % 100 <> 1 and device_id % 200 <> 3
  `
  await admin.unsafe('call fleet.mark_silent()')
}

async function queries(sql: Sql, dba: Sql, server: Server, size: number): Promise<Query[]> {
  const listTarget = size <= 10_000 ? 10 : 50
  const random = generator(size)
  const device = (): number => {
    const id = 1 + Math.floor(random() * size)
    return id % 100 === 5 ? device() : id // not a revoked one
  }
  const http = async (path: string, body?: object) => {
    const { status, text } = await call(server, path, body)
    if (status >= 400) throw new Error(`${path} answered ${status}: ${text}`)
  }
  const login = await call(server, '/login', new URLSearchParams({ key: server.adminKey, next: '/' }))
  const cookie = login.cookie
  const page = async () => {
    const { status, text } = await call(server, '/', undefined, { cookie })
    if (status !== 200 || !text.includes('id="headline"') || text.includes('could not be read'))
      throw new Error(`the ops page answered ${status}: ${text.slice(0, 2_000)}`)
  }
  const lists = STATUSES.flatMap(status =>
    [undefined, 'cohort-1'].flatMap(cohort => [
      ...[0, Math.floor(size / 2), Math.floor(size * 0.999)].map((after): Query => {
        const ask = () => sql`select * from fleet.list_devices(${status}, null, ${after}, 100, ${cohort ?? null})`
        return { name: `any page of devices, ${status ?? 'any status'}`, ask, target: listTarget }
      }),
      {
        name: `any page of devices, ${status ?? 'any status'}`,
        ask: () =>
          http(`/v1/devices?${new URLSearchParams({ ...(status && { status }), ...(cohort && { cohort }) }).toString()}`),
        target: listTarget,
      },
    ]),
  )
  return [
    ...(size >= 50_000 ? lists : []),
    {
      name: 'offline list, newest heartbeats',
      ask: () => sql`
        select d.device_id, d.alias, n.ts
        from (${sql.unsafe(LEGACY_NEWEST)}) n
        join fleet.devices d using (device_id)
        where d.revoked_at is null and n.ts < now() - interval '12 minutes'
        order by n.ts
      `,
    },
    {
      name: 'offline list, fleet.devices_offline',
      ask: () => sql`select device_id, alias, last_ts from fleet.devices_offline`,
      target: listTarget,
      legacy: 'offline list, newest heartbeats',
    },
    {
      name: 'offline list, the first 100 of fleet.devices_offline',
      ask: () => sql`select device_id, alias, last_ts from fleet.devices_offline limit 100`,
      target: listTarget,
    },
    {
      name: 'offline list, a page over HTTP',
      ask: () => http('/v1/devices?status=offline&older_than=12m&limit=100'),
      target: listTarget,
    },
    {
      name: 'unity down, newest heartbeats',
      ask: () => sql`
        select d.device_id, d.alias, n.ts
        from (${sql.unsafe(LEGACY_NEWEST)}) n
        join fleet.devices d using (device_id)
        where d.revoked_at is null and n.unity_running is false and n.ts >= now() - interval '12 minutes'
        order by n.ts desc
      `,
    },
    {
      name: 'unity down, fleet.unity_down',
      ask: () => sql`select device_id, alias, last_ts from fleet.unity_down`,
      target: listTarget,
      legacy: 'unity down, newest heartbeats',
    },
    {
      name: 'device detail, newest heartbeat',
      ask: () => sql`
        select d.alias, h.*
        from fleet.devices d
        left join lateral (
          select b.* from fleet.device_heartbeats b
          where b.device_id = d.device_id and b.ts > now() - interval '7 days'
          order by b.ts desc
          limit 1
        ) h on true
        where d.device_id = ${device()}
      `,
    },
    {
      name: 'device detail, fleet.device_status',
      ask: () => sql`select * from fleet.device_status where device_id = ${device()}`,
      target: 2,
      legacy: 'device detail, newest heartbeat',
    },
    { name: 'fleet.fleet_summary', ask: () => sql`select * from fleet.fleet_summary`, target: 50 },
    {
      name: 'fleet.fleet_silence, for a scrape once a minute',
      ask: () => sql`select * from fleet.fleet_silence`,
      target: 50,
    },
    { name: 'fleet.fleet_trend', ask: () => sql`select * from fleet.fleet_trend`, target: 50 },
    { name: 'fleet.missed_beats, the first 100', ask: () => sql`select * from fleet.missed_beats limit 100` },
    { name: 'fleet.check()', ask: () => dba`select * from fleet.check()`, target: 500 },
    { name: 'scrape of /metrics over HTTP', ask: () => http('/metrics'), target: size <= 10_000 ? 20 : 100 },
    { name: 'ops page over HTTP', ask: page, target: 300 },
    ...(size >= 50_000
      ? [
          { name: 'scrape of /metrics over HTTP, the first of a minute', ask: () => http('/metrics'), pause: 61, target: 100 },
          { name: 'ops page over HTTP, nothing kept', ask: page, pause: 31, target: 300 },
        ]
      : []),
    { name: 'device detail over HTTP', ask: () => http(`/v1/devices/${device()}`), target: 2 },
    { name: 'POST /admin/command', ask: () => http('/admin/command', { device_id: device(), command: 'ping' }), target: 10 },
  ]
}

const agent = new Agent({ keepAlive: true, maxSockets: 1 })

/** Sends one request on a keep-alive connection, a form if the body is one. fetch() itself takes about as long as the server does. */
export function call(server: Server, path: string, body?: object, headers: Record<string, string> = {}) {
  return new Promise<{ status: number; text: string; cookie: string }>((resolve, reject) => {
    const isForm = body instanceof URLSearchParams
    const asking = request(
      server.url + path,
      {
        agent,
        method: body ? 'POST' : 'GET',
        headers: {
          'x-admin': server.adminKey,
          'content-type': isForm ? 'application/x-www-form-urlencoded' : 'application/json',
          ...(isForm && { origin: server.url }),
          ...headers,
        },
      },
      answer => {
        let text = ''
        answer.setEncoding('utf8')
        answer.on('data', (chunk: string) => {
          text += chunk
        })
        const cookie = answer.headers['set-cookie']?.[0]?.split(';')[0] ?? ''
        answer.on('end', () => resolve({ status: answer.statusCode ?? 0, text, cookie }))
      },
    )
    asking.on('error', reject)
    asking.end(isForm ? body.toString() : body && JSON.stringify(body))
  })
}

async function measure(
  { admin }: Store,
  asked: Query[],
  size: number,
  cohorts: number,
  given: { rounds: number; repeats: number; seconds: number },
): Promise<Figure[]> {
  const took = new Map<Query, number[]>(asked.map(query => [query, []]))
  let heardAt = -Infinity
  // A heartbeat is overdue after 105 s, and the oldest is then 30 s older.
  const keepOnline = async (within: number) => {
    if (performance.now() - heardAt + within < 45_000) return
    await hearAgain(admin)
    heardAt = performance.now()
  }
  for (let round = 1; round <= given.rounds; round++) {
    for (const query of asked) {
      const { ask, pause = 0 } = query
      if (pause === 0) await keepOnline(given.seconds * 1_000)
      if (round === 1) await ask()
      const until = performance.now() + given.seconds * 1_000
      const repeats = pause === 0 ? given.repeats : 2
      for (let turn = 0; turn < repeats && (turn < 2 || pause > 0 || performance.now() < until); turn++) {
        if (pause > 0) {
          await sleep(pause * 1_000 - 15_000)
          await hearAgain(admin)
          heardAt = performance.now()
          await sleep(15_000)
        }
        const started = performance.now()
        await ask()
        took.get(query)!.push(performance.now() - started)
      }
    }
    say(`  round ${round} of ${given.rounds}, ${size.toLocaleString('en')} devices, ${cohorts.toLocaleString('en')} cohorts`)
  }
  const slowest = (name: string, of: (times: number[]) => number) =>
    Math.max(...asked.filter(query => query.name === name).map(query => of(took.get(query)!)))
  const named = new Map(asked.map(query => [query.name, query]))
  return [...named.values()].flatMap(({ name, target, legacy }): Figure[] => {
    const about = `${size.toLocaleString('en')} in ${cohorts.toLocaleString('en')} cohorts: ${name}`
    const p50 = slowest(name, median)
    return [
      { name: `${about}, p50`, measured: p50, unit: 'ms' },
      {
        name: `${about}, p95`,
        measured: slowest(name, times => percentile(times, 95)),
        unit: 'ms',
        ...(target === undefined ? {} : { target: atMost(target) }),
      },
      ...(legacy === undefined || !named.has(legacy)
        ? []
        : [{ name: `${about}, times as fast`, measured: slowest(legacy, median) / p50, unit: '' }]),
    ]
  })
}
