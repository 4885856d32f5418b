import t from 'tap'
import type { Sql } from 'postgres'
import { withDatabase } from '../../testing/database.ts'
import { asRole, enroll } from '../../testing/fleet.ts'

const DAY_S = 86_400

/** A heartbeat each `every` seconds on a past day, the first one `offset` seconds after midnight. */
function send(admin: Sql, device: number, daysAgo: number, every: number, offset = 0) {
  return admin`
    insert into fleet.device_heartbeats (ts, received_at, device_id)
    select b.ts, b.ts, ${device}
    from generate_series(0, ${DAY_S - 1 - offset}::int / ${every}::int) n
    cross join lateral (
      select date_trunc('day', now()) - ${daysAgo} * interval '1 day' + (${offset} + n * ${every}::int) * interval '1 second' as ts
    ) b
    on conflict do nothing`
}

t.test('devices that share a token are named, and nothing else is', async t => {
  const db = await withDatabase(t)
  const { admin, sql } = db
  const dba = asRole(t, db, 'fleet_dba')
  const names = ['cloned', 'hourly-clone', 'alone', 'retries', 'one-day', 'slowed', 'paced', 'flood', 'few', 'revoked'] as const
  const ids = await enroll(sql, names.length)
  const id = Object.fromEntries(names.map((name, n) => [name, ids[n]!])) as Record<(typeof names)[number], number>
  const roll = () => sql`select fleet.roll_up(current_date - n) from generate_series(1, 3) n`
  const check = async () =>
    (
      await dba<
        { status: string; detail: string; remedy: string | null }[]
      >`select status, detail, remedy from fleet.check_devices()`
    )[0]!
  t.match(await check(), { status: 'ok', detail: 'no two days are rolled up yet', remedy: null })

  await admin`update fleet.devices set enrolled_at = now() - interval '5 days'`
  await admin`update fleet.devices set heartbeat_interval = '1 hour' where device_id = ${id['hourly-clone']}`
  await admin`update fleet.devices set heartbeat_interval = '6 hours' where device_id = ${id.few}`
  await admin`update fleet.devices set cohort = 'yard' where device_id = ${id.paced}`
  for (const day of [3, 2, 1]) {
    for (const name of ['cloned', 'alone', 'retries', 'one-day', 'flood', 'revoked'] as const)
      await send(admin, id[name], day, 60)
    for (const name of ['cloned', 'revoked'] as const) await send(admin, id[name], day, 60, 30)
    // The same heartbeats again, and within their 10 seconds: they are duplicates.
    await send(admin, id.retries, day, 60)
    await send(admin, id.retries, day, 60, 4)
    for (const offset of [0, 1_800]) await send(admin, id['hourly-clone'], day, 3_600, offset)
    // A few heartbeats more than its four, such as one at each restart.
    await send(admin, id.few, day, 9_000)
    // They were asked to send less often in the middle of yesterday, so both days were rolled up with the new interval or the old.
    await send(admin, id.slowed, day, 60)
    await send(admin, id.paced, day, 60)
  }
  await send(admin, id['one-day'], 1, 60, 30)
  await roll()
  // Both were slowed yesterday, before that day was rolled up.
  await admin`
    update fleet.device_availability_daily set heartbeat_interval = '5 minutes', expected = 288, seen = 288
    where day = current_date - 1 and device_id in (${id.slowed}, ${id.paced})`
  await admin`update fleet.devices set heartbeat_interval = '5 minutes' where device_id = ${id.slowed}`
  await dba`select fleet.set_cohort_interval('yard', '5 minutes')`
  await sql`select fleet.revoke_device(${id.revoked})`
  await admin`update fleet.devices set changed_at = now() - interval '6 days'`

  const { status, detail, remedy } = await check()
  t.equal(status, 'warn')
  t.match(detail, /^2 devices sent more than 1\.5 times as many heartbeats as expected on \d{4}-\d\d-\d\d and the day before: /)
  t.match(detail, `device ${id.cloned} (device-1) sent 2880 heartbeats instead of 1440`)
  t.match(detail, `device ${id['hourly-clone']} (device-2) sent 48 heartbeats instead of 24`)
  t.same(
    remedy!
      .split('\n')
      .filter(line => !line.startsWith('--'))
      .sort(),
    [id.cloned, id['hourly-clone']].map(device => `select fleet.renew_token(${device});`).sort(),
  )
  for (const line of remedy!.split('\n').filter(line => !line.startsWith('--'))) await dba.unsafe(line)
  t.match(await check(), { status: 'ok', remedy: null }, 'with new tokens, only what they send from now on counts')

  await admin`update fleet.devices set changed_at = now() - interval '6 days'`
  t.match(await check(), { status: 'warn' }, 'two days later it would be found again')
})

t.test('the check reads only the devices that sent too much', async t => {
  const { admin, sql } = await withDatabase(t)
  await admin`
    insert into fleet.device_availability_daily (device_id, day, expected, seen, beats, heartbeat_interval, longest_gap)
    select n, current_date - d, 1440, 1440, case when n % 5000 = 0 then 2880 else 1440 end, '60 s', '60 s'
    from generate_series(1, 50000) n, generate_series(1, 2) d`
  await admin`analyze fleet.device_availability_daily`
  const plan = await sql<{ 'QUERY PLAN': string }[]>`
    explain select a.device_id from fleet.device_availability_daily a
    where a.day = current_date - 1 and a.beats > a.expected * 1.5 + 10 order by a.device_id limit 10000`
  t.match(plan.map(line => line['QUERY PLAN']).join('\n'), /device_availability_daily_excess_idx/)
})
