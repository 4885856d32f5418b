// Measures tests B to E of document 000, and the criteria of 001, 002 and 004 for heartbeats and reads.
import { setTimeout as sleep } from 'node:timers/promises'
import postgres, { type Sql } from 'postgres'
import { step } from '../../lib/progress.ts'
import { generator } from '../random.ts'
import { topology, withHaproxy } from '../topology.ts'
import { paused } from '../drills/faults.ts'
import { heartbeats } from '../drills/invariants.ts'
import { percentile } from '../../bench/figure.ts'
import { startSender } from '../../bench/heartbeats.ts'
import { sendFleet, type Used } from '../../bench/load.ts'
import { call } from '../../bench/reads.ts'
import { schedule, type Fleet } from '../../bench/schedule.ts'
import type { Acknowledged, Sent } from '../../bench/sender.ts'
import { enroll, startServer, type Device, type Server } from '../../bench/store.ts'
import type { RunStore } from './store.ts'
import { atLeast, atMost, equal, shown, type Line } from './table.ts'

/** Checks that each acknowledged heartbeat is stored exactly once. */
async function kept({ admin }: RunStore, source: string, about: string, devices: Device[], beats: Acknowledged[]) {
  const wrong = await heartbeats(
    admin,
    beats.map(({ template, ts, status }) => ({ device_id: devices[template]!.device_id, ts, status })),
  )
  return equal(
    source,
    `${about}: acknowledged heartbeats that are not stored exactly once, of ${beats.length.toLocaleString('en')}`,
    wrong.length,
    0,
    wrong.length > 0 ? { note: wrong.slice(0, 3).join('; ') } : {},
  )
}

/** The criteria that every load must meet. */
async function common(
  source: string,
  about: string,
  store: RunStore,
  devices: Device[],
  { sent, used, beats }: { sent: Sent; used: Used; beats: Acknowledged[] },
): Promise<Line[]> {
  return [
    equal(source, `${about}: errors of any kind`, sent.errors, 0),
    await kept(store, source, about, devices, beats),
    equal(source, `${about}: hb_writes_failed_total`, used.counted('hb_writes_failed_total'), 0),
  ]
}

const cpu = ({ serverCpu, postgresCpu }: Used) => serverCpu + postgresCpu
const pool = ({ counted }: Used) => 100 * (1 - counted('db_pool_waits_total') / Math.max(1, counted('db_pool_statements_total')))

/**
 * Each device posts one heartbeat that is a minute old; one device in a hundred posts one that is 20 minutes old. Then the
 * queries of test B run.
 */
