// The counts of a large fleet, which a job keeps. Here a few devices are a large fleet: count_fleet(1).
import type { Sql } from 'postgres'
import t from 'tap'
import { plainOnly } from '../../testing/distributed.ts'
import { withDatabase } from '../../testing/database.ts'
import { asRole, enroll, ingest, mixedFleet, startedAgo, value } from '../../testing/fleet.ts'

const countsHold = async (sql: Sql) => (await value(sql`select fleet.counts_hold()`)) as boolean

/** What people and servers read. */
const readAll = async (sql: Sql) => ({
  summary: [...(await sql`select * from fleet.fleet_summary`)],
  silence: [...(await sql`select * from fleet.fleet_silence`)],
  metrics: [...(await sql`select * from fleet.silence_metrics() order by 1, 2::text`)],
  checks: [
    ...(await sql`
      select check_name, status, regexp_replace(detail, '^(the last )?one', 'one') as detail, remedy
      from (select * from fleet.check_silence() union all select * from fleet.check_ingest()) c
      where check_name in ('heartbeats', 'silent_cohorts', 'clocks')`),
  ],
})

/** Reads the kept counts, and counts at the same moment: in one transaction, which has one now(). */
async function keptAndLive(session: Sql) {
  await session`begin`
  await session`select fleet.count_fleet(1)`
  const holds = await countsHold(session)
  const kept = await readAll(session)
  await session`delete from fleet.fleet_counts`
  const live = await readAll(session)
  await session`rollback`
  return { holds, kept, live }
}

/** fleet_summary without its time. */
const summary = (sql: Sql) =>
  sql`select cohort, devices::int, online::int, new::int from fleet.fleet_summary`.then(rows => [...rows])

const notAtOnce = plainOnly('each node judges by its own now(), a moment after the coordinator')
t.test('the kept counts are those of a count at the same moment', { skip: notAtOnce }, async t => {
  const db = await withDatabase(t)
  const { sql, admin } = db
  const session = asRole(t, db, 'fleet_owner')
  await startedAgo(admin, '2 days')
  await mixedFleet(sql, admin)
  await admin`update fleet.devices set cohort = 'cohort-' || device_id % 7 where cohort <> 'slowed'`
  // Revoked devices are not counted, so the newest heartbeat must not be one of theirs.
  await admin`update fleet.device_last_status set last_received_at = now() - interval '1 hour' where device_id % 19 = 0`
  await admin`update fleet.silence_watch set looked_at = now()`
  const same = async (what: string) => {
    const { holds, kept, live } = await keptAndLive(session)
    t.equal(holds, true, what)
    t.same(kept, live, what)
    return kept
  }
  const kept = await same('a mixed fleet')
  const byHand = await sql<{ cohort: string; status: string; unity_running: boolean | null }[]>`
    select cohort, status, unity_running from fleet.device_status`
  for (const status of ['online', 'late', 'offline', 'new', 'clock_skewed']) {
    const count = byHand.filter(device => device.status === status).length
    t.ok(count > 0, `there are devices that are ${status}`)
    t.ok(Math.abs(count - Number(kept.summary[0]![status])) <= 2, `${status}; some seconds may have passed since then`)
  }
  t.equal(kept.summary.length, 9, 'the whole fleet, seven cohorts and the slowed one')

  await admin`update fleet.settings set offline_after = '25 minutes', silence_window = '15 minutes'`
  await same('other settings')
  await admin`update fleet.silence_watch set gap_from = now() - interval '20 minutes', gap_to = now() - interval '16 minutes'`
  const gap = await same('after a gap in ingest')
  t.ok(Number(gap.silence[0]!.gone_quiet) > 0)
  await admin`
    update fleet.device_last_status set last_ts = now() + interval '1 day', last_received_at = now() + interval '1 day'
    where device_id % 11 = 1`
  t.match((await same('the clock of Postgres ran ahead')).checks, [{ detail: /one arrived .* ran ahead/ }, {}, {}])
  await admin`update fleet.device_last_status set last_ts = null, last_received_at = null, status = null`
  t.match((await same('nothing was ever heard')).summary, [{ online: '0' }])
})

t.test('kept counts are used for as long as they are recent, and the next count has what changed meanwhile', async t => {
  const db = await withDatabase(t)
  const { sql, admin } = db
  const [moved, revoked] = (await enroll(sql, 3)) as [number, number, number]
  await sql`select fleet.move_device(${moved}, 'yard')`
  t.equal(await countsHold(sql), false, 'nothing is counted yet')
  await sql`select fleet.count_fleet(1)`
  const before = [
    { cohort: '(all)', devices: 3, online: 0, new: 3 },
    { cohort: 'default', devices: 2, online: 0, new: 2 },
    { cohort: 'yard', devices: 1, online: 0, new: 1 },
  ]
  t.same(await summary(sql), before)

  await sql`select fleet.revoke_device(${revoked})`
  await sql`select fleet.move_device(${moved}, 'lobby')`
  const [enrolled] = (await enroll(sql, 1, 'later')) as [number]
  await ingest(sql, [{ device_id: enrolled }])
  const after = [
    { cohort: '(all)', devices: 3, online: 1, new: 2 },
    { cohort: 'default', devices: 2, online: 1, new: 1 },
    { cohort: 'lobby', devices: 1, online: 0, new: 1 },
  ]
  for (const [age, holds] of [
    ['0 s', true],
    ['140 s', true],
    ['151 s', false],
    ['1 day', false],
    ['-1 minute', false],
  ] as const) {
    await admin`update fleet.fleet_counts set counted_at = now() - ${age}::interval`
    t.equal(await countsHold(sql), holds, age)
    t.same(await summary(sql), holds ? before : after, age)
    t.match(
      await asRole(t, db, 'fleet_reader')`
        select s.counted_at = now() as is_live, s.counted_at = f.counted_at as are_same
        from fleet.fleet_summary s join fleet.fleet_silence f using (cohort) where s.cohort = '(all)'`,
      [{ is_live: !holds, are_same: true }],
      age,
    )
  }
  await sql`select fleet.count_fleet(1)`
  t.equal(await countsHold(sql), true)
  t.same(await summary(sql), after, 'a cohort without devices is gone')
  await sql`select fleet.count_fleet(4)`
  t.equal(await countsHold(sql), false, 'the fleet is smaller than that')
  t.same(await summary(sql), after)
})

