// Compares the status of a device with a plain reference, over random histories, intervals, clocks and time zones.
import fc from 'fast-check'
import t from 'tap'
import { withDatabase } from '../../testing/database.ts'
import { plainOnly, STATUS_VIEWS } from '../../testing/distributed.ts'
import { asRole, enroll, value } from '../../testing/fleet.ts'

// Times and durations are whole microseconds, as in Postgres.
const SECOND = 1e6
const MINUTE = 60 * SECOND
const HOUR = 60 * MINUTE
const DAY = 24 * HOUR

interface Pace {
  own: number
  /** The interval of the cohort, if it is slowed. */
  min: number | null
  /** The interval before `changedAt`. */
  last: number | null
  changedAt: number | null
}

/** How often a heartbeat is expected from it. */
function expectedOf(pace: Pace, now: number) {
  let expected = pace.own
  if (pace.min !== null && pace.min > expected) expected = pace.min
  const mayNotHaveHeard = pace.changedAt !== null && pace.last !== null && now - pace.changedAt < 2 * pace.last
  if (mayNotHaveHeard && pace.last! > expected) expected = pace.last!
  return expected
}

/** How much later than usual its next heartbeat comes, if the newest one announced it for `nextIn` seconds later. */
function excuseOf(nextIn: number | null, expected: number) {
  return nextIn !== null && nextIn * SECOND > expected ? nextIn * SECOND - expected : 0
}

/** What a device said, and when it was heard from. */
interface Said {
  isSkewed: boolean
  heardAt: number | null
  nextIn: number | null
}

/** The status of a device at `now`, written as plainly as possible. */
function statusOf({ isSkewed, heardAt, nextIn }: Said, pace: Pace, offlineAfter: number, now: number) {
  const expected = expectedOf(pace, now)
  if (heardAt === null) return 'new'
  const silence = now - heardAt - excuseOf(nextIn, expected)
  if (silence > offlineAfter && silence > 2 * expected) return 'offline'
  if (isSkewed) return 'clock_skewed'
  if (silence > expected + expected / 2 + 15 * SECOND) return 'late'
  return 'online'
}

/** How many heartbeats are overdue by more than half an interval, one after the other. */
function missedBeats(since: number, expected: number, now: number) {
  let missed = 0
  while (now - since >= (missed + 1.5) * expected) missed++
  return missed
}

/** A moment as text with microseconds. */
function iso(us: number) {
  return new Date(Math.floor(us / 1000)).toISOString().replace('Z', `${String(us % 1000).padStart(3, '0')}Z`)
}

/** The same duration written as hours, or with days. A clock change changes the length of days that are added to a time. */
const spelled = (us: number, withDays: boolean) =>
  withDays ? `${Math.ceil(us / DAY)} days ${us - Math.ceil(us / DAY) * DAY} microseconds` : `${us} microseconds`

const intervals = fc.oneof(
  fc.constantFrom(1, 10, 30, 60, 300, 900, 3600, 43_200, 86_400).map(seconds => seconds * SECOND),
  fc.integer({ min: 1, max: 86_400 }).map(seconds => seconds * SECOND),
)
const maybe = <T>(arbitrary: fc.Arbitrary<T>) => fc.option(arbitrary, { nil: null })
const promises = maybe(
  fc.oneof(fc.constantFrom(1, 60, 61, 604_800), fc.integer({ min: 1, max: 7200 }), fc.integer({ min: 1, max: 604_800 })),
)
/** Zones whose clocks change by an hour, at midnight, by half an hour, by a whole day, or never, and when they change. */
const changes = {
  UTC: ['2024-02-29T00:00Z', '2026-12-31T23:59:59Z'],
  'Europe/Berlin': ['2026-03-29T01:00Z', '2026-10-25T01:00Z'],
  'America/New_York': ['2026-03-08T07:00Z', '2026-11-01T06:00Z'],
  'Australia/Lord_Howe': ['2026-04-04T15:00Z', '2026-10-03T15:30Z'],
  'Africa/Cairo': ['2026-04-23T22:00Z', '2026-10-29T21:00Z'],
  'Pacific/Apia': ['2011-12-30T10:00Z'],
}
const zones = fc.constantFrom(...(Object.keys(changes) as (keyof typeof changes)[]))
/** Moments shortly after the zone's clocks changed, and on other days. */
const momentsIn = (zone: keyof typeof changes) =>
  fc.oneof(
    fc
      .constantFrom(...changes[zone])
      .chain(moment => fc.integer({ min: -HOUR, max: 49 * HOUR }).map(later => Date.parse(moment) * 1000 + later)),
    fc.integer({ min: Date.parse('2000-01-01') * 1000, max: Date.parse('2100-01-01') * 1000 }),
  )

