import { createHash, createHmac, randomBytes, scryptSync, timingSafeEqual } from 'node:crypto'
import type { Context } from 'hono'
import { deleteCookie, getCookie, setCookie } from 'hono/cookie'
import { clientAddress } from '../auth/address.ts'
import { BoundedMap } from '../auth/bounded-map.ts'
import { adminPrincipal, cohortsOf, type Principal } from '../auth/principal.ts'
import type { Scope } from '../auth/scopes.ts'
import type { ServerConfig } from '../config.ts'
import type { AppEnv } from '../env.ts'
import type { Pool } from '../database.ts'
import type { Log } from '../../lib/log.ts'
import { requestId, unavailable } from '../problem.ts'
import { withTimeout } from '../../lib/timeout.ts'

const COOKIE = 'fleet_session'
/** A working day. A page that stays open overnight asks for the key again. */
export const SESSION_S = 12 * 3_600

/** How long the page waits for the database to say whether a session was ended. */
const TIMEOUT_MS = 1_000
const MAX_ENDED = 1_000

/** How somebody logged in, as in fleet.sessions. */
export type LoginKind = 'admin_key' | 'api_key' | 'oidc'

/** What a cookie says: when it ends, and whether ADMIN_KEY signed it. */
interface Said {
  ends: number
  hash: Buffer
  key: string
  isAdmin: boolean
}

/**
 * The sessions of the ops page. Postgres has them all (fleet.sessions), and every server looks them up there at each request, so
 * that a logout, or a revocation of the API key, holds from the next request on.
 *
 * A cookie is `<when it ends, in seconds>.<random text>`. If somebody logged in with ADMIN_KEY, a signature follows, by a key that is
 * made from ADMIN_KEY: such a session also works while the database is unreachable, when the page is needed most, and another
 * ADMIN_KEY ends it.
 */
export class Sessions {
  readonly #key: Buffer | undefined
  /** Ended sessions that this worker knows of, in case the database is unreachable. */
  readonly #ended = new BoundedMap<true>(MAX_ENDED)

  constructor(
    readonly config: Pick<ServerConfig, 'adminKey' | 'trustProxy' | 'tls'>,
    readonly pool: Pool,
    readonly log: Log,
  ) {
    // Slow on purpose, and done once. Otherwise somebody with a cookie could try millions of admin keys.
    if (config.adminKey !== undefined) this.#key = scryptSync(config.adminKey, 'nexmdm ops page', 32)
  }

  /** The cookie of an ADMIN_KEY session that begins at `now` (ms). */
  issue(now = Date.now()) {
    const said = `${Math.floor(now / 1_000) + SESSION_S}.${randomBytes(12).toString('base64url')}`
    return `${said}.${this.#sign(said).toString('base64url')}`
  }

  /** Whether this is the cookie of an ADMIN_KEY session that was issued with this key and has not expired. */
  isValid(cookie: string | undefined, now = Date.now()) {
    return this.#read(cookie, now)?.isAdmin === true
  }

