import { z } from 'zod'

const RFC3339 = /^(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.\d{1,9})?(?:Z|([+-])(\d\d):(\d\d))$/
const MIN_TS = Date.parse('0001-01-01T00:00:00Z')
const MAX_TS = Date.parse('9999-12-31T23:59:59.999Z')

/**
 * The time in a form that PostgreSQL reads, or undefined if it is not RFC 3339 with an offset, not on a real day, or outside the
 * years 0001 to 9999 in UTC.
 */
export function normaliseTs(text: string): string | undefined {
  const upper = text.toUpperCase()
  const match = RFC3339.exec(upper)
  if (match === null) return undefined
  const [, year, month, day, hour, minute, second, , offsetHour = '0', offsetMinute = '0'] = match
  if (Number(month) > 12 || Number(day) < 1 || Number(day) > daysInMonth(Number(year), Number(month))) return undefined
  if (Number(hour) > 23 || Number(minute) > 59 || Number(second) > 59) return undefined
  if (Number(offsetHour) > 23 || Number(offsetMinute) > 59) return undefined
  // Only in the first and the last year can an offset lead out of that range.
  const isInner = year! > '0001' && year! < '9999'
  if (isInner && Number(offsetHour) < 16) return upper
  const epoch = Date.parse(upper)
  if (!(epoch >= MIN_TS && epoch <= MAX_TS)) return undefined
  // PostgreSQL accepts only offsets below 16 hours; the RFC allows up to 23:59.
  return Number(offsetHour) < 16 ? upper : new Date(epoch).toISOString()
}

function daysInMonth(year: number, month: number) {
  if (month === 2) return (year % 4 === 0 && year % 100 !== 0) || year % 400 === 0 ? 29 : 28
  return [4, 6, 9, 11].includes(month) ? 30 : month >= 1 ? 31 : 0
}

const ts = z
  .string('must be a string such as 2026-01-31T12:00:00Z')
  .meta({ format: 'date-time' })
  .transform((text, context) => {
    const normal = normaliseTs(text)
    if (normal !== undefined) return normal
    context.issues.push({
      code: 'custom',
      input: text,
      message: 'must be a real time in RFC 3339 with an offset, such as 2026-01-31T12:00:00Z',
    })
    return z.NEVER
  })

// openapi.json cannot show what refine() checks, so meta() says the same in JSON Schema.
const integer = (min: number, max: number) =>
  z
    .number(`must be a whole number from ${min} to ${max}`)
    .refine(value => Number.isInteger(value) && value >= min && value <= max, `must be a whole number from ${min} to ${max}`)
    .meta({ type: 'integer', minimum: min, maximum: max })

// eslint-disable-next-line no-control-regex -- PostgreSQL cannot store it
const STORABLE = /^[^\u0000\p{Cs}]*$/u

/** Counts code points only if the text can be short enough, because 1 MiB of text would become an array of a million strings. */
function hasAtMost(text: string, max: number) {
  return text.length <= max || (text.length <= 2 * max && [...text].length <= max)
}

/** Text that PostgreSQL can store, of at most `max` characters (code points). */
export const text = (min: number, max: number) =>
  z
    .string('must be a string')
    .refine(value => value.length >= min && hasAtMost(value, max), {
      error: min === 0 ? `must have at most ${max} characters` : `must have ${min} to ${max} characters`,
      // Text that is too long is not searched any further.
      abort: true,
    })
    .regex(STORABLE, 'must not contain NUL or a lone surrogate')
    .meta({ ...(min > 0 && { minLength: min }), ...(max < Infinity && { maxLength: max }) })

const fields = {
  ts: ts
    .nullish()
    .describe(
      'When it was measured: a real time in the years 0001 to 9999, in RFC 3339 with an offset. ' +
        "Left out: the server's time.",
    ),
  battery_pct: integer(0, 100).nullish().describe('Charge of the battery, in percent.'),
  network_type: text(0, 32).nullish().describe('The network, such as `wifi`.'),
  unity_running: z.boolean('must be true or false').nullish().describe('Whether the Unity app runs.'),
  signal_dbm: integer(-200, 50).nullish().describe('Signal strength, in dBm.'),
  agent_version: text(0, 64).nullish().describe('Version of the agent.'),
}

const NOT_AN_OBJECT = 'must be a JSON object'

/** A heartbeat as a device posts it. Null counts as absent, and unknown fields are ignored. */
export const heartbeatSchema = z.object(fields, NOT_AN_OBJECT)

export const deviceId = z.int('must be a device id').positive('must be a device id')

/** An item of a device's batch. It may name the device, but only the one whose token is used. */
export const deviceItemSchema = z.object(
  {
    ...fields,
    device_id: deviceId.nullish().describe('May be left out; otherwise it must be the device whose token is used.'),
  },
  NOT_AN_OBJECT,
)

/** An item of a gateway's batch. */
export const gatewayItemSchema = z.object(
  {
    ...fields,
    device_id: deviceId.describe('The device that the heartbeat is of.'),
  },
  NOT_AN_OBJECT,
)

export type Heartbeat = z.output<typeof heartbeatSchema>
