import type { DestinationStream } from 'pino'
import type { LOG_LEVELS } from '../lib/settings.ts'
import { createLog as create, type Log } from '../lib/log.ts'

export type { Log }

/** The server's log, for the archiver. */
export function createLog(level: (typeof LOG_LEVELS)[number], destination?: DestinationStream) {
  return create('archiver', level, destination)
}

/** The message of an error and of its causes, as one sentence for a log line or for hb_partitions.last_error. */
export function describeError(error: unknown): string {
  if (!(error instanceof Error)) return String(error)
  const hint = 'hint' in error && typeof error.hint === 'string' ? ` (${error.hint})` : ''
  // The AWS SDK calls what came without words an UnknownError, and keeps what it knows in the name.
  const own = (error.message === '' || error.message === 'UnknownError' ? error.name : error.message) + hint
  return error.cause === undefined ? own : `${own}: ${describeError(error.cause)}`
}
