import postgres from 'postgres'
import t from 'tap'
import { waitFor, withDatabase } from '../../testing/database.ts'
import { asRole, earlier, enroll, ingestAndNote as ingest, startedAgo, value } from '../../testing/fleet.ts'
import type { Sql } from 'postgres'

/** A moment `seconds` after the beginning of a test, which is two hours ago. */
function clock() {
  const base = Date.now() - 2 * 3_600_000
  return (seconds: number) => new Date(base + seconds * 1000).toISOString()
}

const note = (sql: Sql, at: string) => value(sql`select fleet.note_transitions(fleet.devices_to_note(${at}), ${at})`)

/** The events of a device with their reasons, oldest first. */
async function history(sql: Sql, device: number) {
  const rows = await sql<{ event: string; reason: string | null }[]>`
    select event, reason from fleet.device_transitions where device_id = ${device} order by transition_id`
  return rows.map(({ event, reason }) => (reason === null ? event : `${event} (${reason})`))
}

/** Sends a heartbeat of each device at these times. */
async function beats(sql: Sql, devices: number[], times: string[], fields: Record<string, string | number | boolean> = {}) {
  for (const at of times)
    await ingest(
      sql,
      devices.map(device_id => ({ device_id, ts: at, ...fields })),
      at,
    )
}

t.test('a device that goes away and comes back has one row for each change, with what it had reported', async t => {
  const { sql, admin } = await withDatabase(t)
  const at = clock()
  const [device] = (await enroll(sql, 1)) as [number]
  await admin`update fleet.device_last_status set noted_since = ${at(0)}`
  await beats(sql, [device], [at(0), at(60)], { battery_pct: 80, network_type: 'wifi', agent_version: '3.1' })
  await note(sql, at(120))
  for (const second of [180, 240, 300, 700, 760, 820]) await note(sql, at(second))
  await beats(sql, [device], [at(900)], { battery_pct: 79 })
  const rows = await sql`
    select event, status, previous_status, reason, battery_pct, network_type, agent_version, cohort,
      extract(epoch from since - ${at(0)})::int as since, extract(epoch from previous_for)::int as previous_for
    from fleet.device_transitions order by transition_id`
  t.match(rows, [
    { event: 'online', status: 'online', previous_status: 'new', since: 0, battery_pct: 80, cohort: 'default' },
    { event: 'late', previous_status: 'online', since: 165, previous_for: 165, reason: 'unknown', agent_version: '3.1' },
    { event: 'offline', previous_status: 'late', since: 660, previous_for: 495, reason: 'unknown', network_type: 'wifi' },
    {
      event: 'back',
      status: 'online',
      previous_status: 'offline',
      since: 900,
      previous_for: 240,
      reason: 'unknown',
      battery_pct: 79,
    },
  ])
  t.equal(rows.length, 4)
})

t.test('a revoked device, and one whose token is renewed', async t => {
  const { sql } = await withDatabase(t)
  const [device] = (await enroll(sql, 1)) as [number]
  await ingest(sql, [{ device_id: device }])
  await sql`select fleet.revoke_device(${device})`
  await sql`select fleet.revoke_device(${device})`
  await sql`select fleet.note_changed_devices()`
  t.same(await history(sql, device), ['online', 'revoked'])
  await sql`select fleet.note_transitions(fleet.devices_to_note(), now())`
  t.same(await history(sql, device), ['online', 'revoked'], 'a revoked device is not looked at again')
  await sql`select fleet.renew_token(${device})`
  await ingest(sql, [{ device_id: device }])
  t.equal((await history(sql, device))[2], 'back')
})