export async function fastPath(store: RunStore, repeats: number): Promise<Line[]> {
  const {
    admin,
    kept: { devices },
  } = store
  const server = await startServer(store)
  const sender = startSender()
  const reader = postgres(store.cluster.url('fleet_reader', 'fleet'), { max: 1, onnotice: () => {} })
  try {
    await sender.connect(server.port, 1_000, devices)
    const at = Float64Array.from(devices, (_, index) => index)
    const sent = await sender.open(
      {
        at,
        device: Int32Array.from(devices, (_, index) => index),
        ts: Float64Array.from(at, (ms, index) => ms - (index % 100 === 1 ? 20 : 1) * 60_000),
        retried: 0,
      },
      0,
    )
    // As if each heartbeat had arrived at its ts.
    await admin.unsafe(`update fleet.device_last_status set last_received_at = last_ts, status = 'ok' where last_ts is not null`)
    await admin.unsafe('call fleet.mark_silent()')
    const offline = devices.filter((_, index) => index % 100 === 1).length
    const listed = (await reader`select from fleet.list_devices('offline', '12 minutes', 0, 100000)`).length
    const random = generator(1)
    const device = () => devices[Math.floor(random() * devices.length)]!.device_id
    const http = async (path: string, body?: object) => {
      const { status, text } = await call(server, path, body)
      if (status >= 400) throw new Error(`${path} answered ${status}: ${text}`)
    }
    const p95 = async (ask: () => PromiseLike<unknown>, turns = repeats) => {
      await ask()
      const times: number[] = []
      for (let turn = 0; turn < turns; turn++) {
        const started = performance.now()
        await ask()
        times.push(performance.now() - started)
      }
      return percentile(times, 95)
    }
    const about = `${devices.length.toLocaleString('en')} devices`
    const legacy = await p95(
      () => admin`
      select count(*) from (
        select distinct on (h.device_id) h.device_id, h.ts from fleet.device_heartbeats h where h.ts > now() - interval '7 days'
        order by h.device_id, h.ts desc
      ) n where n.ts < now() - interval '12 minutes'
    `,
      3,
    )
    const fast = await p95(() => reader`select * from fleet.list_devices('offline', '12 minutes', 0, 100000)`)
    return [
      equal('000 B', `${about} updated by POST: answered`, sent.ok, devices.length),
      equal('000 B', 'offline for more than 12 minutes: listed', listed, offline),
      atMost('000 B', `the whole list in SQL, p95 of ${repeats}`, fast, 200, 'ms'),
      atMost(
        '000 B',
        'one page of it over HTTP, p95',
        await p95(() => http('/v1/devices?status=offline&older_than=12m&limit=100')),
        200,
        'ms',
      ),
      atMost(
        '000 B',
        'last metrics of a device in SQL, p95',
        await p95(() => reader`select * from fleet.device_status where device_id = ${device()}`),
        20,
        'ms',
      ),
      atMost('000 B', 'last metrics of a device over HTTP, p95', await p95(() => http(`/v1/devices/${device()}`)), 20, 'ms'),
      atMost('000 4', 'Unity down now, p95', await p95(() => reader`select * from fleet.unity_down`), 20, 'ms'),
      atMost(
        '000 4',
        'POST /admin/command, insert and log, p95',
        await p95(() => http('/admin/command', { device_id: device(), command: 'ping' })),
        60,
        'ms',
      ),
      atMost(
        '004',
        'the slowest of these queries, p95',
        Math.max(fast, await p95(() => reader`select * from fleet.fleet_summary`)),
        50,
        'ms',
        { note: 'fleet_summary and the offline list' },
      ),
      shown(
        '001 3',
        'offline list from a week of heartbeats, of 3',
        'about 800 ms',
        `${Math.round(legacy)} ms, ${Math.round(legacy / fast)} times as long`,
      ),
      equal('002 5', 'the status for a device that does not exist', (await call(server, '/v1/devices/999999999')).status, 404),
    ]
  } finally {
    sender.end()
    await reader.end({ timeout: 1 })
    await server.stop()
  }
}

export interface LoadOf {
  source: string
  about: string
  fleet: Fleet
  /** The index of its first device among all devices. */
  first: number
  warmup: number
  note?: string | undefined
  p95: number
  p99: number
}

/** Measures a fleet that sends at its usual intervals. */
export async function load(store: RunStore, { source, about, fleet, first, warmup, note, p95, p99 }: LoadOf): Promise<Line[]> {
  const devices = store.kept.devices.slice(first, first + fleet.devices)
  const found = await sendFleet(store, devices, fleet, { warmup, connections: 1_000, records: true })
  const { sent, used } = found
  const duplicates = (100 * used.counted('hb_deduplicated_total')) / Math.max(1, used.counted('hb_writes_total'))
  const [limits] = await store.admin<{ most: number }[]>`select current_setting('max_connections')::float8 as most`
  const rest = note === undefined ? {} : { note }
  return [
    atMost(source, `${about}: p95`, sent.latency.p95, p95, 'ms', rest),
    atMost(source, `${about}: p99`, sent.latency.p99, p99, 'ms', rest),
    ...(await common(source, about, store, devices, found)),
    atMost(source, `${about}: CPU of server and Postgres`, cpu(used), 70, '% of all processors'),
    atMost(source, `${about}: connections to Postgres`, used.connections, limits!.most, '', {
      note: 'The limit is max_connections',
    }),
    atLeast('004', `${about}: statements that found a free connection`, pool(used), 90, '%'),
    atMost(
      source,
      `${about}: duplicates, where ${fleet.retries} % are sent twice`,
      Math.abs(duplicates - fleet.retries),
      1,
      '% away',
      {
        note: `${duplicates.toFixed(2)} %; 001 says 85 %, which no fleet has at this cadence`,
      },
    ),
  ]
}

