import type { Sql } from 'postgres'
import t from 'tap'
import { makeDirectory, runCli, workAll } from '../../testing/archiver.ts'
import { waitFor, withDatabase } from '../../testing/database.ts'
import { asRole, daysAgo, enroll, ingest, partitionAt, value } from '../../testing/fleet.ts'

/** A UTC day some days ago. */
const day = (days: number) => daysAgo(days).slice(0, 10)

interface Availability {
  device_id: string
  alias: string
  cohort: string
  expected: string
  seen: string
  availability_pct: string | null
  longest_gap: string | null
  first_ts: string | null
  last_ts: string | null
  unknown_days: number
}

function availability(sql: Sql, from: string, to: string, now?: string) {
  return sql<Availability[]>`
    select device_id, alias, cohort, expected, seen, availability_pct, extract(epoch from longest_gap)::float8 / 3600 as gap_h,
      to_char(first_ts at time zone 'UTC', 'YYYY-MM-DD HH24:MI') as first_ts,
      to_char(last_ts at time zone 'UTC', 'YYYY-MM-DD HH24:MI') as last_ts, unknown_days
    from fleet.device_availability(${from}::text::date, ${to}::text::date, p_now => coalesce(${now ?? null}::timestamptz, now()))
  `
}

/** Devices with one heartbeat an hour, enrolled some days ago. */
async function enrollHourly(sql: Sql, count: number, since: string, prefix?: string) {
  const ids = await enroll(sql, count, prefix)
  await sql`update fleet.devices set heartbeat_interval = '1 hour', enrolled_at = ${since}::timestamptz where device_id = any (${ids})`
  return ids as [number, ...number[]]
}

/** One heartbeat in the middle of each hour from `from` up to but not including `to`, received on the same day. */
async function beat(sql: Sql, device: number, date: string, from = 0, to = 24) {
  const beats = Array.from({ length: to - from }, (_, n) => ({
    device_id: device,
    ts: new Date(Date.parse(`${date}T00:30Z`) + (from + n) * 3_600_000).toISOString(),
  }))
  const results = await ingest(sql, beats, `${date}T23:59:59Z`)
  if (results.some(row => row.result !== 'stored')) throw new Error(JSON.stringify(results))
}

const late = (sql: Sql) => value(sql`select count(*)::int from fleet.late_arrivals`)

t.test('a device off for a month reads 0 %, and its silence is as long as the month', async t => {
  const { sql } = await withDatabase(t)
  const [off, on] = (await enrollHourly(sql, 2, `${day(40)}T00:00Z`)) as [number, number]
  for (let days = 40; days > 0; days--) {
    await beat(sql, on, day(days))
    if (days > 35 || days <= 5) await beat(sql, off, day(days))
  }
  await sql`call fleet.nightly()`
  t.match(await availability(sql, day(35), day(6)), [
    {
      device_id: String(off),
      alias: 'device-1',
      cohort: 'default',
      expected: '720',
      seen: '0',
      availability_pct: '0.00',
      gap_h: 720,
      first_ts: null,
      last_ts: null,
      unknown_days: 0,
    },
    {
      device_id: String(on),
      expected: '720',
      seen: '720',
      availability_pct: '100.00',
      gap_h: 1,
      first_ts: `${day(35)} 00:30`,
      last_ts: `${day(6)} 23:30`,
    },
  ])
  t.match(
    await availability(sql, day(38), day(3)),
    [{ expected: String(36 * 24), seen: String(6 * 24), availability_pct: '16.67', gap_h: 721 }, { availability_pct: '100.00' }],
    'from the last heartbeat before to the first after',
  )
  t.match(
    await sql`select count(*)::int as days, min(availability_pct), max(seen) from fleet.device_availability where device_id = ${off} and day between ${day(35)} and ${day(6)}`,
    [{ days: 30, min: '0.00', max: 0 }],
    'as the view says day by day',
  )
})

