// Devices whose clock is wrong, and a database whose clock was wrong.
import type { Sql } from 'postgres'
import t from 'tap'
import { waitFor, withDatabase } from '../../testing/database.ts'
import { plainOnly, STATUS_VIEWS } from '../../testing/distributed.ts'
import { asRole, enroll, ingest, storeDirectly, value, type Beat } from '../../testing/fleet.ts'

const MINUTE = 60_000
const HOUR = 60 * MINUTE
const DAY = 24 * HOUR
const ago = (ms: number) => new Date(Date.now() - ms).toISOString()

/** Sends a heartbeat each minute for ten minutes until `endedAgo`, by a clock that lags by `lag`. */
async function sends(
  sql: Sql,
  device_id: number,
  lag: number,
  { endedAgo = 0, ...fields }: { endedAgo?: number } & Partial<Beat>,
) {
  for (let minute = 10; minute >= 0; minute--) {
    const arrival = endedAgo + minute * MINUTE + 1000
    await ingest(sql, [{ device_id, ts: ago(arrival + lag), ...fields }], ago(arrival))
  }
}

const statusOf = async (sql: Sql, device: number, view = 'device_status') =>
  (
    await sql<{ status: string }[]>`
    select status, last_ts, seconds_since between 0 and 59 as is_recent, last_received_at, battery_pct, unity_running
    from fleet.${sql(view)} where device_id = ${device}
  `
  )[0]

// In milliseconds; a clock that is ahead has a negative lag. `shown` is what is said of it.
const clocks = [
  { what: 'in 1970', lag: Date.now() - 5000, shown: /^lags by \d{5} days$/ },
  { what: 'six hours behind: local time written with a Z', lag: 6 * HOUR, shown: 'lags by 6 h' },
  { what: 'twenty minutes behind', lag: 20 * MINUTE, shown: 'lags by 20 min' },
  { what: 'nine days behind', lag: 9 * DAY, shown: 'lags by 9 days' },
  { what: 'an hour ahead', lag: -HOUR, shown: 'is 60 min ahead' },
  { what: 'a year ahead', lag: -365 * DAY, shown: 'is 365 days ahead' },
]

t.test('a device with a wrong clock is heard from while it sends, says what it says, and is offline when it stops', async t => {
  const db = await withDatabase(t)
  const { sql } = db
  const reader = asRole(t, db, 'fleet_reader')
  for (const { what, lag, shown } of clocks) {
    const [sending, stopped] = (await enroll(sql, 2, what)) as [number, number]
    await sends(sql, sending, lag, { battery_pct: 41, unity_running: false })
    await sends(sql, stopped, lag, { battery_pct: 42, unity_running: true, endedAgo: 11 * MINUTE })
    for (const view of STATUS_VIEWS) {
      t.match(
        await statusOf(sql, sending, view),
        { status: 'clock_skewed', is_recent: true, battery_pct: 41, unity_running: false },
        `${what}: ${view}`,
      )
      t.match(await statusOf(sql, stopped, view), { status: 'offline', battery_pct: 42, unity_running: true }, `${what}: ${view}`)
    }
    t.match(await value(reader`select fleet.describe_clock(${sending})`), shown, what)
    const ids = async (rows: Promise<readonly object[]>) => (await rows).map(row => Number(Object.values(row)[0]))
    t.same(await ids(reader`select device_id from fleet.unity_down where alias like ${`${what}%`}`), [sending], what)
    t.same(await ids(reader`select device_id from fleet.devices_offline where alias like ${`${what}%`}`), [stopped], what)
    t.same(await ids(reader`select device_id from fleet.list_devices(null, '10 minutes') where alias like ${`${what}%`}`), [
      stopped,
    ])
    t.same(await ids(reader`select device_id from fleet.missed_beats where alias like ${`${what}%`}`), [stopped], what)
  }
  const dba = asRole(t, db, 'fleet_dba')
  const [check] = await dba<{ status: string; detail: string; remedy: string }[]>`
    select status, detail, remedy from fleet.check() where check_name = 'clocks'`
  t.match(check, {
    status: 'warn',
    detail: /^the clocks of 6 of 12 devices are wrong: in 1970-1 lags by \d+ days, six hours .*-1 lags by 6 h, /,
  })
  const listed = await dba.unsafe(check!.remedy.replace(/^--.*\n/, ''))
  t.equal(listed.length, 6, 'the remedy lists them')
})

