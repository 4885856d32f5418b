import { Hono } from 'hono'
import { etag } from 'hono/etag'
import { TrieRouter } from 'hono/router/trie-router'
import { ackCommand, getCommands, postCommand } from './fleet/commands.ts'
import type { ServerContext } from './context.ts'
import type { AppEnv } from './env.ts'
import { DeviceReads } from './fleet/device-reads.ts'
import { changeDevice, createDevice, getDevice, listDevices, renewToken, revokeDevice } from './fleet/devices.ts'
import { listDeviceTransitions, listTransitions } from './fleet/transitions.ts'
import { postHeartbeat, postHeartbeats } from './ingest/ingest.ts'
import { timed } from './ops/metrics.ts'
import { getMetrics } from './ops/prometheus.ts'
import { getOpenapi } from './openapi/document.ts'
import { getPoolHealth, postNightly, postReconcile } from './ops/ops.ts'
import { opsPage } from './page/page.tsx'
import { Problem, requestId, toProblem, unavailable } from './problem.ts'
import { noQuery } from './valid.ts'
import { version } from '../lib/version.ts'

export function createApp(context: ServerContext) {
  const { config, log, metrics, pool, reader, ops, access, tokens, nodes, backpressure, unreadable, tracing, isDraining } =
    context
  const app = new Hono<AppEnv>()
  const [read, enroll, command, operate, monitor] = [
    access.allow('read'),
    access.allow('enroll'),
    access.allow('command'),
    access.allow('operate'),
    access.allow('metrics'),
  ]
  const reads = new DeviceReads(reader, config, metrics, backpressure, log)

  if (tracing !== undefined) app.use(tracing.request)

  // Apart from tracing, these two have no middleware: Hono calls a lone handler directly.
  app.post('/v1/heartbeat', timed(metrics, 'POST /v1/heartbeat', postHeartbeat(config, tokens, nodes, metrics, unreadable)))
  app.post('/v1/heartbeats', timed(metrics, 'POST /v1/heartbeats', postHeartbeats(config, tokens, nodes, metrics, unreadable)))

  app.get('/v1/commands', timed(metrics, 'GET /v1/commands', getCommands(tokens, metrics)))
  app.post('/v1/commands/:id/ack', timed(metrics, 'POST /v1/commands/:id/ack', ackCommand(tokens, metrics)))
  app.post('/admin/command', command, noQuery, timed(metrics, 'POST /admin/command', postCommand(config, pool, metrics)))

  app.get('/v1/devices', read, etag(), timed(metrics, 'GET /v1/devices', listDevices(reads, backpressure)))
  app.get('/v1/devices/:id', read, noQuery, etag(), timed(metrics, 'GET /v1/devices/:id', getDevice(reads)))
  app.get('/v1/devices/:id/transitions', read, timed(metrics, 'GET /v1/devices/:id/transitions', listDeviceTransitions(reader)))
  app.get('/v1/transitions', read, timed(metrics, 'GET /v1/transitions', listTransitions(reader)))
  app.post('/admin/devices', enroll, noQuery, timed(metrics, 'POST /admin/devices', createDevice(config, pool)))
  app.patch('/admin/devices/:id', enroll, noQuery, timed(metrics, 'PATCH /admin/devices/:id', changeDevice(config, pool)))
  app.post('/admin/devices/:id/token', enroll, noQuery, timed(metrics, 'POST /admin/devices/:id/token', renewToken(config, pool)))
  app.delete('/admin/devices/:id', enroll, noQuery, timed(metrics, 'DELETE /admin/devices/:id', revokeDevice(config, pool)))

  app.post('/ops/nightly', operate, timed(metrics, 'POST /ops/nightly', postNightly(config, ops, log)))
  app.post('/ops/reconcile', operate, noQuery, timed(metrics, 'POST /ops/reconcile', postReconcile(config, ops, log)))
  app.get('/ops/pool_health', monitor, noQuery, getPoolHealth(metrics, nodes, reader))
  app.get('/metrics', access.allow('metrics', { orBearer: true }), getMetrics(context))

  app.get('/openapi.json', getOpenapi())
  app.get('/healthz', c => c.json({ status: 'ok', version }))
  app.get('/readyz', async c => {
    if (isDraining()) throw unavailable('The server is stopping.')
    const [row] = await nodes.any(
      sql => sql<{ ready: boolean }[]>`
      select to_regprocedure('fleet.ingest_batch(json, timestamptz, bytea[], integer[])') is not null as ready
    `,
    )
    if (!row!.ready) throw unavailable('The database is not migrated.')
    const away = nodes.all.filter(node => node.isAway).map(({ name }) => name)
    return c.json(away.length === 0 ? { status: 'ready' } : { status: 'ready', away })
  })

  app.route('/', opsPage(context))

  const methods = new TrieRouter<string>()
  for (const { method, path } of app.routes) {
    if (method !== 'ALL') methods.add('ALL', path, method)
  }
  app.notFound(c => {
    const allowed = new Set(methods.match('ALL', c.req.path)[0].map(([method]) => method))
    if (allowed.size === 0) return new Problem(404, `There is nothing at ${c.req.path}.`).toResponse(requestId(c.env.incoming))
    const allow = [...allowed].join(', ')
    return new Problem(405, `${c.req.path} accepts ${allow}, not ${c.req.method}.`, { headers: { allow } }).toResponse(
      requestId(c.env.incoming),
    )
  })

  let quietUntil = 0
  let unlogged = 0
  app.onError((error, c) => {
    const problem = toProblem(error)
    const request_id = requestId(c.env.incoming)
    const about = { event: 'http.error', request_id, method: c.req.method, path: c.req.path, status: problem.status }
    const cause = problem.cause ?? error
    if (problem.status === 500) {
      log.error({ ...about, error: cause }, problem.message)
    } else if (problem.status !== 503) {
      log.debug(about, problem.message)
    } else if (Date.now() < quietUntil) {
      unlogged++
    } else {
      // During an outage thousands of requests a second are refused for the same reason.
      log.warn({ ...about, error: cause, unlogged }, problem.message)
      quietUntil = Date.now() + 1_000
      unlogged = 0
    }
    return problem.toResponse(request_id)
  })

  return app
}
