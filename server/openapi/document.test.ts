import { randomBytes } from 'node:crypto'
import { gzipSync } from 'node:zlib'
import { createConfig, lintFromString } from '@redocly/openapi-core'
import { Ajv2020, type ValidateFunction } from 'ajv/dist/2020.js'
import formats from 'ajv-formats'
import t, { type Test } from 'tap'
import type { TestDatabase } from '../../testing/database.ts'
import { SCOPES } from '../auth/scopes.ts'
import { FIELDS } from '../ingest/fields.ts'
import { Ignored } from '../ingest/ignored.ts'
import { readItem } from '../ingest/item.ts'
import type { UnreadableFields } from '../ingest/unreadable-fields.ts'
import { ADMIN_KEY, gatewayToken, withServer, type Answer, type Call } from '../../testing/server.ts'
import { openapi } from './document.ts'

interface Parameter {
  name: string
  in: 'query' | 'path' | 'header'
  example?: unknown
}
interface Media {
  schema: object
  example?: unknown
  examples?: Record<string, { value: unknown }>
}
interface Response {
  description: string
  headers?: Record<string, { schema: object }>
  content?: Record<string, Media>
}
interface Operation {
  security: Record<string, string[]>[]
  parameters?: Parameter[]
  requestBody?: { content: Record<string, Media> }
  responses: Record<string, Response | { $ref: string }>
}

const text = JSON.stringify(openapi())
const document = JSON.parse(text) as ReturnType<typeof openapi>
const operations: { path: string; method: string; operation: Operation }[] = Object.entries(document.paths).flatMap(
  ([path, methods]) =>
    Object.entries(methods as unknown as Record<string, Operation>).map(([method, operation]) => ({
      path,
      method: method.toUpperCase(),
      operation,
    })),
)

/** The examples are written as if it were ten seconds past noon. This is how long ago that is. */
const SINCE_TOLD = Math.floor((Date.now() - Date.parse('2026-01-31T12:00:10Z')) / 1000) * 1000

t.test('the document passes the linter', async t => {
  // Only the probes have no 4xx answer, because they take no key and no body. The test of each status shows that.
  const config = await createConfig({ extends: ['recommended-strict'], rules: { 'operation-4xx-response': 'off' } })
  const problems = await lintFromString({ source: text, config })
  t.same(
    problems.map(({ ruleId, message, location }) => `${ruleId}: ${message} ${location[0]?.pointer ?? ''}`),
    [],
  )
})

t.test('the server gives the document to anybody', async t => {
  const { call } = await withServer(t)
  const { status, headers, body } = await call('GET /openapi.json')
  t.equal(status, 200)
  t.equal(headers.get('content-type'), 'application/json')
  t.same(body, document)
})

t.test('every route is in the document, and nothing else', async t => {
  const { routes } = await withServer(t)
  // The page for people is not part of it.
  const calls = routes.filter(
    ({ method, path }) => method !== 'ALL' && /^\/(v1|admin|ops|metrics|healthz|readyz|openapi)\b/.test(path),
  )
  t.same(
    [...new Set(calls.map(({ method, path }) => `${method} ${path.replaceAll(/:(\w+)/g, '{$1}')}`))].sort(),
    operations.map(({ method, path }) => `${method} ${path}`).sort(),
  )
})