t.test('the time before enrolment and after revocation counts neither against a device nor for it', async t => {
  const { sql } = await withDatabase(t)
  const [noon, revoked, gone] = (await enrollHourly(sql, 3, `${day(3)}T00:00Z`)) as [number, number, number]
  await sql`update fleet.devices set enrolled_at = ${`${day(3)}T12:00Z`} where device_id = ${noon}`
  await sql`update fleet.devices set revoked_at = ${`${day(3)}T06:00Z`} where device_id = ${revoked}`
  await sql`update fleet.devices set enrolled_at = ${`${day(9)}T00:00Z`}, revoked_at = ${`${day(3)}T00:00Z`} where device_id = ${gone}`
  for (const device of [noon, revoked, gone]) await beat(sql, device, day(3))
  const expected = [
    { device_id: String(noon), expected: '12', seen: '12', availability_pct: '100.00', first_ts: `${day(3)} 12:30`, gap_h: 1 },
    { device_id: String(revoked), expected: '6', seen: '6', last_ts: `${day(3)} 05:30`, gap_h: 1 },
  ]
  t.match(await availability(sql, day(3), day(3)), expected)
  t.equal(await value(sql`select fleet.roll_up(${day(3)})`), 2)
  t.match(await availability(sql, day(3), day(3)), expected, 'rolled up')
  t.match(await availability(sql, day(3), day(2)), [
    { expected: '36', seen: '12', gap_h: 24.5 },
    { expected: '6', seen: '6' },
  ])
  t.match(await availability(sql, day(5), day(4)), [{ device_id: String(gone), expected: '48', seen: '0' }])
})

t.test('heartbeats in the future do not count yet, and nothing is expected of the rest of the day', async t => {
  const { sql } = await withDatabase(t)
  const [device] = await enrollHourly(sql, 1, `${day(1)}T00:00Z`)
  await beat(sql, device, day(1))
  t.match(await availability(sql, day(1), day(1), `${day(1)}T10:00Z`), [
    { expected: '10', seen: '10', last_ts: `${day(1)} 09:30` },
  ])
  t.match(await availability(sql, day(1), day(0), `${day(1)}T10:45Z`), [
    { expected: '10', seen: '10', last_ts: `${day(1)} 10:30`, unknown_days: 0 },
  ])
  t.same(await availability(sql, day(1), day(1), `${day(1)}T00:00Z`), [], 'its day has not begun')
})

t.test('jitter of half an interval costs nothing, a burst does not count twice, a silence costs its length', async t => {
  const { sql } = await withDatabase(t)
  const [jitters, bursts, brief] = (await enrollHourly(sql, 3, `${day(2)}T00:00Z`)) as [number, number, number]
  const at = (minutes: number) => new Date(Date.parse(`${day(2)}T00:00Z`) + minutes * 60_000).toISOString()
  await ingest(
    sql,
    Array.from({ length: 24 }, (_, hour) => ({ device_id: jitters, ts: at(hour * 60 + 30 + (hour % 2 ? 14 : -15)) })),
    at(1440),
  )
  // 24 in the first hour, none in the other 23.
  await ingest(
    sql,
    Array.from({ length: 24 }, (_, n) => ({ device_id: bursts, ts: at(n * 2.5) })),
    at(1440),
  )
  await sql`update fleet.devices set revoked_at = ${at(59)} where device_id = ${brief}`
  t.match(await availability(sql, day(2), day(2)), [
    { device_id: String(jitters), expected: '24', seen: '24' },
    { device_id: String(bursts), expected: '24', seen: '2', availability_pct: '8.33' },
    { device_id: String(brief), expected: '0', seen: '0', availability_pct: null },
  ])
})

