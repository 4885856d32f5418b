import type { Context, Handler } from 'hono'
import { clientAddress } from '../auth/address.ts'
import type { AppEnv } from '../env.ts'
import type { Access } from '../auth/access.ts'
import { mediaType, readInflated } from '../body.ts'
import type { ServerConfig } from '../config.ts'
import type { Log } from '../../lib/log.ts'
import { Problem } from '../problem.ts'
import type { Attempts } from './attempts.ts'
import { answer } from './answer.ts'
import { Page } from './layout.tsx'
import type { Sessions } from './session.ts'

const MAX_BODY_BYTES = 4 * 1024

interface LoginProps {
  /** Where to go after the login. */
  next: string
  problem?: string
  /** The identity provider, if people can log in there. */
  provider?: string | undefined
}

export function Login({ next, problem, provider }: LoginProps) {
  return (
    <Page title="Log in · NexMDM fleet" isBare>
      <form method="post" action="/login" class="card login">
        <h1>Fleet heartbeats</h1>
        {problem !== undefined && (
          <p role="alert" class="unread">
            {problem}
          </p>
        )}
        {provider !== undefined && (
          <p>
            <a class="button" href={`/login/oidc?${new URLSearchParams({ next }).toString()}`}>
              Log in with {provider}
            </a>
          </p>
        )}
        {/* For password managers, which store a password under a name. */}
        <input type="text" name="username" value="admin" autocomplete="username" hidden />
        <label for="key">Key</label>
        <input
          id="key"
          name="key"
          type="password"
          autocomplete="current-password"
          required
          autofocus={provider === undefined}
          aria-describedby="key-hint"
        />
        <p id="key-hint" class="muted">
          An API key with the scope <code>read</code>, or the server's <code>ADMIN_KEY</code>. <code>npm start</code> keeps that
          in <code>.local/admin-key</code>.
        </p>
        <input type="hidden" name="next" value={next} />
        <button type="submit">Log in</button>
      </form>
    </Page>
  )
}

export function postLogin(
  config: ServerConfig,
  access: Access,
  sessions: Sessions,
  attempts: Attempts,
  log: Log,
): Handler<AppEnv> {
  const provider = config.oidc && new URL(config.oidc.issuer).host
  return async c => {
    fromThisPage(c)
    const form = await readForm(c)
    const next = localPath(form.get('next'))
    const address = clientAddress(c.env.incoming, config.trustProxy)
    const wait = attempts.waitS(address)
    if (wait > 0) {
      const problem = `Too many wrong keys from this address. Try again in ${wait} s.`
      return answer(c, <Login next={next} provider={provider} problem={problem} />, 429, { 'retry-after': String(wait) })
    }
    const who = await access.identify(form.get('key'), c.env.incoming)
    if (who === undefined) {
      attempts.failed(address)
      log.warn({ event: 'page.login_failed', address }, 'Somebody tried to log in with a wrong key.')
      return answer(c, <Login next={next} provider={provider} problem="That is not a valid key." />, 403)
    }
    // Only ADMIN_KEY can be guessed, so nothing else makes earlier guesses forgotten.
    if (who.credential === undefined) attempts.succeeded(address)
    if (!who.scopes.includes('read')) {
      return answer(
        c,
        <Login
          next={next}
          provider={provider}
          problem={`The key ${who.actor} does not have the scope read, which this page needs.`}
        />,
        403,
      )
    }
    const isOpen = await sessions.open(c, who.credential === undefined ? 'admin_key' : 'api_key', who)
    if (!isOpen) return answer(c, <Login next={next} provider={provider} problem="That key was revoked at this moment." />, 403)
    log.info({ event: 'page.login', actor: who.actor, address })
    return c.redirect(next, 303)
  }
}

export function postLogout(sessions: Sessions): Handler<AppEnv> {
  return async c => {
    fromThisPage(c)
    await sessions.close(c)
    return c.redirect('/', 303)
  }
}

/** A path of the page itself, or `/`: a login form must not send anyone to another site. */
export function localPath(text: string | null) {
  return text !== null && /^\/(?:devices\/\d{1,15}|sessions|audit)?(?:\?[\w=&%.+~-]*)?$/.test(text) ? text : '/'
}

/**
 * Browsers say in one of two headers where a POST comes from. A form of another site is refused.
 * @throws Problem 403
 */
export function fromThisPage(c: Context<AppEnv>) {
  const { host, origin, 'sec-fetch-site': site } = c.env.incoming.headers
  const isOwn =
    site !== undefined ? site === 'same-origin' : origin !== undefined && URL.canParse(origin) && new URL(origin).host === host
  if (!isOwn) throw new Problem(403, 'This form was sent by another site; nothing was done.')
}

export async function readForm(c: Context<AppEnv>, maxBytes = MAX_BODY_BYTES) {
  const type = mediaType(c.env.incoming)
  if (type !== 'application/x-www-form-urlencoded') throw new Problem(415, `The body must be a form, not ${type}.`)
  return new URLSearchParams((await readInflated(c.env.incoming, maxBytes)).toString())
}