t.test('a schema of the document accepts what the server accepts', async t => {
  const ajv = makeAjv()
  const compile = (name: string) => ajv.compile({ $ref: `#/components/schemas/${name}`, components: document.components })
  const heartbeats = [
    {},
    { ts: null, battery_pct: null, network_type: null, unity_running: null },
    { colour: '\0' },
    null,
    [],
    'x',
    5,
    ...[0, 100, -1, 101, 50.5, '50', true, 1e300].map(battery_pct => ({ battery_pct })),
    ...[-200, 50, -201, 51, -60.5].map(signal_dbm => ({ signal_dbm })),
    ...['', 'x'.repeat(32), '😀'.repeat(32), 'x'.repeat(33), '😀'.repeat(33), 'a\0b', 'a\ud800b', 'a\nb', 5].map(
      network_type => ({ network_type }),
    ),
    ...['x'.repeat(64), 'x'.repeat(65), '\0', ['1']].map(agent_version => ({ agent_version })),
    ...[true, false, 1, 'true'].map(unity_running => ({ unity_running })),
    ...[0, 1, 604_800, 604_801, 1.5].map(next_in_s => ({ next_in_s })),
    ...['shutdown', 'reboot', 'update', 'app', 'App', 'sleep', '', 1].map(stopping => ({ stopping })),
    ...[
      '2026-01-31T12:00:00Z',
      '2026-01-31T12:00:00.123456+05:30',
      '2024-02-29T00:00:00z',
      '2026-02-29T00:00:00Z',
      '2026-13-01T00:00:00Z',
      '2026-01-01T00:00:00',
      '2026-01-01',
      'now',
      '',
      1767225600,
    ].map(ts => ({ ts })),
  ]
  for (const value of heartbeats) {
    const { isAsDocumented, names, item } = read(value)
    const isValid = compile('Heartbeat')(value)
    // The server also reads "50" and takes -1 for unknown, which an agent need not know.
    if (isValid) t.ok(isAsDocumented && names.every(name => !FIELDS.has(name)), `accepted: ${JSON.stringify(value)}`)
    else if (isAsDocumented && names.length === 0)
      t.strictNotSame(item, value, `the schema is stricter only where the server converts: ${JSON.stringify(value)}`)
  }
  for (const device_id of [undefined, null, 0, -1, 1.5, '1', 1, 2 ** 53]) {
    const item = device_id === undefined ? {} : { device_id }
    const isAnId = device_id === 1
    t.equal(compile('GatewayItem')(item), isAnId, `gateway: ${String(device_id)}`)
    t.equal(compile('DeviceItem')(item), isAnId || device_id === undefined || device_id === null, `device: ${String(device_id)}`)
  }
})

/** What the server makes of a heartbeat. */
function read(value: unknown) {
  const ignored = new Ignored({ countUnknown() {}, add() {} } as unknown as UnreadableFields)
  const item = readItem(value, 1, '}', ignored)
  const { device_id, ...rest } = typeof item === 'string' ? (JSON.parse(item) as Record<string, unknown>) : {}
  void device_id
  return { isAsDocumented: typeof item === 'string', names: ignored.names ?? [], item: rest }
}

t.test('each example is answered as the document says', async t => {
  const { db, call } = await withServer(t)
  const tokens = await prepare(db)
  for (const { path, method, operation } of operations) {
    // For older_than=1s.
    await db.admin`update fleet.device_last_status set last_received_at = last_received_at - interval '1 second'`
    for (const { name, type, value } of requestExamples(operation)) {
      const body = type === 'application/json' ? JSON.stringify(value) : (value as string | undefined)
      const sent = body === undefined ? undefined : toNow(body)
      const request = {
        body: sent,
        headers: { ...authorization(operation, tokens, name), ...(type && { 'content-type': type }) },
      }
      const answer = await call(`${method} ${targetOf(path, operation)}`, request)
      const found = check(t, operation, answer, `${method} ${path} ${name ?? ''}`)
      const examples = Object.entries(found?.examples ?? {}).filter(([key]) => name === undefined || key === name)
      if (name !== undefined && answer.status !== 204)
        t.equal(examples.length, 1, `${method} ${path}: the answer to ${name} is shown with ${answer.status}`)
      for (const [key, { value }] of examples) t.same(likeness(answer.body), likeness(value), `${method} ${path} ${key}`)
      if (method !== 'POST' || !path.endsWith('heartbeats')) continue
      const again = await call(`${method} ${path}`, {
        body: gzipSync(sent!),
        headers: { ...request.headers, 'content-encoding': 'gzip' },
      })
      t.equal(again.status, 200, 'and compressed')
    }
  }
})