t.test('ranges that make no sense, and those that would read too much, are refused', async t => {
  const db = await withDatabase(t)
  const { sql } = db
  const reader = asRole(t, db, 'fleet_reader')
  for (const [from, to] of [
    [null, '2026-01-01'],
    ['2026-01-01', null],
    ['2026-01-02', '2026-01-01'],
    ['-infinity', '2026-01-01'],
    ['2026-01-01', 'infinity'],
  ] as const) {
    await t.rejects(reader`select * from fleet.device_availability(${from}::text::date, ${to}::text::date)`, {
      code: 'FL422',
      hint: /device_availability\(current_date - 30/,
    })
  }
  t.same(await availability(reader, '0001-01-01', '9999-12-31'), [], 'a fleet without devices')
  await enrollHourly(sql, 2, `${day(20)}T12:00Z`)
  await t.rejects(availability(reader, '0001-01-01', '9999-12-31'), {
    code: 'FL422',
    message: /^21 days .* are not rolled up yet/,
    hint: /nightly/,
  })
  t.match(
    await reader`select expected from fleet.device_availability('0001-01-01', ${day(1)}::text::date, 2)`,
    [{ expected: String(12 + 19 * 24) }],
    'one device is read through its index',
  )
  await sql`call fleet.nightly()`
  t.match(await availability(reader, '0001-01-01', '9999-12-31'), [{ unknown_days: 0 }, {}])
  await t.rejects(sql`select fleet.roll_up(${day(0)})`, { code: 'FL422', message: /has not ended/ })
  await t.rejects(sql`select fleet.roll_up('2001-01-01')`, { code: 'FL002', hint: /request_restore/ })
})

t.test('late heartbeats count at once, and the hourly run brings them into the rollup', async t => {
  const { sql } = await withDatabase(t)
  const [device, other] = (await enrollHourly(sql, 2, `${day(3)}T00:00Z`)) as [number, number]
  await ingest(sql, [{ device_id: device }])
  t.equal(await late(sql), 0, 'a heartbeat of today is not late')
  await beat(sql, device, day(2), 0, 6)
  await beat(sql, other, day(2))
  t.equal(await late(sql), 2, 'one for each device and day of a batch')
  await sql`call fleet.nightly()`
  t.equal(await late(sql), 0, 'rolled up as a whole')
  t.match(await availability(sql, day(2), day(2)), [{ seen: '6' }, { seen: '24' }])

  // A change of the interval applies to later days only.
  await sql`update fleet.devices set heartbeat_interval = '2 hours'`
  await sql`select fleet.set_cohort_interval('default', '3 hours')`
  await beat(sql, device, day(2), 12, 24)
  const now = [
    { device_id: String(device), expected: '24', seen: '18', gap_h: 7 },
    { expected: '24', seen: '24' },
  ]
  t.match(await availability(sql, day(2), day(2)), now, 'from the heartbeats')
  t.match(
    await sql`select seen, heartbeat_interval::text from fleet.device_availability where day = ${day(2)} and device_id = ${device}`,
    [{ seen: 6 }],
  )
  const [run] = await sql<{ p_run_id: string }[]>`call fleet.maintain()`
  t.match(await sql`select * from fleet.run_steps(${run?.p_run_id ?? ''}) where step = 'maintenance.rebuild'`, [
    { partition_name: await partitionAt(sql, `${day(2)}T12:00Z`), detail: day(2), rows: '1', ok: true },
  ])
  t.equal(await late(sql), 0)
  t.match(await availability(sql, day(2), day(2)), now, 'from the rollup')
  t.match(
    await sql`select seen, beats, heartbeat_interval::text from fleet.device_availability where day = ${day(2)} and device_id = ${device}`,
    [{ seen: 18, beats: 18, heartbeat_interval: '01:00:00' }],
  )
  await sql`call fleet.maintain()`
  t.equal(
    await value(sql`select count(*)::int from fleet.events where event = 'maintenance.rebuild'`),
    1,
    'nothing is left to rebuild',
  )
})

t.test('the nightly run rolls up each past day that is not yet rolled up before it retires, whatever fails', async t => {
  const db = await withDatabase(t)
  const { sql, admin } = db
  await enrollHourly(sql, 3, `${day(89)}T06:00Z`)
  const dba = asRole(t, db, 'fleet_dba')
  t.match(await dba`select count(*)::int as days, min(detail) from fleet.nightly_plan() where step = 'roll_up'`, [
    { days: 89, min: `roll up ${day(89)}` },
  ])
  await admin.unsafe(`alter table fleet.device_availability_daily add constraint no_room check (day <> '${day(50)}')`)
  const [run] = await dba<{ p_run_id: string }[]>`call fleet.nightly(null, '80 days')`
  const steps =
    await dba`select * from fleet.run_steps(${run?.p_run_id ?? ''}) where step in ('maintenance.roll_up', 'maintenance.retire')`
  t.same(
    steps.map(row => row.step as string),
    [...Array<string>(89).fill('maintenance.roll_up'), ...Array<string>(10).fill('maintenance.retire')],
  )
  t.match(
    steps.filter(row => !row.ok),
    [{ partition_name: await partitionAt(sql, `${day(50)}T12:00Z`), detail: new RegExp(`^${day(50)}: .*no_room`) }],
  )
  t.match(await sql`select count(*)::int as days, sum(devices)::int as devices from fleet.rolled_up_days`, [
    { days: 88, devices: 88 * 3 },
  ])
  t.match(await dba`select * from fleet.check() where check_name = 'rollups'`, [
    {
      status: 'warn',
      detail: `availability is not rolled up: ${day(50)} since ${day(49)} 00:00:00+00`,
      remedy: 'call fleet.nightly();',
    },
  ])
  await admin`alter table fleet.device_availability_daily drop constraint no_room`
  await dba`call fleet.nightly()`
  t.match(await dba`select status from fleet.check() where check_name = 'rollups'`, [{ status: 'ok' }])
  t.equal(
    await value(sql`select count(*)::int from fleet.events where event = 'maintenance.roll_up'`),
    90,
    'only the one that failed is rolled up again',
  )
})

t.test('a day whose roster changed is rolled up again', async t => {
  const { sql } = await withDatabase(t)
  const [first] = await enrollHourly(sql, 1, `${day(5)}T00:00Z`)
  await sql`call fleet.nightly()`
  const [second] = await enrollHourly(sql, 1, `${day(4)}T00:00Z`, 'moved-in')
  t.match(
    await availability(sql, day(5), day(1)),
    [{ unknown_days: 0 }, { device_id: String(second), expected: '0', availability_pct: null, unknown_days: 4 }],
    'unknown until then',
  )
  t.match(await sql`select array_agg(day::text order by day) as days from fleet.rollup_plan() where action = 'roll_up'`, [
    { days: [4, 3, 2, 1].map(day) },
  ])
  await sql`call fleet.nightly()`
  await sql`update fleet.devices set enrolled_at = ${`${day(2)}T00:00Z`} where device_id = ${first}`
  await sql`call fleet.nightly()`
  t.match(await sql`select device_id, count(*)::int as days from fleet.device_availability group by 1 order by 1`, [
    { device_id: String(first), days: 2 },
    { device_id: String(second), days: 4 },
  ])
  t.same(await sql`select * from fleet.rollup_plan()`, [])
})

t.test('late arrivals from other sessions during rebuilds are not lost', async t => {
  const db = await withDatabase(t)
  const { sql } = db
  const devices = await enroll(sql, 20)
  await sql`update fleet.devices set enrolled_at = ${`${day(3)}T00:00Z`}`
  await sql`call fleet.nightly()`
  const server = () => asRole(t, db, 'fleet_server')
  let writing = 3
  const write = async (writer: number) => {
    const session = server()
    for (let round = 0; round < 60; round++) {
      const beats = devices
        .filter(device => (device + round) % 3 === writer)
        .map(device_id => ({
          device_id,
          ts: new Date(
            Date.parse(`${day(1 + ((round + device_id) % 2))}T00:00Z`) + ((round * 7919) % 86_400) * 1000,
          ).toISOString(),
        }))
      await ingest(session, beats)
    }
    writing--
  }
  const rebuild = async () => {
    const session = asRole(t, db, 'fleet_dba')
    let count = 0
    while (writing > 0) {
      for (const days of [1, 2]) await session`select fleet.roll_up(${day(days)}, p_late_only => ${count % 3 > 0})`
      count++
    }
    return count
  }
  const [, , , first, second] = await Promise.all([write(0), write(1), write(2), rebuild(), rebuild()])
  t.ok(first && second, `${first} and ${second} rebuilds meanwhile`)
  await sql`call fleet.maintain()`
  t.equal(await late(sql), 0)
  t.equal(
    await value(sql`select sum(beats)::int from fleet.device_availability`),
    await value(sql`select count(*)::int from fleet.device_heartbeats`),
  )
  t.same(
    await sql`
    select device_id, day, expected, seen, beats, longest_gap, first_ts, last_ts from fleet.device_availability_daily where day >= ${day(2)}
    except
    select device_id, d.day, expected, seen, beats, longest_gap, first_ts, last_ts
    from (values (${day(1)}::text::date), (${day(2)}::text::date)) d (day) cross join lateral fleet.availability_of_day(d.day) a
  `,
    [],
  )
})

t.test('roll_up waits for an open transaction with heartbeats, or leaves them to the late arrivals', async t => {
  const db = await withDatabase(t)
  const { sql } = db
  const [device] = await enrollHourly(sql, 1, `${day(3)}T00:00Z`)
  const writer = asRole(t, db, 'fleet_server')
  const other = asRole(t, db, 'fleet_dba')
  await writer`begin`
  await beat(writer, device, day(1), 0, 3)
  await t.rejects(other`select fleet.roll_up(${day(1)})`, { code: 'FL003', message: /lock timeout: .* does not end/ })
  const waiting = other<{ roll_up: number }[]>`select fleet.roll_up(${day(1)})`.then(rows => rows)
  await waitFor(
    async () =>
      (
        await db.admin`select from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep' and query ~ 'roll_up'`
      ).length === 1,
  )
  await beat(writer, device, day(1), 5, 8)
  await writer`commit`
  await waiting
  t.match(await sql`select seen, beats from fleet.device_availability where day = ${day(1)}`, [{ seen: 6, beats: 6 }])

  await writer`begin`
  await beat(writer, device, day(1), 10, 12)
  t.equal(await value(other`select fleet.roll_up(${day(1)}, p_late_only => true)`), 0, 'nothing is committed, and nothing waits')
  await writer`commit`
  t.equal(await value(other`select fleet.roll_up(${day(1)}, p_late_only => true)`), 1)
  t.match(await sql`select seen, beats from fleet.device_availability where day = ${day(1)}`, [{ seen: 8, beats: 8 }])
})

t.test('batches with late heartbeats of the same devices do not deadlock', async t => {
  const db = await withDatabase(t)
  const devices = await enroll(db.sql, 100)
  await Promise.all(
    Array.from({ length: 8 }, async (_, session) => {
      const sql = asRole(t, db, 'fleet_server')
      for (let round = 0; round < 10; round++) {
        const order = session % 2 ? devices : [...devices].reverse()
        const results = await ingest(
          sql,
          order.flatMap(device_id =>
            [1, 2].map(days => ({ device_id, ts: `${day(days)}T10:${10 + round}:${10 + (session % 5) * 10}Z` })),
          ),
        )
        t.ok(results.every(row => row.result === 'stored' || row.result === 'duplicate'))
      }
    }),
  )
})

t.test('the rollup outlives the heartbeats: archived, dropped, restored, and with added rows', async t => {
  const db = await withDatabase(t)
  const { sql, admin } = db
  const directory = await makeDirectory(t)
  const [device] = await enrollHourly(sql, 1, `${day(5)}T12:00Z`)
  for (const days of [5, 4, 3]) await beat(sql, device, day(days), 12)
  const name = (days: number) => partitionAt(sql, `${day(days)}T12:00Z`)
  const [first, second] = [await name(5), await name(4)]
  // One of the days is rolled up and has late heartbeats since; the other is not rolled up yet.
  await sql`select fleet.roll_up(${day(4)})`
  await beat(sql, device, day(4), 6, 12)
  const before = await availability(sql, day(5), day(3))
  t.match(before, [{ expected: '60', seen: '42', gap_h: 13 }])
  await sql`select fleet.archive_partition(${first}), fleet.archive_partition(${second})`
  t.same(await availability(sql, day(5), day(3)), before, 'retired days are read where they are')
  t.match((await workAll(t, db, directory)).results, ['done', 'done'])
  t.match(await sql`select state from fleet.hb_partitions where partition_name in (${first}, ${second})`, [
    { state: 'dropped' },
    { state: 'dropped' },
  ])
  t.equal(await late(sql), 1, 'the one of the day that is online and not rolled up')
  t.same(await availability(sql, day(5), day(3)), before, 'the heartbeats are gone, but their counts are not')
  await sql`call fleet.nightly()`
  t.same(await availability(sql, day(5), day(3)), before)

  // As if the second day had been archived before there were rollups.
  await admin`delete from fleet.device_availability_daily where day = ${day(4)}`
  await admin`delete from fleet.rolled_up_days where day = ${day(4)}`
  t.match(
    await availability(sql, day(5), day(3)),
    [{ expected: '36', seen: '24', gap_h: 12.5, unknown_days: 1 }],
    'unknown is not 0 %',
  )
  t.match(await availability(sql, day(4), day(4)), [
    { expected: '0', availability_pct: null, longest_gap: undefined, unknown_days: 1 },
  ])
  const { code, output } = await runCli(t, db, directory, 'restore', day(4))
  t.equal(code, 0, output)
  t.same(await availability(sql, day(5), day(3)), before, 'restored')
  await sql`call fleet.nightly()`
  t.match(await sql`select seen from fleet.device_availability where day = ${day(4)}`, [{ seen: 18 }])

  // A heartbeat that was quarantined then is stored now, and the day goes back to the archive.
  await ingest(sql, [{ device_id: device, ts: `${day(4)}T03:30:00Z` }], daysAgo(-20))
  t.match(await sql`select * from fleet.replay_quarantine()`, [{ stored: '0', remaining: '1' }])
  await sql`update fleet.settings set max_late = '60 days'`
  t.match(await sql`select * from fleet.replay_quarantine()`, [{ stored: '1' }])
  t.match(await availability(sql, day(4), day(4)), [{ seen: '19' }])
  await sql`select fleet.release_partition(${second})`
  await sql`select fleet.archive_partition(${second})`
  t.match((await workAll(t, db, directory)).results, ['done'])
  t.match(await availability(sql, day(4), day(4)), [{ seen: '19', unknown_days: 0 }])
  t.equal(await late(sql), 0)
})

t.test('a partition that was proven before there were rollups is rolled up before its drop', async t => {
  const db = await withDatabase(t)
  const { sql, admin } = db
  const [device] = await enrollHourly(sql, 1, `${day(5)}T00:00Z`)
  await beat(sql, device, day(5))
  const name = await partitionAt(sql, `${day(5)}T12:00Z`)
  await sql`update fleet.settings set archive_grace = '1 day'`
  await sql`select fleet.archive_partition(${name})`
  await workAll(t, db, await makeDirectory(t))
  await admin`delete from fleet.device_availability_daily`
  await admin`delete from fleet.rolled_up_days`
  await sql`update fleet.settings set archive_grace = '0'`
  t.equal(await value(asRole(t, db, 'fleet_archiver')`select fleet.drop_partition(${name})`), true)
  t.match(await sql`select seen from fleet.device_availability where day = ${day(5)}`, [{ seen: 24 }])
})

t.test('the lease is renewed while a partition is rolled up', async t => {
  const db = await withDatabase(t)
  const { sql } = db
  await enrollHourly(sql, 1, `${day(5)}T00:00Z`)
  const name = await partitionAt(sql, `${day(5)}T12:00Z`)
  await sql`select fleet.archive_partition(${name})`
  const archiver = asRole(t, db, 'fleet_archiver')
  await archiver`select * from fleet.claim_partition('a')`
  // Another session is rolling up, so this one waits.
  const other = asRole(t, db, 'fleet_dba')
  await other`begin`
  await other`select fleet.roll_up(${day(3)})`
  const frozen = asRole(t, db, 'fleet_archiver')`select fleet.record_frozen(${name}, 'a')`.then(() => 'done')
  await waitFor(async () => (await db.admin`select from pg_locks where locktype = 'advisory' and not granted`).length === 1)
  t.equal(await value(archiver`select fleet.renew_lease(${name}, 'a')`), true)
  await other`commit`
  t.equal(await frozen, 'done')
})

t.test('a monthly partition holds many days', async t => {
  const db = await withDatabase(t)
  const { sql, admin } = db
  await admin.unsafe(`
    alter event trigger fleet_guard_drop disable;
    set role fleet_owner;
    drop table fleet.device_heartbeats cascade;
    delete from partman.part_config;
    delete from fleet.hb_partitions;
    create table fleet.device_heartbeats (like fleet.device_heartbeats_template) partition by range (ts);
    update fleet.settings set cadence = 'monthly', premake_days = 3, max_late = '89 days';
    select fleet.set_up_partitions('2026-03-10T23:00Z');
    reset role;
    alter event trigger fleet_guard_drop enable always;
  `)
  const [device] = await enrollHourly(sql, 1, '2026-02-01T12:00Z')
  await sql`insert into fleet.device_heartbeats (ts, received_at, device_id) select n, n, ${device} from generate_series('2026-02-01 00:30Z'::timestamptz, '2026-03-03 04:30Z', '1 hour') n`
  const now = '2026-03-03T05:00Z'
  await sql`call fleet.nightly(null, null, ${now})`
  t.equal(await value(sql`select count(*)::int from fleet.rolled_up_days`), 30)
  t.match(await availability(sql, '2026-01-01', '2026-04-01', now), [
    { expected: String(12 + 27 * 24 + 2 * 24 + 5), seen: String(12 + 27 * 24 + 2 * 24 + 5), gap_h: 1 },
  ])
})

t.test('rollups and the history of storage are pruned by a setting, which is audited', async t => {
  const db = await withDatabase(t)
  const { sql } = db
  await enrollHourly(sql, 2, `${day(80)}T00:00Z`)
  const dba = asRole(t, db, 'fleet_dba')
  await dba`call fleet.nightly()`
  await t.rejects(dba`update fleet.settings set rollups_keep = '1 day'`, { message: /settings_rollups_keep_range/ })
  await dba`update fleet.settings set rollups_keep = '40 days'`
  t.match(await dba`select setting, old_value, new_value from fleet.settings_audit`, [
    { setting: 'rollups_keep', old_value: '3 years', new_value: '40 days' },
  ])
  await dba`call fleet.nightly()`
  t.equal(
    await value(sql`select count(*)::int from fleet.device_availability_daily`),
    160,
    'never shorter than the retention: what is online would be rolled up again',
  )
  const later = daysAgo(-41)
  await sql`call fleet.nightly(null, null, ${later})`
  const kept = await sql`select min(day)::text as first from fleet.device_availability_daily`
  t.match(kept, [{ first: day(90 - 41 - 1) }])
  t.match(await sql`select min(day)::text as first from fleet.rolled_up_days`, kept)
  t.match(await sql`select array_agg(day::text order by day) as days from fleet.storage_history`, [{ days: [day(-41)] }])
})

t.test('each night records the size of the store', async t => {
  const db = await withDatabase(t)
  const { sql } = db
  const [device] = await enrollHourly(sql, 1, `${day(9)}T00:00Z`)
  const reader = asRole(t, db, 'fleet_reader')
  await beat(sql, device, day(4))
  await sql`call fleet.nightly(null, null, ${daysAgo(2)})`
  await beat(sql, device, day(3))
  await sql`call fleet.nightly(null, null, ${daysAgo(1)})`
  t.match(await reader`select day::text, rows_online, rows_added, bytes_pushed, bytes_pushed_since from fleet.storage_history`, [
    { day: day(1), rows_online: '48', rows_added: '24', bytes_pushed: '0', bytes_pushed_since: '0' },
    { day: day(2), rows_online: '24', rows_added: null },
  ])
  await sql`select fleet.archive_partition(${await partitionAt(sql, `${day(4)}T12:00Z`)})`
  await workAll(t, db, await makeDirectory(t))
  await sql`call fleet.nightly()`
  await sql`call fleet.nightly()`
  const [today, ...others] = await reader<Record<string, string>[]>`select *, day::text as day from fleet.storage_history`
  t.equal(others.length, 2, 'one row a day')
  t.match(today, { day: day(0), rows_online: '24', rows_added: '-24' })
  t.match(Number(today?.bytes_archived) > 500 && today?.bytes_pushed_since, today?.bytes_archived)
  t.ok(Number(today?.database_bytes) > Number(today?.bytes_online) && Number(today?.bytes_online) > 0)
})

t.test('check() reports late heartbeats that are not counted yet', async t => {
  const db = await withDatabase(t)
  const { sql } = db
  const [device] = await enrollHourly(sql, 1, `${day(2)}T00:00Z`)
  await sql`call fleet.nightly()`
  await beat(sql, device, day(1))
  const check = () => sql`select status, remedy from fleet.check(now() + interval '4 hours') where check_name = 'rollups'`
  t.match(await check(), [{ status: 'warn', remedy: 'call fleet.maintain();' }])
  await sql`call fleet.maintain()`
  t.match(await check(), [{ status: 'ok', remedy: null }])
})
