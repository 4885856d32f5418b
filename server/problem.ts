import { randomUUID } from 'node:crypto'
import { type IncomingMessage, STATUS_CODES } from 'node:http'
import postgres from 'postgres'

/** What is wrong with one field. `path` is a name such as `battery_pct`, or '' for the whole body. */
export interface FieldError {
  path: string
  message: string
}

interface Extra {
  errors?: FieldError[]
  results?: object[]
  hint?: string
  headers?: Record<string, string>
  cause?: unknown
}

/** An error answer as in RFC 9457. Anything below a route may throw it. */
export class Problem extends Error {
  readonly errors: FieldError[] | undefined
  readonly results: object[] | undefined
  readonly hint: string | undefined
  readonly headers: Record<string, string>

  constructor(
    readonly status: number,
    detail: string,
    { errors, results, hint, headers, cause }: Extra = {},
  ) {
    super(detail, { cause })
    this.name = 'Problem'
    this.errors = errors
    this.results = results
    this.hint = hint
    this.headers = headers ?? {}
  }

  /** @param requestId the id in the log, so that a refused request can be found there */
  toResponse(requestId: string) {
    const body = {
      type: 'about:blank',
      title: STATUS_CODES[this.status],
      status: this.status,
      detail: this.message,
      hint: this.hint,
      errors: this.errors,
      results: this.results,
      request_id: requestId,
    }
    return new Response(JSON.stringify(body), {
      status: this.status,
      headers: {
        'content-type': 'application/problem+json',
        'cache-control': 'no-store',
        'x-request-id': requestId,
        ...this.headers,
      },
    })
  }
}

/**
 * The id that the caller or a proxy gave in x-request-id, if it is safe in a header, a log and a ticket; otherwise a new one.
 * Only problems have one, because requests that succeed are not logged.
 */
export function requestId({ headers }: IncomingMessage) {
  const given = headers['x-request-id']
  return typeof given === 'string' && /^[\w.:+/=@-]{1,128}$/.test(given) && !/nx[dgk]_/i.test(given) ? given : randomUUID()
}

/** A 503. Its Retry-After is random, because devices that were refused together must not come back together. */
export function unavailable(detail: string, cause?: unknown) {
  return new Problem(503, detail, {
    cause,
    headers: { 'retry-after': String(1 + Math.floor(Math.random() * 10)) },
  })
}

/** What is answered to an error of a SQL function, by its code. */
export const SQL_STATUS: Record<string, number> = {
  FL401: 401,
  FL403: 403,
  FL404: 404,
  FL409: 409,
  FL422: 422,
  FL002: 409,
  FL003: 409,
}

/** The answer to an error that was thrown. It shows nothing of an unknown error. */
export function toProblem(error: unknown): Problem {
  if (error instanceof Problem) return error
  if (error instanceof postgres.PostgresError) {
    const status = SQL_STATUS[error.code]
    if (status !== undefined) return new Problem(status, error.message, { hint: error.hint, cause: error })
  }
  if (isOutage(error)) {
    return unavailable('The database cannot be reached or did not answer in time; nothing was acknowledged.', error)
  }
  return new Problem(500, 'An internal error occurred; it was logged.', { cause: error })
}

// 08 connection, 28 and 3D a login or database that does not exist (yet), 40 rolled back, 53 resources, 55P03 lock timeout,
// 57 cancelled, shutting down or starting up, 25006 a standby.
const OUTAGE = /^(08|28|3D|40|53|57|55P03|25006)/

/** Whether the same call may succeed later, because the fault is not in what was sent. */
function isOutage(error: unknown) {
  if (error instanceof postgres.PostgresError) return OUTAGE.test(error.code)
  if (!(error instanceof Error)) return false
  const { code, syscall } = error as NodeJS.ErrnoException
  return syscall !== undefined || (code !== undefined && /^(CONNECT|ECONN|EPIPE|ETIMEDOUT)/.test(code))
}
