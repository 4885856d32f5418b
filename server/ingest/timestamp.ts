const RFC3339 = /^(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.\d{1,9})?(?:Z|([+-])(\d\d):(\d\d))$/
/** RFC 3339 in UTC, as most agents write it, on a real day. 29 February is left to the other expression. */
const UTC =
  /^[12]\d{3}-(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31)T(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,9})?Z$/
const MIN_TS = Date.parse('0001-01-01T00:00:00Z')
const MAX_TS = Date.parse('9999-12-31T23:59:59.999Z')

/**
 * The time in a form that PostgreSQL reads, or undefined if it is not RFC 3339 with an offset, not on a real day, or outside the
 * years 0001 to 9999 in UTC.
 */
export function normaliseTs(text: string): string | undefined {
  if (UTC.test(text)) return text
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
