import t from 'tap'
import { nextRun } from './cron.ts'

t.test('the next run of a schedule', t => {
  const after = new Date('2026-11-21T14:03:20Z') // a Saturday
  for (const [schedule, next] of [
    ['* * * * *', '2026-11-21T14:04'], ['*/10 * * * *', '2026-11-21T14:10'], ['35 * * * *', '2026-11-21T14:35'],
    ['3 * * * *', '2026-11-21T15:03'], ['0 3 * * *', '2026-11-22T03:00'], ['59 23 31 12 *', '2026-12-31T23:59'],
    ['0 0 29 2 *', '2028-02-29T00:00'], ['0 0 * * 0', '2026-11-22T00:00'], ['0 0 * * 7', '2026-11-22T00:00'],
    ['0 12 * * 1-5', '2026-11-23T12:00'], ['15,45 2-4/2 * * *', '2026-11-22T02:15'], ['0 0 1 * 1', '2026-11-23T00:00'],
    ['0 0 1 */3 *', '2027-01-01T00:00'], ['5/20 * * * *', '2026-11-21T14:05'],
  ] as const) t.equal(nextRun(schedule, after)?.toISOString(), `${next}:00.000Z`, schedule)
  for (const schedule of ['30 seconds', '', '60 * * * *', '* * * *', '* * 0 * *', 'a * * * *', '*/0 * * * *', '0 0 30 2 *']) {
    t.equal(nextRun(schedule, after), undefined, schedule)
  }
  t.end()
})
