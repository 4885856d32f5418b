import { isUtf8 } from 'node:buffer'
import { MAX_BODY_BYTES, parseJson } from '../body.ts'
import { Problem } from '../problem.ts'

export const MAX_BATCH_BYTES = 1024 * 1024
export const MAX_BATCH_ITEMS = 1_000

/** Lines of NDJSON, blank ones included. A blank line after each item is allowed. */
export const MAX_LINES = 2 * MAX_BATCH_ITEMS

/**
 * Arrays and objects in one body. Half a million of them, in 1 MiB of brackets, take the parser 0.1 s, and 0.6 s on a busy
 * machine, because the garbage collector keeps copying them while the parser works. A batch has one for each item.
 */
export const MAX_CONTAINERS = MAX_BODY_BYTES

/**
 * Commas between values in one body. Parsing 1 MiB of keys that all differ takes 96 ms; this many take 8 ms. A full batch may
 * have 32 fields for each item.
 */
export const MAX_VALUES = 32 * 1024

/** An item that is not JSON. It must not block the others. */
export class Malformed {
  readonly error = { path: '', message: 'must be JSON in UTF-8' }
}

export type BatchType = 'application/json' | 'application/x-ndjson'

/**
 * The items of a batch. One pass over the bytes of the body counts what parsing would cost, and refuses the body as soon as it
 * exceeds a limit.
 * @throws Problem 400, 413 or 422 for the whole batch
 */
export function readItems(body: Buffer, type: BatchType): unknown[] {
  const isLines = type === 'application/x-ndjson'
  const excess = findExcess(body, isLines)
  if (excess !== undefined) throw excess
  const items: unknown = isLines ? parseLines(body) : parseJson(body)
  if (!Array.isArray(items)) throw invalidBatch('must be an array of heartbeats')
  if (items.length > MAX_BATCH_ITEMS) throw tooManyItems()
  return items
}

/**
 * The problem if a body exceeds a limit. The counts are exact for JSON. For anything else they may be too low or too high, but
 * the parser refuses that anyway. Measured: 0.2 ms for a batch of 1,000 heartbeats, 2 ms for 1 MiB.
 */
export function findExcess(body: Buffer, isLines: boolean): Problem | undefined {
  let lines = 1
  let items = 1
  let containers = 0
  let values = 0
  let depth = 0
  let isInString = false
  for (let at = 0; at < body.length; at++) {
    switch (body[at]) {
      case 0x22: // "
        isInString = !isInString
        break
      case 0x5c: // \
        // The escaped character belongs to the string, except for a newline, which always ends the line.
        if (body[at + 1] !== 0x0a) at++
        break
      case 0x0a: // \n
        // A JSON string cannot contain a newline, so an unclosed string in a broken line must not hide the next line.
        isInString = false
        if (!isLines) break
        depth = 0
        if (++lines > MAX_LINES)
          return new Problem(413, `A batch may have at most ${MAX_LINES} lines, blank ones included; nothing was written.`)
        break
      case 0x5b: // [
      case 0x7b: // {
        if (isInString) break
        depth++
        if (++containers > MAX_CONTAINERS) return invalidBatch(`must not contain more than ${MAX_CONTAINERS} arrays and objects`)
        break
      case 0x5d: // ]
      case 0x7d: // }
        if (!isInString) depth--
        break
      case 0x2c: // ,
        if (isInString) break
        if (depth === 1 && !isLines && ++items > MAX_BATCH_ITEMS) return tooManyItems()
        if (++values > MAX_VALUES) return invalidBatch(`must not contain more than ${MAX_VALUES} values`)
        break
    }
  }
  return undefined
}

/**
 * One item for each line that is not blank. trim() also removes a byte order mark, which is there if files were joined. It stops
 * early, because a batch with too many items is refused anyway.
 */
function parseLines(body: Buffer): unknown[] {
  const items: unknown[] = []
  for (let start = 0; start < body.length && items.length <= MAX_BATCH_ITEMS;) {
    const newline = body.indexOf(0x0a, start)
    const end = newline === -1 ? body.length : newline
    const line = body.subarray(start, end)
    const text = line.toString().trim()
    if (text !== '') items.push(isUtf8(line) ? parseLine(text) : new Malformed())
    start = end + 1
  }
  return items
}

function parseLine(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return new Malformed()
  }
}

function tooManyItems() {
  return new Problem(413, `A batch may have at most ${MAX_BATCH_ITEMS} heartbeats; nothing was written.`)
}

function invalidBatch(message: string) {
  return new Problem(422, 'The batch is not valid; nothing was written.', { errors: [{ path: '', message }] })
}
