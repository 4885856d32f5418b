import { hash } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Test } from 'tap'
import { spawnNode, waitFor, withDatabase, type TestDatabase, type TestProcess } from './database.ts'
import { Backpressure } from '../server/ingest/backpressure.ts'
import { readConfig, type ServerConfig } from '../server/config.ts'
import { connectHot } from '../server/database.ts'
import { createLog } from '../lib/log.ts'
import { createMetrics } from '../server/ops/metrics.ts'
import { spread } from '../server/ingest/spread.ts'
import { startServer } from '../server/server.ts'
import { type Chunk, Writer } from '../server/ingest/writer.ts'

export const ADMIN_KEY = 'an-admin-key-for-tests'

/** For a server whose test sends faster than a device may. */
export const NO_LIMIT = { DEVICE_REQUESTS_PER_MINUTE: '0' }

export interface Answer {
  status: number
  headers: Headers
  body: unknown
}

/** The environment of a server for this database, on any free port. */
export function serverEnv(db: TestDatabase) {
  return {
    SERVER_DATABASE_URL: db.url('fleet_server'),
    OPS_DATABASE_URL: db.url('fleet_server'),
    ADMIN_KEY,
    PORT: '0',
    WORKERS: '1',
  }
}

/** Starts a server on a new database, or on a given one. Both end with the test. */
export async function withServer(t: Test, overrides: Partial<ServerConfig> = {}, given?: TestDatabase) {
  const db = given ?? (await withDatabase(t))
  const config = { ...readConfig({ ...serverEnv(db), LOG_LEVEL: 'silent' }), ...overrides }
  const server = await startServer(config, createLog('server', config.logLevel))
  t.teardown(() => server.stop())
  const call = client(`http://127.0.0.1:${server.port}`)
  const { routes, unreadable, slowed, certificate } = server
  return { db, config, call, routes, unreadable, slowed, certificate, url: `http://127.0.0.1:${server.port}` }
}

export type Call = ReturnType<typeof client>

/**
 * The `interval` of a device, if an answer asks it to send at its moment in this interval, as server/ingest/spread.ts does; otherwise
 * the seconds that it asks for. The test may have taken some seconds since.
 */
export function intervalAsked(answer: unknown, deviceId: number, interval: number) {
  const { next_interval_s } = answer as { next_interval_s: number }
  const since = spread(deviceId, interval, Date.now()) - next_interval_s
  const isIts = Math.abs(((since + 1.5 * interval) % interval) - 0.5 * interval) <= interval / 4
  return isIts && next_interval_s >= 0.25 * interval && next_interval_s <= 1.4 * interval ? interval : next_interval_s
}

/** Sends requests such as `POST /v1/heartbeat`. An object is sent as JSON, a string or Buffer as it is. */
export function client(url: string) {
  return async (
    call: string,
    {
      token,
      admin,
      body,
      headers = {},
      signal,
    }: {
      token?: string
      admin?: boolean
      body?: unknown
      headers?: Record<string, string>
      signal?: AbortSignal
    } = {},
  ): Promise<Answer> => {
    const [method, path] = call.split(' ') as [string, string]
    const raw = typeof body === 'string' || body instanceof Uint8Array
    const response = await fetch(url + path, {
      method,
      ...(signal && { signal }),
      headers: {
        ...(body === undefined ? {} : { 'content-type': 'application/json' }),
        ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
        ...(admin ? { 'x-admin': ADMIN_KEY } : {}),
        ...headers,
      },
      ...(body === undefined ? {} : { body: raw ? (body as string) : JSON.stringify(body) }),
    })
    const text = await response.text()
    const isJson = /json/.test(response.headers.get('content-type') ?? '')
    return { status: response.status, headers: response.headers, body: isJson ? (JSON.parse(text) as unknown) : text }
  }
}

export async function enroll(db: TestDatabase, alias: string) {
  const [device] = await db.sql<{ device_id: string; token: string }[]>`select * from fleet.create_device(${alias})`
  return { device_id: Number(device!.device_id), token: device!.token }
}

export async function gatewayToken(db: TestDatabase, name: string) {
  const [row] = await db.sql<{ token: string }[]>`select fleet.create_gateway_token(${name}) as token`
  return row!.token
}

/** All heartbeats of a device, oldest first. */
export async function stored(db: TestDatabase, deviceId: number) {
  return db.sql`select * from fleet.device_heartbeats where device_id = ${deviceId} order by ts`
}

