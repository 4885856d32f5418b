// Which cohorts are silent. Days pass in one go: each step sets what the devices would have sent, and then calls watch_silence().
import type { Sql } from 'postgres'
import t from 'tap'
import { withDatabase } from '../../testing/database.ts'
import { asRole, enroll, ingest, ingestOnTime, value } from '../../testing/fleet.ts'

const HOUR = 3_600_000
/** A noon after the start of Postgres. The tests pass the time in throughout. */
const noon = Date.parse('2126-06-12T12:00Z')
const at = (hours: number) => new Date(noon + hours * HOUR).toISOString()

/** `count` devices in a cohort. */
async function cohort(sql: Sql, name: string, count: number, interval = '60 seconds') {
  const devices = await enroll(sql, count, name)
  await sql`update fleet.devices set cohort = ${name}, heartbeat_interval = ${interval} where device_id = any (${devices})`
  return devices
}

/** Between two times (hours after noon), every `minutes`: all devices sent 20 s ago, except those of `off` (SQL, of d and now_). */
async function live(admin: Sql, from: number, to: number, off = 'false', minutes = 10) {
  await admin.unsafe(`
    do $$
    declare now_ timestamptz;
    begin
      set local role fleet_owner;
      for now_ in select generate_series(timestamptz '${at(from)}', timestamptz '${at(to)}', interval '${minutes} minutes') loop
        update fleet.device_last_status ls
        set last_ts = now_ - interval '20 s', last_received_at = now_ - interval '20 s', status = 'ok'
        from fleet.devices d
        where d.device_id = ls.device_id and d.alias not like 'never%' and not (${off});
        perform fleet.watch_silence(now_);
      end loop;
    end $$
  `)
}

/** The tests look so rarely that there would otherwise be a gap before each look. */
async function lookedAtRarely(admin: Sql) {
  await admin`update fleet.settings set ingest_gap = '21 minutes'`
}

/** All devices that ever sent, except those of `quiet`, send now. */
async function hear(admin: Sql, now: string, quiet: number[] = []) {
  await admin`
    update fleet.device_last_status set last_ts = ${now}::timestamptz - interval '20 s', last_received_at = ${now}::timestamptz - interval '20 s'
    where last_ts is not null and not device_id = any (${quiet})
  `
}

async function silence(sql: Sql, now: string) {
  const rows = await sql<
    {
      cohort: string
      devices: number
      active: number
      gone_quiet: number
      share: number | null
      usual_share: number | null
      is_alarming: boolean
      muted_reason: string | null
    }[]
  >`
    select cohort, devices::int, active::int, gone_quiet::int, share, usual_share, ratio, is_alarming, is_muted, muted_reason from fleet.silence_at(${now})
  `
  return Object.fromEntries(rows.map(row => [row.cohort, row]))
}
const alarms = async (sql: Sql, now: string) =>
  Object.values(await silence(sql, now))
    .filter(row => row.is_alarming)
    .map(row => row.cohort)
const mutes = async (sql: Sql, now: string) =>
  Object.fromEntries(Object.values(await silence(sql, now)).map(row => [row.cohort, row.muted_reason]))

