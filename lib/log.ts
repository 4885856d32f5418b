import { pino, type DestinationStream } from 'pino'
import type { LOG_FORMATS, LOG_LEVELS } from './settings.ts'

export type Log = ReturnType<typeof createLog>

/**
 * A log that writes one JSON object per line. `event` names what happened.
 * @param secrets texts that are never written, such as the admin key. Tokens and passwords in URLs are never written either.
 */
export function createLog(
  service: 'server' | 'archiver' | 'notifier',
  level: (typeof LOG_LEVELS)[number],
  destination: DestinationStream = stdout(),
  secrets: string[] = [],
) {
  return pino(
    {
      level,
      base: { service, pid: process.pid },
      messageKey: 'message',
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: label => ({ level: label }) },
      // Every logged error is `{ event, error }`. The driver attaches the statement and its parameters (token hashes) to its errors. Log only what helps.
      serializers: { error: serializeError },
      // Removes secrets wherever they came from: a path, a message of the database, a request id.
      hooks: { streamWrite: redactor(secrets) },
    },
    destination,
  )
}

/**
 * Where log lines go: as JSON, or formatted for people. `auto` formats them if stdout is a terminal. The formatter is loaded only
 * then.
 */
export async function logDestination(format: (typeof LOG_FORMATS)[number]): Promise<DestinationStream> {
  if (format === 'json' || (format === 'auto' && !process.stdout.isTTY)) return stdout()
  const { default: pretty } = await import('pino-pretty')
  return pretty({
    sync: true,
    messageKey: 'message',
    translateTime: 'SYS:HH:MM:ss.l',
    ignore: 'pid,service,event',
    singleLine: true,
    colorize: process.stdout.isTTY,
    messageFormat: '{service} {event} {message}',
    errorLikeObjectKeys: ['error'],
  })
}

function stdout() {
  return pino.destination({ fd: 1, sync: true })
}

/** Removes tokens and their beginnings, secrets of webhooks, passwords in URLs, and the secrets from a line. */
function redactor(secrets: string[]) {
  const forms = secrets.flatMap(secret => [JSON.stringify(secret).slice(1, -1), encodeURIComponent(secret)])
  return (line: string) => {
    let safe = line
      .replaceAll(/nx([dgk])(?:_|%5f)[\w%]*/gi, 'nx$1_***')
      .replaceAll(/whsec_[\w+/=]*/g, 'whsec_***')
      .replaceAll(/(postgres(?:ql)?:\/\/[^\s"@:]*:)[^\s"@]*@/g, '$1***@')
      .replaceAll(/(https?:\/\/)[^\s"/?#]*@/g, '$1***@')
    for (const form of forms) safe = safe.replaceAll(form, '***')
    return safe
  }
}

function serializeError(error: unknown): unknown {
  if (!(error instanceof Error)) return { message: String(error) }
  const { code, hint } = error as { code?: unknown; hint?: unknown }
  return {
    name: error.name,
    message: error.message,
    code,
    hint,
    stack: error.stack,
    cause: error.cause === undefined ? undefined : serializeError(error.cause),
  }
}