t.test("fleet.derive_status() agrees with the reference, whatever the session's TimeZone", async t => {
  const db = await withDatabase(t)
  const reader = asRole(t, db, 'fleet_reader')
  const casesIn = (zone: keyof typeof changes) =>
    fc
      .record({
        now: momentsIn(zone),
        own: intervals,
        min: maybe(intervals),
        last: maybe(intervals),
        offlineAfter: intervals,
        withDays: fc.boolean(),
        isSkewed: fc.boolean(),
        nextIn: promises,
        changedAgo: fc.oneof(
          fc.integer({ min: 0, max: 3 * DAY }),
          fc.constantFrom(-1, 0, 1).map(us => ({ us })),
        ),
        // How many intervals the silence lasts. Most faults are at a boundary.
        silence: maybe(
          fc.oneof(
            fc.integer({ min: -5 * MINUTE, max: 4 * DAY }),
            fc.record({
              times: fc.constantFrom(1, 1.5, 2),
              of: fc.constantFrom('own', 'min', 'last', 'offlineAfter'),
              isExcused: fc.boolean(),
              past: fc.constantFrom(-1, 0, 1, 15 * SECOND, 15 * SECOND + 1),
            }),
          ),
        ),
      })
      .map(({ changedAgo, silence, ...one }) => {
        const changedAt =
          one.last === null ? null : one.now - (typeof changedAgo === 'number' ? changedAgo : 2 * one.last + changedAgo.us)
        const expected = expectedOf({ ...one, changedAt }, one.now)
        const lasts =
          silence === null || typeof silence === 'number'
            ? silence
            : (one[silence.of as 'own' | 'min'] ?? one.own) * silence.times +
              silence.past +
              (silence.isExcused ? excuseOf(one.nextIn, expected) : 0)
        return { ...one, changedAt, heardAt: lasts === null ? null : one.now - lasts }
      })
  const batch = zones.chain(zone =>
    fc.record({ zone: fc.constant(zone), all: fc.array(casesIn(zone), { minLength: 1, maxLength: 300, size: 'max' }) }),
  )
  await fc.assert(
    fc.asyncProperty(batch, async ({ zone, all }) => {
      await reader`select set_config('timezone', ${zone}, false)`
      const rows = all.map(({ now, own, min, last, offlineAfter, withDays, isSkewed, nextIn, changedAt, heardAt }) => ({
        now: iso(now),
        own: spelled(own, withDays),
        min: min && spelled(min, withDays),
        last: last && spelled(last, !withDays),
        changed_at: changedAt === null ? null : iso(changedAt),
        offline_after: spelled(offlineAfter, withDays),
        is_skewed: isSkewed,
        next_in_s: nextIn,
        heard_at: heardAt === null ? null : iso(heardAt),
      }))
      const got = await reader<{ status: string }[]>`
      select fleet.derive_status(
        c.is_skewed, c.heard_at, e.expected, c.offline_after, fleet.excused(c.next_in_s, e.expected), c.now
      ) as status
      from rows from (json_to_recordset(${JSON.stringify(rows)}::text::json) as (
        now timestamptz, own interval, min interval, last interval, changed_at timestamptz, offline_after interval, is_skewed boolean,
        heard_at timestamptz, next_in_s integer
      )) with ordinality as c (now, own, min, last, changed_at, offline_after, is_skewed, heard_at, next_in_s, nth)
      cross join lateral (select fleet.expected_interval(c.own, c.min, c.last, c.changed_at, c.now) as expected) e
      order by c.nth
    `
      const want = all.map(one => statusOf(one, one, one.offlineAfter, one.now))
      const wrong = all.flatMap((one, n) => (got[n]?.status === want[n] ? [] : [{ ...one, got: got[n]?.status, want: want[n] }]))
      if (wrong.length > 0) throw new Error(JSON.stringify(wrong[0]))
    }),
    { numRuns: 500 },
  )
})

