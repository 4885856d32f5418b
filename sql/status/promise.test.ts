// A device that said when its next heartbeat comes (next_in_s) is not late before, wherever silence is judged.
import type { Sql } from 'postgres'
import t from 'tap'
import { withDatabase } from '../../testing/database.ts'
import { DEVICE_LISTS, isDistributed, STATUS_VIEWS } from '../../testing/distributed.ts'
import { asRole, enroll, ingest, startedAgo, value } from '../../testing/fleet.ts'
import { withServer } from '../../testing/server.ts'

const secondsAgo = (seconds: number) => new Date(Date.now() - seconds * 1000).toISOString()

/** Far from each moment at which the status changes, in seconds, so that the test may take some time. */
const FAR = 40

/** How often heartbeats are expected, what was announced, and how much longer than usual the device may be silent therefore. */
const promises = [
  { cohort: 'default', own: 60, expected: 60, next_in_s: 1_800, excused: 1_740 },
  { cohort: 'default', own: 60, expected: 60, next_in_s: 604_800, excused: 604_740 },
  { cohort: 'default', own: 3_600, expected: 3_600, next_in_s: 5_400, excused: 1_800 },
  { cohort: 'slowed', own: 60, expected: 900, next_in_s: 7_200, excused: 6_300 },
  { cohort: 'slowed', own: 60, expected: 900, next_in_s: 1, excused: 0 },
  { cohort: 'default', own: 60, expected: 60, next_in_s: null, excused: 0 },
]

/** How long a device has been silent, and what it then is. */
const moments = promises.flatMap(promise => {
  const { expected, excused } = promise
  const lateAfter = excused + 1.5 * expected + 15
  const offlineAfter = excused + Math.max(600, 2 * expected)
  return [
    { ...promise, silence: 1, status: 'online' },
    { ...promise, silence: lateAfter - FAR, status: 'online' },
    { ...promise, silence: lateAfter + FAR, status: 'late' },
    { ...promise, silence: offlineAfter - FAR, status: 'late' },
    { ...promise, silence: offlineAfter + FAR, status: 'offline' },
  ]
})

/** A device for each moment; of half of them the Unity app is down. */
async function fleetOfPromises(sql: Sql, admin: Sql) {
  const devices = (await enroll(sql, 2 * moments.length)).map((device_id, n) => ({
    device_id,
    ...moments[n % moments.length]!,
    unity_running: n < moments.length,
  }))
  for (const { device_id, cohort, own, next_in_s, silence, unity_running } of devices) {
    await admin`
      update fleet.devices set cohort = ${cohort}, heartbeat_interval = ${own} * interval '1 second'
      where device_id = ${device_id}`
    await ingest(sql, [{ device_id, ts: secondsAgo(silence), next_in_s, unity_running }], secondsAgo(silence))
  }
  await sql`select fleet.set_cohort_interval('slowed', '15 minutes')`
  await admin`update fleet.cohorts set last_interval = null`
  return devices
}

type Rows = { device_id: string; status: string }[]