t.test('a silence is over also if what arrives is a duplicate, old, or refused', async t => {
  for (const [name, send] of Object.entries({
    'a duplicate': (sql: Sql, device: number, at: (s: number) => string) =>
      ingest(sql, [{ device_id: device, ts: at(0) }], at(3000)),
    'an older heartbeat': (sql: Sql, device: number, at: (s: number) => string) =>
      ingest(sql, [{ device_id: device, ts: at(-3000) }], at(3000)),
    'one from the future': (sql: Sql, device: number, at: (s: number) => string) =>
      ingest(sql, [{ device_id: device, ts: at(30_000) }], at(3000)),
  })) {
    const { sql, admin } = await withDatabase(t)
    await startedAgo(admin, '1 day')
    const at = clock()
    const [device] = (await enroll(sql, 1)) as [number]
    await admin`update fleet.device_last_status set noted_since = ${at(0)}`
    await beats(sql, [device], [at(0)])
    await note(sql, at(2000))
    await send(sql, device, at)
    const events = await history(sql, device)
    t.equal(events[3], 'back (unknown)', `${name}: ${events.join(', ')}`)
  }
})

t.test('other settings and other intervals change the status of devices too', async t => {
  const { sql, admin } = await withDatabase(t)
  const [device] = (await enroll(sql, 1)) as [number]
  const at = clock()
  await admin`update fleet.device_last_status set noted_since = ${at(0)}`
  await beats(sql, [device], [at(0)])
  await note(sql, at(1000))
  await admin`update fleet.settings set offline_after = '1 hour'`
  await note(sql, at(1060))
  await admin`update fleet.settings set offline_after = '10 minutes'`
  await note(sql, at(1120))
  t.same(await history(sql, device), ['online', 'late (unknown)', 'offline (unknown)', 'back (unknown)', 'offline (unknown)'])
  const status = () => value(sql`select noted_status from fleet.device_last_status where device_id = ${device}`)
  t.equal(await status(), 'offline')
  await admin`update fleet.devices set heartbeat_interval = '1 hour' where device_id = ${device}`
  await admin`select fleet.note_changed_devices()`
  await note(sql, at(1180))
  t.equal(await status(), 'online')
})

t.test('the first look at a store that had no transitions writes none', async t => {
  const { sql, admin } = await withDatabase(t)
  const devices = await enroll(sql, 4)
  const at = clock()
  await beats(sql, devices.slice(0, 3), [at(0)])
  await admin`update fleet.device_last_status set noted_status = null, noted_since = null, late_after_s = null`
  await admin`delete from fleet.device_transitions`
  await ingest(sql, [{ device_id: devices[0]! }])
  await admin`call fleet.mark_silent()`
  t.equal(await value(sql`select count(*)::int from fleet.device_transitions`), 0)
  t.same(
    (await sql`select noted_status from fleet.device_last_status order by device_id`).map(row => row.noted_status as string),
    ['online', 'offline', 'offline', 'new'],
  )
  await ingest(sql, [{ device_id: devices[1]! }])
  t.same(await history(sql, devices[1]!), ['back'])
})

t.test('a minute writes only to the devices that changed', async t => {
  const { sql, admin } = await withDatabase(t)
  const devices = await enroll(sql, 300)
  await ingest(
    sql,
    devices.map(device_id => ({ device_id })),
  )
  const gone = devices[7]!
  await admin`update fleet.device_last_status set last_received_at = now() - interval '3 minutes' where device_id = ${gone}`
  const versions = async () =>
    new Map(
      (await admin`select device_id, ctid::text from fleet.device_last_status`).map(row => [Number(row.device_id), row.ctid]),
    )
  const before = await versions()
  await admin`call fleet.mark_silent()`
  const after = await versions()
  t.same(
    [...after].filter(([id, ctid]) => before.get(id) !== ctid).map(([id]) => id),
    [gone],
  )
  await admin`call fleet.mark_silent()`
  t.same(await versions(), after, 'nor does the next')
})

