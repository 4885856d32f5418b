import { createHash, timingSafeEqual } from 'node:crypto'
import type { MiddlewareHandler } from 'hono'
import { bearer, unauthorized } from './bearer.ts'
import type { AppEnv } from '../context.ts'
import type { RateLimit } from './rate-limit.ts'

/**
 * Accepts requests with the admin key in `x-admin` or, with `orBearer`, as a bearer token, which is how Prometheus sends it.
 * After too many wrong keys from a network even the right key is refused there; otherwise guessing would still find it.
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
        'The admin key is required, in the header x-admin: <key>.',
        orBearer ? 'Bearer realm="fleet"' : 'X-Admin realm="fleet"',
      )
    }
    await next()
  }
}

/** Returns a function that compares a value with this key in constant time. */
export function keyCheck(want: string) {
  const digestOfWant = digest(want)
  // timingSafeEqual needs equal lengths, which digests have.
  return (given: unknown) => typeof given === 'string' && timingSafeEqual(digest(given), digestOfWant)
}

function digest(text: string) {
  return createHash('sha256').update(text).digest()
}
