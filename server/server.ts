import { createAdaptorServer } from '@hono/node-server'
import type { Server } from 'node:http'
import { createServer as createTlsServer, type Server as TlsServer } from 'node:https'
import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import { createApp } from './app.ts'
import { Certificate } from './certificate.ts'
import { Backpressure } from './ingest/backpressure.ts'
import { Budgets } from './ops/budgets.ts'
import type { ServerConfig } from './config.ts'
import { connectHot, connectReporter, connectOps, end } from './database.ts'
import { Access } from './auth/access.ts'
import { DeviceLimit } from './auth/device-limit.ts'
import { RateLimit } from './auth/rate-limit.ts'
import { SlowedDevices } from './auth/slowed-devices.ts'
import type { Log } from '../lib/log.ts'
import { createMetrics, measureCertificate, measureNodes, measureReplica } from './ops/metrics.ts'
import { Reader } from './reader.ts'
import { leaveMetrics } from './ops/scrape.ts'
import { Tokens } from './auth/tokens.ts'
import { startTracing } from '../lib/tracing.ts'
import { UnreadableFields } from './ingest/unreadable-fields.ts'
import { Nodes } from './ingest/nodes.ts'
import { Writer } from './ingest/writer.ts'

/** For each worker. Measured: an idle connection takes about 6 kB of memory. */
const MAX_CONNECTIONS = 20_000

/** The limit for one network. An admin key that a person chose may be guessed; tokens cannot. */
export const WRONG_KEYS_PER_MINUTE = 60

/** How long a client may take for the handshake of TLS, and then for the headers of a request. */
const HEADERS_MS = 10_000

/** For a year, browsers then ask this host by HTTPS only. */
const HSTS = 'max-age=31536000'

/** How long requests in flight may take to finish. Statements of the hot path end within 5 s. */
const DRAIN_MS = 20_000

/**
 * Opens the port and serves until stop(). It also starts while the database is unreachable; /readyz says so.
 * @throws if the port cannot be opened
 */
export async function startServer(config: ServerConfig, log: Log) {
  const pool = connectHot(config.hot, config.poolMax, { log })
  const ops = connectOps(config.ops)
  const reports = connectReporter(config.ops)
  const metrics = createMetrics(pool)
  const reader = new Reader(pool, config, log)
  measureReplica(metrics, reader)
  const certificate = config.tls && new Certificate(config.tls.files, config.tls.pair, log)
  measureCertificate(metrics, certificate)
  const rateLimit = new RateLimit(config.trustProxy, config.wrongTokensPerMinute, () => metrics.authRefused.inc())
  const wrongKeys = new RateLimit(config.trustProxy, WRONG_KEYS_PER_MINUTE, () => metrics.authRefused.inc())
  const access = new Access(config, pool, wrongKeys, metrics)
  const slowed = new SlowedDevices(metrics, reports, log)
  const deviceLimit = new DeviceLimit(config.deviceRequestsPerMinute, hash => slowed.add(hash))
  const tokens = new Tokens(pool, rateLimit, deviceLimit, token => nodes.ofToken(token))
  const backpressure = new Backpressure(metrics, log, config.backpressureQueue)
  const tracing = await startTracing(config.otlpEndpoint, 'nexmdm-server', log)
  const nodes = new Nodes(
    config.hot,
    pool,
    reports,
    metrics,
    log,
    (own, place) => new Writer(own, metrics, log, backpressure, undefined, tracing, place),
  )
  measureNodes(metrics, nodes)
  const budgets = new Budgets(metrics, reports, log)
  const unreadable = new UnreadableFields(metrics, reports, log)
  let draining = false

  const app = createApp({
    config,
    log,
    metrics,
    pool,
    reader,
    ops,
    tokens,
    access,
    nodes,
    backpressure,
    unreadable,
    tracing,
    isDraining: () => draining,
  })
  const serverOptions = {
    headersTimeout: HEADERS_MS,
    requestTimeout: 30_000,
    // How often these two timeouts are checked. With the default, a slow client would get 30 s more.
    connectionsCheckingInterval: 2_000,
    // Longer than the usual 60 s of devices and proxies, so that they close idle connections first.
    keepAliveTimeout: 90_000,
  }
  const server =
    certificate === undefined
      ? (createAdaptorServer({ fetch: app.fetch, serverOptions }) as Server)
      : withTls(certificate, log, options =>
          createAdaptorServer({
            fetch: app.fetch,
            createServer: createTlsServer,
            serverOptions: { ...serverOptions, ...options },
          }),
        )
  server.maxConnections = MAX_CONNECTIONS
  // Otherwise a worker hands the connection to the next one, and if all are full, it goes round and round.
  Object.assign(server, { dropMaxConnection: true })

  const endPools = () => Promise.all([Promise.all([reader.end(), nodes.end()]).then(() => pool.end()), end(ops), end(reports)])
  nodes.follow()
  try {
    server.listen(config.port, config.host)
    await once(server, 'listening')
  } catch (error) {
    certificate?.end()
    await endPools()
    throw error
  }
  const { port } = server.address() as AddressInfo
  budgets.follow()
  unreadable.follow()
  slowed.follow()
  deviceLimit.follow()

  /**
   * Accepts no new connections, finishes the requests in flight and the writers' queues, then closes the pools.
   * @returns false if requests had to be cut off
   */
  async function stop() {
    draining = true
    log.info({ event: 'server.draining' })
    const closed = new Promise<void>(resolve => server.close(() => resolve()))
    const sweep = setInterval(() => server.closeIdleConnections(), 50)
    let inTime = true
    const limit = setTimeout(() => {
      inTime = false
      server.closeAllConnections()
    }, DRAIN_MS)
    await closed
    clearInterval(sweep)
    clearTimeout(limit)
    await nodes.drained()
    deviceLimit.end()
    certificate?.end()
    await Promise.all([budgets.end(), unreadable.end(), slowed.end()])
    await endPools()
    await leaveMetrics(metrics.registry)
    await tracing?.stop()
    log.info({ event: 'server.stopped', in_time: inTime })
    return inTime
  }

  return { port, routes: app.routes, unreadable, slowed, certificate, stop }
}

/** Makes a server that speaks HTTPS only, with a certificate that may be renewed. */
function withTls(
  certificate: Certificate,
  log: Log,
  create: (options: Certificate['options'] & { handshakeTimeout: number }) => unknown,
) {
  const server = create({ ...certificate.options, handshakeTimeout: HEADERS_MS }) as TlsServer
  // Before anybody answers, so that it is on every answer.
  server.prependListener('request', (_, outgoing) => outgoing.setHeader('strict-transport-security', HSTS))
  server.on('tlsClientError', error => log.debug({ event: 'tls.handshake_failed', error }))
  certificate.follow(server)
  return server
}