t.test('the feed skips nothing that commits late, and repeats nothing', async t => {
  const db = await withDatabase(t)
  const { sql } = db
  const devices = await enroll(sql, 31)
  // The first transition in a cluster finds the base of the positions, and the others wait for it.
  await ingest(sql, [{ device_id: devices[30]! }])
  const owner = asRole(t, db, 'fleet_owner')
  const late = asRole(t, db, 'fleet_owner')
  const seen: string[] = []
  let after: string | null = null
  const read = async () => {
    for (;;) {
      const rows: { cursor: string; transition_id: string }[] = await sql`select * from fleet.transitions_after(${after}, 4)`
      seen.push(...rows.map(row => String(row.transition_id)))
      after = rows.at(-1)?.cursor ?? after
      if (rows.length < 4) return
    }
  }
  for (let round = 0; round < 10; round++) {
    // It takes its numbers before the others and commits after them.
    await late`begin`
    await ingest(late, [{ device_id: devices[round * 3]! }])
    await ingest(owner, [{ device_id: devices[round * 3 + 1]! }])
    await read()
    await ingest(owner, [{ device_id: devices[round * 3 + 2]! }])
    if (round % 2) await read()
    await late`commit`
    await read()
  }
  // A transaction elsewhere in the cluster can delay the last ones.
  await waitFor(async () => {
    await read()
    return seen.length >= 31
  })
  const all = (await sql`select transition_id from fleet.device_transitions order by position, transition_id`).map(row =>
    String(row.transition_id),
  )
  t.equal(all.length, 31)
  t.same(seen, all)
})

t.test('in another cluster, positions go on behind all that were handed out', async t => {
  const { sql, admin } = await withDatabase(t)
  const [one, two] = (await enroll(sql, 2)) as [number, number]
  await ingest(sql, [{ device_id: one }])
  // A transaction elsewhere in the cluster can delay it.
  let first = ''
  await waitFor(async () => {
    const [row] = await sql<{ cursor: string }[]>`select cursor from fleet.transitions_after(null, 10)`
    first = row?.cursor ?? ''
    return first !== ''
  })
  // As in a store that was restored from a dump: transaction ids begin again.
  await admin`update fleet.transition_feed set cluster = 'another/00000001', base = base + 1000000`
  await admin`update fleet.device_transitions set position = position + 1000000`
  const cursor = `${Number(first.split('-')[0]) + 1_500_000}-1`
  await ingest(sql, [{ device_id: two }])
  let found: number[] = []
  await waitFor(async () => {
    const rows = await sql<{ device_id: string }[]>`select device_id from fleet.transitions_after(${cursor}, 10)`
    found = rows.map(row => Number(row.device_id))
    return found.length > 0
  })
  t.same(found, [two])
})

t.test('a cursor that is none is refused', async t => {
  const { sql } = await withDatabase(t)
  for (const cursor of ['x', '1', '-1-1', '1-', '9'.repeat(19) + '-1'])
    await t.rejects(sql`select * from fleet.transitions_after(${cursor})`, { code: 'FL422', message: /after/ })
})

t.test('transitions are kept for as long as the settings say, and go with their device', async t => {
  const { sql, admin } = await withDatabase(t)
  const [one, two] = (await enroll(sql, 2)) as [number, number]
  await ingest(sql, [{ device_id: one }, { device_id: two }])
  await admin`update fleet.device_transitions set at = now() - interval '401 days' where device_id = ${one}`
  await admin`select fleet.prune()`
  t.same(await history(sql, one), [])
  t.same(await history(sql, two), ['online'])
  await sql`select fleet.erase_device(${two}, 'asked by its owner')`
  t.equal(await value(admin`select count(*)::int from fleet.device_transitions`), 0)
  await t.rejects(admin`update fleet.settings set transitions_keep = '1 hour'`, postgres.PostgresError)
})

t.test('a store that is upgraded while heartbeats arrive knows after one look when each device is late', async t => {
  const { sql, admin } = await withDatabase(t)
  const devices = await enroll(sql, 6)
  await ingest(
    sql,
    devices.map(device_id => ({ device_id })),
  )
  // As right after the migration.
  await admin`
    update fleet.device_last_status set noted_status = null, noted_since = null, late_after_s = null,
      last_received_at = ${earlier(admin, 'last_received_at', '2 hours')}, last_ts = ${earlier(admin, 'last_ts', '2 hours')}`
  await admin`delete from fleet.device_transitions`
  await ingest(
    sql,
    devices.slice(0, 3).map(device_id => ({ device_id })),
  )
  await admin`call fleet.mark_silent()`
  t.same(
    [...(await sql`select distinct late_after_s from fleet.device_last_status`)].map(row => row.late_after_s as number),
    [105],
  )
  t.equal(await value(sql`select fleet.devices_to_note()`), null)
  t.equal(await value(sql`select count(*)::int from fleet.device_transitions`), 0)
})

