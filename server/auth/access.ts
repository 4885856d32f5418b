import { createHash, hash, timingSafeEqual } from 'node:crypto'
import type { IncomingMessage } from 'node:http'
import type { MiddlewareHandler } from 'hono'
import { clientAddress } from './address.ts'
import { BoundedMap } from './bounded-map.ts'
import { bearer, unauthorized } from './bearer.ts'
import type { RateLimit } from './rate-limit.ts'
import { requireScope } from './acting.ts'
import { adminPrincipal, type Principal } from './principal.ts'
import type { Scope } from './scopes.ts'
import type { AppEnv } from '../env.ts'
import type { Pool } from '../database.ts'
import type { Metrics } from '../ops/metrics.ts'
import { toProblem } from '../problem.ts'

const API_KEY = /^nxk_[0-9a-f]{64}$/
/** Keys for metrics that a worker remembers for the time when the database is unreachable. */
const MAX_REMEMBERED = 100
/** Names of keys that have a label of their own in the metrics of a worker. */
const MAX_NAMES = 100

/**
 * Finds out who calls with a key: the server's ADMIN_KEY, or an API key, which Postgres looks up at each request, so that a
 * revocation holds from the next request on. After too many wrong keys from a network even a right key is refused there, because
 * guessing would still find it.
 */
export class Access {
  readonly #isAdminKey: (given: unknown) => boolean
  readonly #names = new Set<string>()
  readonly #monitors = new BoundedMap<Principal>(MAX_REMEMBERED)

  constructor(
    readonly config: { adminKey: string | undefined; trustProxy: boolean },
    readonly pool: Pool,
    readonly rateLimit: RateLimit,
    readonly metrics: Pick<Metrics, 'keyRequests'>,
  ) {
    this.#isAdminKey = config.adminKey === undefined ? () => false : keyCheck(config.adminKey)
  }

  /**
   * Lets through callers that have this scope. ADMIN_KEY comes in `x-admin` or, with `orBearer`, as a bearer token, which is how
   * Prometheus sends it. An API key may come in both ways.
   */
  allow(scope: Scope, { orBearer = false } = {}): MiddlewareHandler<AppEnv> {
    return async (c, next) => {
      const { incoming } = c.env
      this.rateLimit.check(incoming)
      const header = incoming.headers['x-admin']
      const given = header ?? bearer(incoming)
      const principal =
        (header !== undefined || orBearer) && this.#isAdminKey(given)
          ? adminPrincipal('key')
          : await (scope === 'metrics' ? this.#findMonitor(given, incoming) : this.find(given, incoming))
      if (principal === undefined) {
        if (given !== undefined) this.rateLimit.wrong(incoming)
        throw unauthorized(
          given === undefined
            ? 'A key is required: an API key in the header Authorization: Bearer <key>, or the admin key in x-admin: <key>.'
            : 'The key is unknown, revoked or expired.',
          'Bearer realm="fleet", X-Admin realm="fleet"',
        )
      }
      this.metrics.keyRequests.inc({ key: this.#label(principal.actor) })
      requireScope(principal, scope)
      c.set('principal', principal)
      await next()
    }
  }

  /** Who has this key, whether it is the admin key or an API key. */
  async identify(given: unknown, incoming: IncomingMessage): Promise<Principal | undefined> {
    return this.#isAdminKey(given) ? adminPrincipal('key') : this.find(given, incoming)
  }

  /** Who has this API key. */
  async find(given: unknown, incoming: IncomingMessage): Promise<Principal | undefined> {
    if (typeof given !== 'string' || !API_KEY.test(given)) return undefined
    const credential = hash('sha256', given)
    const address = clientAddress(incoming, this.config.trustProxy)
    const [key] = await this.pool.run(
      sql => sql<{ name: string; scopes: Scope[]; cohorts: string[] | null }[]>`
      select name, to_json(scopes) as scopes, to_json(cohorts) as cohorts
      from fleet.authenticate_key(${`\\x${credential}`}::text::bytea, ${address})
    `,
    )
    return key && { how: 'key', actor: key.name, scopes: key.scopes, cohorts: key.cohorts, credential }
  }

  /**
   * As find(). Metrics are needed most while the database is unreachable: then a key for metrics that was valid when it was last
   * looked up still counts.
   */
  async #findMonitor(given: unknown, incoming: IncomingMessage) {
    const key = typeof given === 'string' ? hash('sha256', given) : ''
    try {
      const found = await this.find(given, incoming)
      if (found?.scopes.includes('metrics') === true) this.#monitors.set(key, found)
      else this.#monitors.delete(key)
      return found
    } catch (error) {
      const remembered = this.#monitors.get(key)
      if (remembered === undefined || toProblem(error).status !== 503) throw error
      return remembered
    }
  }

  #label(name: string) {
    if (!this.#names.has(name) && this.#names.size >= MAX_NAMES) return '(other)'
    this.#names.add(name)
    return name
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
