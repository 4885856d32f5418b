import { hash } from 'node:crypto'
import type { IncomingMessage } from 'node:http'
import type { PendingQuery, Row } from 'postgres'
import { bearer, unauthorized } from './bearer.ts'
import { BoundedMap } from './bounded-map.ts'
import type { DeviceLimit } from './device-limit.ts'
import { Lane } from './lane.ts'
import type { RateLimit } from './rate-limit.ts'
import type { Pool, Sql } from '../database.ts'

/** A token that may be one of ours. Only the database knows whether it is. */
export interface Token {
  /** The SHA-256 of its whole text, in hex. The text itself is kept nowhere. */
  hash: string
  /** Whether its prefix says that it is a gateway's. */
  isGateway: boolean
  /** The device that it names; null for a gateway's, and for one of before 0.2.0. Whether that is true, only the database knows. */
  deviceId: number | null
}

type Runner = Pick<Pool, 'run'>

/** The owner of a token, as fleet.authenticate returns it. */
export type Identity = { kind: 'device'; device_id: number } | { kind: 'gateway'; device_id: null }

/** nxd_, the device's id (tokens of before 0.2.0 have none), and 64 hex digits; or nxg_ and 64 hex digits. */
const TOKEN = /^nx(?:g|d(?:_[1-9]\d{0,18})?)_[0-9a-f]{64}$/

/** Of a token that names no device. */
const SHORT_LENGTH = 'nxd_'.length + 64

/** A device that was refused in the lane comes again soon; it will get through. */
const MAX_LANE_WAIT_MS = 5_000

/** In about 8 MB. */
const MAX_GOOD = 50_000

const REALM = 'Bearer realm="fleet"'

/**
 * Reads the token of a request, without a query.
 * @throws Problem 401 if there is none, or if the text cannot be one of our tokens
 */
export function readToken(incoming: IncomingMessage): Token {
  const text = bearer(incoming)
  if (text === undefined) throw unauthorized('A token is required, in the header Authorization: Bearer <token>.', REALM)
  if (!TOKEN.test(text)) throw unknownToken()
  const isGateway = text.startsWith('nxg')
  const named = text.length > SHORT_LENGTH ? Number(text.slice(4, -65)) : null
  return { hash: hash('sha256', text), isGateway, deviceId: Number.isSafeInteger(named) ? named : null }
}

/** The answer to a token that is unknown or revoked. */
export function unknownToken() {
  return unauthorized('The token is unknown or revoked.', `${REALM}, error="invalid_token"`)
}

/** The answer to a token that is good, but for another call. */
export function wrongKind(detail: string) {
  return unauthorized(detail, REALM)
}

/**
 * Looks tokens up for the calls that do not store heartbeats, and limits the wrong ones. Nothing here authorizes: that is done by
 * each statement itself, so a revocation holds from the next statement on.
 *
 * A network that sent too many wrong tokens may have only a few looked up at a time. A token that was found good while wrong ones
 * came from its network passes without this, so the devices there are not held up twice.
 */
export class Tokens {
  readonly #good = new BoundedMap<true>(MAX_GOOD)
  readonly #lane = new Lane()

  /**
   * @param rateLimit of wrong tokens, by the client's network
   * @param deviceLimit of all requests, by the device's token
   * @param nodeOf chooses where a token is looked up for heartbeats, because every node of a distributed store knows all of them
   */
  constructor(
    readonly pool: Runner,
    readonly rateLimit: RateLimit,
    readonly deviceLimit: DeviceLimit,
    readonly nodeOf: (token: Token) => Runner = () => pool,
  ) {}

  /** How many good tokens are remembered. */
  get remembered() {
    return this.#good.size
  }

  /**
   * Reads the token of a request and counts the request, without a query.
   * @throws Problem as readToken(); 429 if the device has sent too many requests. A gateway sends for many, so it has no limit.
   */
  read(incoming: IncomingMessage): Token {
    const token = readToken(incoming)
    if (!token.isGateway) this.deviceLimit.check(token.hash)
    return token
  }

  /**
   * Call this before a statement that authenticates by itself. Undefined, in nearly all cases, if the request may go on.
   * @throws Problem 429 if the client's network is over the limit and it was refused in the lane; 401 if the token was looked up and is wrong
   */
  admit(token: Token, incoming: IncomingMessage): Promise<Identity> | undefined {
    return this.#isLimited(token, incoming) ? this.authenticate(token, incoming) : undefined
  }

  /** @throws Problem 401 if the token is unknown or revoked; 429 as admit() */
  async authenticate(token: Token, incoming: IncomingMessage): Promise<Identity> {
    const [identity] = await this.ask(
      token,
      incoming,
      (sql, hash) => sql<Identity[]>`select kind, device_id from fleet.authenticate(${hash}::text::bytea)`,
      this.nodeOf(token),
    )
    return identity!
  }

  /**
   * Runs a query that begins with fleet.authenticate() and so returns no row for a wrong token.
   * @throws Problem as authenticate()
   */
  async ask<T extends Row>(
    token: Token,
    incoming: IncomingMessage,
    query: (sql: Sql, hash: string) => PendingQuery<T[]>,
    pool: Runner = this.pool,
  ): Promise<T[]> {
    const leave = this.#isLimited(token, incoming) ? await this.#enter(incoming) : undefined
    let isGood = true
    try {
      const rows = await pool.run(sql => query(sql, `\\x${token.hash}`))
      isGood = rows.length > 0
      this.judged(token, incoming, isGood)
      if (!isGood) throw unknownToken()
      return rows
    } finally {
      leave?.(isGood)
    }
  }

  /** What a statement said of a token. */
  judged({ hash }: Token, incoming: IncomingMessage, isGood: boolean) {
    if (!isGood) {
      this.#good.delete(hash)
      this.deviceLimit.forget(hash)
      this.rateLimit.wrong(incoming)
    } else if (this.rateLimit.hasWrong(incoming)) this.#good.set(hash, true)
  }

  #isLimited({ hash }: Token, incoming: IncomingMessage) {
    return this.rateLimit.wait(incoming) > 0 && !this.#good.has(hash)
  }

  async #enter(incoming: IncomingMessage) {
    const leave = await this.#lane.enter(this.rateLimit.network(incoming))
    if (leave === undefined) throw this.rateLimit.refusal(Math.random() * MAX_LANE_WAIT_MS)
    return leave
  }
}
