import { isUtf8 } from 'node:buffer'
import type { Handler } from 'hono'
import type { z } from 'zod'
import { clientAddress } from './address.ts'
import type { AppEnv } from './app.ts'
import { identify, identifyDevice } from './auth.ts'
import { mediaType, parseJson, readInflated, readJson } from './body.ts'
import type { ServerConfig } from './config.ts'
import type { Pool } from './database.ts'
import { deviceItemSchema, fieldErrors, gatewayItemSchema, heartbeatSchema, type IngestItem } from './heartbeat.ts'
import { type FieldError, Problem } from './problem.ts'
import type { Identity, Tokens } from './tokens.ts'
import type { Outcome, Writer } from './writer.ts'

const MAX_HEARTBEAT_BYTES = 16 * 1024
const MAX_BATCH_BYTES = 1024 * 1024
const MAX_BATCH_ITEMS = 1_000

const STATUS = { stored: 201, duplicate: 200, quarantined: 202 } as const

/** One item of the batch's answer: as the single answer, or rejected with what is wrong. */
interface Result {
  result: Outcome['result']
  reason?: string
  ts?: string
  next_interval_s?: number
  errors?: FieldError[]
}

export function postHeartbeat(config: ServerConfig, tokens: Tokens, writer: Writer): Handler<AppEnv> {
  return async c => {
    const { incoming } = c.env
    const identity = await identifyDevice(
      incoming, tokens, 'A gateway posts to /v1/heartbeats and names the device of each heartbeat.',
    )
    const parsed = heartbeatSchema.safeParse(await readJson(incoming, MAX_HEARTBEAT_BYTES))
    if (!parsed.success) {
      throw new Problem(422, 'The heartbeat is not valid; it was not written.', { errors: fieldErrors(parsed.error) })
    }
    const ip = clientAddress(incoming, config.trustProxy)
    const outcome = await writer.store(Object.assign(parsed.data, { device_id: identity.device_id, ip }))
    if (outcome instanceof Problem) throw outcome
    if (outcome.result === 'rejected') {
      throw new Problem(429, `The heartbeat was not kept (${outcome.reason}): the device has too many in quarantine.`)
    }
    return c.json(answer(outcome, identity.next_interval_s), STATUS[outcome.result])
  }
}

export function postHeartbeats(config: ServerConfig, pool: Pool, tokens: Tokens, writer: Writer): Handler<AppEnv> {
  return async c => {
    const { incoming } = c.env
    const identity = await identify(incoming, tokens)
    const type = batchType(incoming)
    const { results, accepted } = judgeAll(await readInflated(incoming, MAX_BATCH_BYTES), type, identity)
    const ip = clientAddress(incoming, config.trustProxy)
    for (const { item } of accepted) item.ip = ip

    const intervals = await nextIntervals(pool, tokens, identity, accepted.map(({ item }) => item.device_id))
    const writable = accepted.filter(({ item, index }) => {
      if (intervals.has(item.device_id)) return true
      results[index] = rejected([{ path: 'device_id', message: 'is not an enrolled device' }])
      return false
    })

    const outcomes = await writer.storeAll(writable.map(({ item }) => item))
    for (const [position, { item, index }] of writable.entries()) {
      const outcome = outcomes[position]!
      if (!(outcome instanceof Problem)) results[index] = answer(outcome, intervals.get(item.device_id)!)
      // The database was away for it: only a failure of the whole lets the client send it again. What was stored
      // of the batch meanwhile is then a duplicate.
      else if (outcome.status >= 500) throw outcome
      else results[index] = rejected(outcome.errors ?? [{ path: '', message: outcome.message }])
    }

    const count = { stored: 0, duplicate: 0, quarantined: 0, rejected: 0 }
    for (const entry of results) count[entry!.result]++
    return c.json({ results, ...count })
  }
}

function answer({ result, reason, ts }: Outcome, next_interval_s: number): Result {
  return reason === null ? { result, ts, next_interval_s } : { result, reason, ts, next_interval_s }
}

