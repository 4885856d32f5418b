import type { Handler } from 'hono'
import { clientAddress } from '../auth/address.ts'
import type { AppEnv } from '../context.ts'
import { identify, identifyDevice } from '../auth/auth.ts'
import { type BatchType, Malformed, MAX_BATCH_BYTES, readItems } from './batch.ts'
import { MAX_BODY_BYTES, mediaType, readInflated, readJson } from '../body.ts'
import type { ServerConfig } from '../config.ts'
import type { Pool } from '../database.ts'
import { isObject } from './fields.ts'
import { Ignored } from './ignored.ts'
import { itemTail, NOT_AN_OBJECT, readItem } from './item.ts'
import type { Metrics } from '../ops/metrics.ts'
import { type FieldError, Problem, toProblem } from '../problem.ts'
import type { Identity, Tokens } from '../auth/tokens.ts'
import type { UnreadableFields } from './unreadable-fields.ts'
import type { Outcome, Writer } from './writer.ts'

/** A heartbeat that found its device's quarantine full was heard, so a device need not send it again: not a 4xx. */
const STATUS = { stored: 201, duplicate: 200, quarantined: 202, rejected: 200 } as const

/** One item of the answer to a batch: as the answer to a single heartbeat, or rejected with the errors. */
interface Result {
  result: Outcome['result']
  reason?: string
  ts?: string
  next_interval_s?: number
  errors?: FieldError[]
}

export function postHeartbeat(
  config: ServerConfig,
  tokens: Tokens,
  writer: Writer,
  metrics: Metrics,
  unreadable: UnreadableFields,
): Handler<AppEnv> {
  const refuse = refusing(metrics, 1)
  return async c => {
    const { incoming } = c.env
    const identity = await identifyDevice(
      incoming,
      tokens,
      'This call is for devices. A gateway posts to /v1/heartbeats, with the device_id of each heartbeat.',
    ).catch(refuse)
    const { device_id } = identity
    const ignored = new Ignored(unreadable)
    const tail = itemTail(clientAddress(incoming, config.trustProxy))
    const beat = await readJson(incoming, MAX_BODY_BYTES).catch(refusedBody(ignored, identity))
    const json = readItem(beat, device_id, tail, ignored)
    if (typeof json !== 'string') {
      ignored.refused(device_id, json, beat)
      throw new Problem(422, 'The heartbeat is not valid; it was not written.', { errors: [json] })
    }
    const outcome = (await writer.store({ devices: [device_id], json }))[0]!
    if (outcome instanceof Problem) throw outcome
    const { names } = ignored
    const body = answer(outcome, identity.next_interval_s)
    return c.json(names === undefined ? body : { ...body, ignored: names }, STATUS[outcome.result])
  }
}

export function postHeartbeats(
  config: ServerConfig,
  pool: Pool,
  tokens: Tokens,
  writer: Writer,
  metrics: Metrics,
  unreadable: UnreadableFields,
): Handler<AppEnv> {
  // How many heartbeats there are is not known before the body is read. There is at least one.
  const refuse = refusing(metrics, 1)
  return async c => {
    const { incoming } = c.env
    const identity = await identify(incoming, tokens).catch(refuse)
    const type = batchType(incoming)
    const tail = itemTail(clientAddress(incoming, config.trustProxy))
    const ignored = new Ignored(unreadable)
    const { results, accepted } = await readInflated(incoming, MAX_BATCH_BYTES)
      .then(body => judgeAll(body, type, identity, tail, ignored))
      .catch(refusedBody(ignored, identity))

    const known = await nextIntervals(pool, tokens, identity, accepted).catch(refusing(metrics, accepted.length))
    const writable = accepted.filter(({ index }, position) => {
      if (known[position] !== undefined) return true
      results[index] = rejected([{ path: 'device_id', message: 'is not an enrolled device' }])
      return false
    })
    const intervals = known.filter(interval => interval !== undefined)

    const outcomes = await writer.store({
      devices: writable.map(({ device_id }) => device_id),
      json: writable.map(({ text }) => text).join(','),
    })
    for (const [position, { index }] of writable.entries()) {
      const outcome = outcomes[position]!
      if (!(outcome instanceof Problem)) results[index] = answer(outcome, intervals[position]!)
      // The database was unreachable for this item. The client sends it again only if the whole request fails. What was stored of
      // the batch in the meantime is a duplicate then.
      else if (outcome.status >= 500) throw outcome
      else results[index] = rejected(outcome.errors ?? [{ path: '', message: outcome.message }])
    }

    const count = { stored: 0, duplicate: 0, quarantined: 0, rejected: 0 }
    for (const entry of results) count[entry!.result]++
    return c.json({ results, ...count, ignored: ignored.names })
  }
}

