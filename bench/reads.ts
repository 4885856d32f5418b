/*
 * Measures the queries of dashboards, with last status and as they were without it (the newest row of each device from a week of
 * heartbeats), round by round, in SQL and over HTTP, for fleets of growing size. One device in a hundred is offline, and one in
 * two hundred reports that its Unity app is down. The last heartbeat of each other device is stored shortly before the queries,
 * as ingest stores it. Queries run one at a time on an open connection. Each runs --repeats times a round, or for --seconds, but
 * at least twice.
 */
import { Agent, request } from 'node:http'
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
  cohorts: { otherwise: 3, what: 'cohorts of the fleet' },
  beats: { otherwise: 60, what: 'earlier heartbeats of each device, one a minute; fewer for more than 100,000 devices' },
} as const

const LEGACY_NEWEST = `
  select distinct on (h.device_id) h.device_id, h.ts, h.unity_running, h.battery_pct, h.agent_version
  from fleet.device_heartbeats h
  where h.ts > now() - interval '7 days'
  order by h.device_id, h.ts desc
`

interface Query {
  name: string
  ask: () => Promise<unknown>
  /** The most ms that the 95th percentile may be. */
  target?: number
  /** The name of the query with which it is compared. */
  legacy?: string
}

export async function benchReads(args: string[]): Promise<Figure[]> {
  const given = readOptions('bench -- reads', args, options)
  return withStore(async store => {
    const sql = postgres(store.cluster.url('fleet_reader', 'fleet'), { max: 1, onnotice: () => {} })
    const server = await startServer(store, { env: { WORKERS: '1' } })
    try {
      const figures: Figure[] = []
      for (const size of [...given.sizes].sort((a, b) => a - b)) {
        await grow(store, size, given.beats, given.cohorts)
        figures.push(...(await measure(queries(sql, server, size), size, given)))
      }
      return figures
    } finally {
      await sql.end({ timeout: 1 })
      await server.stop()
    }
  })
}

/** Enrolls devices with a history until there are `size`. Then all of them except the offline ones send a heartbeat. */
async function grow({ admin }: Store, size: number, beats: number, cohorts: number) {
  await step(`Enrolling up to ${size.toLocaleString('en')} devices, with a history`, async () => {
    // In bulk, because a million calls of fleet.create_device() take minutes.
    await admin`
      with enrolled as (
        insert into fleet.devices (alias, cohort, token_hash)
        select 'read-' || n, 'cohort-' || n % ${cohorts}::integer, sha256(convert_to('read-' || n, 'UTF8'))
        from generate_series((select count(*) from fleet.devices) + 1, ${size}::integer) n
        returning device_id
      )
      insert into fleet.device_last_status (device_id)
      select device_id from enrolled
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
    await admin`vacuum (analyze) fleet.device_last_status`
    await admin`vacuum (analyze) fleet.devices`
    await admin`analyze fleet.device_heartbeats`
    const [found] = await admin<{ marks: boolean }[]>`select to_regproc('fleet.mark_silent') is not null as marks`
    // pg_cron's own run follows within a minute.
    if (found?.marks) await admin.unsafe('call fleet.mark_silent()')
    await admin`checkpoint`
  })
}

function queries(sql: Sql, server: Server, size: number): Query[] {
  const listTarget = size <= 10_000 ? 10 : 50
  const random = generator(size)
  const device = () => 1 + Math.floor(random() * size)
  const http = async (path: string, body?: object) => {
    const { status, text } = await call(server, path, body)
    if (status >= 400) throw new Error(`${path} answered ${status}: ${text}`)
  }
  return [
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
    { name: 'scrape of /metrics over HTTP', ask: () => http('/metrics'), ...(size <= 10_000 ? { target: 20 } : {}) },
    { name: 'device detail over HTTP', ask: () => http(`/v1/devices/${device()}`), target: 2 },
    { name: 'POST /admin/command', ask: () => http('/admin/command', { device_id: device(), command: 'ping' }), target: 10 },
  ]
}

const agent = new Agent({ keepAlive: true, maxSockets: 1 })

/** Sends one request on a keep-alive connection. fetch() itself takes about as long as the server does. */
export function call(server: Server, path: string, body?: object) {
  return new Promise<{ status: number; text: string }>((resolve, reject) => {
    const asking = request(
      server.url + path,
      {
        agent,
        method: body ? 'POST' : 'GET',
        headers: { 'x-admin': server.adminKey, 'content-type': 'application/json' },
      },
      answer => {
        let text = ''
        answer.setEncoding('utf8')
        answer.on('data', (chunk: string) => {
          text += chunk
        })
        answer.on('end', () => resolve({ status: answer.statusCode ?? 0, text }))
      },
    )
    asking.on('error', reject)
    asking.end(body && JSON.stringify(body))
  })
}

async function measure(
  asked: Query[],
  size: number,
  given: { rounds: number; repeats: number; seconds: number },
): Promise<Figure[]> {
  const took = new Map<string, number[]>(asked.map(({ name }) => [name, []]))
  for (let round = 1; round <= given.rounds; round++) {
    for (const { name, ask } of asked) {
      if (round === 1) await ask()
      const until = performance.now() + given.seconds * 1000
      for (let turn = 0; turn < given.repeats && (turn < 2 || performance.now() < until); turn++) {
        const started = performance.now()
        await ask()
        took.get(name)!.push(performance.now() - started)
      }
    }
    say(`  round ${round} of ${given.rounds}, ${size.toLocaleString('en')} devices`)
  }
  return asked.flatMap(({ name, target, legacy }): Figure[] => {
    const times = took.get(name)!
    const about = `${size.toLocaleString('en')}: ${name}`
    return [
      { name: `${about}, p50`, measured: median(times), unit: 'ms' },
      {
        name: `${about}, p95`,
        measured: percentile(times, 95),
        unit: 'ms',
        ...(target === undefined ? {} : { target: atMost(target) }),
      },
      ...(legacy === undefined
        ? []
        : [{ name: `${about}, times as fast`, measured: median(took.get(legacy)!) / median(times), unit: '' }]),
    ]
  })
}