t.test('a device whose clock is put right is online again, and a good clock is not called wrong', async t => {
  const { sql } = await withDatabase(t)
  const [behind, ahead, good, buffered] = (await enroll(sql, 4)) as [number, number, number, number]
  await sends(sql, behind, 6 * HOUR, { endedAgo: MINUTE })
  await sends(sql, ahead, -4 * MINUTE, { endedAgo: MINUTE, battery_pct: 10 })
  t.match(await statusOf(sql, behind), { status: 'clock_skewed' })
  t.match(await statusOf(sql, ahead), { status: 'online' }, 'four minutes ahead is accepted')
  await ingest(
    sql,
    [behind, ahead, good].map(device_id => ({ device_id, battery_pct: 20 })),
  )
  t.match(await statusOf(sql, behind), { status: 'online', battery_pct: 20 })
  t.match(
    await statusOf(sql, ahead),
    { status: 'online', is_recent: true, battery_pct: 10 },
    'heard from now, though its newest heartbeat is of a later time',
  )
  t.equal(await value(sql`select fleet.describe_clock(${good})`), null)

  // It was out of reach for two hours, and sends what it kept, the oldest first. The newest is on time.
  await ingest(
    sql,
    Array.from({ length: 120 }, (_, n) => ({ device_id: buffered, ts: ago((119 - n) * MINUTE) })),
  )
  t.match(await statusOf(sql, buffered), { status: 'online' })
  t.equal(await value(sql`select fleet.describe_clock(${buffered})`), null)
})

t.test('duplicates, refused heartbeats and those that the quarantine has no room for count as heard', async t => {
  const { sql } = await withDatabase(t)
  await sql`update fleet.settings set quarantine_per_device = 2`
  const [duplicate, full, both, mixed] = (await enroll(sql, 4)) as [number, number, number, number]
  const ts = ago(9 * MINUTE)
  await ingest(sql, [{ device_id: duplicate, ts, battery_pct: 1 }], ts)
  t.match(await statusOf(sql, duplicate), { status: 'late' })
  t.match(await ingest(sql, [{ device_id: duplicate, ts, battery_pct: 2 }]), [{ result: 'duplicate' }])
  t.match(await statusOf(sql, duplicate), { status: 'online', is_recent: true, battery_pct: 1 })

  for (const year of ['1970', '1971', '1972', '1973']) {
    await ingest(sql, [{ device_id: full, ts: `${year}-01-01T00:00:00Z`, battery_pct: Number(year) - 1900 }])
  }
  t.match(await ingest(sql, [{ device_id: full, ts: '1974-01-01T00:00:00Z', battery_pct: 74 }]), [{ result: 'rejected' }])
  t.match(await statusOf(sql, full), { status: 'clock_skewed', is_recent: true, battery_pct: 74, last_ts: null })

  await ingest(sql, [
    { device_id: both, ts: '2001-01-01T00:00:00Z', battery_pct: 3 },
    { device_id: both, ts: ago(0), battery_pct: 4 },
  ])
  t.match(await statusOf(sql, both), { status: 'online', battery_pct: 4 }, 'one good heartbeat decides')

  // 30 of each kind for the same devices at once.
  const kinds = [ts, '2001-01-01T00:00:00Z', undefined]
  await Promise.all(
    Array.from({ length: 30 }, (_, n) =>
      ingest(
        sql,
        [mixed, full, duplicate].map((device_id, nth) => ({ device_id, ts: kinds[(n + nth) % 3] })),
      ),
    ),
  )
  for (const device of [mixed, full, duplicate]) t.match(await statusOf(sql, device), { is_recent: true })
})

