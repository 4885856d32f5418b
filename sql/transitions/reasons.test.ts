import t from 'tap'
import type { Sql } from 'postgres'
import { withDatabase } from '../../testing/database.ts'
import { isDistributed } from '../../testing/distributed.ts'
import { enroll, ingest, startedAgo, value, type Beat } from '../../testing/fleet.ts'
import { generator } from '../../testing/random.ts'

const MINUTE = 60
/** Minutes of a trace in which devices report before something happens. */
const BEFORE = 40

const base = Date.now() - 4 * 3_600_000
const time = (seconds: number) => new Date(base + seconds * 1000).toISOString()
/** Looks at all devices, as fleet.mark_silent() does. */
const note = async (sql: Sql, seconds: number) => {
  if (isDistributed) await sql`select fleet.note_gaps()`
  await sql`select fleet.find_incidents(fleet.devices_to_note(${time(seconds)}), ${time(seconds)})`
  await sql`select fleet.note_transitions(fleet.devices_to_note(${time(seconds)}), ${time(seconds)})`
}

/** Sends beats by the second at which they arrive, and looks each minute, as the job does, until `end`. */
async function play(sql: Sql, admin: Sql, beats: { at: number; beat: Beat }[], end: number) {
  beats.sort((a, b) => a.at - b.at)
  let next = 0
  for (let minute = MINUTE; minute <= end; minute += MINUTE) {
    const due = []
    for (; next < beats.length && beats[next]!.at < minute; next++) due.push(beats[next]!)
    if (due.length > 0)
      await sql`
        select count(*) from json_array_elements(${JSON.stringify(due.map(({ at, beat }) => ({ ...beat, ts: time(at) })))}::text::json)
          with ordinality e (beat, nth)
        cross join lateral fleet.ingest(json_build_array(e.beat), (e.beat ->> 'ts')::timestamptz) r`
    // As fleet.mark_silent() marks them.
    await admin`update fleet.device_last_status set is_silent = last_received_at < ${time(minute)}::timestamptz - interval '450 seconds'`
    await note(sql, minute)
  }
}

/** The reason of the only offline of each device; undefined if there is none or more than one. */
async function reasons(sql: Sql) {
  const rows = await sql<{ device_id: string; reasons: string[] }[]>`
    select device_id, array_agg(reason) as reasons from fleet.device_transitions where event = 'offline' group by 1`
  return new Map(rows.map(row => [Number(row.device_id), row.reasons.length === 1 ? row.reasons[0] : undefined]))
}

const steady = (device_id: number, random: () => number, until: number, fields: (at: number) => object = () => ({})) => {
  const beats: { at: number; beat: Beat }[] = []
  for (let at = Math.floor(random() * MINUTE); at < until; at += 45 + Math.floor(random() * 30))
    beats.push({ at, beat: { device_id, battery_pct: 80, signal_dbm: -70, ...fields(at) } })
  return beats
}

t.test('of traces with a known cause, at least 95 % are named rightly, and nobody is offline while a promise holds', async t => {
  const random = generator(20261129)
  const { sql, admin } = await withDatabase(t)
  const causes = ['shutdown', 'reboot', 'update', 'app', 'sleep', 'battery', 'signal', 'unknown'] as const
  const each = 12
  const ids = await enroll(sql, each * causes.length + 200)
  await admin`update fleet.device_last_status set noted_since = ${time(0)}`
  const beats: { at: number; beat: Beat }[] = []
  const expected = new Map<number, string>()
  const promises = new Map<number, number>()
  const stop = BEFORE * MINUTE
  const end = stop + 90 * MINUTE
  for (const [n, device] of ids.entries()) {
    const cause = causes[Math.floor(n / each)]
    if (cause === undefined) {
      // The others go on, with weak batteries and signals now and then.
      const charge = Math.floor(random() * 100)
      beats.push(...steady(device, random, end, () => ({ battery_pct: charge, signal_dbm: -105 + Math.floor(random() * 50) })))
      continue
    }
    expected.set(device, cause)
    // So that they do not fall silent together.
    const last = stop - Math.floor(random() * 25 * MINUTE)
    const drain = 1 + Math.floor(random() * 4)
    const fields: Record<string, (at: number) => object> = {
      battery: at => ({ battery_pct: Math.max(1, Math.min(100, drain + Math.floor((last - at) / 240))) }),
      signal: at => ({ signal_dbm: -Math.max(60, 112 - Math.floor((last - at) / 30)) }),
      // Weak, but as it always was.
      unknown: () => ({ battery_pct: 4, signal_dbm: -108 }),
    }
    const life = steady(device, random, last, fields[cause])
    const ending = life.at(-1)!
    if (['shutdown', 'reboot', 'update', 'app'].includes(cause)) ending.beat = { ...ending.beat, stopping: cause }
    if (cause === 'sleep' || random() < 0.3) {
      if (cause !== 'sleep' && ending.beat.stopping === undefined) ending.beat = { ...ending.beat }
      else {
        const nextIn = 300 + Math.floor(random() * 1500)
        ending.beat = { ...ending.beat, next_in_s: nextIn }
        promises.set(device, ending.at + nextIn)
      }
    }
    beats.push(...life)
  }
  await play(sql, admin, beats, end)
  const found = await reasons(sql)
  let right = 0
  for (const [device, cause] of expected) {
    if (found.get(device) === cause) right++
    else t.comment(`device ${device}: ${cause} was named ${found.get(device)}`)
  }
  t.ok(right >= 0.95 * expected.size, `${right} of ${expected.size}`)
  t.equal(found.size, expected.size, 'no other device went offline')
  const broken = await admin`
    select device_id, extract(epoch from since - ${time(0)})::int as since from fleet.device_transitions
    where event in ('late', 'offline') and device_id = any (${[...promises.keys()]})`
  t.same(
    broken
      .filter(row => row.since < (promises.get(Number(row.device_id)) ?? 0))
      .filter(row => {
        // Before its last heartbeat it may have been late as any other.
        return row.since > (beats.filter(b => b.beat.device_id === Number(row.device_id)).at(-1)?.at ?? 0)
      }),
    [],
    'nobody is late or offline while a promise holds',
  )
  const [shown] = await sql`
    select count(*)::int as devices from fleet.device_status s join fleet.device_transitions t using (device_id)
    where t.event = 'offline' and s.reason = t.reason`
  t.equal(shown?.devices, expected.size, 'device_status says the same')
})