/** All devices of the roster send together, often enough for `rate` heartbeats a second. Document 004. */
export async function roster(
  store: RunStore,
  { fleet, first, warmup, note }: { fleet: Fleet; first: number; warmup: number; note?: string | undefined },
): Promise<Line[]> {
  const devices = store.kept.devices.slice(first, first + fleet.devices)
  const about = `${fleet.devices.toLocaleString('en')} devices, every ${fleet.interval} s`
  const since = new Date()
  const found = await sendFleet(store, devices, fleet, { warmup, connections: 1_000, records: true })
  const { sent, used } = found
  const [jobs] = await store.admin<{ failed: number; longest: number; runs: number }[]>`
    select count(*) filter (where status = 'failed')::float8 as failed, count(*)::float8 as runs,
      coalesce(max(extract(epoch from end_time - start_time)), 0)::float8 as longest
    from cron.job_run_details where start_time >= ${since}
  `
  const rest = note === undefined ? {} : { note }
  return [
    atLeast('004', `${about}: processed`, sent.ok / sent.seconds, (fleet.devices / fleet.interval) * 0.99, 'heartbeats/s', rest),
    atMost('004', `${about}: p95`, sent.latency.p95, 100, 'ms'),
    atMost('004', `${about}: p99`, sent.latency.p99, 100, 'ms'),
    ...(await common('004', about, store, devices, found)),
    atMost('004', `${about}: CPU of server and Postgres`, cpu(used), 70, '% of all processors'),
    atMost(
      '004',
      `${about}: memory of the server at the end, compared with a fifth of the way`,
      used.rssLate / used.rssEarly,
      1.15,
      'times',
    ),
    atLeast('004', `${about}: statements that found a free connection`, pool(used), 90, '%'),
    equal('004', `background jobs that failed, of ${jobs!.runs}`, jobs!.failed, 0),
    atMost('004', 'duration of the longest of them', jobs!.longest, 60, 's'),
  ]
}

/** Postgres is stopped and resumed again and again for a minute. Document 000, test D. */
export async function throttle(
  store: RunStore,
  {
    fleet,
    first,
    seconds,
    calm,
    note,
  }: { fleet: Fleet; first: number; seconds: number; calm: number; note?: string | undefined },
): Promise<Line[]> {
  const devices = store.kept.devices.slice(first, first + fleet.devices)
  const random = generator(7)
  const queue = Math.max(1, Math.floor(fleet.devices / fleet.interval / 20))
  let throttledFrom = 0
  let output = ''
  const found = await sendFleet(
    store,
    devices,
    { ...fleet, duration: seconds + 2 * calm },
    {
      warmup: 0,
      connections: 1_000,
      records: true,
      env: { BACKPRESSURE_QUEUE: String(queue) },
      meanwhile: async (server: Server) => {
        await sleep(calm * 1000)
        throttledFrom = Date.now()
        const root = (await store.cluster.pid()) ?? 0
        for (const until = Date.now() + seconds * 1000; Date.now() < until;) {
          await paused(root, 200 + random() * 250)
          await sleep(150 + random() * 100)
          if (/"backpressure":true/.test(server.output())) output = 'logged'
        }
      },
    },
  )
  const { beats } = found
  const during = beats
    .filter(({ ts }) => ts >= throttledFrom && ts < throttledFrom + seconds * 1000)
    .map(({ latency }) => latency)
  const before = beats.filter(({ ts }) => ts < throttledFrom).map(({ latency }) => latency)
  const after = beats.filter(({ ts }) => ts >= throttledFrom + (seconds + 2) * 1000).map(({ latency }) => latency)
  const about = `Postgres stopped for about two thirds of ${seconds} s at ${Math.round(fleet.devices / fleet.interval).toLocaleString('en')} heartbeats/s`
  const rest = note === undefined ? {} : { note }
  return [
    equal('000 D', `${about}: backpressure`, output || 'not logged', 'logged', {
      note: `BACKPRESSURE_QUEUE=${queue} instead of 10,000`,
    }),
    atMost('000 D', `${about}: p99 of what was accepted during that time`, percentile(during, 99), 1_000, 'ms', rest),
    atLeast(
      '000 D',
      'latency rises: p99 during that time, compared with before',
      percentile(during, 99) / percentile(before, 99),
      1,
      'times',
    ),
    atMost('000 D', 'latency recovers: p99 from 2 s after the end', percentile(after, 99), 300, 'ms'),
    ...(await common('000 D', about, store, devices, found)),
  ]
}