t.test('of the address of a refused heartbeat only what store_ip allows is shown, to every role', async t => {
  const db = await withDatabase(t)
  const { sql } = db
  const roles = (['fleet_server', 'fleet_reader', 'fleet_dba'] as const).map(role => asRole(t, db, role))
  const [device] = (await enroll(sql, 1)) as [number]
  for (const [storeIp, ip] of [
    ['full', '192.0.2.77'],
    ['prefix', '192.0.2.0'],
    ['none', null],
  ] as const) {
    await sql`update fleet.settings set store_ip = ${storeIp}`
    await ingest(sql, [{ device_id: device, ts: '1970-01-01T00:00:00Z', ip: '192.0.2.77' }])
    for (const view of STATUS_VIEWS) {
      for (const session of roles) {
        t.equal(
          await value(session`select host(ip) from fleet.${sql(view)} where device_id = ${device}`),
          ip,
          `${view}: ${storeIp}`,
        )
      }
    }
  }
})

t.test('after the clock of Postgres ran ahead, that is found, named and healed', async t => {
  const db = await withDatabase(t)
  const { sql, admin } = db
  const dba = asRole(t, db, 'fleet_dba')
  const [back, stopped, unheard, good] = (await enroll(sql, 4)) as [number, number, number, number]
  await ingest(
    sql,
    [back, stopped].map(device_id => ({ device_id, ts: ago(30 * MINUTE), battery_pct: 50 })),
    ago(30 * MINUTE),
  )
  await ingest(sql, [{ device_id: good }])
  // What ingest writes at a time that is 23:50 ahead.
  const ahead = new Date(Date.now() + 23 * HOUR + 50 * MINUTE).toISOString()
  await storeDirectly(
    admin,
    'ts, received_at, device_id, battery_pct',
    `select '${ahead}'::timestamptz, '${ahead}'::timestamptz, d, 99 from unnest('{${[back, stopped, unheard].join()}}'::bigint[]) d`,
  )
  t.match(await statusOf(sql, stopped), { status: 'online', battery_pct: 99 }, 'this is what has to be healed')

  const checks = async () =>
    Object.fromEntries(
      (
        await dba<{ check_name: string; status: string; detail: string }[]>`
        select check_name, status, detail from fleet.check() where check_name in ('last_status', 'heartbeats')`
      ).map(({ check_name, status, detail }) => [check_name, { status, detail }]),
    )
  t.match(await checks(), {
    last_status: { status: 'warn', detail: /3 devices were last heard from in the future, such as device 1/ },
    heartbeats: { status: 'ok', detail: /^the last one arrived 00:00:\d\d ago; the clock of Postgres ran ahead: 3 devices/ },
  })
  await admin`update fleet.device_last_status set last_received_at = now() - interval '1 hour' where device_id = ${good}`
  t.match(await checks(), { heartbeats: { status: 'fail' } }, 'times in the future do not hide an outage')

  // The next heartbeat heals its device.
  await ingest(sql, [{ device_id: back, battery_pct: 49 }])
  t.match(await statusOf(sql, back), { status: 'online', battery_pct: 49, is_recent: true })
  // The remedy heals the others.
  t.ok(Number(await value(dba`select fleet.backfill_last_status(1)`)) >= 2)
  t.match(await statusOf(sql, stopped), { status: 'offline', battery_pct: 50 })
  t.match(await statusOf(sql, unheard), { status: 'new' })
  t.match(await checks(), { last_status: { status: 'ok' } })
  t.match(await dba`select updated from fleet.reconcile()`, [{ updated: '0' }])
  for (const view of STATUS_VIEWS) {
    t.match(await statusOf(sql, stopped, view), { status: 'offline', battery_pct: 50 }, view)
  }
})