t.test('in every view and every list, a promise keeps a device from being late until it has passed', async t => {
  const db = await withDatabase(t)
  const { sql, admin } = db
  const devices = await fleetOfPromises(sql, admin)
  const wanted = (filter: (device: (typeof devices)[number]) => boolean) =>
    devices.filter(filter).map(({ device_id, status }) => `${device_id} ${status}`)
  const lines = (rows: Rows) => rows.map(({ device_id, status }) => `${device_id} ${status}`)
  const expected = { all: wanted(() => true), late: wanted(({ status }) => status !== 'online') }
  t.ok(new Set(devices.map(({ status }) => status)).size === 3)

  const views = await sql<{ name: string; has_status: boolean }[]>`
    select c.relname as name, bool_or(a.attname = 'status') as has_status
    from pg_class c
    join pg_attribute a on a.attrelid = c.oid
    where c.relnamespace = 'fleet'::regnamespace and c.relkind = 'v' and (c.relname !~ '_legacy$' or ${!isDistributed})
      and a.attname in ('device_id', 'status', 'last_ts')
    group by c.relname
    having bool_or(a.attname = 'device_id') and bool_or(a.attname = 'last_ts') and c.relname <> 'device_availability'
    order by 1`
  const partial: Record<string, string[]> = {
    devices_offline: wanted(({ status }) => status === 'offline'),
    // Reported as down, and heard from.
    unity_down: wanted(({ status, unity_running }) => !unity_running && status !== 'offline'),
    missed_beats: wanted(({ silence, excused, expected }) => silence - excused >= 1.5 * expected),
  }
  t.same(
    Object.keys(partial).filter(name => !views.some(view => view.name === name)),
    [],
  )
  for (const marks of ['not used', 'used']) {
    if (marks === 'used') await sql`call fleet.mark_silent()`
    t.equal(await value(sql`select fleet.marks_hold()`), marks === 'used')
    for (const { name, has_status } of views) {
      const rows = await sql<Rows>`
        select device_id, ${has_status ? sql`status` : sql`'offline' as status`} from fleet.${sql(name)} order by device_id`
      t.same(lines(rows), partial[name] ?? expected.all, `${name}, marks ${marks}`)
    }
    for (const list of DEVICE_LISTS)
      for (const cohort of [null, 'default', 'slowed'])
        for (const status of ['online', 'late', 'offline', 'unity_down', null])
          for (const olderThan of [null, '12 minutes']) {
            const rows = await sql<Rows>`
              select device_id, status from fleet.${sql(list)}(${status}, ${olderThan}::interval, 0, 1000, ${cohort})`
            t.same(
              lines(rows),
              wanted(
                device =>
                  (cohort === null || device.cohort === cohort) &&
                  (olderThan === null || device.silence > 720) &&
                  (status === 'unity_down'
                    ? !device.unity_running && device.status !== 'offline'
                    : status === null || device.status === status),
              ),
              `${list}: ${status}, ${cohort}, ${olderThan}, marks ${marks}`,
            )
          }
  }

  for (const readFromLastStatus of isDistributed ? [1] : [1, 0]) {
    const { call } = await withServer(t, { readFromLastStatus }, db)
    for (const status of ['online', 'late', 'offline']) {
      const { body } = await call(`GET /v1/devices?status=${status}&limit=1000`, { admin: true })
      t.same(
        lines((body as { devices: Rows }).devices),
        wanted(device => device.status === status),
        `GET /v1/devices?status=${status}, READ_FROM_LAST_STATUS=${readFromLastStatus}`,
      )
    }
    const { device_id, status, next_in_s } = devices[1]!
    const { body } = await call(`GET /v1/devices/${device_id}`, { admin: true })
    t.match(body, { status, next_in_s })
  }
})

t.test('counts, of a small and of a large fleet, and the metrics take a promise at its word', async t => {
  const { sql, admin } = await withDatabase(t)
  await startedAgo(admin, '2 days')
  const devices = await fleetOfPromises(sql, admin)
  await admin`update fleet.settings set silence_window = '12 hours'`
  await admin`update fleet.silence_watch set looked_at = now()`
  const count = (cohort: string, filter: (device: (typeof devices)[number]) => boolean) =>
    devices.filter(device => (cohort === '(all)' || device.cohort === cohort) && filter(device)).length
  const is = (wanted: string) => (device: (typeof devices)[number]) => device.status === wanted
  for (const least of [1, 1_000]) {
    await sql`select fleet.count_fleet(${least})`
    t.equal(await value(sql`select fleet.counts_hold()`), least === 1)
    const fleet = `a ${least === 1 ? 'large' : 'small'} fleet`
    const quiet = new Map<string, number>()
    for (const cohort of ['(all)', 'default', 'slowed']) {
      const overdue = ({ silence, excused, expected }: (typeof devices)[number]) => silence - excused - 1.5 * expected - 15
      const goneQuiet = count(cohort, device => overdue(device) > 0 && overdue(device) <= 43_200)
      quiet.set(cohort, goneQuiet)
      t.same(
        await sql`select online::int, late::int, offline::int from fleet.fleet_summary where cohort = ${cohort}`,
        [{ online: count(cohort, is('online')), late: count(cohort, is('late')), offline: count(cohort, is('offline')) }],
        `${fleet}: ${cohort}`,
      )
      t.same(
        await sql`select gone_quiet::int from fleet.fleet_silence where cohort = ${cohort}`,
        [{ gone_quiet: goneQuiet }],
        `${fleet}: gone quiet in ${cohort}`,
      )
    }
    t.same(
      await sql`
        select labels ->> 'cohort' as cohort, value from fleet.silence_metrics()
        where metric = 'cohort_gone_quiet_devices' order by 1`,
      [...quiet].sort().map(([cohort, value]) => ({ cohort, value })),
      `${fleet}: /metrics`,
    )
  }
})

