import * as client from 'openid-client'
import type { Principal } from './principal.ts'
import { type OidcConfig } from './oidc-config.ts'
import { unavailable } from '../problem.ts'

/** How long the identity provider may take to answer, in seconds. */
const TIMEOUT_S = 10

/** What the server has to remember of a login until the browser comes back, in a cookie. */
export interface Pending {
  state: string
  nonce: string
  verifier: string
  /** Where to go afterwards. */
  next: string
}

/** Why somebody does not get in, in words for them. */
export class LoginRefused extends Error {}

/**
 * Logs people in at an identity provider: OpenID Connect, Authorization Code with PKCE (RFC 7636), by the library openid-client,
 * which checks state, nonce, issuer, audience, expiry and the signature of the ID token.
 */
export class Oidc {
  #discovered: Promise<client.Configuration> | undefined

  constructor(readonly config: OidcConfig) {}

  /** The provider, for people. */
  get host() {
    return new URL(this.config.issuer).host
  }

  get redirectUri() {
    return `${this.config.publicUrl}/login/oidc/callback`
  }

  /**
   * Begins a login.
   * @returns the provider's URL for the browser, and what to remember until it is back
   * @throws if the provider cannot be reached
   */
  async begin(next: string): Promise<{ url: URL; pending: Pending }> {
    const provider = await this.#provider()
    const pending = {
      state: client.randomState(),
      nonce: client.randomNonce(),
      verifier: client.randomPKCECodeVerifier(),
      next,
    }
    const url = client.buildAuthorizationUrl(provider, {
      redirect_uri: this.redirectUri,
      scope: this.config.scope,
      code_challenge: await client.calculatePKCECodeChallenge(pending.verifier),
      code_challenge_method: 'S256',
      state: pending.state,
      nonce: pending.nonce,
    })
    return { url, pending }
  }

  /**
   * Ends a login.
   * @param query of the URL with which the browser came back
   * @throws LoginRefused if the provider did not say who it is, or if this person may do nothing here; Problem 503 if the provider
   * cannot be reached
   */
  async finish(query: string, { state, nonce, verifier }: Pending): Promise<Principal> {
    const provider = await this.#provider()
    const { claims, groups } = await this.#exchange(provider, query, { state, nonce, verifier }).catch((cause: unknown) => {
      if (isOutage(cause)) throw unavailable('The identity provider did not answer. Log in with a key, or try again.', cause)
      throw new LoginRefused(describe(cause), { cause })
    })
    const actor = nameOf(claims)
    const theirs = [groups].flat().filter(group => typeof group === 'string')
    const rule = this.config.groups.find(({ group }) => theirs.includes(group))
    if (rule === undefined) throw new LoginRefused(`${actor} is in no group that may use this page.`)
    if (!rule.scopes.includes('read')) throw new LoginRefused(`The group ${rule.group} does not have the scope read.`)
    return { how: 'session', actor, scopes: rule.scopes, cohorts: rule.cohorts, credential: undefined }
  }

  /** Exchanges the code for what the provider says of the person. */
  async #exchange(provider: client.Configuration, query: string, { state, nonce, verifier }: Omit<Pending, 'next'>) {
    const tokens = await client.authorizationCodeGrant(provider, new URL(`${this.redirectUri}${query}`), {
      pkceCodeVerifier: verifier,
      expectedState: state,
      expectedNonce: nonce,
      idTokenExpected: true,
    })
    const claims = tokens.claims()!
    const { groupsClaim } = this.config
    if (claims[groupsClaim] !== undefined || provider.serverMetadata().userinfo_endpoint === undefined)
      return { claims, groups: claims[groupsClaim] }
    const info = await client.fetchUserInfo(provider, tokens.access_token, claims.sub)
    return { claims: { ...info, ...claims }, groups: info[groupsClaim] }
  }

  /** The provider's metadata. A failure is not remembered. */
  #provider() {
    const { issuer, clientId, clientSecret } = this.config
    const isPlain = new URL(issuer).protocol === 'http:'
    this.#discovered ??= client
      .discovery(new URL(issuer), clientId, clientSecret, clientSecret === undefined ? client.None() : undefined, {
        timeout: TIMEOUT_S,
        // The settings allow http:// for this machine only.
        execute: isPlain
          ? [client.allowInsecureRequests, client.enableNonRepudiationChecks]
          : [client.enableNonRepudiationChecks],
      })
      .catch((error: unknown) => {
        this.#discovered = undefined
        throw error
      })
    return this.#discovered
  }
}

/**
 * The name of a person in the audit log: the e-mail address if the provider says that it has verified it. Otherwise people may have
 * chosen what the provider calls them, so their unchangeable `sub` is part of it.
 */
export function nameOf({ sub, email, email_verified: isVerified, preferred_username: name }: Record<string, unknown>) {
  const isName = (value: unknown): value is string => typeof value === 'string' && /^[^\p{C}]{1,100}$/u.test(value)
  if (isVerified === true && isName(email) && email.includes('@')) return email
  return isName(name) ? `${name} (sub ${String(sub)})` : `sub ${String(sub)}`
}

/** Whether the provider cannot be reached, so that the login says nothing about the person. */
function isOutage(error: unknown) {
  if (error instanceof client.ResponseBodyError) return error.status >= 500
  const { code } = error as { code?: string }
  return error instanceof TypeError || code === 'OAUTH_TIMEOUT' || code === 'OAUTH_RESPONSE_IS_NOT_CONFORM'
}

/** What went wrong, without codes and tokens. */
function describe(error: unknown) {
  if (error instanceof client.AuthorizationResponseError || error instanceof client.ResponseBodyError)
    return `The identity provider refused the login: ${error.error_description ?? error.error}.`
  if (!(error instanceof Error)) return `The login could not be verified: ${String(error)}.`
  // The library names a wrong claim, or the wrong part of the answer, only in the cause.
  const { cause } = error
  const detail = cause instanceof Error ? cause.message : (cause as { claim?: string } | undefined)?.claim
  return `The login could not be verified: ${error.message}${detail === undefined ? '' : ` (${detail})`}.`
}
