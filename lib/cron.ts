// When pg_cron starts a job. Its clock is GMT.
import { Cron } from 'croner'

/** The next run after a time. Undefined for a schedule in seconds, or one that pg_cron does not accept. */
export function nextRun(schedule: string, after: Date): Date | undefined {
  return parse(schedule)?.nextRun(after) ?? undefined
}

/** The last run until a time, including it. Undefined as above. */
export function lastRun(schedule: string, until: Date): Date | undefined {
  // croner looks at whole seconds, and leaves out that of the time itself.
  return parse(schedule)?.previousRuns(1, new Date(Math.floor(until.getTime() / 1000) * 1000 + 1000))[0]
}

function parse(schedule: string) {
  const [, , day = '', , weekday = ''] = schedule.trim().split(/\s+/)
  // If a day and a weekday are given, one of them is enough, unless one begins with a star. Vixie's cron has always done that.
  const domAndDow = day.startsWith('*') || weekday.startsWith('*')
  try {
    return new Cron(schedule, { mode: '5-part', timezone: 'UTC', sloppyRanges: true, domAndDow })
  } catch {
    return undefined
  }
}