t.test('each status in the document is returned, as the document says', async t => {
  const { db, call } = await withServer(t)
  const tokens = await prepare(db)
  const gone = { url: 'postgres://127.0.0.1:1/none' }
  const away = await withServer(t, { hot: gone, ops: gone, read: undefined }, db)
  const limited = await withServer(t, { wrongTokensPerMinute: 1 }, db)
  const unknown = () => ({ authorization: `Bearer nxd_${randomBytes(32).toString('hex')}` })
  /** Sends wrong tokens and keys until the rate limit refuses them; how many keys it takes depends on the time. */
  async function exhaustRateLimit() {
    for (let n = 0; n < 2; n++) await limited.call('GET /v1/commands', { headers: unknown() })
    while ((await limited.call('GET /metrics', { headers: { 'x-admin': 'a wrong key' } })).status !== 429);
  }
  const seen = new Set<string>()

  /** Sends a correct request, except for the parts that are given. */
  async function ask(call: Call, path: string, method: string, parts: Parts = {}) {
    const { operation } = operations.find(other => other.path === path && other.method === method)!
    const [example] = requestExamples(operation)
    const { target = targetOf(path, operation), body = example?.value, type = example?.type, headers = {}, auth = true } = parts
    const sent = body === undefined || typeof body === 'string' ? body : toNow(JSON.stringify(body))
    const answer = await call(`${method} ${target}`, {
      body: sent,
      headers: { ...(auth && authorization(operation, tokens)), ...(type && { 'content-type': type }), ...headers },
    })
    check(t, operation, answer, `${method} ${path}`)
    seen.add(`${method} ${path} ${answer.status}`)
    if (path.endsWith('/token') && answer.status === 201) tokens.device = (answer.body as { token: string }).token
    return answer
  }

  for (const { path, method, operation } of operations) {
    if (path !== '/ops/nightly' && path !== '/ops/reconcile' && method !== 'DELETE') await ask(call, path, method)
    await ask(away.call, path, method)
    if (operation.security.length > 0) {
      await ask(call, path, method, { auth: false })
      await exhaustRateLimit()
      const [scope] = operation.security.flatMap(({ key = [] }) => key)
      const other = scope === 'read' ? tokens.keys.metrics : tokens.keys.read
      if (scope !== undefined) await ask(call, path, method, { headers: { authorization: `Bearer ${other}` } })
      // Over the limit, only a few tokens wait to be looked up.
      await Promise.all(Array.from({ length: 20 }, () => ask(limited.call, path, method, { headers: unknown() })))
    }
    if (operation.requestBody) {
      await ask(call, path, method, { body: '{' })
      await ask(call, path, method, { body: '"x"' })
      await ask(call, path, method, { type: 'text/plain' })
      await ask(call, path, method, { body: `"${' '.repeat(2 ** 20)}"` })
    }
  }
  const beat = { ts: new Date().toISOString() }
  for (let n = 0; n < 2; n++) await ask(call, '/v1/heartbeat', 'POST', { body: beat })
  await db.sql`update fleet.settings set quarantine_per_device = 1`
  await ask(call, '/v1/heartbeat', 'POST', { body: { ts: '2001-01-02T00:00:00Z' } })
  await ask(call, '/admin/command', 'POST', { body: { device_id: 999_999, command: 'x' } })
  await ask(call, '/v1/commands/{id}/ack', 'POST', { target: '/v1/commands/999999/ack' })
  await ask(call, '/v1/devices', 'GET', { target: '/v1/devices?limit=0' })
  await ask(call, '/v1/devices', 'GET', { headers: { accept: 'text/csv' } })
  await ask(call, '/v1/devices', 'GET', { target: '/v1/devices?limit=1', headers: { accept: 'text/csv' } })
  for (const { path, method, operation } of operations) {
    if (operation.security.some(scheme => 'admin' in scheme) && path !== '/metrics') {
      await ask(call, path, method, { target: `${targetOf(path, operation).split('?')[0]}?nonsense=1` })
    }
  }
  for (const path of ['/v1/devices', '/v1/devices/{id}']) {
    const { headers } = await ask(call, path, 'GET')
    await ask(call, path, 'GET', { headers: { 'if-none-match': headers.get('etag')! } })
  }
  await ask(call, '/v1/devices/{id}', 'GET', { target: '/v1/devices/999999' })
  await ask(call, '/v1/devices/{id}/transitions', 'GET', { target: '/v1/devices/999999/transitions' })
  await ask(call, '/admin/devices', 'POST')
  await ask(call, '/admin/devices/{id}', 'DELETE', { target: '/admin/devices/999999' })
  await ask(call, '/admin/devices/{id}', 'PATCH', { target: '/admin/devices/999999' })
  await ask(call, '/admin/devices/{id}', 'PATCH', { body: { alias: 'lobby-tablet-8' } })
  await ask(call, '/admin/devices/{id}/token', 'POST', { target: '/admin/devices/999999/token' })
  await ask(call, '/ops/nightly', 'POST', { target: '/ops/nightly' })
  await ask(call, '/ops/nightly', 'POST', { target: '/ops/nightly?retention_days=0' })
  await ask(call, '/ops/reconcile', 'POST')
  const holder = await db.sql.reserve()
  await holder`select fleet.begin_run('nightly')`
  await ask(call, '/ops/nightly', 'POST', { target: '/ops/nightly' })
  await holder`select pg_advisory_unlock_all()`
  await holder`select pg_advisory_lock(hashtextextended('fleet.reconcile', 0))`
  await ask(call, '/ops/reconcile', 'POST')
  await holder`select pg_advisory_unlock_all()`
  holder.release()

  await db.admin`revoke usage on schema fleet from fleet_server`
  for (const { path, method, operation } of operations) {
    if ('500' in operation.responses) await ask(call, path, method)
  }
  await db.admin`grant usage on schema fleet to fleet_server`
  await ask(call, '/admin/devices/{id}', 'DELETE')

  const said = operations.flatMap(({ path, method, operation }) =>
    Object.keys(operation.responses).map(status => `${method} ${path} ${status}`),
  )
  t.same(
    said.filter(line => !seen.has(line)),
    [],
    'no status is documented that is never returned',
  )
})

