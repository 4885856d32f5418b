import type { Handler } from 'hono'
import { clientAddress } from '../auth/address.ts'
import type { AppEnv } from '../env.ts'
import { type BatchType, Malformed, MAX_BATCH_BYTES, readItems } from './batch.ts'
import { MAX_BODY_BYTES, mediaType, readInflated, readJson } from '../body.ts'
import type { ServerConfig } from '../config.ts'
import { isObject } from './fields.ts'
import { Ignored } from './ignored.ts'
import { itemTail, NOT_AN_OBJECT, readItem } from './item.ts'
import type { Metrics } from '../ops/metrics.ts'
import { type FieldError, Problem, toProblem } from '../problem.ts'
import { type Identity, type Token, type Tokens, unknownToken, wrongKind } from '../auth/tokens.ts'
import { spread } from './spread.ts'
import type { UnreadableFields } from './unreadable-fields.ts'
import type { Nodes } from './nodes.ts'
import type { Outcome } from './writer.ts'

/** A heartbeat that found its device's quarantine full was heard, so a device need not send it again: not a 4xx. */
const STATUS = { stored: 201, duplicate: 200, quarantined: 202, rejected: 200 } as const

const DEVICES_ONLY = 'This call is for devices. A gateway posts to /v1/heartbeats, with the device_id of each heartbeat.'
const NOT_THIS_DEVICE: FieldError = { path: 'device_id', message: 'is not the device of this token' }
const NOT_ENROLLED: FieldError = { path: 'device_id', message: 'is not an enrolled device' }

/**
 * How many bodies of senders that are not authenticated yet a worker reads at the same time, each of at most 16 KiB. A body usually
 * arrives together with its headers, so this many are reached only if somebody sends them slowly.
 */
const MAX_UNVERIFIED = 1_024
let unverified = 0

/** How many heartbeats of a sender that is not authenticated yet go to the writer. 3 kB of `[{},{},…]` are a thousand. */
const MAX_UNVERIFIED_ITEMS = 20

/** One item of the answer to a batch: as the answer to a single heartbeat, or rejected with the errors. */
interface Result {
  result: keyof typeof STATUS
  reason?: string
  ts?: string
  next_interval_s?: number
  errors?: FieldError[]
}

/**
 * The sender of a request. Heartbeats are authenticated by the statement that stores them, so the database is asked before that only
 * if the body is large, or if there is nothing to store.
 */
class Sender {
  #identity: Identity | undefined

  constructor(
    readonly token: Token,
    readonly tokens: Tokens,
    readonly incoming: AppEnv['Bindings']['incoming'],
  ) {}

