import t from 'tap'
import { withDatabase } from '../../testing/database.ts'
import { asRole, enroll, ingestOnTime, value } from '../../testing/fleet.ts'

t.test('the fleet is counted once every ten minutes, and the counts are kept for 8 days', async t => {
  const db = await withDatabase(t)
  const { sql, admin } = db
  const [a, b] = (await enroll(sql, 3)) as [number, number]
  await ingestOnTime(sql, [
    { device_id: a, unity_running: false },
    { device_id: b, ts: new Date(Date.now() - 900_000).toISOString() },
  ])
  const bins = () => value(sql`select extract(epoch from date_bin('10 minutes', now(), '2000-01-01Z'))::int`)
  await admin`
    insert into fleet.fleet_samples (sampled_at, devices, online, late, offline, new, clock_skewed, unity_down)
    select now() - d * interval '1 day', 7, 7, 0, 0, 0, 0, 0 from unnest(array[7.9, 8.1]) d
  `
  const first = await bins()
  await sql`call fleet.mark_silent()`
  const reader = asRole(t, db, 'fleet_reader')
  const trend = () => reader`
    select devices::int, online::int, late::int, offline::int, new::int, clock_skewed::int, unity_down::int from fleet.fleet_trend
  `
  const counted = { devices: 3, online: 1, late: 0, offline: 1, new: 1, clock_skewed: 0, unity_down: 1 }
  t.match(await trend(), [{ devices: 7 }, counted])
  await admin`update fleet.device_last_status set last_ts = now() - interval '1 hour', last_received_at = now() - interval '1 hour'`
  await sql`call fleet.mark_silent()`
  // If a new span of ten minutes has just begun, the fleet is counted again.
  t.match((await trend()).slice(0, 2), [{ devices: 7 }, counted])
  t.equal((await trend()).length, (await bins()) === first ? 2 : 3)
})