interface Parts {
  target?: string
  body?: unknown
  type?: string
  headers?: Record<string, string>
  auth?: boolean
}

type Tokens = Awaited<ReturnType<typeof prepare>>

/** The device, the command and the gateway that the examples name. */
async function prepare(db: TestDatabase) {
  await db.sql.unsafe('alter table fleet.devices alter device_id restart with 42')
  await db.sql.unsafe('alter table fleet.device_commands alter command_id restart with 7')
  const [device] = await db.sql<{ token: string }[]>`select token from fleet.create_device('lobby-tablet-7', 'lobby')`
  await db.admin`
    insert into fleet.device_transitions (
      transition_id, position, device_id, cohort, at, since, event, status, previous_status, previous_since, reason, battery_pct,
      network_type, agent_version
    ) overriding system value
    values (
      1206, 1, 42, 'lobby', now(), now() - interval '1 minute', 'offline', 'offline', 'late', now() - interval '555 seconds',
      'battery', 3, 'wifi', '3.1.0'
    )`
  const [key] = await db.sql<{ all: string; read: string; metrics: string }[]>`
    select fleet.create_api_key('all', ${[...SCOPES]}) as all, fleet.create_api_key('read', '{read}') as read,
      fleet.create_api_key('metrics', '{metrics}') as metrics
  `
  return { device: device!.token, gateway: await gatewayToken(db, 'warehouse-3'), key: key!.all, keys: key! }
}

