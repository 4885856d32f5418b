// Random fleets over random days, compared with a reference that is slow and obvious.
import fc from 'fast-check'
import type { Sql } from 'postgres'
import t from 'tap'
import { withDatabase } from '../../testing/database.ts'
import { isDistributed } from '../../testing/distributed.ts'
import { archive, asRole, enroll, ingest } from '../../testing/fleet.ts'

/** All times here are whole microseconds since 1970, which a number still holds exactly. */
type Micros = number

const SECOND = 1_000_000
const MINUTE = 60 * SECOND
const DAY = 86_400 * SECOND
const DAYS = 3
const RUNS = isDistributed ? 5 : 40

const iso = (micros: Micros) =>
  new Date(Math.floor(micros / 1000)).toISOString().replace('Z', `${String(micros % 1000).padStart(3, '0')}Z`)
const date = (micros: Micros) => iso(micros).slice(0, 10)

interface Roster {
  enrolled: Micros
  revoked: Micros
  /** For each day: the interval that was asked of the device when the day was first counted. */
  intervals: Micros[]
  beats: Micros[]
}

interface Answer {
  expected: number
  seen: number
  availability_pct: string | null
  longest_gap: number
  first_ts: number | null
  last_ts: number | null
}

/** What docs/decisions/0016 says, word for word. Undefined if the device is not on the roster. */
function reference(device: Roster, firstDay: Micros, days: number, now: Micros): Answer | undefined {
  let [expected, seen] = [0, 0]
  for (let n = 0; n < days; n++) {
    const midnight = firstDay + n * DAY
    const since = Math.max(midnight, device.enrolled)
    const until = Math.min(midnight + DAY, device.revoked, now)
    if (since >= until) continue
    const interval = device.intervals[n] as number
    const beats = device.beats.filter(ts => ts >= since && ts < until)
    let missed = 0
    for (const silence of silences(since, until, beats)) missed += Math.max(0, Math.floor(silence / interval + 0.5) - 1)
    const asked = Math.floor((until - since) / interval)
    expected += asked
    seen += Math.min(beats.length, Math.max(0, asked - missed))
  }
  const since = Math.max(firstDay, device.enrolled)
  const until = Math.min(firstDay + days * DAY, device.revoked, now)
  if (since >= until) return undefined
  const beats = device.beats.filter(ts => ts >= since && ts < until)
  return {
    expected,
    seen,
    availability_pct: expected === 0 ? null : (Math.floor((seen * 10_000) / expected + 0.5) / 100).toFixed(2),
    longest_gap: Math.max(...silences(since, until, beats)),
    first_ts: beats.length ? Math.min(...beats) : null,
    last_ts: beats.length ? Math.max(...beats) : null,
  }
}

function silences(since: Micros, until: Micros, beats: Micros[]) {
  const borders = [since, ...beats.toSorted((a, b) => a - b), until]
  return borders.slice(1).map((ts, n) => ts - (borders[n] as number))
}

/** Days around a clock change in New York, Berlin or Lord Howe, and other days. */
const firstDays = fc
  .tuple(
    fc.integer({ min: 2008, max: 2025 }),
    fc.constantFrom('03-08', '03-25', '04-01', '10-01', '10-24', '10-31', '06-10', '12-30'),
  )
  .map(([year, day]) => Date.parse(`${year}-${day}T00:00Z`) * 1000)
const zones = fc.constantFrom('UTC', 'America/New_York', 'Europe/Berlin', 'Australia/Lord_Howe', 'Asia/Kolkata', 'Pacific/Apia')

