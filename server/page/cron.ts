import { Cron } from 'croner'

/** When pg_cron next starts a job with this schedule (its clock is GMT); undefined for one in seconds, and for none that it takes. */
export function nextRun(schedule: string, after: Date): Date | undefined {
  const [, , day = '', , weekday = ''] = schedule.trim().split(/\s+/)
  // With both given either will do, unless one begins with a star, as Vixie's cron has always had it.
  const domAndDow = day.startsWith('*') || weekday.startsWith('*')
  try {
    return new Cron(schedule, { mode: '5-part', timezone: 'UTC', sloppyRanges: true, domAndDow }).nextRun(after) ?? undefined
  } catch {
    return undefined
  }
}
