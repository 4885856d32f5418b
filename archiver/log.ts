import { pino, type DestinationStream } from 'pino'

export type Log = ReturnType<typeof createLog>

/** One JSON object a line on stdout (or elsewhere); every line has an `event`. */
export function createLog(level: string, destination: DestinationStream = pino.destination({ fd: 1, sync: true })) {
  return pino({
    level,
    base: { service: 'archiver', pid: process.pid },
    timestamp: pino.stdTimeFunctions.isoTime,
    formatters: { level: label => ({ level: label }) },
  }, destination)
}

/** The message of an error and of its causes, as one sentence for a log line or for hb_partitions.last_error. */
export function describeError(error: unknown): string {
  if (!(error instanceof Error)) return String(error)
  const hint = 'hint' in error && typeof error.hint === 'string' ? ` (${error.hint})` : ''
  // The AWS SDK calls what came without words an UnknownError, and keeps what it knows in the name.
  const own = (error.message === '' || error.message === 'UnknownError' ? error.name : error.message) + hint
  return error.cause === undefined ? own : `${own}: ${describeError(error.cause)}`
}