t.test('in a cohort that is slowed down, nobody is looked at who keeps to it', async t => {
  const { sql, admin } = await withDatabase(t)
  const devices = await enroll(sql, 50)
  await ingest(
    sql,
    devices.map(device_id => ({ device_id })),
  )
  await sql`select fleet.set_cohort_interval('default', '10 minutes')`
  await admin`update fleet.device_last_status set last_received_at = now() - interval '8 minutes'`
  t.equal(await value(sql`select fleet.devices_to_note()`), null)
  await admin`update fleet.device_last_status set last_received_at = now() - interval '16 minutes' where device_id = ${devices[3]!}`
  t.same(await value(sql`select fleet.devices_to_note()`), [String(devices[3])])
  await note(sql, new Date().toISOString())
  t.same(await history(sql, devices[3]!), ['online', 'late (unknown)'])
})

t.test('devices that stay late are not locked again and again', async t => {
  const { sql, admin } = await withDatabase(t)
  const [device] = (await enroll(sql, 1)) as [number]
  await ingest(sql, [{ device_id: device }])
  await admin`update fleet.device_last_status set last_received_at = now() - interval '5 minutes'`
  await admin`call fleet.mark_silent()`
  const lock = () => value(admin`select xmax::text from fleet.device_last_status where device_id = ${device}`)
  const before = await lock()
  await admin`call fleet.mark_silent()`
  t.equal(await lock(), before)
})

t.test('a changed interval of the whole fleet neither waits for ingest nor keeps it waiting', async t => {
  const db = await withDatabase(t)
  const { sql, admin } = db
  const devices = await enroll(sql, 20)
  await ingest(
    sql,
    devices.map(device_id => ({ device_id })),
  )
  const dba = asRole(t, db, 'postgres')
  await dba`begin`
  await dba`update fleet.devices set heartbeat_interval = '5 minutes'`
  await sql`set lock_timeout = '2s'`
  await ingest(sql, [{ device_id: devices[0]!, ts: new Date(Date.now() + 20_000).toISOString() }])
  await dba`commit`
  await admin`call fleet.mark_silent()`
  t.same(
    (await sql`select distinct late_after_s from fleet.device_last_status`).map(row => row.late_after_s as number),
    [465],
  )
  t.equal(await value(admin`select count(*)::int from fleet.changed_devices`), 0)
})

t.test('a clock of Postgres that ran ahead, or was set back, leaves one row for each change that the views showed', async t => {
  const { sql, admin } = await withDatabase(t)
  await startedAgo(admin, '1 day')
  const at = clock()
  const [device] = (await enroll(sql, 1)) as [number]
  await admin`update fleet.device_last_status set noted_since = ${at(0)}`
  await beats(sql, [device], [at(0), at(60)])
  await note(sql, at(100))
  // For a moment it is an hour later, so the device is offline; then it is not.
  await note(sql, at(3700))
  await beats(sql, [device], [at(120)])
  await note(sql, at(150))
  // It is set back by half an hour while the device goes on.
  await note(sql, at(-1650))
  await beats(sql, [device], [at(180), at(240)])
  await note(sql, at(300))
  t.same(await history(sql, device), ['online', 'late (unknown)', 'offline (unknown)', 'back (unknown)'])
  const rows = await sql<{ follows: boolean; in_order: boolean }[]>`
    select previous_status = lag(status, 1, 'new') over w as follows, since >= lag(since, 1, since) over w or event = 'back' as in_order
    from fleet.device_transitions window w as (order by transition_id)`
  t.ok(rows.every(row => row.follows && row.in_order))
  // And the next silence is seen as any other.
  await note(sql, at(1200))
  t.same((await history(sql, device)).slice(4), ['late (unknown)', 'offline (unknown)'])
})
