const MINUTE_MS = 60_000
/** A day of February 29 comes within eight years. */
const HORIZON_MS = 8 * 366 * 86_400_000

const FIELDS = [[0, 59], [0, 23], [1, 31], [1, 12], [0, 7]] as const

/**
 * When pg_cron next starts a job with this schedule (its clock is GMT); undefined for a schedule that is none of five
 * fields of numbers, ranges, lists and steps.
 */
export function nextRun(schedule: string, after: Date): Date | undefined {
  const parts = schedule.trim().split(/\s+/)
  if (parts.length !== FIELDS.length) return undefined
  const fields = FIELDS.map(([min, max], n) => valuesOf(parts[n]!, min, max))
  if (!fields.every(values => values !== undefined)) return undefined
  const [minutes, hours, days, months, weekdays] = fields as [Set<number>, Set<number>, Set<number>, Set<number>, Set<number>]
  if (weekdays.has(7)) weekdays.add(0)
  // With both given either will do, as cron has always had it.
  const isDay = (at: Date) => parts[2]!.startsWith('*') || parts[4]!.startsWith('*')
    ? days.has(at.getUTCDate()) && weekdays.has(at.getUTCDay())
    : days.has(at.getUTCDate()) || weekdays.has(at.getUTCDay())

  const at = new Date((Math.floor(after.getTime() / MINUTE_MS) + 1) * MINUTE_MS)
  const end = at.getTime() + HORIZON_MS
  while (at.getTime() < end) {
    if (!months.has(at.getUTCMonth() + 1) || !isDay(at)) at.setUTCHours(24, 0, 0, 0)
    else if (!hours.has(at.getUTCHours())) at.setUTCMinutes(60, 0, 0)
    else if (!minutes.has(at.getUTCMinutes())) at.setUTCMinutes(at.getUTCMinutes() + 1)
    else return at
  }
  return undefined
}

function valuesOf(field: string, min: number, max: number): Set<number> | undefined {
  const values = new Set<number>()
  for (const item of field.split(',')) {
    const [, star, from, to, every] = /^(?:(\*)|(\d+)(?:-(\d+))?)(?:\/(\d+))?$/.exec(item) ?? []
    if (star === undefined && from === undefined) return undefined
    const first = star === undefined ? Number(from) : min
    const last = star !== undefined ? max : to !== undefined ? Number(to) : every === undefined ? first : max
    const step = Number(every ?? 1)
    if (first < min || last > max || step < 1) return undefined
    for (let value = first; value <= last; value += step) values.add(value)
  }
  return values
}
