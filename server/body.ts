import type { IncomingMessage } from 'node:http'
import { isUtf8 } from 'node:buffer'
import { gunzipSync } from 'node:zlib'
import { Problem, unavailable } from './problem.ts'

/** The largest body, for calls without a limit of their own. */
export const MAX_BODY_BYTES = 16 * 1024

/** For all bodies that are being read at the same time: 64 batches of the largest size, or 4,000 heartbeats. */
const MAX_HELD_BYTES = 64 * 1024 * 1024
const NOTHING = Buffer.alloc(0)

/**
 * The number of pieces in which one body may arrive. Each piece wakes this process, so 1 MiB in chunks of one byte wakes it a
 * million times. A network packet holds about 1,400 bytes, so a batch of the largest size arrives in about 750 pieces.
 */
export const MAX_PIECES = 16 * 1024

/**
 * How many bytes each byte of gzip may expand to, beyond the first 64 KiB. Measured: 1,000 heartbeats at a regular pace, each
 * with 900 bytes of the same text, compress to 1/152 of their size. Blanks compress to 1/1000.
 */
export const MAX_INFLATION = 256
const FREE_INFLATED_BYTES = 64 * 1024

/** The type of the body without its parameters. The default is JSON. */
export function mediaType(incoming: IncomingMessage) {
  const type = incoming.headers['content-type'] ?? 'application/json'
  const end = type.indexOf(';')
  return (end === -1 ? type : type.slice(0, end)).trim().toLowerCase()
}

/**
 * Reads a JSON body of at most `limit` bytes.
 * @throws Problem 400 if it is not JSON in UTF-8, 413 if it is too large, 415 if it has another type or an encoding
 */
export async function readJson(incoming: IncomingMessage, limit: number): Promise<unknown> {
  const type = mediaType(incoming)
  if (type !== 'application/json') throw new Problem(415, `The body must be application/json, not ${type}.`)
  const encoding = incoming.headers['content-encoding'] ?? 'identity'
  if (encoding !== 'identity') throw new Problem(415, `The body must not be encoded, but was sent as ${encoding}.`)
  return parseJson(await readBody(incoming, limit))
}

/**
 * Reads a body that may be compressed. The limit holds before and after inflation.
 * @throws Problem 400 if it is not gzip, 413 if it is too large before or after inflation, 415 for another encoding
 */
export async function readInflated(incoming: IncomingMessage, limit: number): Promise<Buffer> {
  const encoding = (incoming.headers['content-encoding'] ?? 'identity').toLowerCase()
  if (encoding === 'identity') return readBody(incoming, limit)
  if (encoding !== 'gzip') {
    throw new Problem(415, `Content-Encoding may be gzip, not ${encoding}.`, { headers: { 'accept-encoding': 'gzip' } })
  }
  const packed = await readBody(incoming, limit)
  const most = Math.min(limit, FREE_INFLATED_BYTES + MAX_INFLATION * packed.length)
  try {
    // Not in a thread: bodies would pile up there, and parsing the result takes longer than this.
    return gunzipSync(packed, { maxOutputLength: most })
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ERR_BUFFER_TOO_LARGE') {
      throw most === limit ? tooLarge(limit) : tooLarge(most, `, the most that ${packed.length} bytes of gzip may expand to`)
    }
    throw new Problem(400, 'The body was sent with Content-Encoding gzip, but is not gzip.', { cause })
  }
}

/**
 * The value of a JSON text in UTF-8. A byte order mark at its start is skipped, as RFC 8259 allows: tools on Windows write one.
 * @throws Problem 400
 */
export function parseJson(body: Buffer): unknown {
  if (!isUtf8(body)) throw new Problem(400, 'The body is not JSON: it is not UTF-8.')
  try {
    return JSON.parse(hasMark(body) ? body.toString('utf8', 3) : body.toString())
  } catch (cause) {
    throw new Problem(400, 'The body is not JSON.', { cause })
  }
}

function hasMark(body: Buffer) {
  return body[0] === 0xef && body[1] === 0xbb && body[2] === 0xbf
}

/** Bytes of all bodies that this process is reading. */
let held = 0

/**
 * Reads no further than the limit, whatever Content-Length says. The body grows in one buffer, because a list of chunks of one
 * byte each would take two hundred times its size. The listeners stay, because taking them off again costs more than a flag, and
 * they have no names, because tsx sets the name of each function that has one whenever it is made.
 */
function readBody(incoming: IncomingMessage, limit: number): Promise<Buffer> {
  if (Number(incoming.headers['content-length'] ?? 0) > limit) return Promise.reject(tooLarge(limit))
  return new Promise((resolve, reject) => {
    let body: Buffer = NOTHING
    let size = 0
    let pieces = 0
    let isOver = false
    incoming.on('data', (chunk: Buffer) => {
      if (isOver) return
      held += chunk.length
      const begin = size
      size += chunk.length
      if (size > limit || ++pieces > MAX_PIECES || held > MAX_HELD_BYTES) {
        isOver = true
        held -= size
        body = NOTHING
        reject(size > limit ? tooLarge(limit) : pieces > MAX_PIECES ? tooManyPieces() : tooMany())
      } else if (begin === 0) {
        body = chunk
      } else {
        if (size > body.length) body = Buffer.concat([body.subarray(0, begin)], Math.max(size, 2 * begin))
        chunk.copy(body, begin)
      }
    })
    incoming.on('end', () => {
      if (isOver) return
      isOver = true
      held -= size
      resolve(body.subarray(0, size))
      body = NOTHING
    })
    incoming.on('close', () => {
      if (isOver) return
      isOver = true
      held -= size
      body = NOTHING
      reject(new Problem(400, 'The connection was cut before the end of the body.'))
    })
    // 'close' follows.
    incoming.on('error', ignore)
  })
}

function ignore() {}

function tooMany() {
  const { message, headers } = unavailable('The server is reading more than it can hold; this request was not processed.')
  return new Problem(503, message, { headers: { ...headers, connection: 'close' } })
}

function tooManyPieces() {
  return new Problem(413, `The body arrived in more than ${MAX_PIECES} pieces; send larger ones.`, {
    headers: { connection: 'close' },
  })
}

function tooLarge(limit: number, why = '') {
  return new Problem(413, `The body is larger than ${limit} bytes${why}.`, { headers: { connection: 'close' } })
}