t.test('a cohort is silent when more devices have gone quiet than usual at this time of day', async t => {
  const db = await withDatabase(t)
  const { sql, admin } = db
  await lookedAtRarely(admin)
  const always = await cohort(sql, 'always', 40)
  const daytime = await cohort(sql, 'daytime', 20)
  const slow = await cohort(sql, 'slow', 20, '15 minutes')
  const [single] = (await cohort(sql, 'single', 1)) as [number]
  const gone = await cohort(sql, 'gone', 3)
  await cohort(sql, 'never', 5)
  await sql`select fleet.revoke_device(device_id) from unnest(${gone}::bigint[]) device_id`
  // The devices of daytime are switched off from 22:00 to 06:00, and now and then a few devices of always.
  const nights = `d.cohort = 'daytime' and (now_ at time zone 'UTC')::time not between '06:00' and '22:00'
    or d.cohort = 'always' and d.device_id % 40 < 2 and extract(minute from now_) = 40`
  await live(admin, -192, 0, nights, 20)

  const calm = await silence(sql, at(0))
  t.match(calm, {
    '(all)': { devices: 86, active: 81, gone_quiet: 0, is_alarming: false, muted_reason: null },
    always: { devices: 40, active: 40, gone_quiet: 0, share: 0, muted_reason: null },
    single: { devices: 1, muted_reason: 'few_devices' },
    never: { devices: 5, active: 0, gone_quiet: 0, share: null, muted_reason: 'few_devices' },
  })
  t.notOk(calm.gone, 'revoked devices are not counted')
  t.equal(
    await value(sql`select count(*) from fleet.silence_samples where sampled_at < ${at(-192)}`),
    '0',
    'samples are kept for 8 days',
  )
  t.ok(Number(await value(sql`select count(*) from fleet.silence_samples where cohort = 'always'`)) > 550)

  // At noon half of daytime goes dark, a quarter of always, one of slow, and the single one.
  const quiet = [...daytime.slice(0, 10), ...always.slice(0, 10), slow[0]!, single]
  const dark = at(0.1)
  await hear(admin, dark, quiet)
  const found = await silence(sql, dark)
  t.match(found, {
    daytime: { active: 20, gone_quiet: 10, share: 0.5, usual_share: 0, ratio: null, is_alarming: true, is_muted: false },
    always: { gone_quiet: 10, share: 0.25, usual_share: 0.05, ratio: 5, is_alarming: true },
    slow: { gone_quiet: 0, is_alarming: false },
    single: { gone_quiet: 1, share: 1, is_alarming: false, is_muted: true },
  })
  t.match(await sql`select * from fleet.check_silence(${dark}) where check_name = 'silent_cohorts'`, [
    {
      status: 'fail',
      detail:
        /^gone quiet: \(all\): 21 of 81 devices since 11:36, usually \d+ %; always: 10 of 40 .*; daytime: 10 of 20 devices .* usually 0 %$/,
    },
  ])
  const remedy = (await value(sql`select remedy from fleet.check_silence(${dark}) where check_name = 'silent_cohorts'`)) as string
  const dba = asRole(t, db, 'fleet_dba')
  const looks = remedy.split('\n').filter(line => !line.startsWith('--'))
  t.equal(looks.length, 3)
  for (const look of looks) await dba.unsafe(look)
  // The alarm lasts for one window. After that the devices no longer go quiet; they are quiet.
  await live(admin, 1 / 3, 1 / 3, `d.device_id = any ('{${quiet.join()}}')`)
  t.same(await alarms(sql, at(1 / 3)), ['(all)', 'always', 'daytime'], 'the samples of the alarm itself do not make it usual')
  await live(admin, 2 / 3, 1, `d.device_id = any ('{${quiet.join()}}')`)
  t.same(await alarms(sql, at(1)), [])

  // What happens every evening is no alarm, even an hour early. At another time it is.
  await live(admin, 1 + 1 / 3, 9, 'false', 20)
  for (const [off, expected] of [
    [at(9.05), []],
    [at(4), ['(all)', 'daytime']],
  ] as const) {
    await hear(admin, off)
    await hear(admin, new Date(Date.parse(off) + 180_000).toISOString(), daytime)
    await admin`update fleet.silence_watch set looked_at = ${off}, gap_from = null, gap_to = null, sampled_at = '-infinity'`
    await admin`select fleet.watch_silence(${off})`
    t.same(await alarms(sql, new Date(Date.parse(off) + 180_000).toISOString()), expected, off)
  }
})

t.test('slowed devices go quiet by the interval that they were told to use', async t => {
  const { sql, admin } = await withDatabase(t)
  const devices = await cohort(sql, 'lobby', 10)
  await lookedAtRarely(admin)
  await live(admin, -30, 0)
  await hear(admin, at(0))
  await hear(admin, at(0.1), devices)
  t.equal((await silence(sql, at(0.1))).lobby?.gone_quiet, 10)
  await admin`insert into fleet.cohorts (cohort, min_interval, changed_at) values ('lobby', '5 minutes', ${at(0)})`
  t.equal((await silence(sql, at(0.1))).lobby?.gone_quiet, 0)
  t.equal((await silence(sql, at(0.13))).lobby?.gone_quiet, 10)
  // When the slowdown ends, devices get twice the old interval to learn of it.
  await admin`update fleet.cohorts set min_interval = null, last_interval = '5 minutes', changed_at = ${at(0.1)}`
  t.equal((await silence(sql, at(0.1))).lobby?.gone_quiet, 0)
})

