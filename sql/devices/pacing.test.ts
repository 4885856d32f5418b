import t from 'tap'
import { withDatabase } from '../../testing/database.ts'
import { asRole, enroll, ingestOnTime, value } from '../../testing/fleet.ts'

const secondsAgo = (seconds: number) => new Date(Date.now() - seconds * 1000).toISOString()

t.test('the DBA slows a cohort and ends that again, and each change is recorded', async t => {
  const db = await withDatabase(t)
  const devices = await enroll(db.sql, 3)
  await db.sql`update fleet.devices set cohort = 'lobby' where device_id <> ${devices[0]!}`
  await db.sql`update fleet.devices set heartbeat_interval = '15 minutes' where device_id = ${devices[2]!}`
  const [dba, server, reader] = [asRole(t, db, 'fleet_dba'), asRole(t, db, 'fleet_server'), asRole(t, db, 'fleet_reader')]
  const paces = async () =>
    (await db.sql<{ next_interval_s: number }[]>`select next_interval_s from fleet.enrolled_devices order by device_id`).map(
      row => row.next_interval_s,
    )

  t.equal(
    await value(dba`select fleet.set_cohort_interval('lobby', null)`),
    'cohort lobby: not slowed (was not slowed); it has 2 devices',
  )
  t.equal(
    await value(dba`select fleet.set_cohort_interval('lobby', '5 minutes')`),
    'cohort lobby: at least 00:05:00 between heartbeats (was not slowed); it has 2 devices',
  )
  t.same(await paces(), [60, 300, 900], 'the longer interval counts')
  await dba`select fleet.set_cohort_interval('lobby', '5 minutes')`
  await dba`select fleet.set_cohort_interval('lobby', '20 minutes')`
  t.same(await paces(), [60, 1200, 1200])
  t.match(await reader`select cohort, min_interval::text from fleet.cohorts`, [{ cohort: 'lobby', min_interval: '00:20:00' }])
  await dba`select fleet.set_cohort_interval('lobby', null)`
  t.same(await paces(), [60, 60, 900])
  t.same(await dba`select setting, old_value, new_value, changed_by from fleet.settings_audit order by audit_id`, [
    { setting: 'cohort_interval:lobby', old_value: null, new_value: '00:05:00', changed_by: 'fleet_dba' },
    { setting: 'cohort_interval:lobby', old_value: '00:05:00', new_value: '00:20:00', changed_by: 'fleet_dba' },
    { setting: 'cohort_interval:lobby', old_value: '00:20:00', new_value: null, changed_by: 'fleet_dba' },
  ])
  for (const [cohort, interval] of [
    [null, '1 minute'],
    [' ', '1 minute'],
    ['x'.repeat(101), '1 minute'],
    ['lobby', '0'],
    ['lobby', '2 days'],
  ]) {
    await t.rejects(dba`select fleet.set_cohort_interval(${cohort!}, ${interval!})`, { code: 'FL422', hint: String })
  }
  await t.rejects(server`select fleet.set_cohort_interval('lobby', '1 minute')`, { code: '42501' })
  await t.rejects(dba`update fleet.cohorts set min_interval = '1 minute'`, { code: '42501' })
  await t.rejects(dba`select * from fleet.authenticate('')`, { code: '42501' })
  await t.rejects(dba`select * from fleet.enrolled_devices`, { code: '42501' })
  await t.rejects(server`select * from fleet.enrolled_devices`, { code: '42501' })
  await db.sql`select fleet.prune(now() + interval '8 days')`
  t.same(await reader`select from fleet.cohorts`, [])
})

t.test('a slowed fleet is neither late nor offline, nor right after it is no longer slowed', async t => {
  const { sql, admin } = await withDatabase(t)
  const [fresh, old, gone] = (await enroll(sql, 3)) as [number, number, number]
  await ingestOnTime(sql, [
    { device_id: fresh, ts: secondsAgo(1200) },
    { device_id: old, ts: secondsAgo(50 * 60) },
    { device_id: gone, ts: secondsAgo(7200) },
  ])
  const statuses = async () =>
    Object.fromEntries(
      (await sql<{ device_id: string; status: string }[]>`select device_id, status from fleet.device_status`).map(row => [
        row.device_id,
        row.status,
      ]),
    )
  t.same(await statuses(), { [fresh]: 'offline', [old]: 'offline', [gone]: 'offline' })
  await sql`select fleet.set_cohort_interval('default', '30 minutes')`
  t.same(await statuses(), { [fresh]: 'online', [old]: 'late', [gone]: 'offline' })
  t.equal(await value(sql`select heartbeat_interval::text from fleet.device_status limit 1`), '00:30:00')
  await sql`select fleet.set_cohort_interval('default', null)`
  t.same(await statuses(), { [fresh]: 'online', [old]: 'late', [gone]: 'offline' }, 'they have not learned of it yet')
  t.equal(await value(sql`select heartbeat_interval::text from fleet.device_status limit 1`), '00:01:00')
  await sql`select fleet.set_cohort_interval('default', '2 minutes')`
  t.same(await statuses(), { [fresh]: 'online', [old]: 'late', [gone]: 'offline' }, 'nor of this change')
  await admin`update fleet.cohorts set changed_at = now() - interval '61 minutes'`
  t.same(await statuses(), { [fresh]: 'offline', [old]: 'offline', [gone]: 'offline' })
})

t.test('two changes of a cohort at once are recorded one after the other', async t => {
  const { sql } = await withDatabase(t)
  await Promise.all(
    Array.from({ length: 8 }, (_, n) => sql`select fleet.set_cohort_interval('lobby', make_interval(mins => ${n + 1}))`),
  )
  const audit = await sql<
    { old_value: string | null; new_value: string }[]
  >`select old_value, new_value from fleet.settings_audit order by audit_id`
  t.same(
    audit.map(row => row.old_value),
    [null, ...audit.slice(0, -1).map(row => row.new_value)],
  )
})
