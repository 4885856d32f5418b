import { pino } from 'pino'
import type { ServerConfig } from './config.ts'

export type Log = ReturnType<typeof createLog>

/** One JSON object a line on stdout; what happened is named in `event`. */
export function createLog(level: ServerConfig['logLevel']) {
  return pino({
    level,
    base: { service: 'server', pid: process.pid },
    messageKey: 'message',
    timestamp: () => `,"time":"${new Date().toISOString()}"`,
    formatters: { level: label => ({ level: label }) },
    // The driver hangs the statement and its parameters (token hashes) on its errors:
    // take what helps and leave the rest.
    serializers: { error: describeError },
  })
}

function describeError(error: unknown): object {
  if (!(error instanceof Error)) return { message: String(error) }
  const { code, hint } = error as { code?: unknown, hint?: unknown }
  return {
    name: error.name,
    message: error.message,
    code,
    hint,
    stack: error.stack,
    cause: error.cause === undefined ? undefined : describeError(error.cause),
  }
}