/**
 * Ten clients at once post a heartbeat of each device for the same bucket, with different times and values. Document 000, test E.
 */
export async function duplicates(store: RunStore, count: number): Promise<Line[]> {
  // These devices are new to the store.
  const devices = await enroll(store, count, `parallel-${new Date().toISOString()}`)
  const server = await startServer(store, { env: { WORKERS: '2' } })
  try {
    // The times are in the middle of a past bucket, so that all ten are in it.
    const bucket = Math.floor(Date.now() / 10_000) * 10_000 - 10_000
    const answers = new Map<string, number>()
    const firsts: { device_id: number; ts: number; battery: number }[] = []
    await step(`Ten posts at once for each of ${count} devices`, async () => {
      for (const { device_id, token } of devices) {
        await Promise.all(
          Array.from({ length: 10 }, async (_, n) => {
            const ts = bucket + 500 + n * 900
            const answer = await fetch(`${server.url}/v1/heartbeat`, {
              method: 'POST',
              headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' },
              body: JSON.stringify({ ts: new Date(ts).toISOString(), battery_pct: 10 + n }),
            })
            const { result } = (await answer.json()) as { result: string }
            answers.set(result, (answers.get(result) ?? 0) + 1)
            if (result === 'stored') firsts.push({ device_id, ts, battery: 10 + n })
          }),
        )
      }
    })
    const [found] = await store.admin<{ rows: number; devices: number; status: number }[]>`
      select count(*)::float8 as rows, count(distinct h.device_id)::float8 as devices,
        count(*) filter (where (ls.last_ts, ls.battery_pct) is not distinct from (h.ts, h.battery_pct))::float8 as status
      from fleet.device_heartbeats h
      join fleet.device_last_status ls using (device_id)
      where h.device_id = any (${devices.map(({ device_id }) => device_id)}::bigint[])
        and h.ts >= ${new Date(bucket)} and h.ts < ${new Date(bucket + 10_000)}
    `
    return [
      equal('000 E', `ten parallel POSTs in one bucket for each of ${count} devices: stored`, answers.get('stored') ?? 0, count),
      equal('000 E', 'the others are duplicates', answers.get('duplicate') ?? 0, 9 * count),
      equal('000 E', 'rows in the database', found!.rows, count),
      equal('000 E', 'devices whose last status is that row', found!.status, count),
    ]
  } finally {
    await server.stop()
  }
}

