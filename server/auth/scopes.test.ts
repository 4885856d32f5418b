// Which scope opens which call. The calls come from the OpenAPI document, so a new route cannot be forgotten.
import t from 'tap'
import { openapi } from '../openapi/document.ts'
import { ADMIN_KEY, enroll, gatewayToken, withServer } from '../../testing/server.ts'
import { SCOPES, type Scope } from './scopes.ts'

interface Operation {
  security: Record<string, string[]>[]
  requestBody?: { content: Record<string, { examples: Record<string, { value: unknown }> }> }
}

const operations = Object.entries(openapi().paths).flatMap(([path, methods]) =>
  Object.entries(methods as unknown as Record<string, Operation>).map(([method, operation]) => ({
    call: `${method.toUpperCase()} ${path.replace('{id}', '1')}`,
    path,
    operation,
    scope: operation.security.flatMap(({ key = [] }) => key)[0] as Scope | undefined,
    body: Object.values(Object.values(operation.requestBody?.content ?? {})[0]?.examples ?? {})[0]?.value,
  })),
)
const guarded = operations.filter(({ scope }) => scope !== undefined)

t.test('each scope opens its own calls and no other', async t => {
  const { db, call } = await withServer(t)
  await enroll(db, 'first')
  t.ok(guarded.length >= 13, `${guarded.length} calls`)
  t.same(new Set(guarded.map(({ scope }) => scope)), new Set(SCOPES), 'there is no scope without a call')
  for (const scope of SCOPES) {
    const [row] = await db.sql<{ key: string }[]>`select fleet.create_api_key(${scope}, array[${scope}]) as key`
    for (const { call: target, body, scope: needed } of guarded) {
      // A query that is not known, so that the call goes through the gate and then does nothing.
      const answer = await call(`${target}?nothing=1`, { token: row!.key, ...(body !== undefined && { body }) })
      if (needed === scope) t.ok(![401, 403].includes(answer.status), `${scope}: ${target} ${answer.status}`)
      else {
        t.equal(answer.status, 403, `${scope}: ${target}`)
        t.match(answer.body, { detail: `The key of ${scope} does not have the scope ${needed}; it has ${scope}.` })
        t.match(answer.headers.get('www-authenticate'), `error="insufficient_scope", scope="${needed}"`)
      }
    }
  }
  t.same(await db.sql`select from fleet.device_commands`, [])
  t.equal((await db.sql`select from fleet.devices`).length, 1, 'nothing was done')
})

t.test('a key opens nothing that is for devices, and a token nothing that is for keys', async t => {
  const { db, call } = await withServer(t, { trustProxy: true })
  let client = 0
  const { token } = await enroll(db, 'first')
  const gateway = await gatewayToken(db, 'gateway')
  const [row] = await db.sql<{ key: string }[]>`select fleet.create_api_key('all', ${[...SCOPES]}) as key`
  for (const { call: target, operation, scope, body } of operations) {
    const given = { ...(body !== undefined && { body }) }
    if (operation.security.length === 0) {
      t.ok([200, 503].includes((await call(target)).status), target)
    } else if (scope === undefined) {
      for (const key of [row!.key, ADMIN_KEY]) t.equal((await call(target, { ...given, token: key })).status, 401, target)
    } else {
      for (const other of [token, gateway, row!.key.slice(0, -1), `${row!.key}0`, row!.key.toUpperCase()]) {
        // Each from another network, because many wrong keys from one are refused.
        const headers = { 'x-forwarded-for': `192.0.${client++}.1` }
        const answer = await call(`${target}?nothing=1`, { ...given, headers, token: other })
        t.equal(answer.status, 401, `${target} with another token`)
      }
    }
  }
})

t.test('a route that asks for no scope is one for devices, a probe, or the page', async t => {
  const { routes, call } = await withServer(t)
  const known = new Map(operations.map(({ path, scope, operation }) => [path, { scope, operation }]))
  for (const { method, path } of routes) {
    if (method === 'ALL') continue
    const documented = known.get(path.replaceAll(/:(\w+)/g, '{$1}'))
    if (documented?.scope === undefined) continue
    const { status } = await call(`${method} ${path.replace(':id', '1')}`, { ...(method !== 'GET' && { body: {} }) })
    t.equal(status, 401, `${method} ${path} without a key`)
  }
})
