import { createHmac, randomBytes, scryptSync, timingSafeEqual } from 'node:crypto'
import type { Context } from 'hono'
import { deleteCookie, getCookie, setCookie } from 'hono/cookie'
import type { AppEnv } from '../app.ts'
import type { ServerConfig } from '../config.ts'

const COOKIE = 'fleet_session'
/** A working day: who has the page open overnight logs in again. */
export const SESSION_S = 12 * 3_600

/**
 * Sessions that no one has to keep: a cookie holds when one ends, signed by a key made from the admin key. Every
 * worker and instance with that admin key knows it, and another admin key ends all sessions.
 */
export class Sessions {
  readonly #key: Buffer

  constructor(readonly config: Pick<ServerConfig, 'adminKey' | 'trustProxy'>) {
    // Slow on purpose, once: whoever has a cookie could otherwise try admin keys by the million.
    this.#key = scryptSync(config.adminKey, 'nexmdm ops page', 32)
  }

  /** What the cookie of a session holds that begins at `now` (ms). */
  issue(now = Date.now()) {
    const said = `${Math.floor(now / 1_000) + SESSION_S}.${randomBytes(12).toString('base64url')}`
    return `${said}.${this.#sign(said).toString('base64url')}`
  }

  /** Whether this was issued, with this key, and has not ended. */
  isValid(cookie: string | undefined, now = Date.now()) {
    const [, said, ends, signature] = /^((\d{1,12})\.[\w-]{16})\.([\w-]{43})$/.exec(cookie ?? '') ?? []
    if (said === undefined || signature === undefined) return false
    return timingSafeEqual(Buffer.from(signature, 'base64url'), this.#sign(said)) && Number(ends) * 1_000 > now
  }

  isOpen(c: Context<AppEnv>) {
    return this.isValid(getCookie(c, COOKIE, this.#prefix(c)))
  }

  open(c: Context<AppEnv>) {
    setCookie(c, COOKIE, this.issue(), { ...this.#attributes(c), maxAge: SESSION_S })
  }

  close(c: Context<AppEnv>) {
    deleteCookie(c, COOKIE, this.#attributes(c))
  }

  #sign(said: string) {
    return createHmac('sha256', this.#key).update(said).digest()
  }

  #attributes(c: Context<AppEnv>) {
    return { path: '/', httpOnly: true, sameSite: 'Strict', secure: isSecure(c, this.config), prefix: this.#prefix(c) } as const
  }

  /** Over TLS the name itself keeps other hosts of the domain, and plain HTTP, from setting it. */
  #prefix(c: Context<AppEnv>) {
    return isSecure(c, this.config) ? 'host' : undefined
  }
}

/** TLS ends before this server, at a proxy that says so. */
function isSecure(c: Context<AppEnv>, { trustProxy }: Pick<ServerConfig, 'trustProxy'>) {
  const { 'x-forwarded-proto': proto } = c.env.incoming.headers
  return trustProxy && String(proto ?? '').split(',').at(-1)!.trim() === 'https'
}