t.test('a new cohort is evaluated after a day, from all of its samples until it has three days', async t => {
  const { sql, admin } = await withDatabase(t)
  const devices = await cohort(sql, 'new', 10)
  await lookedAtRarely(admin)
  const off = `d.device_id = any ('{${devices.slice(0, 4).join()}}') and now_ between '${at(-20)}' and '${at(-19)}'`
  await live(admin, -22, 0, off)
  await hear(admin, at(0.05), devices)
  t.match(await silence(sql, at(0.05)), { new: { gone_quiet: 10, is_alarming: false, muted_reason: 'few_samples' } })
  await live(admin, 1 / 6, 3)
  await hear(admin, at(3.05), devices)
  t.match(await silence(sql, at(3.05)), {
    new: { gone_quiet: 10, usual_share: 0.4, ratio: 2.5, is_alarming: true, muted_reason: null },
  })
  t.match(await sql`select days, samples::int from fleet.silence_usual where cohort = 'new'`, [{ days: 1, samples: Number }])
  await admin`update fleet.settings set silence_ratio = 3`
  t.same(await alarms(sql, at(3.05)), [])
  await admin`update fleet.settings set silence_ratio = 1, silence_min_devices = 11`
  t.match(await mutes(sql, at(3.05)), { new: 'few_devices' })
  t.match(await sql`select setting, old_value, new_value from fleet.settings_audit where setting = 'silence_min_devices'`, [
    { setting: 'silence_min_devices', new_value: '11' },
  ])
})

t.test('while ingest is down, and shortly after, no cohort is called silent', async t => {
  const { sql, admin } = await withDatabase(t)
  const lobby = await cohort(sql, 'lobby', 20)
  const yard = await cohort(sql, 'yard', 20)
  await lookedAtRarely(admin)
  await live(admin, -30, 0)
  await admin`update fleet.settings set ingest_gap = '3 minutes'`
  const look = (minutes: number) => sql`select fleet.watch_silence(${at(minutes / 60)})`
  const minute = async (minutes: number, quiet: number[] = []) => {
    await hear(admin, at(minutes / 60), quiet)
    await look(minutes)
  }
  await minute(1)
  t.same(await mutes(sql, at(1 / 60)), { '(all)': null, lobby: null, yard: null })

  // From the second minute nothing arrives, and from the tenth minute all devices send except those of yard.
  for (let minutes = 2; minutes < 10; minutes++) {
    await look(minutes)
    const down = minutes >= 4 ? 'ingest_down' : null
    t.same(await mutes(sql, at(minutes / 60)), { '(all)': down, lobby: down, yard: down }, `minute ${minutes}`)
    t.same(
      await value(sql`select status from fleet.check_silence(${at(minutes / 60)}) where check_name = 'heartbeats'`),
      down ? 'fail' : 'ok',
    )
    if (down) t.same(await alarms(sql, at(minutes / 60)), [])
  }
  const samples = await value(sql`select count(*) from fleet.silence_samples`)
  await hear(admin, at(10 / 60), yard)
  t.same(
    await mutes(sql, at(10 / 60)),
    { '(all)': 'ingest_resumed', lobby: 'ingest_resumed', yard: 'ingest_resumed' },
    'before the next call of watch_silence()',
  )
  for (let minutes = 10; minutes < 40; minutes++) {
    await minute(minutes, yard)
    t.match(await mutes(sql, at(minutes / 60)), { '(all)': 'ingest_resumed', yard: 'ingest_resumed' })
    t.match(
      await value(sql`select detail from fleet.check_silence(${at(minutes / 60)}) where check_name = 'silent_cohorts'`),
      'not evaluated: ingest_resumed',
    )
  }
  // yard fell silent in the gap, more than a window ago. It is still found, for one window.
  for (let minutes = 40; minutes < 70; minutes += 2) {
    await minute(minutes, yard)
    t.match(
      await silence(sql, at(minutes / 60)),
      { yard: { gone_quiet: 20, is_alarming: true }, lobby: { gone_quiet: 0, is_alarming: false } },
      `minute ${minutes}`,
    )
  }
  t.equal(await value(sql`select count(*) from fleet.silence_samples`), samples, 'none of this counts as usual')
  for (const minutes of [70, 72]) await minute(minutes, yard)
  t.match(await silence(sql, at(72 / 60)), { yard: { active: 0, gone_quiet: 0, is_alarming: false } })
  t.not(await value(sql`select count(*) from fleet.silence_samples`), samples)

  // A second gap before the end of the first one extends it.
  await minute(75)
  await admin`update fleet.silence_watch set gap_from = ${at(1)}, gap_to = ${at(74 / 60)}`
  for (const minutes of [78, 81]) await look(minutes)
  t.match(await sql`select gap_from, gap_to from fleet.silence_watch`, [{ gap_from: new Date(at(1)), gap_to: null }])
  await minute(83, lobby)
  t.match(await sql`select gap_from, gap_to from fleet.silence_watch`, [
    { gap_from: new Date(at(1)), gap_to: new Date(at(83 / 60)) },
  ])

  // Nobody looked, or Postgres was started since: what arrived in the meantime is unknown.
  await admin`update fleet.silence_watch set gap_from = null, gap_to = null`
  await hear(admin, at(90 / 60))
  t.match(await mutes(sql, at(90 / 60)), { '(all)': 'unwatched', lobby: 'unwatched' })
  await look(90)
  t.match(await mutes(sql, at(90 / 60)), { '(all)': 'ingest_resumed', lobby: 'ingest_resumed' })
  await admin`update fleet.silence_watch set gap_from = null, gap_to = null, looked_at = pg_postmaster_start_time() - interval '1 s'`
  const soon = ((await value(sql`select pg_postmaster_start_time() + interval '1 minute'`)) as Date).toISOString()
  await hear(admin, soon)
  t.match(await mutes(sql, soon), { '(all)': 'ingest_resumed' })
})

