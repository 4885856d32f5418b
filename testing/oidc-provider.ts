// A real identity provider for the tests: the package oidc-provider, with its own pages for logging in and consenting.
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import Provider from 'oidc-provider'
import type { Test } from 'tap'
import { freePort } from '../local/cluster.ts'

export const CLIENT_ID = 'fleet'
export const CLIENT_SECRET = 'a-secret-of-the-tests-that-is-long-enough'

/**
 * Starts a provider in which everybody can log in with any password.
 * @param people the groups of each person, by the name with which they log in
 * @param redirectUri where it sends browsers back to
 * @param codeTtl how long a code is valid, in seconds
 */
export async function withProvider(
  t: Test,
  people: Record<string, string[] | undefined>,
  redirectUri: string,
  codeTtl = 60,
): Promise<string> {
  const port = await freePort(true)
  const issuer = `http://127.0.0.1:${port}`
  const provider = new Provider(issuer, {
    clients: [
      {
        client_id: CLIENT_ID,
        client_secret: CLIENT_SECRET,
        redirect_uris: [redirectUri],
        grant_types: ['authorization_code'],
      },
    ],
    claims: { openid: ['sub'], email: ['email', 'email_verified'], profile: ['groups'] },
    findAccount: (_ctx, id) => ({
      accountId: id,
      claims: () => ({ sub: id, email: `${id}@example.com`, email_verified: true, groups: people[id] }),
    }),
    cookies: { keys: ['only for the tests'] },
    ttl: { AuthorizationCode: codeTtl, AccessToken: 60, IdToken: 60, Grant: 600, Interaction: 600, Session: 600 },
    pkce: { required: () => true },
  })
  const server = createServer((request, response) => void provider.callback()(request, response))
  server.listen(port, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => {
    server.closeAllConnections()
    server.close()
  })
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`
}