const moments = fc.oneof(
  fc.integer({ min: 0, max: DAYS * DAY }),
  fc.integer({ min: 0, max: DAYS * 24 }).map(hour => hour * 60 * MINUTE),
)
/** A series of heartbeats: at the interval with jitter, in a burst, or at random times. */
const stretches = fc.oneof(
  fc.record({
    from: moments,
    count: fc.integer({ min: 1, max: 60 }),
    pace: fc.constantFrom(0.1, 0.5, 1, 1, 1, 1.5, 2.5),
    jitter: fc.array(
      fc.integer({ min: -500, max: 500 }).map(n => n / 1000),
      { minLength: 1, maxLength: 7 },
    ),
  }),
  fc.array(moments, { maxLength: 5 }),
)
const devices = fc.record({
  enrolled: fc.option(moments, { nil: -5 * DAY, freq: 2 }),
  revoked: fc.option(moments, { nil: undefined, freq: 3 }),
  interval: fc.oneof(
    fc.constantFrom(5, 10, 60, 240, 1440).map(minutes => minutes * MINUTE),
    fc.integer({ min: 100 * SECOND, max: 5 * 3600 * SECOND }),
  ),
  stretches: fc.array(stretches, { maxLength: 8 }),
  /** How many of ten heartbeats arrive late and out of order. */
  late: fc.integer({ min: 0, max: 8 }),
})
const scenarios = fc.record({
  firstDay: firstDays,
  zone: zones,
  cohortInterval: fc.option(
    fc.constantFrom(7, 90).map(minutes => minutes * MINUTE),
    { freq: 3, nil: undefined },
  ),
  devices: fc.array(devices, { minLength: 1, maxLength: 5 }),
  elapsed: fc.integer({ min: 1, max: DAYS * DAY }),
})

