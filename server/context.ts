import type { Log } from '../lib/log.ts'
import type { Tracing } from '../lib/tracing.ts'
import type { Access } from './auth/access.ts'
import type { Tokens } from './auth/tokens.ts'
import type { ServerConfig } from './config.ts'
import type { Pool, Sql } from './database.ts'
import type { Backpressure } from './ingest/backpressure.ts'
import type { UnreadableFields } from './ingest/unreadable-fields.ts'
import type { Nodes } from './ingest/nodes.ts'
import type { Metrics } from './ops/metrics.ts'
import type { Reader } from './reader.ts'

/** What the routes work with. server.ts creates it and ends it; its members know nothing of HTTP. */
export interface ServerContext {
  config: ServerConfig
  log: Log
  metrics: Metrics
  pool: Pool
  reader: Reader
  ops: Sql
  tokens: Tokens
  access: Access
  nodes: Nodes
  backpressure: Backpressure
  unreadable: UnreadableFields
  /** Undefined unless tracing is on. */
  tracing: Tracing | undefined
  isDraining: () => boolean
}
