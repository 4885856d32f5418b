import { createHash, createHmac, randomBytes, scryptSync, timingSafeEqual } from 'node:crypto'
import type { Context } from 'hono'
import { deleteCookie, getCookie, setCookie } from 'hono/cookie'
import type { AppEnv } from '../context.ts'
import { BoundedMap } from '../auth/bounded-map.ts'
import type { ServerConfig } from '../config.ts'
import type { Pool } from '../database.ts'
import type { Log } from '../../lib/log.ts'
import { unavailable } from '../problem.ts'
import { withTimeout } from '../../lib/timeout.ts'

const COOKIE = 'fleet_session'
/** A working day. A page that stays open overnight asks for the key again. */
export const SESSION_S = 12 * 3_600

/** How long the page waits for the database to say whether a session was ended. */
const TIMEOUT_MS = 1_000
const MAX_ENDED = 1_000

/**
 * Sessions that nobody has to store: a cookie holds the time at which it ends, signed by a key that is made from the admin key.
 * Every worker and instance with that admin key accepts it, and a different admin key ends all sessions. Only sessions that were
 * ended by a logout are stored, in Postgres, where every server looks them up.
 */
export class Sessions {
  readonly #key: Buffer
  /** Ended sessions that this worker knows of, in case the database is unreachable. */
  readonly #ended = new BoundedMap<true>(MAX_ENDED)

  constructor(
    readonly config: Pick<ServerConfig, 'adminKey' | 'trustProxy' | 'tls'>,
    readonly pool: Pool,
    readonly log: Log,
  ) {
    // Slow on purpose, and done once. Otherwise somebody with a cookie could try millions of admin keys.
    this.#key = scryptSync(config.adminKey, 'nexmdm ops page', 32)
  }

  /** The cookie of a session that begins at `now` (ms). */
  issue(now = Date.now()) {
    const said = `${Math.floor(now / 1_000) + SESSION_S}.${randomBytes(12).toString('base64url')}`
    return `${said}.${this.#sign(said).toString('base64url')}`
  }

  /** Whether this cookie was issued with this key and has not expired. */
  isValid(cookie: string | undefined, now = Date.now()) {
    return this.#read(cookie, now) !== undefined
  }

  /**
   * Whether a request has an open session. If the database does not answer within a second, a session counts as open unless this
   * worker knows that it was ended, because the person on call needs the page most when the database is unreachable.
   */
  async isOpen(c: Context<AppEnv>) {
    const session = this.#read(this.#cookie(c))
    if (session === undefined || this.#ended.get(session.key)) return false
    try {
      const [row] = await withTimeout(
        TIMEOUT_MS,
        this.pool.run(
          sql => sql<{ is_ended: boolean }[]>`
        select fleet.is_session_ended(${session.hash}) as is_ended
      `,
        ),
      )
      if (row!.is_ended) this.#ended.set(session.key, true)
      return !row!.is_ended
    } catch (error) {
      this.log.warn(
        { event: 'page.session_unknown', error },
        'The database did not say whether a session was ended, so the session counts as open.',
      )
      return true
    }
  }

  open(c: Context<AppEnv>) {
    setCookie(c, COOKIE, this.issue(), { ...this.#attributes(c), maxAge: SESSION_S })
  }

  /**
   * Ends the session of a request on every server.
   * @throws Problem 503 when the database is unreachable; the session then stays open
   */
  async close(c: Context<AppEnv>) {
    const session = this.#read(this.#cookie(c))
    if (session !== undefined) {
      try {
        await this.pool.run(sql => sql`select fleet.end_session(${session.hash}, to_timestamp(${session.ends}::bigint))`)
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

  #read(cookie: string | undefined, now = Date.now()) {
    const [, said, ends, signature] = /^((\d{1,12})\.[\w-]{16})\.([\w-]{43})$/.exec(cookie ?? '') ?? []
    if (said === undefined || signature === undefined) return undefined
    if (!timingSafeEqual(Buffer.from(signature, 'base64url'), this.#sign(said)) || Number(ends) * 1_000 <= now) return undefined
    const hash = createHash('sha256').update(said).digest()
    return { ends: Number(ends), hash, key: hash.toString('base64') }
  }

  #sign(said: string) {
    return createHmac('sha256', this.#key).update(said).digest()
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
function isSecure(c: Context<AppEnv>, { trustProxy, tls }: Pick<ServerConfig, 'trustProxy' | 'tls'>) {
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