const notAtOnce = plainOnly('each node judges by its own now(), a moment after the coordinator')
t.test('so do the views, with heartbeats that arrive in any order', { skip: notAtOnce }, async t => {
  const db = await withDatabase(t)
  const devices = await enroll(db.sql, 4)
  const [max_late, max_future] = [7 * DAY, 5 * MINUTE]
  const beat = fc.record({
    device: fc.constantFrom(...devices),
    nextIn: promises,
    lag: fc.oneof(
      fc.integer({ min: 0, max: 5 * SECOND }),
      fc.integer({ min: 0, max: 4 * DAY }), // kept for long, then sent
      fc.integer({ min: -max_future, max: 0 }),
      fc.constantFrom(max_late, -max_future),
      fc.integer({ min: max_late + 1, max: max_late + DAY }),
      fc.integer({ min: -2 * DAY, max: -max_future - 1 }),
    ),
  })
  const run = fc.record({
    zone: fc.oneof(zones, fc.constantFrom('forward', 'back')),
    offlineAfter: intervals,
    withDays: fc.boolean(),
    enrolledAgo: fc.integer({ min: 0, max: 3 * HOUR }),
    devices: fc.tuple(...devices.map(() => fc.record({ own: intervals, cohort: fc.constantFrom('a', 'b') }))),
    cohorts: fc.array(
      fc.record({ min: maybe(intervals), last: maybe(intervals), changedAgo: fc.integer({ min: 0, max: 3 * DAY }) }),
      { maxLength: 2 },
    ),
    arrivals: fc.array(
      fc.record({
        ago: fc.oneof(fc.integer({ min: 0, max: 20 * MINUTE }), fc.integer({ min: 0, max: 3 * DAY })),
        beats: fc.array(beat, { minLength: 1, maxLength: 4 }),
      }),
      { maxLength: 8 },
    ),
  })
  const session = asRole(t, db, 'fleet_owner')

  await fc.assert(
    fc.asyncProperty(run, async given => {
      // One transaction, so that now() does not change. Rolled back, so that each example begins with devices that sent nothing.
      await session`begin`
      try {
        const now = Number(await value(session`select (extract(epoch from now()) * 1000000)::bigint`))
        const enrolledAt = now - given.enrolledAgo
        await session`update fleet.devices set enrolled_at = ${iso(enrolledAt)}::text::timestamptz`
        await session`select set_config('timezone', ${zoneOf(given.zone, now)}, true)`
        await session`update fleet.settings set offline_after = ${spelled(given.offlineAfter, given.withDays)}::text::interval`
        for (const [n, { own, cohort }] of given.devices.entries()) {
          await session`update fleet.devices set heartbeat_interval = ${spelled(own, given.withDays)}::text::interval, cohort = ${cohort} where device_id = ${devices[n]!}`
        }
        const cohorts = new Map(
          given.cohorts.map((cohort, n) => [n === 0 ? 'a' : 'b', { ...cohort, changedAt: now - cohort.changedAgo }]),
        )
        for (const [name, { min, last, changedAt }] of cohorts) {
          await session`
          insert into fleet.cohorts (cohort, min_interval, last_interval, changed_at)
          values (${name}, ${min && spelled(min, given.withDays)}::text::interval, ${last && spelled(last, !given.withDays)}::text::interval, ${iso(changedAt)}::text::timestamptz)
        `
        }

        const said = new Map(
          devices.map((device): [number, Said & { lastTs: number | null }] => [
            device,
            { lastTs: null, heardAt: null, isSkewed: false, nextIn: null },
          ]),
        )
        const buckets = new Set<string>()
        // How much later than its ts a heartbeat may arrive before the clock counts as wrong.
        const allowedLag = Math.max(MINUTE, Math.min(given.offlineAfter, max_late))
        // Devices of which the tables do not show all that last status was told: a duplicate, or a batch that was refused in part.
        const untold = new Set<number>()
        let nth = 0
        for (const { ago, beats } of [...given.arrivals].sort((a, b) => b.ago - a.ago)) {
          const receivedAt = now - ago
          const batch = beats.map(({ device, lag, nextIn }) => ({ device, nextIn, ts: receivedAt - lag - nth++ }))
          const results = await session<{ result: string; reason: string | null }[]>`
          select result, reason from fleet.ingest(${JSON.stringify(batch.map(({ device, nextIn, ts }) => ({ device_id: device, next_in_s: nextIn, ts: iso(ts) })))}::text::json, ${iso(receivedAt)}::text::timestamptz)
        `
          const isRefused = ({ ts }: { ts: number }) => ts < receivedAt - max_late || ts > receivedAt + max_future
          if (results.some((one, n) => (one.result === 'quarantined') !== isRefused(batch[n]!)))
            throw new Error(JSON.stringify({ batch, results }))
          for (const device of new Set(batch.map(one => one.device))) {
            const state = said.get(device)!
            const own = batch.filter(one => one.device === device)
            // The first heartbeat in ten seconds is stored.
            const stored = own.filter(one => {
              const bucket = `${device} ${Math.floor(one.ts / (10 * SECOND))}`
              if (isRefused(one) || buckets.has(bucket)) return false
              buckets.add(bucket)
              return true
            })
            const refused = own.filter(isRefused)
            if (stored.length < own.length && refused.length < own.length) untold.add(device)
            const newestOf = (beats: typeof own) => beats.toSorted((a, b) => b.ts - a.ts)[0]
            const newest = newestOf(stored)
            if (newest !== undefined && newest.ts > (state.lastTs ?? -Infinity)) {
              const { ts, nextIn } = newest
              Object.assign(state, { lastTs: ts, heardAt: receivedAt, isSkewed: receivedAt - ts > allowedLag, nextIn })
            } else if (receivedAt > (state.heardAt ?? -Infinity)) {
              const lastTs = state.lastTs ?? -Infinity
              const { own: interval } = given.devices[devices.indexOf(device)]!
              const isWrong =
                refused.length === own.length
                  ? lastTs < Math.max(...own.map(({ ts }) => ts), receivedAt - allowedLag)
                  : stored.length > 0 && receivedAt - lastTs > Math.max(allowedLag, 2 * interval)
              Object.assign(state, { heardAt: receivedAt, isSkewed: isWrong || state.isSkewed })
              if (refused.length === own.length && isWrong) state.nextIn = newestOf(refused)!.nextIn
            }
            // What a newer duplicate announces counts.
            const announced = newestOf(own.filter(one => !stored.includes(one) && !refused.includes(one) && one.nextIn !== null))
            if (announced !== undefined && announced.ts >= (state.lastTs ?? Infinity)) state.nextIn = announced.nextIn
          }
        }

        const want = new Map(
          devices.map((device, n) => {
            const { min, last, changedAt } = cohorts.get(given.devices[n]!.cohort) ?? { min: null, last: null, changedAt: null }
            const state = said.get(device)!
            const pace = { own: given.devices[n]!.own, min, last, changedAt }
            const expected = expectedOf(pace, now)
            return [
              device,
              {
                status: statusOf(state, pace, given.offlineAfter, now),
                lastTs: state.lastTs,
                missed: missedBeats((state.heardAt ?? enrolledAt) + excuseOf(state.nextIn, expected), expected, now),
              },
            ]
          }),
        )
        for (const view of STATUS_VIEWS) {
          const got = await session<{ id: number; status: string; last_ts: string | null }[]>`
          select device_id::int as id, status, (extract(epoch from last_ts) * 1000000)::bigint::text as last_ts from fleet.${session(view)}
        `
          for (const { id, status, last_ts } of got) {
            if (view === 'device_status_legacy' && untold.has(id)) continue
            const { status: wanted, lastTs } = want.get(id)!
            if (status !== wanted || (last_ts === null ? null : Number(last_ts)) !== lastTs) {
              throw new Error(`${view} says that ${id} has been ${status} since ${last_ts}, not ${wanted} since ${lastTs}`)
            }
          }
          if (got.length !== devices.length) throw new Error(`${view} has ${got.length} rows`)
        }

        const missed = await session<
          { id: number; missed: number }[]
        >`select device_id::int as id, missed_beats::int as missed from fleet.missed_beats`
        const wantedMissed = [...want]
          .filter(([, { missed }]) => missed > 0)
          .sort(([a, one], [b, two]) => two.missed - one.missed || a - b)
        if (
          JSON.stringify(missed.map(({ id, missed }) => [id, missed])) !==
          JSON.stringify(wantedMissed.map(([id, { missed }]) => [id, missed]))
        ) {
          throw new Error(`missed_beats has ${JSON.stringify(missed)}, not ${JSON.stringify(wantedMissed)}`)
        }

        const wanted = devices.filter(device => want.get(device)!.status === 'offline')
        // First by reading every device, then by the marks, with one mark too many on each.
        for (const marks of ['-infinity', 'now']) {
          await session`update fleet.device_last_status set is_silent = true`
          await session`update fleet.silence_marks set marked_at = ${marks}::text::timestamptz, base = '1 second'`
          const got = await session<{ id: number }[]>`select device_id::int as id from fleet.devices_offline order by 1`
          if (got.map(row => row.id).join() !== wanted.join())
            throw new Error(`devices_offline has ${got.map(row => row.id).join()}, not ${wanted.join()}`)
        }
      } finally {
        await session`rollback`
      }
    }),
    { numRuns: 600 },
  )
})