t.test('a promise counts even if another heartbeat has taken its bucket', async t => {
  const { sql } = await withDatabase(t)
  const devices = await enroll(sql, 2)
  const bucket = Math.floor(Date.now() / 10_000) * 10_000 - 20_000
  const at = (seconds: number) => new Date(bucket + seconds * 1000).toISOString()
  const [alone, together] = devices as [number, number]
  await ingest(sql, [{ device_id: alone, ts: at(1) }])
  const last = { ts: at(4), next_in_s: 28_800, stopping: 'shutdown' }
  const [answer] = await ingest(sql, [{ device_id: alone, ...last }])
  t.equal(answer?.result, 'duplicate')
  // And if both come in one batch.
  await ingest(sql, [
    { device_id: together, ts: at(1) },
    { device_id: together, ...last },
  ])
  // An older duplicate says nothing new.
  await ingest(sql, [{ device_id: alone, ts: at(0), next_in_s: 60 }])
  t.same(
    [...(await sql`select next_in_s, stopping from fleet.device_last_status order by device_id`)],
    devices.map(() => ({ next_in_s: 28_800, stopping: 'shutdown' })),
  )
})

t.test('the promise is that of the newest heartbeat', async t => {
  const { sql } = await withDatabase(t)
  const [device_id] = (await enroll(sql, 1)) as [number]
  const said = async () => {
    const all = STATUS_VIEWS.map(view => value(sql`select status from fleet.${sql(view)} where device_id = ${device_id}`))
    return [...new Set(await Promise.all(all))]
  }
  await ingest(sql, [{ device_id, ts: secondsAgo(3_000), next_in_s: 3_600, stopping: 'update' }], secondsAgo(3_000))
  t.same(await said(), ['online'])
  await ingest(sql, [{ device_id, ts: secondsAgo(3_300) }], secondsAgo(2_900))
  t.same(await said(), ['online'], 'an older heartbeat that was kept does not end it')
  t.match(await sql`select next_in_s, stopping from fleet.device_status`, [{ next_in_s: 3_600, stopping: 'update' }])
  await ingest(sql, [{ device_id, ts: secondsAgo(300) }], secondsAgo(300))
  t.same(await said(), ['late'], 'the next one ends it')
  t.match(await sql`select next_in_s, stopping from fleet.device_status`, [{ next_in_s: null, stopping: null }])
})

t.test('ingest is not down while every device sleeps as it announced, and is when they do not come back', async t => {
  const db = await withDatabase(t)
  const { sql, admin } = db
  const devices = await enroll(sql, 30)
  const isDown = async () => {
    const [row] = await asRole(t, db, 'fleet_owner')`select fleet.is_ingest_down(fleet.newest_received_at(now()), now()) as down`
    return row!.down as boolean
  }
  const send = (silence: number, next_in_s: number | null) =>
    ingest(
      sql,
      devices.map(device_id => ({ device_id, ts: secondsAgo(silence), next_in_s })),
      secondsAgo(silence),
    )
  await send(7_200, 3_600)
  t.equal(await isDown(), true, 'the hour was over an hour ago')
  await send(3_000, 3_600)
  t.equal(await isDown(), false)
  t.match(await sql`select status from fleet.check_silence() where check_name = 'heartbeats'`, [{ status: 'ok' }])
  await admin`update fleet.device_last_status set next_in_s = null where device_id = ${devices[0]!}`
  t.equal(await isDown(), true, 'one device owes 50 heartbeats')
  await send(1_800, null)
  t.equal(await isDown(), true)
})
