import type { Handler } from 'hono'
import { clientAddress } from '../auth/address.ts'
import type { AppEnv } from '../context.ts'
import { identify, identifyDevice } from '../auth/auth.ts'
import { type BatchType, Malformed, MAX_BATCH_BYTES, readItems } from './batch.ts'
import { MAX_BODY_BYTES, mediaType, readInflated, readJson } from '../body.ts'
import type { ServerConfig } from '../config.ts'
import type { Pool } from '../database.ts'
import { deviceItemSchema, gatewayItemSchema, heartbeatSchema } from './heartbeat.ts'
import { itemTail, itemText, plainItemText } from './item.ts'
import type { Metrics } from '../ops/metrics.ts'
import { type FieldError, Problem, toProblem } from '../problem.ts'
import type { Identity, Tokens } from '../auth/tokens.ts'
import { fieldErrors } from '../valid.ts'
import type { Outcome, Writer } from './writer.ts'

/**
 * How many errors a batch's answer may have in addition to the first one of each item. With seven for each item, 0.5 kB of gzip
 * produced an answer of 0.5 MB.
 */
const MAX_MORE_ERRORS = 1_000

const STATUS = { stored: 201, duplicate: 200, quarantined: 202 } as const

/** One item of the answer to a batch: as the answer to a single heartbeat, or rejected with the errors. */
interface Result {
  result: Outcome['result']
  reason?: string
  ts?: string
  next_interval_s?: number
  errors?: FieldError[]
}

export function postHeartbeat(config: ServerConfig, tokens: Tokens, writer: Writer, metrics: Metrics): Handler<AppEnv> {
  const refuse = refusing(metrics, 1)
  return async c => {
    const { incoming } = c.env
    const identity = await identifyDevice(
      incoming,
      tokens,
      'This call is for devices. A gateway posts to /v1/heartbeats, with the device_id of each heartbeat.',
    ).catch(refuse)
    const { device_id } = identity
    const beat = await readJson(incoming, MAX_BODY_BYTES)
    const tail = itemTail(clientAddress(incoming, config.trustProxy))
    const json = plainItemText(beat, device_id, tail) ?? itemText(validBeat(beat), device_id, tail)
    const outcome = (await writer.store({ devices: [device_id], json }))[0]!
    if (outcome instanceof Problem) throw outcome
    if (outcome.result === 'rejected') {
      throw new Problem(429, `The heartbeat was not kept (${outcome.reason}): the device has too many heartbeats in quarantine.`)
    }
    return c.json(answer(outcome, identity.next_interval_s), STATUS[outcome.result])
  }
}

export function postHeartbeats(
  config: ServerConfig,
  pool: Pool,
  tokens: Tokens,
  writer: Writer,
  metrics: Metrics,
): Handler<AppEnv> {
  // How many heartbeats there are is not known before the body is read. There is at least one.
  const refuse = refusing(metrics, 1)
  return async c => {
    const { incoming } = c.env
    const identity = await identify(incoming, tokens).catch(refuse)
    const type = batchType(incoming)
    const tail = itemTail(clientAddress(incoming, config.trustProxy))
    const { results, accepted } = judgeAll(await readInflated(incoming, MAX_BATCH_BYTES), type, identity, tail)

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
    return c.json({ results, ...count })
  }
}

/** Counts heartbeats that fail before the writer has them: if the fault is ours, they are failed writes too. */
function refusing(metrics: Metrics, heartbeats: number) {
  return (error: unknown): never => {
    if (toProblem(error).status >= 500) metrics.writesFailed.inc(heartbeats)
    throw error
  }
}

/** @throws Problem 422 that names each wrong field */
function validBeat(value: unknown) {
  const parsed = heartbeatSchema.safeParse(value)
  if (parsed.success) return parsed.data
  throw new Problem(422, 'The heartbeat is not valid; it was not written.', { errors: fieldErrors(parsed.error) })
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
function judgeAll(body: Buffer, type: BatchType, identity: Identity, tail: string) {
  const results: (Result | undefined)[] = []
  const accepted: Accepted[] = []
  let moreErrors = MAX_MORE_ERRORS
  for (const [index, value] of readItems(body, type).entries()) {
    const judged = value instanceof Malformed ? value.errors : judge(value, identity, tail)
    if (Array.isArray(judged)) {
      const said = judged.slice(0, 1 + moreErrors)
      moreErrors -= said.length - 1
      results[index] = rejected(said)
    } else {
      accepted.push({ index, ...judged })
    }
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

function judge(value: unknown, identity: Identity, tail: string): Judged | FieldError[] {
  const named = (value as { device_id?: unknown } | null)?.device_id
  const own = identity.device_id
  const plain =
    own === null
      ? plainItemText(value, named, tail)
      : named === undefined || named === own
        ? plainItemText(value, own, tail)
        : undefined
  if (plain !== undefined) return { device_id: own ?? (named as number), text: plain }

  const parsed = (own === null ? gatewayItemSchema : deviceItemSchema).safeParse(value)
  if (!parsed.success) return fieldErrors(parsed.error)
  const device_id = parsed.data.device_id ?? own!
  if (own !== null && device_id !== own) return [{ path: 'device_id', message: 'is not the device of this token' }]
  return { device_id, text: itemText(parsed.data, device_id, tail) }
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