t.test('with few devices, or devices that rarely send, a pause of a few minutes is not an outage', async t => {
  const { sql, admin } = await withDatabase(t)
  const down = async (newest: string, now: string) => await value(sql`select fleet.is_ingest_down(${newest}, ${now})`)
  t.equal(await down(at(0), at(1)), false, 'there are no devices')
  await cohort(sql, 'one', 1)
  await admin`update fleet.device_last_status set last_ts = ${at(0)}, last_received_at = ${at(0)}`
  t.equal(await down(at(0), at(0.3)), false)
  t.equal(await down(at(0), at(0.34)), true, '20 heartbeats are missing')
  await admin`update fleet.devices set heartbeat_interval = '15 minutes'`
  t.equal(await down(at(0), at(4)), false)
  await cohort(sql, 'drawer', 500)
  await admin`update fleet.device_last_status set last_ts = ${at(-48)}, last_received_at = ${at(-48)} where last_ts is null`
  t.equal(await down(at(0), at(4)), false, 'devices in a drawer are not expected to send')
  await admin`update fleet.device_last_status set last_received_at = ${at(-1)}`
  t.equal(await down(at(0), at(0.06)), true)
  await admin`update fleet.devices set revoked_at = now() where cohort = 'drawer'`
  t.equal(await down(at(0), at(0.06)), false, 'nor are revoked ones')
  await admin`update fleet.devices set revoked_at = null`
  t.equal(await down(at(0), at(0.04)), false, 'a pause within settings.ingest_gap is never an outage')
})

t.test('heartbeats are missed from enrolment on, also by devices that send rarely', async t => {
  const db = await withDatabase(t)
  const [never, quick, slow, skewed, fine] = (await enroll(db.sql, 5)) as [number, number, number, number, number]
  const ago = (minutes: number) => new Date(Date.now() - minutes * 60_000 - 1000).toISOString()
  await db.admin`update fleet.devices set enrolled_at = now() - interval '1 hour 5 s'`
  await db.sql`update fleet.devices set heartbeat_interval = '15 minutes' where device_id = ${slow}`
  await ingestOnTime(db.sql, [
    { device_id: quick, ts: ago(10) },
    { device_id: slow, ts: ago(40) },
    { device_id: fine, ts: ago(1.2) },
  ])
  await ingest(db.sql, [{ device_id: skewed, ts: ago(-600) }], ago(5))
  const reader = asRole(t, db, 'fleet_reader')
  t.same(await reader`select device_id::int, status, missed_beats::int, last_ts is null as is_new from fleet.missed_beats`, [
    { device_id: never, status: 'new', missed_beats: 59, is_new: true },
    { device_id: quick, status: 'offline', missed_beats: 9, is_new: false },
    { device_id: skewed, status: 'clock_skewed', missed_beats: 4, is_new: true },
    { device_id: slow, status: 'offline', missed_beats: 2, is_new: false },
  ])
})