  /**
   * Whose session a request has, if it is open.
   * @throws Problem 503 if the database does not answer within a second. An ADMIN_KEY session then counts as open unless this worker
   * knows that it was ended.
   */
  async principal(c: Context<AppEnv>): Promise<Principal | undefined> {
    const session = this.#read(this.#cookie(c))
    if (session === undefined || this.#ended.get(session.key)) return undefined
    const credential = session.hash.toString('hex')
    // Postgres may not know it, but knows whether it was ended.
    const unrecorded: Principal = { ...adminPrincipal('session'), credential }
    let row: { actor: string; scopes: Scope[]; cohorts: string[] | null; is_open: boolean } | undefined
    try {
      ;[row] = await withTimeout(
        TIMEOUT_MS,
        this.pool.run(
          sql => sql<NonNullable<typeof row>[]>`
        select actor, to_json(scopes) as scopes, to_json(cohorts) as cohorts, is_open from fleet.see_session(${session.hash})
      `,
        ),
      )
    } catch (error) {
      if (!session.isAdmin) throw unavailable('The database is unreachable, so nobody knows whether this session is open.', error)
      this.log.warn(
        { event: 'page.session_unknown', error },
        'The database did not say whether a session was ended, so the session counts as open.',
      )
      return unrecorded
    }
    if (row?.is_open === false) this.#ended.set(session.key, true)
    // One that began while the database was unreachable is not in Postgres.
    if (row === undefined) return session.isAdmin ? unrecorded : undefined
    if (!row.is_open) return undefined
    const { actor, scopes, cohorts } = row
    return { how: 'session', actor, scopes, cohorts, credential }
  }

  /**
   * Begins a session.
   * @returns false if the API key was revoked at this moment
   * @throws Problem 503 if the database is unreachable, except with ADMIN_KEY
   */
  async open(c: Context<AppEnv>, login: LoginKind, who: Principal): Promise<boolean> {
    const now = Date.now()
    const cookie =
      login === 'admin_key' ? this.issue(now) : `${Math.floor(now / 1_000) + SESSION_S}.${randomBytes(32).toString('base64url')}`
    const { hash, ends } = this.#read(cookie, now)!
    const { incoming } = c.env
    const scopes = `{${who.scopes.join(',')}}`
    const credential = login === 'api_key' ? `\\x${who.credential}` : null
    try {
      const [row] = await withTimeout(
        // The form is worth waiting for a little longer.
        2 * TIMEOUT_MS,
        this.pool.run(
          sql => sql<{ is_open: boolean }[]>`
        select fleet.open_session(
          ${hash}, ${who.actor}, ${login}, ${credential}::text::bytea, ${scopes}::text::text[], ${cohortsOf(who)}::text::text[],
          to_timestamp(${ends}::bigint), ${clientAddress(incoming, this.config.trustProxy)}, ${incoming.headers['user-agent'] ?? null},
          ${requestId(incoming)}
        ) as is_open
      `,
        ),
      )
      if (!row!.is_open) return false
    } catch (error) {
      if (login !== 'admin_key') throw error
      this.log.warn({ event: 'page.login_not_recorded', error }, 'The database did not record a login with ADMIN_KEY.')
    }
    setCookie(c, COOKIE, cookie, { ...this.#attributes(c), maxAge: SESSION_S })
    return true
  }

  /**
   * Ends the session of a request on every server.
   * @throws Problem 503 when the database is unreachable; the session then stays open
   */
  async close(c: Context<AppEnv>) {
    const session = this.#read(this.#cookie(c))
    if (session !== undefined) {
      const { incoming } = c.env
      try {
        await this.pool.run(
          sql => sql`
          select fleet.end_session(
            ${session.hash}, to_timestamp(${session.ends}::bigint), ${session.isAdmin}, ${requestId(incoming)},
            ${clientAddress(incoming, this.config.trustProxy)}
          )
        `,
        )
      } catch (cause) {
        throw unavailable(
          'The database is unreachable, so this session is still open. Log out again when the database is back.',
          cause,
        )
      }
      this.#ended.set(session.key, true)
    }
    deleteCookie(c, COOKIE, this.#attributes(c))
  }

  #cookie(c: Context<AppEnv>) {
    return getCookie(c, COOKIE, this.#prefix(c))
  }

  #read(cookie: string | undefined, now = Date.now()): Said | undefined {
    const [, said, ends, random, signature] = /^((\d{1,12})\.([\w-]{16}|[\w-]{43}))(?:\.([\w-]{43}))?$/.exec(cookie ?? '') ?? []
    if (said === undefined || random === undefined || Number(ends) * 1_000 <= now) return undefined
    // A short text proves nothing without its signature; the long one is known to nobody but the browser.
    const isAdmin = signature !== undefined
    if (isAdmin !== (random.length === 16)) return undefined
    if (isAdmin && (this.#key === undefined || !timingSafeEqual(Buffer.from(signature, 'base64url'), this.#sign(said))))
      return undefined
    const hash = createHash('sha256').update(said).digest()
    return { ends: Number(ends), hash, key: hash.toString('base64'), isAdmin }
  }

  #sign(said: string) {
    return createHmac('sha256', this.#key!).update(said).digest()
  }

  #attributes(c: Context<AppEnv>) {
    return { path: '/', httpOnly: true, sameSite: 'Strict', secure: isSecure(c, this.config), prefix: this.#prefix(c) } as const
  }

  /** Over TLS this prefix keeps other hosts of the domain, and plain HTTP, from setting the cookie. */
  #prefix(c: Context<AppEnv>) {
    return isSecure(c, this.config) ? 'host' : undefined
  }
}

/** TLS ends at this server, or at a proxy in front of it, which says so in a header. */
export function isSecure(c: Context<AppEnv>, { trustProxy, tls }: Pick<ServerConfig, 'trustProxy' | 'tls'>) {
  if (tls !== undefined) return true
  const { 'x-forwarded-proto': proto } = c.env.incoming.headers
  return (
    trustProxy &&
    String(proto ?? '')
      .split(',')
      .at(-1)!
      .trim() === 'https'
  )
}