t.test('a cohort or a network that falls silent together is one incident', async t => {
  const random = generator(7)
  const { sql, admin } = await withDatabase(t)
  const ids = await enroll(sql, 60)
  await admin`update fleet.device_last_status set noted_since = ${time(0)}`
  const cohort = ids.slice(0, 15)
  const site = ids.slice(15, 22)
  await admin`update fleet.devices set cohort = 'store-7' where device_id = any (${cohort})`
  await admin`update fleet.devices set cohort = 'lobbies' where device_id = any (${ids.slice(15)})`
  const stop = 20 * MINUTE
  const back = 45 * MINUTE
  const end = 60 * MINUTE
  const beats: { at: number; beat: Beat }[] = []
  for (const [n, device] of ids.entries()) {
    const ip = site.includes(device) ? `198.51.100.${n}` : `203.0.${n}.7`
    const until = cohort.includes(device) || site.includes(device) ? stop : n === 30 ? stop - 400 : end
    // One device of the cohort stays alive.
    beats.push(...steady(device, random, device === cohort[0] ? end : until, () => ({ ip })))
    if (until === stop && device !== cohort[0])
      beats.push(...steady(device, random, end - back, () => ({ ip })).map(({ at, beat }) => ({ at: at + back, beat })))
  }
  await play(sql, admin, beats, end - MINUTE)
  for (let second = end - MINUTE; second <= end; second += MINUTE) await admin`select fleet.end_incidents(${time(second)})`
  const found = await reasons(sql)
  t.same(
    cohort.slice(1).map(device => found.get(device)),
    cohort.slice(1).map(() => 'cohort_silent'),
  )
  t.same(
    site.map(device => found.get(device)),
    site.map(() => 'network_silent'),
  )
  t.equal(found.get(ids[30]!), 'unknown', 'one that was lost alone has its own reason')
  const incidents = await sql`
    select kind, subject, devices, ended_at is not null as is_over,
      extract(epoch from began_at - ${time(stop)}) between -120 and 0 as began
    from fleet.incidents order by kind`
  t.same(
    [...incidents],
    [
      { kind: 'cohort', subject: 'store-7', devices: 14, is_over: true, began: true },
      { kind: 'network', subject: '198.51.100.0/24', devices: 7, is_over: true, began: true },
    ],
  )
  t.equal(
    await value(
      sql`select count(*)::int from fleet.device_transitions where event = 'back' and reason in ('cohort_silent', 'network_silent') and incident_id is not null`,
    ),
    21,
    'a device that comes back has the reason and the incident',
  )
})

t.test('while nothing arrives from anybody, the reason is ours', async t => {
  const random = generator(8)
  const { sql, admin } = await withDatabase(t)
  const ids = await enroll(sql, 40)
  await admin`update fleet.device_last_status set noted_since = ${time(0)}`
  const stop = 20 * MINUTE
  await play(
    sql,
    admin,
    ids.flatMap(device => steady(device, random, stop)),
    stop + 15 * MINUTE,
  )
  t.same([...new Set((await reasons(sql)).values())], ['ingest_down'])
  t.same(
    [...(await sql`select kind, subject, devices from fleet.incidents`)],
    [{ kind: 'ingest', subject: '(all)', devices: 40 }],
  )
})

