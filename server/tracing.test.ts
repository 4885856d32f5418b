import { once } from 'node:events'
import { createServer } from 'node:http'
import { createRequire } from 'node:module'
import t, { type Test } from 'tap'
import { runOnce, withRetiredDay } from '../testing/archiver.ts'
import { freePort } from '../local/cluster.ts'
import { waitFor, withDatabase } from '../testing/database.ts'
import { ago, enroll, stored, withProcess, withServer } from '../testing/server.ts'

interface Span {
  traceId: string
  spanId: string
  parentSpanId?: string
  name: string
  kind: number
  attributes: { key: string; value: Record<string, unknown> }[]
  links?: { spanId: string }[]
  status: { code?: number }
}

interface Export {
  resourceSpans: { resource: { attributes: Span['attributes'] }; scopeSpans: { spans: Span[] }[] }[]
}

/** A receiver that accepts spans as a collector does, in the JSON of OTLP. */
async function withReceiver(t: Test) {
  const spans: (Span & { service: unknown })[] = []
  const server = createServer((request, response) => {
    const chunks: Buffer[] = []
    request
      .on('data', (chunk: Buffer) => chunks.push(chunk))
      .on('end', () => {
        if (request.url === '/v1/traces') {
          const { resourceSpans } = JSON.parse(Buffer.concat(chunks).toString()) as Export
          for (const { resource, scopeSpans } of resourceSpans) {
            const service = attribute(resource, 'service.name')
            spans.push(...scopeSpans.flatMap(scope => scope.spans).map(span => ({ ...span, service })))
          }
        }
        response.writeHead(200, { 'content-type': 'application/json' }).end('{}')
      })
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => server.close())
  const { port } = server.address() as { port: number }
  return { spans, env: { OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${port}` } }
}

function attribute({ attributes }: Pick<Span, 'attributes'>, key: string) {
  return Object.values(attributes.find(found => found.key === key)?.value ?? {})[0]
}

t.test('tracing is off and not even loaded unless an endpoint is set', async t => {
  const { db, call } = await withServer(t)
  const { token } = await enroll(db, 'a')
  t.equal((await call('POST /v1/heartbeat', { token, body: {} })).status, 201)
  const loaded = () => Object.keys(createRequire(import.meta.url).cache).filter(file => /@opentelemetry\/(?!api\/)/.test(file))
  t.same(loaded(), [])
  await import('@opentelemetry/sdk-trace-node')
  t.not(loaded().length, 0, 'this check would notice it')
})

t.test("the request, the batch and the insert of a heartbeat belong together, in the caller's trace", async t => {
  const { spans, env } = await withReceiver(t)
  const db = await withDatabase(t)
  const { token } = await enroll(db, 'a')
  const { server, call } = await withProcess(t, db, env)
  const traceId = '0af7651916cd43dd8448eb211c80319c'
  const headers = { traceparent: `00-${traceId}-b7ad6b7169203331-01` }
  t.equal((await call('POST /v1/heartbeat', { token, body: { ts: ago(60) }, headers })).status, 201)
  t.equal((await call('POST /v1/heartbeat', { token, body: 'x' })).status, 400)
  t.equal((await call(`GET /nothing/${token}?a=${token}`)).status, 404)
  await server.stop('SIGTERM')

  const trace = spans.filter(span => span.traceId === traceId)
  t.equal(trace.length, 3)
  const [request, batch, insert] = ['POST /v1/heartbeat', 'heartbeat batch', 'fleet.ingest_batch'].map(name =>
    trace.find(span => span.name === name)!,
  )
  t.match(request, { parentSpanId: 'b7ad6b7169203331', kind: 2, service: 'nexmdm-server' })
  t.equal(attribute(request!, 'http.route'), '/v1/heartbeat')
  t.equal(attribute(request!, 'http.response.status_code'), 201)
  t.equal(batch!.parentSpanId, request!.spanId)
  t.equal(attribute(batch!, 'fleet.heartbeats'), 1)
  t.equal(insert!.parentSpanId, batch!.spanId)
  t.equal(attribute(insert!, 'db.system.name'), 'postgresql')
  t.equal(attribute(insert!, 'db.operation.batch.size'), 1)
  t.ok(spans.some(span => span.name === 'POST /v1/heartbeat' && attribute(span, 'http.response.status_code') === 400))
  t.ok(
    spans.some(span => span.name === 'GET' && attribute(span, 'http.response.status_code') === 404),
    'no name contains what callers write',
  )
  t.notOk(JSON.stringify(spans).includes(token), 'no token')
})

t.test('a batch links to each of its requests', async t => {
  const { spans, env } = await withReceiver(t)
  const db = await withDatabase(t)
  const devices = await Promise.all(Array.from({ length: 20 }, (_, n) => enroll(db, `device ${n}`)))
  const { server, call } = await withProcess(t, db, env)
  const locker = await db.admin.reserve()
  await locker`begin`
  await locker`lock table fleet.device_heartbeats in share mode`
  const answers = devices.map(({ token }) => call('POST /v1/heartbeat', { token, body: { ts: ago(60) } }))
  await waitFor(
    async () =>
      (
        await db.admin`
    select from pg_stat_activity where datname = current_database() and usename = 'fleet_server' and wait_event_type = 'Lock'
  `
      ).length > 0,
  )
  await locker`rollback`
  locker.release()
  t.same(new Set((await Promise.all(answers)).map(({ status }) => status)), new Set([201]))
  await server.stop('SIGTERM')

  const requests = spans.filter(span => span.name === 'POST /v1/heartbeat').map(span => span.spanId)
  t.equal(requests.length, 20)
  const batches = spans.filter(span => span.name === 'heartbeat batch')
  const named = batches.flatMap(({ parentSpanId, links = [] }) => [parentSpanId, ...links.map(link => link.spanId)])
  t.same(named.sort(), requests.sort(), 'each once')
  t.equal(
    batches.reduce((sum, batch) => sum + Number(attribute(batch, 'fleet.heartbeats')), 0),
    20,
  )
})

t.test('an insert that fails is marked as an error', async t => {
  const { spans, env } = await withReceiver(t)
  const db = await withDatabase(t)
  const { token } = await enroll(db, 'a')
  const { server, call } = await withProcess(t, db, env)
  await db.admin`revoke execute on function fleet.ingest_batch(json, timestamptz, bytea[], integer[]) from fleet_server`
  t.equal((await call('POST /v1/heartbeat', { token, body: {} })).status, 500)
  await server.stop('SIGTERM')
  t.equal(
    attribute(
      spans.find(span => span.name === 'fleet.ingest_batch')!,
      'error.type',
    ),
    '42501',
  )
  for (const name of ['POST /v1/heartbeat', 'fleet.ingest_batch'])
    t.equal(spans.find(span => span.name === name)!.status.code, 2, name)
})

t.test('an unreachable receiver costs spans and nothing else', async t => {
  const db = await withDatabase(t)
  const { device_id, token } = await enroll(db, 'a')
  const { server, call } = await withProcess(t, db, {
    OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${await freePort(true)}`,
    OTEL_BSP_SCHEDULE_DELAY: '50',
  })
  t.equal((await call('POST /v1/heartbeat', { token, body: {} })).status, 201)
  t.equal((await stored(db, device_id)).length, 1)
  t.equal((await server.stop('SIGTERM')).code, 0)
})

t.test('archiving a partition and its steps are one trace', async t => {
  const { spans, env } = await withReceiver(t)
  const { db, directory, partition } = await withRetiredDay(t)
  t.equal((await runOnce(t, db, directory, env)).code, 0)
  const root = spans.find(span => span.name === 'archive partition')!
  t.equal(attribute(root, 'fleet.partition'), partition)
  t.equal(root.service, 'nexmdm-archiver')
  const within = (parent: (typeof spans)[number]) =>
    spans.filter(span => span.parentSpanId === parent.spanId).map(({ name }) => name)
  t.same(within(root), ['freeze', 'export', 'upload', 'prove', 'drop'])
  t.same(within(spans.find(span => span.name === 'export')!), ['count'], 'while nobody can write to the table')
})