/** Measures two servers behind the balancer of docker/. Document 004. */
export async function balanced(store: RunStore, { fleet, first }: { fleet: Fleet; first: number }): Promise<Line[]> {
  const criterion = 'horizontal scaling with a load balancer'
  if (!topology.isHere()) return [shown('004', criterion, 'both servers take their share', 'HAProxy is not installed')]
  const devices = store.kept.devices.slice(first, first + fleet.devices)
  const servers: Server[] = []
  const endings: (() => unknown)[] = []
  const sender = startSender()
  try {
    for (let n = 0; n < 2; n++) servers.push(await startServer(store, { env: { WORKERS: '1', TRUST_PROXY: 'true' } }))
    const balancer = await withHaproxy(
      {
        teardown: end => {
          endings.unshift(end)
        },
      },
      [servers[0]!.port, servers[1]!.port],
    )
    await balancer.start()
    for (let waited = 0; (await balancer.states()).join() !== 'UP,UP' && waited < 200; waited++) await sleep(50)
    await sender.connect(balancer.port, 200, devices)
    const sent = await sender.open(schedule(fleet), 0, () => {}, true)
    const beats = await sender.acknowledged()
    const shares = await Promise.all(servers.map(async server => (await server.metrics()).get('hb_writes_total') ?? 0))
    return [
      equal('004', `${criterion}: errors`, sent.errors, 0),
      atLeast(
        '004',
        `${criterion}: the smaller server's share`,
        (100 * Math.min(...shares)) / Math.max(1, shares[0]! + shares[1]!),
        30,
        '%',
      ),
      await kept(store, '004', criterion, devices, beats),
    ]
  } finally {
    sender.end()
    for (const end of endings) await end()
    for (const server of servers) await server.stop()
  }
}

/** Checks the store after all other steps. Document 001, correctness. */
export async function consistency(store: RunStore): Promise<Line[]> {
  const sql: Sql = store.admin
  const owner = postgres(store.cluster.url('fleet_owner', 'fleet'), { max: 1, onnotice: () => {} })
  try {
    const [wrong] = await sql<{ count: number }[]>`
      select count(*)::float8 as count
      from fleet.device_last_status ls
      cross join lateral (select h.* from fleet.device_heartbeats h where h.device_id = ls.device_id order by h.ts desc limit 1) n
      where (ls.last_ts, ls.battery_pct, ls.network_type, ls.unity_running, ls.signal_dbm, ls.agent_version)
        is distinct from (n.ts, n.battery_pct, n.network_type, n.unity_running, n.signal_dbm, n.agent_version)
    `
    const [drift] = await owner<{ checked: number; updated: number }[]>`
      select checked::float8 as checked, updated::float8 as updated from fleet.reconcile('24 hours', 1000000)
    `
    // Makes wrong last statuses, which reconcile must repair.
    const victims = store.kept.devices.slice(0, 5).map(({ device_id }) => device_id)
    await sql`update fleet.device_last_status set last_ts = last_ts - interval '1 hour', battery_pct = 1 where device_id = any (${victims}::bigint[])`
    const [healed] = await owner<
      { updated: number }[]
    >`select updated::float8 as updated from fleet.reconcile('24 hours', 1000000)`
    const [missing] = await sql<
      { count: number }[]
    >`select count(*)::float8 as count from fleet.data_coverage where "where" = 'missing'`
    const failing = await owner<
      { check_name: string; detail: string }[]
    >`select check_name, detail from fleet.check() where status = 'fail'`
    // No archiver and no server runs now, and the checks report that.
    const others = failing.filter(({ check_name }) => !/archiver|server|ingest|token/.test(check_name))
    return [
      equal('001', 'devices whose last status is not that of their newest heartbeat', wrong!.count, 0),
      atMost(
        '001',
        `drift that reconcile() found among ${drift!.checked.toLocaleString('en')} devices`,
        (100 * drift!.updated) / Math.max(1, drift!.checked),
        0.1,
        '%',
      ),
      equal('002 3', 'wrong last statuses that reconcile() repaired, of 5', healed!.updated, 5),
      equal('001', 'days missing in data_coverage', missing!.count, 0),
      equal(
        '001',
        'checks that fail',
        others.map(({ check_name, detail }) => `${check_name}: ${detail}`).join('; ') || 'none',
        'none',
        {
          note: 'fleet.check(), without the checks of the archiver and the server, which are not running now',
        },
      ),
    ]
  } finally {
    await owner.end({ timeout: 1 })
  }
}
