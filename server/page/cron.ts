import { Cron } from 'croner'

/**
 * When pg_cron next starts a job with this schedule (its clock is GMT). Undefined for a schedule in seconds, or one that pg_cron
 * does not accept.
 */
export function nextRun(schedule: string, after: Date): Date | undefined {
  const [, , day = '', , weekday = ''] = schedule.trim().split(/\s+/)
  // If a day and a weekday are given, one of them is enough, unless one begins with a star. Vixie's cron has always done that.
  const domAndDow = day.startsWith('*') || weekday.startsWith('*')
  try {
    return new Cron(schedule, { mode: '5-part', timezone: 'UTC', sloppyRanges: true, domAndDow }).nextRun(after) ?? undefined
  } catch {
    return undefined
  }
}