/** The POSIX name of a zone whose clocks changed within the 24 hours before this moment, at noon UTC. */
function zoneOf(zone: string, now: number) {
  const yesterday = new Date(now / 1000 - 12 * 3_600_000)
  // Counted from 0, with 29 February: the other form, J1 to J365, cannot name that day.
  const day = Math.floor((yesterday.getTime() - Date.UTC(yesterday.getUTCFullYear(), 0, 1)) / 86_400_000)
  const other = (day + 180) % 365
  if (zone === 'forward') return `NXT0NXS-1,${day}/12,${other}`
  // Summer time ends by the summer clock, which is an hour ahead.
  if (zone === 'back') return `NXT0NXS-1,${other},${day}/13`
  return zone
}

t.test('the zones made for the views have a day of 23 hours or of 25 hours', async t => {
  const db = await withDatabase(t)
  // At each hour of a leap day, of the first and the last day of a year, and of today.
  const hoursOf = (day: number) => Array.from({ length: 24 }, (_, hour) => (day + (hour + 0.5) * 3_600_000) * 1000)
  const days = [
    Date.UTC(2028, 1, 29),
    Date.UTC(2028, 2, 1),
    Date.UTC(2028, 11, 31),
    Date.UTC(2027, 0, 1),
    new Date().setUTCHours(0, 0, 0, 0),
  ]
  for (const now of days.flatMap(hoursOf))
    for (const [zone, hours] of [
      ['forward', '23'],
      ['back', '25'],
    ] as const) {
      await db.sql`select set_config('timezone', ${zoneOf(zone, now)}, false)`
      t.equal(
        await value(
          db.sql`select extract(hours from (${iso(now)}::text::timestamptz + interval '12 hours') - (${iso(now)}::text::timestamptz - interval '12 hours'))::text`,
        ),
        '0',
      )
      const day = await value(db.sql`
      select (extract(epoch from ${iso(now)}::text::timestamptz - (${iso(now)}::text::timestamptz - interval '1 day')) / 3600)::int::text
    `)
      t.equal(day, hours, `${zone} at ${iso(now)}`)
    }
})

const noPlan = plainOnly('the plan of a node is not in that of the coordinator')
t.test('the views inline the status, for every role that reads them', { skip: noPlan }, async t => {
  const db = await withDatabase(t)
  for (const role of ['fleet_server', 'fleet_reader', 'fleet_dba'] as const) {
    const session = asRole(t, db, role)
    for (const view of [...STATUS_VIEWS, 'devices_offline', 'unity_down', 'fleet_summary', 'missed_beats']) {
      if (role === 'fleet_server' && ['missed_beats', 'unity_down'].includes(view)) continue
      const plan = (await session`explain (verbose) select * from fleet.${session(view)}`)
        .map(row => row['QUERY PLAN'] as string)
        .join('\n')
      t.notMatch(plan, /(derive_status|expected_interval|late_after|beats_missed)\(/, `${view} as ${role}`)
      t.match(plan, /clock_skewed/)
    }
  }
})
