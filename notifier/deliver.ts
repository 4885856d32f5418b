// Sends one message to one receiver.
import { lookup as lookupName } from 'node:dns'
import { request as requestHttp, type IncomingMessage, type RequestOptions } from 'node:http'
import { request as requestHttps } from 'node:https'
import { isIP, type LookupFunction } from 'node:net'
import { Webhook } from 'standardwebhooks'
import { describeError } from '../lib/errors.ts'
import { version } from '../lib/version.ts'
import { addressProblem, type Allowed } from './addresses.ts'
import { render, type Body, type Format } from './formats.ts'

export interface Message {
  delivery_id: string
  message_id: string
  webhook_name: string
  url: string
  format: Format
  /** The newest first. */
  secrets: string[]
  event: string
  kind: string
  first_id: string | null
  body: Body
  attempts: number
}

export type Outcome =
  | { isAccepted: true; status: number }
  | {
      isAccepted: false
      /** Undefined if there was no answer. */
      status: number | undefined
      /** Without the path and the user of the URL, which may be secret. */
      error: string
      /** Whether the receiver would refuse other messages, too. */
      isDown: boolean
      retryAfterS: number | undefined
    }

export const TIMEOUT_MS = 10_000
const MAX_ANSWER_BYTES = 64 * 1024
/** What a receiver answers that refuses this message, and not all of them. */
const REFUSES_MESSAGE = [400, 409, 413, 422]

/**
 * Sends a message once. It is accepted if the receiver answers 2xx in time, and to the end. Every message has a connection of its
 * own, whose address is judged: a name that had another address a moment ago does not help.
 */
export async function deliver(message: Message, allowed: Allowed, timeoutMs = TIMEOUT_MS): Promise<Outcome> {
  const signal = AbortSignal.timeout(timeoutMs)
  try {
    const { status, location, retryAfterS } = await post(message, allowed, signal)
    if (status >= 200 && status < 300) return { isAccepted: true, status }
    const where = status >= 300 && status < 400 ? `, a redirect${location}, which is not followed` : ''
    return {
      isAccepted: false,
      status,
      error: `it answered ${status}${where}`,
      isDown: !REFUSES_MESSAGE.includes(status),
      retryAfterS,
    }
  } catch (error) {
    return {
      isAccepted: false,
      status: undefined,
      error: signal.aborted ? `it did not answer within ${timeoutMs / 1000} s` : explain(error, message.url),
      isDown: true,
      retryAfterS: undefined,
    }
  }
}

async function post({ message_id, url, format, secrets, body }: Message, allowed: Allowed, signal: AbortSignal) {
  const { url: to, text } = render(body, format, url)
  const host = to.hostname.replace(/^\[(.*)\]$/, '$1')
  // Node looks up names only.
  if (isIP(host)) requireAllowed(host, host, allowed)
  const now = new Date()
  const { username, password, protocol, port, pathname, search } = to
  const options: RequestOptions = {
    method: 'POST',
    host,
    port,
    path: pathname + search,
    agent: false,
    lookup: lookupAllowed(host, allowed),
    signal,
    ...(username || password ? { auth: `${decodeURIComponent(username)}:${decodeURIComponent(password)}` } : {}),
    headers: {
      'content-type': 'application/json',
      'content-length': Buffer.byteLength(text),
      'user-agent': `NexMDM/${version}`,
      'webhook-id': message_id,
      'webhook-timestamp': Math.floor(now.getTime() / 1000),
      'webhook-signature': secrets.map(secret => new Webhook(secret).sign(message_id, now, text)).join(' '),
    },
  }
  const answer = await new Promise<IncomingMessage>((resolve, reject) => {
    const request = (protocol === 'https:' ? requestHttps : requestHttp)(options, resolve)
    request.on('error', reject)
    // In case that anything connects in another way than by the lookup above. Before a byte of the message is sent.
    request.on('socket', socket =>
      socket.on('connect', () => {
        const problem = addressProblem(socket.remoteAddress ?? '', host, allowed)
        if (problem !== undefined) request.destroy(new Error(problem))
      }),
    )
    request.end(text)
  })
  await discard(answer)
  const { location } = answer.headers
  return {
    status: answer.statusCode ?? 0,
    location: location === undefined ? '' : ` to ${origin(location, to)}`,
    retryAfterS: retryAfter(answer.headers['retry-after'], now),
  }
}

/** Reads the answer to its end, or enough of it. What is in it is not kept: it could be a page of a service that nobody may see. */
async function discard(answer: IncomingMessage) {
  let bytes = 0
  for await (const chunk of answer as AsyncIterable<Buffer>) {
    bytes += chunk.length
    if (bytes > MAX_ANSWER_BYTES) break // which destroys it
  }
}

function requireAllowed(address: string, host: string, allowed: Allowed) {
  const problem = addressProblem(address, host, allowed)
  if (problem !== undefined) throw new Error(problem)
}

/** Looks a name up and leaves out the addresses to which nothing is sent. */
function lookupAllowed(host: string, allowed: Allowed): LookupFunction {
  return (hostname, options, callback) => {
    lookupName(hostname, { ...options, all: true }, (error, found) => {
      if (error) return callback(error, [])
      const good = found.filter(({ address }) => addressProblem(address, host, allowed) === undefined)
      const [first] = good
      if (!first) return callback(new Error(addressProblem(found[0]?.address ?? '', host, allowed)), [])
      if (options.all) callback(null, good)
      else callback(null, first.address, first.family)
    })
  }
}

function origin(location: string, base: URL) {
  return URL.canParse(location, base.href) ? new URL(location, base).origin : 'nowhere'
}

function retryAfter(header: string | undefined, now: Date) {
  if (header === undefined) return undefined
  const seconds = /^\d{1,9}$/.test(header) ? Number(header) : (Date.parse(header) - now.getTime()) / 1000
  return Number.isFinite(seconds) && seconds > 0 ? Math.ceil(seconds) : undefined
}

function explain(error: unknown, url: string): string {
  if (error instanceof AggregateError && error.errors.length > 0) return error.errors.map(one => explain(one, url)).join('; ')
  let text = describeError(error)
  // Readers of the database see this, and need not know the addresses of our network.
  if (error instanceof Error && 'address' in error && typeof error.address === 'string')
    text = text.replaceAll(error.address, new URL(url).hostname)
  return text === 'aborted' ? 'it closed the connection before the end of its answer' : text
}
