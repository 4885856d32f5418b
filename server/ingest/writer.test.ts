import { hash } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { waitFor, type TestDatabase } from '../../testing/database.ts'
import { isDistributed } from '../../testing/distributed.ts'
import { value } from '../../testing/fleet.ts'
import { Problem } from '../problem.ts'
import { ago, enroll, stored, withWriter } from '../../testing/server.ts'

interface Item {
  device_id: number
  ts: string
  [field: string]: unknown
}

function item(device_id: number, beat: object = {}): Item {
  return { device_id, ts: ago(30), ...beat }
}

/** How many statements have stored heartbeats; in a distributed store those of one device, because each node numbers its own. */
async function statementsOf({ sql }: TestDatabase, deviceId: number) {
  const own = isDistributed ? sql`where device_id = ${deviceId}` : sql``
  return await value(sql`select count(distinct xmin::text)::int from fleet.device_heartbeats ${own}`)
}

t.test('heartbeats that arrive together share a statement, and a single one does not wait', async t => {
  const { db, writer, pool, chunk } = await withWriter(t)
  const device = await enroll(db, 'a')
  await writer.store(chunk(item(device.device_id)))
  const outcomes = await Promise.all(
    Array.from({ length: 500 }, (_, n) => writer.store(chunk(item(device.device_id, { ts: ago(60 + n * 10) })))),
  )
  t.ok(outcomes.flat().every(outcome => !(outcome instanceof Problem) && outcome.result === 'stored'))
  t.equal(await statementsOf(db, device.device_id), 2)
  t.equal(pool.waits, 0)
})

t.test('after a statement the next one waits for as many requests, for a while', async t => {
  const { db, writer, chunk } = await withWriter(t, 2, 60_000)
  const devices: number[] = []
  for (let n = 0; n < 5; n++) devices.push((await enroll(db, `device ${n}`)).device_id)
  const send = (count: number, seconds: number) =>
    devices.slice(0, count).map(device_id => writer.store(chunk(item(device_id, { ts: ago(seconds) }))))
  const isPending = async (promise: Promise<unknown>) => (await Promise.race([promise, sleep(200, 'pending')])) === 'pending'
  // Twenty seconds apart, so that no two of a device are in one bucket although time passes.
  await Promise.all(send(1, 10))
  await Promise.all(send(1, 30))
  await Promise.all(send(5, 50))
  const early = Promise.all(send(4, 70))
  t.ok(await isPending(early), 'four wait for a fifth')
  const drained = writer.drained()
  t.ok(await isPending(drained), 'and they count as not yet written')
  await Promise.all(send(1, 90))
  await early
  await drained
  t.equal(await statementsOf(db, devices[0]!), 4)

  const full = chunk(...Array.from({ length: 1_000 }, (_, n) => item(devices[0]!, { ts: ago(1_000 + 10 * n) })))
  await writer.store(full)
  await writer.store(chunk(item(devices[0]!, { ts: ago(60) })))
  t.pass('it is requests that count: after one request with a thousand heartbeats the next one does not wait')

  const { writer: brief, chunk: ofBrief } = await withWriter(t, 2, 1)
  await Promise.all([1, 2].map(seconds => brief.store(ofBrief(item(1, { ts: ago(seconds * 10) })))))
  await brief.store(ofBrief(item(1, { ts: ago(60) })))
  t.pass('it waits for gatherMs and no longer')
})

t.test('each heartbeat gets its own outcome, whatever the order within the statement', async t => {
  const { db, writer, chunk } = await withWriter(t)
  const devices: { device_id: number }[] = []
  for (const alias of ['a', 'b', 'c']) devices.push(await enroll(db, alias))
  const at = ago(100)
  const items = [2, 0, 1, 0, 2, 1].map((device, n) =>
    item(devices[device]!.device_id, { ts: n === 4 ? '2001-01-01T00:00:00Z' : at }),
  )
  const outcomes = await writer.store(chunk(...items))
  t.match(outcomes, [
    { result: 'stored' },
    { result: 'stored' },
    { result: 'stored' },
    { result: 'duplicate' },
    { result: 'quarantined', reason: 'too_late', ts: '2001-01-01T00:00:00Z' },
    { result: 'duplicate' },
  ])
})

t.test('one statement judges the tokens of many requests, and halves of it do the same', async t => {
  const { db, writer, chunk } = await withWriter(t)
  const [a, b] = [await enroll(db, 'a'), await enroll(db, 'b')]
  const of = (token: string, ...items: object[]) => ({
    token: hash('sha256', token),
    items: items.length,
    devices: 1,
    json: JSON.stringify(items).slice(1, -1),
  })
  for (const poison of [{}, { battery_pct: 40_000 }]) {
    const round = 'battery_pct' in poison ? 1_000 : 2_000
    const outcomes = await Promise.all([
      writer.store(of(a.token, { ts: ago(round + 10) })),
      writer.store(of('unknown', { device_id: a.device_id, ts: ago(round + 20) }, { ts: ago(round + 30), ...poison })),
      writer.store(chunk(item(a.device_id, { ts: ago(round + 40) }), item(12_345), item(b.device_id, { ts: ago(round) }))),
      writer.store(of(b.token, { device_id: a.device_id }, { ts: ago(round + 50) }, { ts: ago(round + 50) })),
    ])
    const refused = { next_interval_s: null, reason: null }
    t.match(outcomes, [
      [{ result: 'stored', device_id: a.device_id, next_interval_s: 60 }],
      [
        { result: 'unauthorized', device_id: null, ...refused },
        'battery_pct' in poison ? { status: 422 } : { result: 'unauthorized', ...refused },
      ],
      [
        { result: 'stored', device_id: a.device_id },
        { result: 'unknown_device', device_id: 12_345, ...refused },
        { result: 'stored', device_id: b.device_id, next_interval_s: 60 },
      ],
      [
        { result: 'unknown_device', device_id: b.device_id, ...refused },
        { result: 'stored', device_id: b.device_id },
        { result: 'duplicate', device_id: b.device_id, next_interval_s: 60 },
      ],
    ])
    if (poison.battery_pct === undefined) {
      t.equal(await statementsOf(db, a.device_id), 1)
    }
  }
  t.equal((await stored(db, a.device_id)).length, 4)
  t.equal((await stored(db, b.device_id)).length, 4)
})