t.test("availability is what the definition says, before and after each step of a day's life", { timeout: 170_000 }, async t => {
  const db = await withDatabase(t)
  const { sql, admin } = db
  const archiver = asRole(t, db, 'fleet_archiver')
  await sql`update fleet.settings set rollups_keep = '50 years'`
  // Each example has its own days, because a day whose heartbeats are archived is not created again.
  const taken = new Set<number>()
  let example = 0

  await fc.assert(
    fc.asyncProperty(scenarios, async ({ firstDay: from, zone, cohortInterval, devices: given, elapsed }) => {
      let firstDay = from
      while ([...Array(DAYS).keys()].some(n => taken.has(firstDay + n * DAY))) firstDay += DAY
      for (let n = 0; n < DAYS; n++) taken.add(firstDay + n * DAY)
      const [first, last] = [date(firstDay), date(firstDay + (DAYS - 1) * DAY)]
      const session = asRole(t, db, 'fleet_reader', { TimeZone: zone })
      const dba = asRole(t, db, 'fleet_dba', { TimeZone: zone })
      const later = iso(firstDay + (DAYS + 1) * DAY)

      await admin`delete from fleet.devices`
      await admin`delete from fleet.late_arrivals`
      await sql`select fleet.create_partitions(${first}::text::date, ${last}::text::date)`
      await sql`select fleet.set_cohort_interval(${`cohort-${++example}`}, ${cohortInterval ? `${cohortInterval / SECOND} seconds` : null}::text::interval)`
      const ids = await enroll(sql, given.length, `example-${example}`)
      const roster = new Map<number, Roster>()
      const arrivals: { device_id: number; ts: Micros; isLate: boolean }[] = []
      for (const [n, { enrolled, revoked, interval, stretches, late }] of given.entries()) {
        const device_id = ids[n] as number
        const window = {
          enrolled: firstDay + enrolled,
          revoked: revoked === undefined ? Infinity : firstDay + Math.max(revoked, enrolled),
        }
        await sql`
        update fleet.devices
        set cohort = ${`cohort-${example}`}, heartbeat_interval = ${`${interval / SECOND} seconds`}::text::interval,
          enrolled_at = ${iso(window.enrolled)}::text::timestamptz,
          revoked_at = ${revoked === undefined ? null : iso(window.revoked)}::text::timestamptz
        where device_id = ${device_id}`
        roster.set(device_id, {
          ...window,
          intervals: Array<Micros>(DAYS).fill(Math.max(interval, cohortInterval ?? 0)),
          beats: [],
        })
        let count = 0
        for (const stretch of stretches) {
          const times = Array.isArray(stretch)
            ? stretch
            : Array.from({ length: stretch.count }, (_, k) =>
                Math.round(stretch.from + (k * stretch.pace + (stretch.jitter[k % stretch.jitter.length] as number)) * interval),
              )
          for (const time of times.filter(time => time >= 0 && time < DAYS * DAY)) {
            arrivals.push({ device_id, ts: firstDay + time, isLate: count++ % 10 < late })
          }
        }
      }
      const send = async (isLate: boolean) => {
        const items = arrivals.filter(arrival => arrival.isLate === isLate)
        if (isLate) items.reverse()
        for (let at = 0; at < items.length; at += 97) {
          const batch = items.slice(at, at + 97)
          const results = await ingest(
            sql,
            batch.map(({ device_id, ts }) => ({ device_id, ts: iso(ts) })),
            iso(firstDay + DAYS * DAY),
          )
          for (const { item, result } of results) {
            const { device_id, ts } = batch[item - 1] as { device_id: number; ts: Micros }
            if (result === 'stored') roster.get(device_id)?.beats.push(ts)
            else if (result !== 'duplicate') throw new Error(`a heartbeat at ${iso(ts)} was ${result}`)
          }
        }
      }
      /** Compares each day, the whole range, and the range as it was at `now`. */
      const compare = async (when: string, now = firstDay + (DAYS + 1) * DAY) => {
        for (const [skip, days] of [
          [0, 1],
          [1, 1],
          [2, 1],
          [0, 3],
          [1, 2],
        ] as const) {
          const start = firstDay + skip * DAY
          const answers = await ask(session, date(start), date(start + (days - 1) * DAY), iso(now))
          const expected = new Map(
            [...roster]
              .map(
                ([id, device]) =>
                  [id, reference({ ...device, intervals: device.intervals.slice(skip) }, start, days, now)] as const,
              )
              .filter(([, answer]) => answer),
          )
          const found = new Map(
            answers.map(({ device_id, unknown_days, ...answer }) => {
              if (unknown_days !== 0) throw new Error(`${when}: ${unknown_days} unknown days`)
              return [Number(device_id), answer] as const
            }),
          )
          if (show(found) !== show(expected))
            throw new Error(`${when}, ${days} days from ${date(start)}:\nfound    ${show(found)}\nexpected ${show(expected)}`)
        }
      }

      await send(false)
      await compare('before the roll-up')
      await compare('during a day', firstDay + elapsed)
      await dba`select fleet.roll_up(${first}::text::date, ${later}::text::timestamptz)`
      await compare('with one day rolled up')
      for (let n = 1; n < DAYS - 1; n++)
        await dba`select fleet.roll_up(${date(firstDay + n * DAY)}::text::date, ${later}::text::timestamptz)`
      // The interval from now on differs from the one that was asked then.
      await sql`update fleet.devices set heartbeat_interval = '47 minutes'`
      for (const device of roster.values()) device.intervals[DAYS - 1] = Math.max(47 * MINUTE, cohortInterval ?? 0)
      await compare('with two days rolled up and another interval')
      await send(true)
      await compare('with late arrivals')
      await compare('with late arrivals during a day', firstDay + elapsed)
      await dba`select fleet.roll_up(${first}::text::date, ${later}::text::timestamptz, true)`
      await compare('with one day rebuilt')
      for (const { partition_name } of await sql<{ partition_name: string }[]>`
      select partition_name from fleet.attached_partitions() where range_start >= ${iso(firstDay)}::text::timestamptz and range_end <= ${later}::text::timestamptz
    `)
        await dba`select fleet.archive_partition(${partition_name})`
      await compare('retired')
      for (let n = 0; n < DAYS; n++) await archive(archiver)
      const [left] = await sql<{ tables: number; late: number }[]>`
      select count(*) filter (where state <> 'dropped')::int as tables, (select count(*) from fleet.late_arrivals)::int as late
      from fleet.hb_partitions where range_start >= ${iso(firstDay)}::text::timestamptz and range_end <= ${later}::text::timestamptz`
      if (left?.tables !== 0 || left.late !== 0)
        throw new Error(`${left?.tables} tables and ${left?.late} late arrivals are left`)
      await compare('with the heartbeats archived and gone')
      await Promise.all([session.end(), dba.end()])
    }),
    { numRuns: RUNS, endOnFailure: true },
  )
  t.pass(`${example} examples`)
})

function ask(sql: Sql, from: string, to: string, now: string) {
  return sql<(Answer & { device_id: string; unknown_days: number })[]>`
    select device_id, expected::int, seen::int, availability_pct, (extract(epoch from longest_gap) * 1000000)::float8 as longest_gap,
      (extract(epoch from first_ts) * 1000000)::float8 as first_ts, (extract(epoch from last_ts) * 1000000)::float8 as last_ts, unknown_days
    from fleet.device_availability(${from}::text::date, ${to}::text::date, p_now => ${now}::text::timestamptz)`
}

function show(answers: Map<number, Answer | undefined>) {
  return [...answers]
    .sort(([a], [b]) => a - b)
    .map(([id, answer]) => `${id}: ${JSON.stringify(answer)}`)
    .join('\n         ')
}