t.test('what was kept for long does not rewind a device, and a retry does not make its clock wrong', async t => {
  const { sql } = await withDatabase(t)
  const [device, slow] = (await enroll(sql, 2)) as [number, number]
  await ingest(sql, [{ device_id: device, battery_pct: 80, unity_running: true }], ago(MINUTE))
  for (const days of [6, 8, 20]) {
    await ingest(sql, [{ device_id: device, ts: ago(days * DAY), battery_pct: 3, unity_running: false }])
    for (const view of STATUS_VIEWS) {
      const want = { status: 'online', battery_pct: 80, unity_running: true }
      t.match(await statusOf(sql, device, view), want, `${days} days: ${view}`)
    }
    t.match(await statusOf(sql, device), { is_recent: true })
  }
  await sql`update fleet.devices set heartbeat_interval = '1 hour' where device_id = ${slow}`
  const beat = { device_id: slow, ts: ago(12 * MINUTE) }
  await ingest(sql, [beat], beat.ts)
  t.match(await ingest(sql, [beat]), [{ result: 'duplicate' }])
  t.match(await statusOf(sql, slow), { status: 'online', is_recent: true })
  await ingest(sql, [{ device_id: slow, ts: ago(3 * HOUR) }])
  for (const view of STATUS_VIEWS) {
    t.match(await statusOf(sql, slow, view), { status: 'online' }, `its backlog: ${view}`)
  }
})

const mayDeadlock = plainOnly('a batch that waits for it, and for which it waits, is ended, and sent again')
t.test('reconcile keeps what arrives while it runs, and does not deadlock with it', { skip: mayDeadlock }, async t => {
  const db = await withDatabase(t)
  const { sql, admin } = db
  const devices = await enroll(sql, 4)
  const [first, second] = devices as [number, number]
  await ingest(sql, [{ device_id: second, ts: ago(5 * MINUTE), battery_pct: 20 }], ago(5 * MINUTE))
  const ahead = new Date(Date.now() + DAY).toISOString()
  await storeDirectly(
    admin,
    'ts, received_at, device_id, battery_pct',
    `select '${ahead}'::timestamptz, '${ahead}'::timestamptz, d, 99 from unnest('{${devices.join()}}'::bigint[]) d`,
  )
  const batch = asRole(t, db, 'fleet_owner')
  await batch`begin`
  await ingest(batch, [{ device_id: first, battery_pct: 50 }])
  const healing = sql`select fleet.reconcile()`.then(rows => rows.length)
  await waitFor(
    async () =>
      (await admin`select from pg_stat_activity where wait_event_type = 'Lock' and query like '%reconcile%'`).length > 0,
  )
  await ingest(batch, [{ device_id: second, battery_pct: 60 }])
  await batch`commit`
  t.equal(await healing, 1)
  t.match(await statusOf(sql, first), { status: 'online', is_recent: true, battery_pct: 50 })
  t.match(await statusOf(sql, second), { status: 'online', is_recent: true, battery_pct: 60 })
  for (const device of devices.slice(2)) t.match(await statusOf(sql, device), { status: 'new' })
})

t.test('healing leaves no wrong clock behind', async t => {
  const { sql, admin } = await withDatabase(t)
  const [device] = (await enroll(sql, 1)) as [number]
  await storeDirectly(
    admin,
    'ts, received_at, device_id, battery_pct',
    `select now() - interval '1 minute', now() + interval '1 day', ${device}, 50`,
  )
  await sql`select fleet.reconcile()`
  for (const view of STATUS_VIEWS) {
    t.match(await statusOf(sql, device, view), { status: 'online', battery_pct: 50 }, view)
  }
})

t.test('reconcile heals times in the future, too', async t => {
  const { sql, admin } = await withDatabase(t)
  const devices = await enroll(sql, 3)
  await ingest(
    sql,
    devices.map(device_id => ({ device_id, battery_pct: 50 })),
    ago(2 * MINUTE),
  )
  await admin`update fleet.device_last_status set last_received_at = now() + interval '3 hours' where device_id = 1`
  await admin`update fleet.device_last_status set last_ts = now() + interval '3 hours' where device_id = 2`
  await sql`select fleet.reconcile()`
  t.match(
    await sql`select device_id from fleet.device_last_status where greatest(last_ts, last_received_at) > now() or battery_pct <> 50`,
    [],
  )
})