const noCounts = plainOnly('each node counts what it reads itself')
t.test('with kept counts, what counts the fleet looks at no device', { skip: noCounts }, async t => {
  const db = await withDatabase(t)
  const { sql, admin } = db
  const session = asRole(t, db, 'fleet_owner')
  await startedAgo(admin, '2 days')
  await enroll(sql, 2000)
  await sql`select fleet.ingest((select json_agg(json_build_object('device_id', d.device_id)) from fleet.devices d))`
  await sql`
    select fleet.record_unreadable_fields(json_build_array(json_build_object(
      'device_id', (select min(device_id) from fleet.devices), 'field', 'battery_pct', 'times', 1, 'example', 'x')))`
  await admin`vacuum analyze fleet.devices, fleet.device_last_status`
  await admin`update fleet.silence_watch set looked_at = now()`
  // In one transaction, because between two the session may report its statistics and start from zero.
  const rowsRead = async (read: string) => {
    const rows = async () =>
      Number(
        await value(session`
          select sum(seq_tup_read + idx_tup_fetch) from pg_stat_xact_user_tables
          where relid in ('fleet.devices'::regclass, 'fleet.device_last_status'::regclass)`),
      )
    await session`begin`
    const before = await rows()
    await session.unsafe(read)
    const after = await rows()
    await session`commit`
    return after - before
  }
  const reads = [
    'select * from fleet.fleet_summary',
    'select * from fleet.fleet_silence',
    'select * from fleet.silence_metrics()',
    'select * from fleet.check_silence()',
    'select * from fleet.check_fields()',
    "update fleet.silence_watch set sampled_at = '-infinity'; select fleet.watch_silence()",
    'select fleet.sample_fleet()',
  ]
  for (const read of reads) t.ok((await rowsRead(read)) >= 2000, `a small fleet is counted: ${read}`)
  const ingestChecks = await rowsRead('select * from fleet.check_ingest()')
  await admin`delete from fleet.fleet_samples`
  await admin`delete from fleet.silence_samples`
  await sql`select fleet.count_fleet(1)`
  for (const read of reads) t.equal(await rowsRead(read), 0, read)
  t.ok((await rowsRead('select * from fleet.check_ingest()')) <= ingestChecks - 4000, 'check_ingest() reads its sample')
  t.match(await sql`select devices::int, online::int from fleet.fleet_samples`, [{ devices: 2000, online: 2000 }])
  t.match(
    await sql`select active, gone_quiet from fleet.silence_samples where cohort = '(all)'`,
    [{ active: 2000, gone_quiet: 0 }],
    'what is usual is computed from kept counts, too',
  )
})

t.test('an outage of ingest is seen at once, although counts are kept', async t => {
  const { sql, admin } = await withDatabase(t)
  await startedAgo(admin, '2 days')
  const devices = await enroll(sql, 30)
  await ingest(
    sql,
    devices.map(device_id => ({ device_id })),
  )
  const heardAgo = (ago: string) => admin`update fleet.device_last_status set last_received_at = now() - ${ago}::interval`
  const heartbeats = async () => {
    await admin`update fleet.silence_watch set looked_at = now()`
    const [check] = await sql`select status, detail from fleet.check_silence() where check_name = 'heartbeats'`
    const muted = await value(sql`select muted_reason from fleet.fleet_silence limit 1`)
    return { ...check, muted }
  }
  await heardAgo('70 s')
  await sql`select fleet.count_fleet(1)`
  await admin`update fleet.fleet_counts set counted_at = now() - interval '70 s'`
  t.match(await heartbeats(), { status: 'ok', detail: /^one arrived 00:01:1\d ago$/, muted: 'few_samples' })
  // Nothing has arrived since. The gap ends between two counts.
  await heardAgo('185 s')
  await admin`update fleet.fleet_counts set newest_received_at = now() - interval '185 s'`
  t.equal(await countsHold(sql), true)
  t.match(await heartbeats(), { status: 'fail', detail: /^no device was heard from for 00:03:/, muted: 'ingest_down' })
  await ingest(sql, [{ device_id: devices[0]! }])
  t.match(await heartbeats(), { status: 'ok', muted: 'few_samples' }, 'and so is its end')
})

t.test('the job keeps counts of 50,000 devices and more', async t => {
  const { sql, admin } = await withDatabase(t)
  await admin`
    insert into fleet.devices (alias, token_hash)
    select 'many-' || n, sha256(convert_to(n::text, 'UTF8')) from generate_series(1, 50000) n`
  await sql`call fleet.mark_silent()`
  t.equal(await countsHold(sql), true)
  t.same(await sql`select cohort, devices::int, new::int from fleet.fleet_counts order by place`, [
    { cohort: '(all)', devices: 50_000, new: 50_000 },
    { cohort: 'default', devices: 50_000, new: 50_000 },
  ])
  await sql`select fleet.revoke_device((select min(device_id) from fleet.devices))`
  await sql`call fleet.mark_silent()`
  t.equal(await countsHold(sql), false)
  t.match(await summary(sql), [{ cohort: '(all)', devices: 49_999 }])
})
