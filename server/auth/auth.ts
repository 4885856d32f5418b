import { createHash, timingSafeEqual } from 'node:crypto'
import type { MiddlewareHandler } from 'hono'
import type { IncomingMessage } from 'node:http'
import type { AppEnv } from '../context.ts'
import type { RateLimit } from './rate-limit.ts'
import { Problem } from '../problem.ts'
import type { Identity, Tokens } from './tokens.ts'

/** @throws Problem 401 for a token that is missing, unknown or revoked, 429 for one too many of those */
export async function identify(incoming: IncomingMessage, tokens: Tokens): Promise<Identity> {
  const token = bearer(incoming)
  if (token === undefined) {
    throw unauthorized('A token is needed, as Authorization: Bearer <token>.', 'Bearer realm="fleet"')
  }
  const found = tokens.identify(token, incoming)
  const identity = found instanceof Promise ? await found : found
  if (identity === null) {
    throw unauthorized('The token is unknown or revoked.', 'Bearer realm="fleet", error="invalid_token"')
  }
  return identity
}

/** As identify(), for what only a device may ask; `otherwise` tells a gateway what it may do instead. */
export async function identifyDevice(incoming: IncomingMessage, tokens: Tokens, otherwise: string) {
  const identity = await identify(incoming, tokens)
  if (identity.kind !== 'device') throw unauthorized(otherwise, 'Bearer realm="fleet"')
  return identity
}

/**
 * Lets pass who brings the admin key in `x-admin`, or with `orBearer` as Prometheus sends it. After too many wrong ones from an
 * address not even the right one: else it would be found all the same.
 */
export function adminOnly(adminKey: string, rateLimit: RateLimit, { orBearer = false } = {}): MiddlewareHandler<AppEnv> {
  const isKey = keyCheck(adminKey)
  return async (c, next) => {
    const { incoming } = c.env
    const key = incoming.headers['x-admin'] ?? (orBearer ? bearer(incoming) : undefined)
    rateLimit.check(incoming)
    if (!isKey(key)) {
      if (key !== undefined) rateLimit.wrong(incoming)
      throw unauthorized(
        'The admin key is needed, as x-admin: <key>.',
        orBearer ? 'Bearer realm="fleet"' : 'X-Admin realm="fleet"',
      )
    }
    await next()
  }
}

/** Tells whether something is this key, and to who asks by the clock nothing of it. */
export function keyCheck(want: string) {
  const digestOfWant = digest(want)
  // Digests have one length.
  return (given: unknown) => typeof given === 'string' && timingSafeEqual(digest(given), digestOfWant)
}

function bearer(incoming: IncomingMessage) {
  return /^bearer +(\S+) *$/i.exec(incoming.headers.authorization ?? '')?.[1]
}

function digest(text: string) {
  return createHash('sha256').update(text).digest()
}

function unauthorized(detail: string, challenge: string) {
  return new Problem(401, detail, { headers: { 'www-authenticate': challenge } })
}
