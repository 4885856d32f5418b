import t from 'tap'
import { withDatabase } from '../../testing/database.ts'
import { asRole, earlier, enroll, value } from '../../testing/fleet.ts'

/** Reports as a server does: how many requests of each of these devices were refused. */
async function report(db: Awaited<ReturnType<typeof withDatabase>>, times: Record<number, number>) {
  const hashes = await db.sql<{ device_id: number; token_hash: string }[]>`
    select device_id::int, encode(token_hash, 'hex') as token_hash from fleet.devices`
  const counts = hashes.flatMap(({ device_id, token_hash }) =>
    times[device_id] === undefined ? [] : [{ token_hash, times: times[device_id] }],
  )
  const unknown = { token_hash: '00'.repeat(32), times: 7 }
  await db.sql`select fleet.record_slowed(${JSON.stringify([...counts, unknown])}::text::json)`
}

t.test('reports are added up by device and hour, and unknown tokens are left out', async t => {
  const db = await withDatabase(t)
  const { sql, admin } = db
  const [a, b] = (await enroll(sql, 2)) as [number, number]
  await report(db, { [a]: 3, [b]: 1 })
  const ago = (column: string) => earlier(admin, column, '5 hours')
  await admin`update fleet.device_slowdowns set hour = ${ago('hour')}, first_at = ${ago('first_at')}, last_at = ${ago('last_at')}`
  await report(db, { [a]: 10 })
  await report(db, { [a]: 5 })
  const rows = await asRole(t, db, 'fleet_reader')`
    select device_id::int, alias, cohort, times::int, first_at < last_at as grew, last_at > now() - interval '1 hour' as is_new
    from fleet.slowed_devices order by device_id, times`
  const about = { cohort: 'default', grew: false, is_new: false }
  t.same(
    [...rows],
    [
      { ...about, device_id: a, alias: 'device-1', times: 3 },
      { ...about, device_id: a, alias: 'device-1', times: 15, grew: true, is_new: true },
      { ...about, device_id: b, alias: 'device-2', times: 1 },
    ],
  )
  const hours = await value(sql`select bool_and(hour = date_trunc('hour', hour, 'UTC')) from fleet.device_slowdowns`)
  t.equal(hours, true)
})

t.test('check() names the devices with the most refused requests, and says how many there are', async t => {
  const db = await withDatabase(t)
  const { sql } = db
  const devices = await enroll(sql, 12)
  await report(db, Object.fromEntries(devices.map((device, n) => [device, n + 1])))
  const [row] = await sql<{ status: string; detail: string }[]>`
    select status, detail from fleet.check_fields() where check_name = 'slowed_devices'`
  t.equal(row!.status, 'warn')
  t.match(row!.detail, new RegExp(`^12 devices sent .* were 78 requests: device ${devices[11]} \\(device-12\\): 12 since `))
  t.match(row!.detail, /\(device-3\): 3 since \d\d:\d\d UTC; …$/)
  t.notMatch(row!.detail, /\(device-2\)/)
})

t.test('it is pruned by age, and goes with its device', async t => {
  const db = await withDatabase(t)
  const { sql, admin } = db
  const [a, b] = (await enroll(sql, 2)) as [number, number]
  await report(db, { [a]: 1, [b]: 1 })
  await admin`update fleet.device_slowdowns set last_at = '2001-01-01T00:00Z' where device_id = ${a}`
  await sql`select fleet.prune()`
  t.same([...(await sql`select device_id::int from fleet.device_slowdowns`)], [{ device_id: b }])
  await sql`select fleet.erase_device(${b}, 'a test')`
  t.same([...(await sql`select from fleet.device_slowdowns`)], [])
})