function rejected(errors: FieldError[]): Result {
  return { result: 'rejected', errors }
}

/** An item that is not JSON; it must not block the others. */
class Malformed {
  readonly errors = [{ path: '', message: 'must be JSON in UTF-8' }]
}

/** @throws Problem 415 */
function batchType(incoming: AppEnv['Bindings']['incoming']) {
  const type = mediaType(incoming)
  if (type === 'application/json' || type === 'application/x-ndjson') return type
  throw new Problem(415, `The body must be application/json or application/x-ndjson, not ${type}.`)
}

/**
 * Apart from the waiting that follows, so that memory need not hold what else was sent: parsed, a nested body takes
 * fifty times its size.
 * @throws Problem 400, 413 or 422 for the whole batch
 */
function judgeAll(body: Buffer, type: string, identity: Identity) {
  const items: unknown = type === 'application/json' ? parseJson(body) : parseLines(body)
  if (!Array.isArray(items)) {
    throw new Problem(422, 'The batch is not valid; nothing was written.', {
      errors: [{ path: '', message: 'must be an array of heartbeats' }],
    })
  }
  if (items.length > MAX_BATCH_ITEMS) {
    throw new Problem(413, `A batch may have ${MAX_BATCH_ITEMS} heartbeats, not ${items.length}; nothing was written.`)
  }
  const results: (Result | undefined)[] = []
  const accepted: { item: IngestItem, index: number }[] = []
  for (const [index, value] of (items as unknown[]).entries()) {
    const item = value instanceof Malformed ? value.errors : judge(value, identity)
    if (Array.isArray(item)) results[index] = rejected(item)
    else accepted.push({ item: Object.assign(item, { ip: null }), index })
  }
  return { results, accepted }
}

/** One item a line; blank lines are none. Stops early: more than a batch holds is refused anyway. */
function parseLines(body: Buffer): unknown[] {
  const items: unknown[] = []
  for (let start = 0; start < body.length && items.length <= MAX_BATCH_ITEMS;) {
    const newline = body.indexOf(0x0a, start)
    const end = newline === -1 ? body.length : newline
    const line = body.subarray(start, end)
    const text = line.toString().trim()
    if (text !== '') items.push(isUtf8(line) ? parseLine(text) : new Malformed())
    start = end + 1
  }
  return items
}

function parseLine(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return new Malformed()
  }
}

type Judged = z.output<typeof gatewayItemSchema>

function judge(value: unknown, identity: Identity): Judged | FieldError[] {
  if (identity.kind === 'gateway') {
    const parsed = gatewayItemSchema.safeParse(value)
    return parsed.success ? parsed.data : fieldErrors(parsed.error)
  }
  const parsed = deviceItemSchema.safeParse(value)
  if (!parsed.success) return fieldErrors(parsed.error)
  const { device_id } = parsed.data
  if (typeof device_id === 'number' && device_id !== identity.device_id) {
    return [{ path: 'device_id', message: 'is not the device of this token' }]
  }
  return Object.assign(parsed.data, { device_id: identity.device_id })
}

/** The devices that may be written for, each with its interval. */
async function nextIntervals(pool: Pool, tokens: Tokens, identity: Identity, deviceIds: number[]): Promise<Map<number, number>> {
  if (identity.kind === 'device') return new Map([[identity.device_id, identity.next_interval_s]])
  const intervals = new Map<number, number>()
  const unknown = new Set<number>()
  for (const id of deviceIds) {
    const interval = tokens.nextInterval(id)
    if (interval === undefined) unknown.add(id)
    else intervals.set(id, interval)
  }
  if (unknown.size > 0) {
    const ids = `{${[...unknown].join(',')}}`
    const rows = await pool.run(sql => sql<{ device_id: number, next_interval_s: number }[]>`
      select device_id, next_interval_s from fleet.known_devices(${ids}::text::bigint[])
    `)
    for (const row of rows) intervals.set(row.device_id, row.next_interval_s)
  }
  return intervals
}