/** The header that the operation requires. If there are several, the one that the example is named after. */
function authorization({ security }: Operation, tokens: Tokens, example = ''): Record<string, string> {
  const schemes = security.flatMap(Object.keys)
  const scheme = schemes.includes(example) ? example : schemes[0]
  if (scheme === 'admin') return { 'x-admin': ADMIN_KEY }
  return scheme === undefined ? {} : { authorization: `Bearer ${tokens[scheme as 'device' | 'gateway' | 'key']}` }
}

function requestExamples({ requestBody }: Operation): { name?: string; type?: string; value?: unknown }[] {
  if (requestBody === undefined) return [{}]
  return Object.entries(requestBody.content).flatMap(([type, { examples }]) =>
    Object.entries(examples ?? {}).map(([name, { value }]) => ({ name, type, value })),
  )
}

/** The path with the examples of its parameters. */
function targetOf(path: string, { parameters = [] }: Operation) {
  const query = new URLSearchParams()
  for (const { name, in: where, example } of parameters) {
    if (where === 'path') path = path.replace(`{${name}}`, String(example))
    if (where === 'query') query.set(name, String(example))
  }
  return query.size === 0 ? path : `${path}?${query.toString()}`
}

/** Moves the times of an example to now. */
function toNow(body: string) {
  return body.replaceAll(/2026-01-31T[\d:.]+Z/g, ts => new Date(Date.parse(ts) + SINCE_TOLD).toISOString())
}

/**
 * Fails the test unless the document has this status with these headers and this body. Members that it does not name are a fault
 * too.
 */
function check(t: Test, operation: Operation, { status, headers, body }: Answer, what: string) {
  const named = operation.responses[status]
  if (named === undefined) {
    t.fail(`${what}: ${status} is not in the document`, { body })
    return undefined
  }
  const response = '$ref' in named ? (document.components.responses[named.$ref.split('/').at(-1)!] as unknown as Response) : named
  for (const [name, { schema }] of Object.entries(response.headers ?? {})) {
    t.ok(validator(schema)(headers.get(name)), `${what} ${status}: its ${name}`, { found: headers.get(name) })
  }
  const type = headers.get('content-type')?.split(';')[0]
  const types = Object.keys(response.content ?? {})
  t.ok(type === undefined ? types.length === 0 : types.includes(type), `${what} ${status}: its type`, { type, types })
  const media = response.content?.[type ?? '']
  if (media === undefined) {
    t.equal(body, '', `${what} ${status} has no body`)
    return undefined
  }
  const validate = validator(media.schema)
  t.ok(validate(body), `${what} ${status}`, { body, errors: validate.errors })
  return media
}

const validators = new Map<string, ValidateFunction>()

function validator(schema: object) {
  const key = JSON.stringify(schema)
  const validate = validators.get(key) ?? makeAjv().compile({ ...schema, components: strict(document.components) })
  validators.set(key, validate)
  return validate
}

/** The document allows members that are added later. Here it does not, so that a new member has to be documented. */
function strict(schema: unknown): unknown {
  if (typeof schema !== 'object' || schema === null || Array.isArray(schema)) return schema
  const inner = Object.fromEntries(Object.entries(schema).map(([key, value]) => [key, strict(value)]))
  return { ...inner, ...('properties' in schema && { additionalProperties: false }) }
}

function makeAjv() {
  const ajv = new Ajv2020({ allErrors: true, keywords: ['components', 'example'] })
  formats.default(ajv)
  return ajv
}

/**
 * Without values that differ each time. The length of a list of steps depends on the age of the store, so each kind of step
 * counts once.
 */
function likeness(value: unknown, key = ''): unknown {
  if (key === 'steps') return [...new Set((value as object[]).map(step => Object.keys(step).join()))]
  if (['seconds_since', 'elapsed_ms', 'checked', 'next_interval_s'].includes(key)) return typeof value
  if (typeof value === 'string') return value.replace(/^20\d\d-[\d-]+T[\d:.]+Z$/, 'a time').replace(/^nxd_.*/, 'a token')
  if (Array.isArray(value)) return value.map(item => likeness(item))
  if (typeof value !== 'object' || value === null) return value
  return Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, likeness(inner, name)]))
}