  /** @throws Problem 401 if the token is unknown or revoked; 429 if too many such tokens came from its network */
  async identify(): Promise<Identity> {
    return (this.#identity ??= await this.tokens.authenticate(this.token, this.incoming))
  }

  /**
   * Undefined, in nearly all cases, if the request may go on.
   * @throws Problem as identify()
   */
  admit() {
    return this.tokens.admit(this.token, this.incoming)?.then(identity => void (this.#identity = identity))
  }

  /**
   * Reads the body. One that is larger than a heartbeat, or may be, is not read for a sender that is not authenticated.
   * @throws Problem as identify(), and what `read` throws
   */
  async read<T>(read: () => Promise<T>): Promise<T> {
    const isSmall = Number(this.incoming.headers['content-length'] ?? Infinity) <= MAX_BODY_BYTES
    const isEncoded = (this.incoming.headers['content-encoding'] ?? 'identity') !== 'identity'
    if (this.#identity === undefined && (!isSmall || isEncoded || unverified >= MAX_UNVERIFIED)) await this.identify()
    if (this.#identity !== undefined) return read()
    unverified++
    return read().finally(() => unverified--)
  }

  /**
   * Takes what the statement said of the sender.
   * @returns the device of the token, or null for a gateway
   * @throws Problem 401; 500 or 503 if that is what became of a heartbeat
   */
  async authenticated(outcomes: (Outcome | Problem)[]): Promise<number | null> {
    let said: Outcome | undefined
    for (const outcome of outcomes) {
      if (outcome instanceof Problem) continue
      said = outcome
      if (said.result === 'unauthorized') break
    }
    if (said?.result === 'unauthorized') {
      this.tokens.judged(this.token, this.incoming, false)
      throw unknownToken()
    }
    const failed = outcomes.find(outcome => outcome instanceof Problem && outcome.status >= 500)
    if (failed !== undefined) throw failed as Problem
    if (said === undefined) return (await this.identify()).device_id
    this.tokens.judged(this.token, this.incoming, true)
    return this.token.isGateway ? null : said.device_id
  }
}

export function postHeartbeat(
  config: ServerConfig,
  tokens: Tokens,
  nodes: Nodes,
  metrics: Metrics,
  unreadable: UnreadableFields,
): Handler<AppEnv> {
  const refuse = refusing(metrics, 1)
  return async c => {
    const { incoming } = c.env
    const token = tokens.read(incoming)
    const sender = new Sender(token, tokens, incoming)
    await sender.admit()?.catch(refuse)
    if (token.isGateway && (await sender.identify().catch(refuse)).kind === 'gateway') throw wrongKind(DEVICES_ONLY)
    const ignored = new Ignored(unreadable)
    const tail = itemTail(clientAddress(incoming, config.trustProxy))
    const refuseBody = refusedBody(ignored, sender, refuse)
    const beat = await sender.read(() => readJson(incoming, MAX_BODY_BYTES)).catch(refuseBody)
    const json = readItem(beat, null, tail, ignored)
    if (typeof json !== 'string') {
      const { device_id } = await sender.identify().catch(refuse)
      ignored.refused(device_id, json, beat)
      ignored.report(device_id)
      throw new Problem(422, 'The heartbeat is not valid; it was not written.', { errors: [json] })
    }
    const outcomes = await nodes.of(token.deviceId).store({ token: token.hash, items: 1, devices: 1, json })
    const deviceId = await sender.authenticated(outcomes)
    const [outcome] = outcomes
    if (outcome instanceof Problem) throw outcome
    if (!isKept(outcome!)) throw wrongKind(DEVICES_ONLY)
    // The token says which device it is; another one that is named is a mistake that the agent should see.
    const named = (beat as { device_id?: unknown }).device_id
    if (named !== undefined && named !== null && named !== deviceId) ignored.unknown('device_id')
    ignored.report(deviceId)
    const { names } = ignored
    const body = answer(outcome, true)
    return c.json(names === undefined ? body : { ...body, ignored: names }, STATUS[outcome.result])
  }
}

export function postHeartbeats(
  config: ServerConfig,
  tokens: Tokens,
  nodes: Nodes,
  metrics: Metrics,
  unreadable: UnreadableFields,
): Handler<AppEnv> {
  // How many heartbeats there are is not known before the body is read. There is at least one.
  const refuse = refusing(metrics, 1)
  return async c => {
    const { incoming } = c.env
    const token = tokens.read(incoming)
    const sender = new Sender(token, tokens, incoming)
    await sender.admit()?.catch(refuse)
    const tail = itemTail(clientAddress(incoming, config.trustProxy))
    const ignored = new Ignored(unreadable)
    const refuseBody = refusedBody(ignored, sender, refuse)
    const { results, accepted } = await readBatch(incoming, sender, tail, ignored).catch(refuseBody)

    // Nobody fills statements and the queue before it is authenticated. Without an item, no statement says who it is.
    if (accepted.length === 0 || accepted.length > MAX_UNVERIFIED_ITEMS) await sender.identify().catch(refuse)
    const isOfOne = !token.isGateway || accepted.every(({ device_id }) => device_id === accepted[0]!.device_id)
    const outcomes = await nodes.store(token, accepted)
    // The database was unreachable for one of the items: the whole request fails, because the client sends nothing else again. What
    // was stored of it in the meantime is a duplicate then. The answer says which items those are, for a gateway that would rather
    // send only the others again: those of a node that is away.
    const own = await sender.authenticated(outcomes).catch((error: unknown) => {
      const isPartly = token.isGateway && outcomes.some(outcome => !(outcome instanceof Problem))
      throw error instanceof Problem && error.status === 503 && isPartly ? withResults(error, results, accepted, outcomes) : error
    })
    for (const [position, { index, device_id }] of accepted.entries()) {
      const outcome = outcomes[position]!
      if (outcome instanceof Problem || own === null || isKept(outcome)) results[index] = resultOf(outcome, isOfOne)
      else {
        ignored.refused(own, NOT_THIS_DEVICE, { device_id })
        results[index] = rejected([NOT_THIS_DEVICE])
      }
    }
    ignored.report(own)

    const count = { stored: 0, duplicate: 0, quarantined: 0, rejected: 0 }
    for (const entry of results) count[entry!.result]++
    return c.json({ results, ...count, ignored: ignored.names })
  }
}

/** The 503 of a gateway's request of which a part was stored: the results of all items, in which what was not is `unavailable`. */
function withResults(problem: Problem, results: (Result | undefined)[], accepted: Accepted[], outcomes: (Outcome | Problem)[]) {
  const all: (Result | { result: 'unavailable' } | undefined)[] = [...results]
  for (const [position, { index }] of accepted.entries()) {
    const outcome = outcomes[position]!
    const isLost = outcome instanceof Problem && outcome.status >= 500
    all[index] = isLost ? { result: 'unavailable' } : resultOf(outcome, false)
  }
  const { message, headers, cause } = problem
  return new Problem(503, message, { results: all as object[], headers, cause })
}

function resultOf(outcome: Outcome | Problem, isOfOne: boolean): Result {
  if (outcome instanceof Problem) return rejected(outcome.errors ?? [{ path: '', message: outcome.message }])
  return isKept(outcome) ? answer(outcome, isOfOne) : rejected([NOT_ENROLLED])
}

/** Counts heartbeats that fail before the writer has them: if the fault is ours, they are failed writes too. */
function refusing(metrics: Metrics, heartbeats: number) {
  return (error: unknown): never => {
    if (toProblem(error).status >= 500) metrics.writesFailed.inc(heartbeats)
    throw error
  }
}

/**
 * Answers to a body that cannot be read. Only an authenticated sender learns what is wrong with it, and its device is noted. What a
 * gateway sends may be of any device.
 */
function refusedBody(ignored: Ignored, sender: Sender, refuse: (error: unknown) => never) {
  return async (error: unknown): Promise<never> => {
    const { status, message } = toProblem(error)
    if (status < 500 && status !== 401 && status !== 429) {
      const { device_id } = await sender.identify().catch(refuse)
      ignored.refused(device_id, { path: '', message }, message)
      ignored.report(device_id)
    }
    return refuse(error)
  }
}

function isKept(outcome: Outcome): outcome is Outcome & { result: Result['result'] } {
  return outcome.result !== 'unauthorized' && outcome.result !== 'unknown_device'
}

/**
 * @param isOfOne whether the request is of one device. A gateway that sends for several at once would send more often if each had a
 * moment of its own, so it is asked for plain intervals.
 */
function answer(outcome: Outcome & { result: Result['result'] }, isOfOne: boolean): Result {
  const { result, reason, ts, device_id, next_interval_s } = outcome
  const about = { ts, next_interval_s: isOfOne ? spread(device_id!, next_interval_s!, Date.now()) : next_interval_s! }
  return reason === null ? { result, ...about } : { result, reason, ...about }
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
 * @throws Problem 400, 413, 415 or 422 for the whole batch, and as Sender.identify()
 */
async function readBatch(incoming: AppEnv['Bindings']['incoming'], sender: Sender, tail: string, ignored: Ignored) {
  const type = batchType(incoming)
  const body = await sender.read(() => readInflated(incoming, MAX_BATCH_BYTES))
  const results: (Result | undefined)[] = []
  const accepted: Accepted[] = []
  for (const [index, value] of readItems(body, type).entries()) {
    const judged = value instanceof Malformed ? value.error : judge(value, sender.token, tail, ignored)
    if ('text' in judged) {
      accepted.push({ index, ...judged })
      continue
    }
    const named = isObject(value) ? value.device_id : null
    if (!sender.token.isGateway) ignored.refused(null, judged, value)
    else if (isDeviceId(named)) ignored.refused(named, judged, value)
    results[index] = rejected([judged])
  }
  return { results, accepted }
}

/** An item that may be written, as text for the writer. */
interface Judged {
  /** The device that it names; null for that of the token. */
  device_id: number | null
  text: string
}

interface Accepted extends Judged {
  /** Its position in the request. */
  index: number
}

function judge(value: unknown, { isGateway }: Token, tail: string, ignored: Ignored): Judged | FieldError {
  if (!isObject(value)) return NOT_AN_OBJECT
  const named = value.device_id ?? null
  if (isGateway && !isDeviceId(named)) return { path: 'device_id', message: 'must be a device id' }
  if (named !== null && !isDeviceId(named)) return NOT_THIS_DEVICE
  const text = readItem(value, named, tail, ignored)
  return typeof text === 'string' ? { device_id: named, text } : text
}

function isDeviceId(value: unknown): value is number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value > 0
}