export async function lastStatus(db: TestDatabase, deviceId: number) {
  const [row] = await db.sql`select * from fleet.device_last_status where device_id = ${deviceId}`
  return row!
}

/** The time `seconds` ago, as a device writes it. */
export function ago(seconds: number) {
  return new Date(Date.now() - seconds * 1000).toISOString()
}

/** Makes a writer without HTTP. */
export async function withWriter(t: Test, concurrency = 2, gatherMs = 3) {
  const db = await withDatabase(t)
  const token = hash('sha256', await gatewayToken(db, 'of the writer'))
  const config = readConfig(serverEnv(db))
  const pool = connectHot(config.hot, config.poolMax)
  t.teardown(() => pool.end())
  const metrics = createMetrics(pool)
  const log = createLog('server', 'silent')
  const backpressure = new Backpressure(metrics, log, config.backpressureQueue, { maxQueue: 20_000, calmMs: 100 })
  const limits = { concurrency, maxBatch: 1_000, gatherMs }
  const writer = new Writer(pool, metrics, log, backpressure, limits)
  /** A second writer, as another server has it. */
  const writerTo = (url: string) => {
    const other = connectHot(readConfig({ ...serverEnv(db), SERVER_DATABASE_URL: url }).hot, config.poolMax)
    t.teardown(() => other.end())
    return new Writer(other, metrics, log, backpressure, limits)
  }
  /** What one request of a gateway passes to the writer. */
  const chunk = (...items: { device_id: number }[]): Chunk => ({
    token,
    items: items.length,
    devices: new Set(items.map(({ device_id }) => device_id)).size,
    json: JSON.stringify(items).slice(1, -1),
  })
  return { db, pool, metrics, backpressure, writer, chunk, writerTo }
}

/**
 * Starts server/main.ts as a process and waits until it is ready.
 * @param isReady asks the server, for one that does not speak HTTP
 */
export async function withProcess(
  t: Test,
  db: TestDatabase,
  env: Record<string, string> = {},
  isReady = async (url: string) => (await client(url)('GET /readyz')).status === 200,
) {
  const server = await spawnNode(t, 'server/main.ts', { env: { ...serverEnv(db), ...env }, ready: /"server.listening"/ })
  const url = `http://127.0.0.1:${/"port":(\d+)/.exec(server.output())![1]}`
  const call = client(url)
  await waitFor(() => isReady(url), { what: () => server.output() })
  return { server, call, url }
}

/**
 * Posts heartbeats one after the other on several connections until the server is gone, and remembers which were acknowledged.
 * The server must have NO_LIMIT.
 */
export function load(url: string, token: string, clients = 20, from = 0) {
  const call = client(url)
  const base = Date.now()
  const acknowledged: string[] = []
  const statuses = new Map<number, number>()
  let next = from
  let running = true
  const done = Promise.all(
    Array.from({ length: clients }, async () => {
      while (running) {
        // Each heartbeat is in a bucket of its own.
        const ts = new Date(base - 60_000 - 10_000 * next++).toISOString()
        try {
          // Node's primary may keep a connection that it was handing to a worker when that was killed; nobody answers there.
          const signal = AbortSignal.timeout(30_000)
          const { status } = await call('POST /v1/heartbeat', { token, body: { ts }, signal })
          statuses.set(status, (statuses.get(status) ?? 0) + 1)
          if (status === 201) acknowledged.push(ts)
        } catch {
          // The connection was cut or refused, so the heartbeat was not acknowledged.
          await sleep(5)
        }
      }
    }),
  )
  return {
    acknowledged,
    statuses,
    stop: () => {
      running = false
      return done
    },
  }
}

/** The acknowledged heartbeats that are not in the table. */
export async function lost(db: TestDatabase, deviceId: number, acknowledged: string[]) {
  const rows = await stored(db, deviceId)
  const kept = new Set(rows.map(row => (row.ts as Date).toISOString()))
  return acknowledged.filter(ts => !kept.has(ts))
}

/** The pids of the workers that are running now. */
export function living({ output }: TestProcess) {
  const pids = (event: string) =>
    [...output().matchAll(new RegExp(`"event":"${event}","worker":(\\d+)`, 'g'))].map(match => Number(match[1]))
  const dead = pids('worker.exited')
  return pids('worker.started').filter(pid => !dead.includes(pid))
}