t.test('a poison item that passed the schema fails alone', async t => {
  const { db, writer, chunk } = await withWriter(t)
  const { device_id } = await enroll(db, 'a')
  const poison = [
    { signal_dbm: 40_000 },
    { battery_pct: 50.5 },
    { network_type: 'a\0b' },
    { agent_version: '\ud800' },
    { ts: '2026-02-30T00:00:00Z' },
    { ip: 'nowhere' },
  ]
  for (const [index, beat] of poison.entries()) {
    const items = Array.from({ length: 100 }, (_, n) => item(device_id, { ts: ago(10_000 * (index + 1) + 10 * n) }))
    items[57] = item(device_id, { ts: ago(10_000 * (index + 1) + 570), ...beat })
    const outcomes = await writer.store(chunk(...items))
    for (const [n, outcome] of outcomes.entries()) {
      if (n === 57) t.match(outcome, { status: 422, errors: [{ path: '' }] }, JSON.stringify(beat))
      else if (outcome instanceof Problem || outcome.result !== 'stored') t.fail(`neighbour ${n}: ${JSON.stringify(outcome)}`)
    }
  }
  t.equal((await stored(db, device_id)).length, 99 * poison.length)
})

t.test('concurrent unsorted batches of the same devices do not deadlock', async t => {
  const { db, writer, chunk } = await withWriter(t, 4)
  const devices: number[] = []
  for (let n = 0; n < 50; n++) devices.push((await enroll(db, `device ${n}`)).device_id)
  const [before] = await db.admin<
    { deadlocks: string }[]
  >`select deadlocks from pg_stat_database where datname = current_database()`
  const load = Array.from({ length: 40 }, async (_, round) => {
    const shuffled = devices
      .map(id => [Math.random(), id] as const)
      .sort(([a], [b]) => a - b)
      .map(([, id]) => id)
    const items = shuffled.map(id => item(id, { ts: ago(60 + 10 * round) }))
    // Half through the writer, half as another instance would send it.
    return round % 2 === 0
      ? writer.store(chunk(...items))
      : db.sql`select result from fleet.ingest(${JSON.stringify(items)}::text::json)`
  })
  const results = (await Promise.all(load)).flat() as { result?: string }[]
  t.equal(results.length, 2000)
  t.ok(results.every(({ result }) => result === 'stored'))
  await db.admin`select pg_stat_force_next_flush()`
  const [after] = await db.admin<
    { deadlocks: string }[]
  >`select deadlocks from pg_stat_database where datname = current_database()`
  t.equal(after!.deadlocks, before!.deadlocks)
})

t.test('a full queue refuses with 503 and a Retry-After, and accepts nothing', async t => {
  const { db, writer, metrics, chunk } = await withWriter(t)
  const { device_id } = await enroll(db, 'a')
  const full = chunk(...Array.from({ length: 1_000 }, () => item(device_id)))
  const first = Promise.all(Array.from({ length: 20 }, () => writer.store(full)))
  const refused = await writer.store(chunk(item(device_id, { ts: ago(500) }))).catch((error: unknown) => error)
  t.match(refused, { status: 503, headers: { 'retry-after': /^([1-9]|10)$/ } })
  t.equal((await metrics.backpressure.get()).values[0]?.value, 1)
  await first
  await writer.drained()
  await waitFor(async () => (await metrics.backpressure.get()).values[0]?.value === 0)
  t.equal((await stored(db, device_id)).length, 1)
})

t.test('when a backend dies during a statement, nothing is acknowledged, and the next heartbeat is written', async t => {
  const { db, writer, chunk } = await withWriter(t)
  const { device_id } = await enroll(db, 'a')
  // Holds up the insert, so that the backend dies in the middle of it.
  const locker = await db.admin.reserve()
  await locker`begin`
  await locker`lock table fleet.device_heartbeats in share mode`
  const waiting = writer.store(chunk(item(device_id)))
  await waitFor(async () => {
    const killed = await db.admin`
      select pg_terminate_backend(pid) from pg_stat_activity
      where datname = current_database() and application_name = 'nexmdm server' and wait_event_type = 'Lock'
    `
    return killed.length > 0
  })
  t.match(await waiting, [{ status: 503 }])
  await locker`rollback`
  locker.release()
  t.equal((await stored(db, device_id)).length, 0)
  t.match(await writer.store(chunk(item(device_id))), [{ result: 'stored' }])
})
