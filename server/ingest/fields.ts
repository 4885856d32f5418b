import { hasAtMost, STORABLE } from '../text.ts'

/** An optional field of a heartbeat. */
export interface Field {
  /** What it is, for people. */
  description: string
  /** What an agent should send, as JSON Schema. */
  schema: Record<string, unknown>
  example: unknown
  /**
   * The value as JSON text. Null if it means that the device does not know. Undefined if it cannot be read without doubt: the
   * field is then left out, and the rest of the heartbeat counts.
   */
  read: (value: unknown) => string | null | undefined
}

/** What Android gives where it has no number: Integer.MAX_VALUE (CellInfo.UNAVAILABLE), and the smallest Integer or Long. */
const UNKNOWN_NUMBERS = [2 ** 31 - 1, -(2 ** 31), 2 ** 63, -(2 ** 63)]
const UNKNOWN_TEXT = /^\s*(?:unknown|null|n\/a)?\s*$/i

/** "87" and "87.0", as a form or a float writes it. */
const WHOLE_NUMBER = /^\s*[+-]?\d{1,15}(?:\.0+)?\s*$/

/** Text that JSON quotes without escapes, and that is not a word for unknown. */
const PLAIN_TEXT = /^(?![uUnN ])[\w .:,()+/-]+$/
/**
 * The optional fields of a heartbeat, by name. Validation, fleet.ingest's items, openapi.json and the answers' `ignored` all come
 * from this table.
 */
export const FIELDS: ReadonlyMap<string, Field> = new Map([
  // -1 is the default of Intent.getIntExtra() in most agents, for a battery level that the system did not give.
  ['battery_pct', integer(0, 100, { unknown: [-1], description: 'Charge of the battery, in percent.', example: 81 })],
  ['network_type', text(32, { description: 'The network, such as `wifi`.', example: 'wifi' })],
  ['unity_running', boolean({ description: 'Whether the Unity app runs.', example: true })],
  // 99 and 255 mean "not known or not detectable" in 3GPP TS 27.007, from which Android's older calls take their values.
  ['signal_dbm', integer(-200, 50, { unknown: [99, 255], description: 'Signal strength, in dBm.', example: -61 })],
  ['agent_version', text(64, { description: 'Version of the agent.', example: '3.1.0' })],
  [
    'next_in_s',
    integer(1, 604_800, {
      description:
        'In how many seconds the next heartbeat comes, if the device knows: before it sleeps, for example. It is not late before.',
      example: 1_800,
    }),
  ],
  [
    'stopping',
    word(['shutdown', 'reboot', 'update', 'app'], {
      description: 'Why the device is about to stop; `app`: only its agent stops.',
      example: 'reboot',
    }),
  ],
  ['extra', object(2_048, 4, { description: "The agent's own values.", example: { store: 12, kiosk: true } })],
])

/** A value of each field, as in the examples of openapi.json. */
export function exampleFields() {
  return Object.fromEntries([...FIELDS].map(([name, { example }]) => [name, example]))
}

interface About {
  description: string
  example: unknown
}

/** A whole number. Text is read if it is one; 87.5 and "87 %" are not. */
function integer(min: number, max: number, { unknown = [], ...about }: About & { unknown?: number[] }): Field {
  const unknowns = new Set([...UNKNOWN_NUMBERS, ...unknown])
  const read = (value: unknown): string | null | undefined => {
    if (typeof value === 'number') {
      if (Number.isInteger(value) && value >= min && value <= max) return `${value}`
      return unknowns.has(value) ? null : undefined
    }
    if (typeof value !== 'string') return undefined
    return WHOLE_NUMBER.test(value) ? read(Number(value)) : UNKNOWN_TEXT.test(value) ? null : undefined
  }
  return { ...about, schema: { type: 'integer', minimum: min, maximum: max }, read }
}

function boolean(about: About): Field {
  const read = (value: unknown): string | null | undefined => {
    if (typeof value === 'boolean') return value ? 'true' : 'false'
    if (value === 1 || value === 0) return value === 1 ? 'true' : 'false'
    if (typeof value !== 'string') return undefined
    const word = value.trim().toLowerCase()
    if (word === 'true' || word === '1') return 'true'
    if (word === 'false' || word === '0') return 'false'
    return UNKNOWN_TEXT.test(value) ? null : undefined
  }
  return { ...about, schema: { type: 'boolean' }, read }
}

/** Text of at most `max` characters (code points). A whole number is read as its digits. Longer text is not cut. */
function text(max: number, about: About): Field {
  const read = (value: unknown): string | null | undefined => {
    if (typeof value === 'string') {
      if (value.length <= max && PLAIN_TEXT.test(value)) return `"${value}"`
      if (!hasAtMost(value, max) || !STORABLE.test(value)) return undefined
      return UNKNOWN_TEXT.test(value) ? null : JSON.stringify(value)
    }
    return Number.isSafeInteger(value) && `${value as number}`.length <= max ? `"${value as number}"` : undefined
  }
  return { ...about, schema: { type: 'string', maxLength: max, pattern: STORABLE.source }, read }
}

/** One of a fixed set of words, in lower case. Any other word is not read. */
function word(words: readonly string[], about: About): Field {
  const read = (value: unknown): string | null | undefined => {
    if (typeof value !== 'string') return undefined
    const given = value.trim().toLowerCase()
    if (words.includes(given)) return `"${given}"`
    return UNKNOWN_TEXT.test(value) ? null : undefined
  }
  return { ...about, schema: { type: 'string', enum: words }, read }
}

/**
 * A JSON object of at most `maxBytes` bytes as compact text, with at most `maxDepth` objects and arrays inside each other. One value
 * in it that cannot be stored as it was sent costs the whole object.
 */
function object(maxBytes: number, maxDepth: number, about: About): Field {
  const read = (value: unknown): string | null | undefined => {
    if (!isObject(value) || !canStore(value, maxDepth)) return undefined
    const json = JSON.stringify(value)
    return Buffer.byteLength(json) <= maxBytes && bytesWithoutExponents(json) <= maxBytes ? json : undefined
  }
  const limits = `At most ${maxBytes / 1024} KiB as text, and at most ${maxDepth} objects and arrays inside each other.`
  return { ...about, description: `${about.description} ${limits}`, schema: { type: 'object' }, read }
}

export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

/** Whether it is stored as it was sent, and is at most this deep. */
function canStore(value: unknown, depth: number): boolean {
  if (typeof value === 'string') return STORABLE.test(value)
  // JSON.parse() rounds larger whole numbers, and makes Infinity of 1e400.
  if (typeof value === 'number') return Math.abs(value) <= Number.MAX_SAFE_INTEGER
  if (typeof value !== 'object' || value === null) return true
  if (depth === 0) return false
  return Array.isArray(value)
    ? value.every(inner => canStore(inner, depth - 1))
    : Object.entries(value).every(([name, inner]) => STORABLE.test(name) && canStore(inner, depth - 1))
}

/** jsonb writes 1e-300 with all its zeros. */
function bytesWithoutExponents(json: string) {
  let bytes = Buffer.byteLength(json)
  for (const [, exponent] of json.matchAll(/"(?:[^"\\]|\\.)*"|e-(\d+)/g)) bytes += Number(exponent ?? 0)
  return bytes
}