/** Counts heartbeats that fail before the writer has them: if the fault is ours, they are failed writes too. */
function refusing(metrics: Metrics, heartbeats: number) {
  return (error: unknown): never => {
    if (toProblem(error).status >= 500) metrics.writesFailed.inc(heartbeats)
    throw error
  }
}

/** Notes that nothing of a device's request could be read. What a gateway sends may be of any device. */
function refusedBody(ignored: Ignored, { device_id }: Identity) {
  return (error: unknown): never => {
    const { status, message } = toProblem(error)
    if (device_id !== null && status < 500) ignored.refused(device_id, { path: '', message }, message)
    throw error
  }
}

function answer({ result, reason, ts }: Outcome, next_interval_s: number): Result {
  return reason === null ? { result, ts, next_interval_s } : { result, reason, ts, next_interval_s }
}

function rejected(errors: FieldError[]): Result {
  return { result: 'rejected', errors }
}

/** @throws Problem 415 */
function batchType(incoming: AppEnv['Bindings']['incoming']): BatchType {
  const type = mediaType(incoming)
  if (type === 'application/json' || type === 'application/x-ndjson') return type
  throw new Problem(415, `The body must be application/json or application/x-ndjson, not ${type}.`)
}

/**
 * A function of its own, so that nothing else of the body stays in memory while the heartbeats wait to be written.
 * @throws Problem 400, 413 or 422 for the whole batch
 */
function judgeAll(body: Buffer, type: BatchType, identity: Identity, tail: string, ignored: Ignored) {
  const results: (Result | undefined)[] = []
  const accepted: Accepted[] = []
  for (const [index, value] of readItems(body, type).entries()) {
    const judged = value instanceof Malformed ? value.error : judge(value, identity, tail, ignored)
    if ('text' in judged) {
      accepted.push({ index, ...judged })
      continue
    }
    const deviceId = identity.device_id ?? (isObject(value) ? value.device_id : null)
    if (isDeviceId(deviceId)) ignored.refused(deviceId, judged, value)
    results[index] = rejected([judged])
  }
  return { results, accepted }
}

/** An item that may be written, as text for the writer. */
interface Judged {
  device_id: number
  text: string
}

interface Accepted extends Judged {
  /** Its position in the request. */
  index: number
}

function judge(value: unknown, { device_id: own }: Identity, tail: string, ignored: Ignored): Judged | FieldError {
  if (!isObject(value)) return NOT_AN_OBJECT
  const named = value.device_id ?? own
  if (own !== null && named !== own) return { path: 'device_id', message: 'is not the device of this token' }
  if (!isDeviceId(named)) return { path: 'device_id', message: 'must be a device id' }
  const text = readItem(value, named, tail, ignored)
  return typeof text === 'string' ? { device_id: named, text } : text
}

function isDeviceId(value: unknown): value is number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value > 0
}

/** For each item the interval of its device, or undefined if nothing may be written for that device. */
async function nextIntervals(pool: Pool, tokens: Tokens, identity: Identity, items: Accepted[]): Promise<(number | undefined)[]> {
  if (identity.kind === 'device') return items.map(() => identity.next_interval_s)
  const intervals = items.map(({ device_id }) => tokens.nextInterval(device_id))
  const unknown = new Set(items.filter((_, position) => intervals[position] === undefined).map(({ device_id }) => device_id))
  if (unknown.size === 0) return intervals
  const ids = `{${[...unknown].join(',')}}`
  const rows = await pool.run(
    sql => sql<{ device_id: number; next_interval_s: number }[]>`
    select device_id, next_interval_s from fleet.known_devices(${ids}::text::bigint[])
  `,
  )
  const found = new Map(rows.map(row => [row.device_id, row.next_interval_s]))
  return intervals.map((interval, position) => interval ?? found.get(items[position]!.device_id))
}
