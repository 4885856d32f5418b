import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import t from 'tap'
import { asRole, value } from './fleet.ts'
import { currentEnv, plainEnv } from '../local/config.ts'
import { datesToTest } from './dates.ts'
import { withDatabase } from './database.ts'

const run = promisify(execFile)
const MINUTE = 60_000

t.test('this process, Postgres and programs that tests start share one clock, moved or not', async t => {
  const { sql } = await withDatabase(t)
  const before = Date.now()
  const postgres = ((await value(sql`select clock_timestamp()`)) as Date).getTime()
  const { stdout } = await run('date', ['+%s%3N'], { env: plainEnv() })
  const after = Date.now()
  t.ok(postgres >= before && postgres <= after, 'Postgres')
  t.ok(Number(stdout) >= before && Number(stdout) <= after, 'another program')
  const at = Date.parse(currentEnv().FLEET_TEST_AT ?? new Date(before).toISOString())
  t.ok(after - at >= 0 && after - at < 60 * MINUTE, 'and it began at the time that was asked for')
})

t.test("Postgres's timeouts end waiting statements", async t => {
  const db = await withDatabase(t)
  const [first, second] = [asRole(t, db, 'postgres'), asRole(t, db, 'postgres')]
  await first.unsafe('create table a (); create table b ()')
  await second`set statement_timeout = '100ms'`
  await t.rejects(second`select pg_sleep(60)`, { code: '57014', message: /statement timeout/ })
  await second`set statement_timeout = 0`
  await first`begin`
  await first`lock table a`
  await second`set lock_timeout = '100ms'`
  await second`begin`
  await t.rejects(second`lock table a`, { code: '55P03' })
  await second`rollback`
  await second`set lock_timeout = 0`
  await second`begin`
  await second`lock table b`
  // Each session waits for the other. Postgres cancels one, and the other goes on.
  const answers = await Promise.all(
    [first`lock table b`, second`lock table a`].map(async (locking, n) => {
      try {
        await locking
        return 'locked'
      } catch (error) {
        await (n === 0 ? first : second)`rollback`
        return (error as { code: string }).code
      }
    }),
  )
  t.same(answers.toSorted(), ['40P01', 'locked'], 'a deadlock is found')
})

t.test('each test date matches its description and lies in the future, whenever it is computed', async t => {
  for (const now of [
    '2026-11-28T20:00Z',
    '2026-12-30T23:59Z',
    '2027-02-27T12:00Z',
    '2028-02-28T23:00Z',
    '2028-02-29T12:00Z',
    '2099-03-01T00:00Z',
  ].map(text => new Date(text))) {
    const dates = datesToTest(now)
    for (const { at, what } of dates) t.ok(Date.parse(at) > now.getTime() + 24 * 60 * MINUTE, `${what}: ${at}`)
    const [leap, march, year, eu1, eu2, us1, us2, thirtieth, thirtyFirst, monday, years] = dates.map(({ at }) => new Date(at))
    t.equal(leap!.toISOString().slice(5, 10), '02-29')
    t.equal(march!.toISOString().slice(5, 10), '03-01')
    t.equal(year!.toISOString().slice(5, 16), '12-31T23:58')
    t.equal(thirtieth!.getUTCDate(), 30)
    t.equal(thirtyFirst!.getUTCDate(), 31)
    t.equal(monday!.getUTCDay(), 1)
    t.equal(years!.getUTCFullYear(), now.getUTCFullYear() + 3)
    // Two minutes later the clocks have changed.
    const hourIn = (zone: string, at: number) =>
      new Intl.DateTimeFormat('en', { timeZone: zone, hour: 'numeric', hourCycle: 'h23' }).format(at)
    for (const [date, zone, change] of [
      [eu1, 'Europe/Berlin', 2],
      [eu2, 'Europe/Berlin', 0],
      [us1, 'America/New_York', 2],
      [us2, 'America/New_York', 0],
    ] as const) {
      const step = Number(hourIn(zone, date!.getTime() + 3 * MINUTE)) - Number(hourIn(zone, date!.getTime()))
      t.equal(step, change, `${date!.toISOString()} in ${zone}`)
    }
  }
})