t.test('after Postgres was down, the silence of everybody was ours, also of those who are back before anybody looks', async t => {
  const random = generator(10)
  const { sql, admin } = await withDatabase(t)
  const ids = await enroll(sql, 20)
  await admin`update fleet.device_last_status set noted_since = ${time(0)}`
  const stop = 20 * MINUTE
  await play(
    sql,
    admin,
    ids.flatMap(device => steady(device, random, stop)),
    stop,
  )
  await admin`update fleet.silence_watch set looked_at = ${time(stop - 20)}, newest_received_at = ${time(stop - 25)}`
  // Postgres starts, and the first half of the devices report at once.
  await startedAgo(admin, `${Math.round((Date.now() - base) / 1000) - stop - 30 * MINUTE} seconds`)
  const again = stop + 30 * MINUTE + 5
  await ingest(
    sql,
    ids.slice(0, 10).map(device_id => ({ device_id, ts: time(again) })),
    time(again),
  )
  await note(sql, again + 30)
  t.same(
    [...(await reasons(sql)).values()],
    ids.map(() => 'ingest_down'),
  )
  t.same(
    (await sql`select distinct reason from fleet.device_transitions where event = 'back'`).map(row => row.reason as string),
    ['ingest_down'],
  )
})

t.test('a few devices that are lost at the same time are no incident', async t => {
  const random = generator(9)
  const { sql, admin } = await withDatabase(t)
  const ids = await enroll(sql, 50)
  await admin`update fleet.device_last_status set noted_since = ${time(0)}`
  const end = 40 * MINUTE
  await play(
    sql,
    admin,
    ids.flatMap((device, n) => steady(device, random, n < 10 ? 15 * MINUTE : end, () => ({ ip: `203.0.${n}.7` }))),
    end - MINUTE,
  )
  t.same([...new Set((await reasons(sql)).values())], ['unknown'])
  t.equal(await value(sql`select count(*)::int from fleet.incidents`), 0)
})

t.test('one device that overslept does not hide that the others fell silent together', async t => {
  const random = generator(11)
  const { sql, admin } = await withDatabase(t)
  const ids = await enroll(sql, 24)
  await admin`update fleet.device_last_status set noted_since = ${time(0)}`
  await admin`update fleet.devices set cohort = 'store-7' where device_id = any (${ids.slice(0, 12)})`
  const stop = 60 * MINUTE
  const beats = ids.flatMap((device, n) =>
    n === 0
      ? [{ at: 30, beat: { device_id: device, next_in_s: stop - 30 } }]
      : steady(device, random, n < 12 ? stop : stop + 20 * MINUTE),
  )
  await play(sql, admin, beats, stop + 15 * MINUTE)
  const found = await reasons(sql)
  t.equal(found.get(ids[0]!), 'sleep')
  t.same(
    ids.slice(1, 12).map(device => found.get(device)),
    ids.slice(1, 12).map(() => 'cohort_silent'),
  )
  t.same(
    [...(await sql`select kind, subject, devices from fleet.incidents`)],
    [{ kind: 'cohort', subject: 'store-7', devices: 11 }],
  )
})

t.test('an incident of which some never come back does not hide the next one', async t => {
  const random = generator(12)
  const { sql, admin } = await withDatabase(t)
  const ids = await enroll(sql, 40)
  await admin`update fleet.device_last_status set noted_since = ${time(0)}`
  await admin`update fleet.devices set cohort = 'store-7' where device_id = any (${ids.slice(0, 20)})`
  const first = 20 * MINUTE
  const second = 60 * MINUTE
  const end = 80 * MINUTE
  const beats = ids.flatMap((device, n) => steady(device, random, n < 12 ? first : n < 20 ? second : end))
  await play(sql, admin, beats, end)
  t.same(
    [...(await sql`select subject, devices, ended_at from fleet.incidents order by incident_id`)],
    [
      { subject: 'store-7', devices: 12, ended_at: null },
      { subject: 'store-7', devices: 8, ended_at: null },
    ],
  )
  const found = await reasons(sql)
  t.same(
    ids.slice(0, 20).map(device => found.get(device)),
    ids.slice(0, 20).map(() => 'cohort_silent'),
  )
})

t.test('one device that is lost with Postgres is no outage of ingest, and an outage that is over explains nothing', async t => {
  const random = generator(13)
  const { sql, admin } = await withDatabase(t)
  const ids = await enroll(sql, 20)
  await admin`update fleet.device_last_status set noted_since = ${time(0)}`
  const end = 60 * MINUTE
  const stop = 20 * MINUTE
  // The first is lost when Postgres is, and the second half an hour later.
  await play(
    sql,
    admin,
    ids.flatMap((device, n) => steady(device, random, n === 0 ? stop : end)),
    stop,
  )
  await admin`
    update fleet.silence_watch
    set looked_at = ${time(stop + 60)}, gap_from = ${time(stop - 60)}, gap_to = ${time(stop + 60)}, newest_received_at = ${time(stop)}`
  await startedAgo(admin, '1 day')
  const later = ids.flatMap((device, n) =>
    n === 0 ? [] : steady(device, random, n === 1 ? 25 * MINUTE : 38 * MINUTE).map(({ at, beat }) => ({ at: at + stop, beat })),
  )
  await play(sql, admin, later, end)
  t.equal(await value(sql`select count(*)::int from fleet.incidents`), 0)
  t.equal((await reasons(sql)).get(ids[1]!), 'unknown')
})
