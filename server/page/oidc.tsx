import type { Context, Handler } from 'hono'
import { deleteCookie, getCookie, setCookie } from 'hono/cookie'
import { z } from 'zod'
import { clientAddress } from '../auth/address.ts'
import { LoginRefused, type Oidc } from '../auth/oidc.ts'
import type { ServerConfig } from '../config.ts'
import type { AppEnv } from '../env.ts'
import type { Log } from '../../lib/log.ts'
import { unavailable } from '../problem.ts'
import { answer } from './answer.ts'
import { Login, localPath } from './login.tsx'
import { isSecure, type Sessions } from './session.ts'

const COOKIE = 'fleet_login'
/** How long somebody may take at the identity provider. */
const PENDING_S = 600

const pendingCookie = z.object({ state: z.string(), nonce: z.string(), verifier: z.string(), next: z.string() })

/** Sends the browser to the identity provider. */
export function beginOidc(oidc: Oidc, config: ServerConfig, log: Log): Handler<AppEnv> {
  return async c => {
    const { url, pending } = await oidc.begin(localPath(c.req.query('next') ?? null)).catch((cause: unknown) => {
      log.error({ event: 'page.provider_unreachable', error: cause }, 'The identity provider cannot be reached.')
      throw unavailable('The identity provider cannot be reached. Log in with a key, or try again.', cause)
    })
    // Lax, because the browser comes back from another site.
    setCookie(c, COOKIE, Buffer.from(JSON.stringify(pending)).toString('base64url'), {
      ...attributes(c, config),
      maxAge: PENDING_S,
    })
    return c.redirect(url.href, 303)
  }
}

/** The browser is back from the identity provider. */
export function finishOidc(oidc: Oidc, config: ServerConfig, sessions: Sessions, log: Log): Handler<AppEnv> {
  return async c => {
    const address = clientAddress(c.env.incoming, config.trustProxy)
    const pending = readPending(getCookie(c, COOKIE, attributes(c, config).prefix))
    deleteCookie(c, COOKIE, attributes(c, config))
    const refuse = (problem: string, status: 400 | 403 | 429, headers?: Record<string, string>) =>
      answer(c, <Login next={localPath(pending?.next ?? null)} problem={problem} provider={oidc.host} />, status, headers)
    if (pending === undefined) return refuse('This login was not begun here, or has expired. Begin again.', 400)
    try {
      const who = await oidc.finish(new URL(c.req.url).search, pending)
      await sessions.open(c, 'oidc', who)
      log.info({ event: 'page.login', actor: who.actor, address })
      return c.redirect(localPath(pending.next), 303)
    } catch (error) {
      if (!(error instanceof LoginRefused)) throw error
      log.warn({ event: 'page.login_failed', address, reason: error.message }, 'Somebody could not log in with OpenID Connect.')
      return refuse(error.message, 403)
    }
  }
}

function readPending(cookie: string | undefined) {
  try {
    return pendingCookie.safeParse(JSON.parse(Buffer.from(cookie ?? '', 'base64url').toString())).data
  } catch {
    return undefined
  }
}

function attributes(c: Context<AppEnv>, config: ServerConfig) {
  const secure = isSecure(c, config)
  return { path: '/', httpOnly: true, sameSite: 'Lax', secure, prefix: secure ? 'host' : undefined } as const
}
