import t from 'tap'
import { withDatabase } from '../../testing/database.ts'
import { asRole, daysAgo, enroll, ingest, ingestOnTime, partitionAt, value, type Beat } from '../../testing/fleet.ts'

t.test("a heartbeat is in its day's partition and in last status when ingest answers", async t => {
  const { sql } = await withDatabase(t)
  const [device] = (await enroll(sql, 1)) as [number]
  const ts = daysAgo(2)
  const beat = {
    device_id: device,
    ts,
    battery_pct: 81,
    network_type: 'wifi',
    unity_running: true,
    signal_dbm: -61,
    agent_version: '3.1.0',
    extra: { store: 12, ä: [null, { b: 1.5 }] },
    ip: '192.0.2.7',
  }
  t.match(await ingestOnTime(sql, [beat]), [{ item: 1, result: 'stored', reason: null, ts: new Date(ts) }])
  t.match(await sql.unsafe(`select * from fleet.${await partitionAt(sql, ts)}`), [
    { ...beat, device_id: String(device), ts: new Date(ts) },
  ])
  t.match(await sql`select * from fleet.device_last_status`, [
    {
      device_id: String(device),
      last_ts: new Date(ts),
      battery_pct: 81,
      network_type: 'wifi',
      unity_running: true,
      signal_dbm: -61,
      agent_version: '3.1.0',
      extra: { store: 12, ä: [null, { b: 1.5 }] },
      ip: '192.0.2.7',
      status: 'ok',
    },
  ])
})

t.test('each item gets an answer, in item order', async t => {
  const { sql } = await withDatabase(t)
  const [first, second] = (await enroll(sql, 2)) as [number, number]
  const now = '2026-01-01T12:00:00Z'
  await sql`select fleet.create_partitions('2025-12-20', '2026-01-02')`
  const results = await ingest(
    sql,
    [
      { device_id: second, ts: '2026-01-01T11:59:01Z' },
      { device_id: first, ts: '2026-01-01T11:59:02Z' },
      { device_id: second, ts: '2026-01-01T11:59:09.999999Z' },
      { device_id: second, ts: '2025-12-24T11:59:59Z' },
      { device_id: second, ts: '2026-01-01T12:05:01Z' },
      { device_id: second, ts: '2025-12-25T12:00:00Z' },
      { device_id: first },
      { device_id: second, ts: '2026-01-01T11:59:10Z' },
      { device_id: second, ts: '2025-12-24T11:59:59Z' },
    ],
    now,
  )
  t.same(
    results.map(row => [row.item, row.result, row.reason]),
    [
      [1, 'stored', null],
      [2, 'stored', null],
      [3, 'duplicate', null],
      [4, 'quarantined', 'too_late'],
      [5, 'quarantined', 'in_future'],
      [6, 'stored', null],
      [7, 'stored', null],
      [8, 'stored', null],
      [9, 'quarantined', 'too_late'],
    ],
  )
  t.same(results[6]?.ts, new Date(now), "without ts, the server's time counts")
  t.equal(await value(sql`select count(*) from fleet.device_heartbeats`), '5')
  t.same(await sql`select device_id, reason, payload from fleet.heartbeat_quarantine order by ts`, [
    { device_id: String(second), reason: 'too_late', payload: { device_id: second, ts: '2025-12-24T11:59:59Z' } },
    { device_id: String(second), reason: 'in_future', payload: { device_id: second, ts: '2026-01-01T12:05:01Z' } },
  ])
  t.same(await ingest(sql, []), [], 'an empty batch is no error')
})

t.test('of items with the same device and time, and of those in one bucket, the first is stored', async t => {
  const { sql } = await withDatabase(t)
  const [first, second] = (await enroll(sql, 2)) as [number, number]
  const at = (second: number) => `2026-01-01T12:00:0${second}Z`
  await sql`select fleet.create_partitions('2025-12-31', '2026-01-02')`
  const batch = [
    { device_id: second, ts: at(7), battery_pct: 1 },
    { device_id: first, ts: at(5), battery_pct: 2 },
    { device_id: first, ts: at(5), battery_pct: 3 },
    { device_id: second, ts: at(3), battery_pct: 4 },
    { device_id: second, ts: at(7), battery_pct: 5 },
  ]
  t.same(
    (await ingest(sql, batch, '2026-01-01T12:01:00Z')).map(row => row.result),
    ['stored', 'stored', 'duplicate', 'duplicate', 'duplicate'],
  )
  t.same(await sql`select battery_pct from fleet.device_heartbeats order by device_id`, [{ battery_pct: 2 }, { battery_pct: 1 }])
})

t.test('a heartbeat from the future does not use up the bucket of a good one', async t => {
  const { sql } = await withDatabase(t)
  const [device] = (await enroll(sql, 1)) as [number]
  const noon = new Date().toISOString().slice(0, 10)
  const results = await ingest(
    sql,
    [
      { device_id: device, ts: `${noon}T00:06:08Z` },
      { device_id: device, ts: `${noon}T00:06:02Z` },
    ],
    `${noon}T00:01:05Z`,
  )
  t.same(
    results.map(row => row.result),
    ['quarantined', 'stored'],
  )
})

t.test('50 parallel copies within one bucket leave one row', async t => {
  const { sql } = await withDatabase(t)
  const [device] = (await enroll(sql, 1)) as [number]
  const day = new Date().toISOString().slice(0, 10)
  const answers = await Promise.all(
    Array.from({ length: 50 }, (_, n) => ingest(sql, [{ device_id: device, ts: `${day}T00:00:0${n % 10}Z`, battery_pct: n }])),
  )
  const results = answers.map(([row]) => row?.result)
  t.equal(results.filter(result => result === 'stored').length, 1)
  t.equal(results.filter(result => result === 'duplicate').length, 49)
  const [kept] = await sql<{ ts: Date; battery_pct: number }[]>`select ts, battery_pct from fleet.device_heartbeats`
  t.match(await sql`select count(*)::int as rows from fleet.device_heartbeats`, [{ rows: 1 }])
  t.match(
    await sql`select last_ts, battery_pct from fleet.device_last_status`,
    [{ last_ts: kept?.ts, battery_pct: kept?.battery_pct }],
    'last status shows the one that was stored',
  )
})

t.test('an older heartbeat does not rewind last status', async t => {
  const { sql } = await withDatabase(t)
  const [device] = (await enroll(sql, 1)) as [number]
  const at = (minutes: number) => new Date(Date.now() - minutes * 60_000).toISOString()
  await ingest(sql, [{ device_id: device, ts: at(10), unity_running: true }], at(9))
  await ingest(sql, [{ device_id: device, ts: daysAgo(2), unity_running: false }], at(8))
  t.match(await sql`select unity_running, status from fleet.device_last_status`, [{ unity_running: true, status: 'ok' }])
  await ingest(sql, [
    { device_id: device, ts: at(2), unity_running: false },
    { device_id: device, ts: at(4), unity_running: true },
  ])
  t.match(
    await sql`select unity_running, status from fleet.device_last_status`,
    [{ unity_running: false, status: 'unity_down' }],
    'the newest of a batch counts, wherever it is in the batch',
  )
})

t.test('concurrent unsorted batches of the same devices do not deadlock', async t => {
  const { sql } = await withDatabase(t)
  const devices = await enroll(sql, 200)
  const start = Date.now() - 86_400_000
  const batches = Array.from({ length: 40 }, (_, n) => {
    // Shuffled with a fixed step. Every fourth batch also has heartbeats of a skewed clock, which mark last status.
    const beats: Beat[] = devices.map((_, i) => ({
      device_id: devices[(i * 37 + n * 11) % devices.length] as number,
      ts: new Date(start + n * 60_000).toISOString(),
    }))
    if (n % 4 === 0) beats.push(...devices.slice(n, n + 50).map(device_id => ({ device_id, ts: '2001-01-01T00:00:00Z' })))
    return beats
  })
  const answers = await Promise.all(batches.map(batch => ingest(sql, batch)))
  t.equal(answers.flat().filter(row => row.result === 'stored').length, 200 * 40)
  t.match(await sql`select count(*)::int as devices, min(last_ts) as oldest from fleet.device_last_status`, [
    { devices: 200, oldest: new Date(start + 39 * 60_000) },
  ])
})

t.test('a device whose clock is wrong is marked, until it sends a good heartbeat', async t => {
  const { sql } = await withDatabase(t)
  const [device] = (await enroll(sql, 1)) as [number]
  await ingest(sql, [{ device_id: device, ts: '1970-01-01T00:00:05Z' }])
  t.match(await sql`select status, last_ts from fleet.device_status`, [{ status: 'clock_skewed', last_ts: null }])
  await ingest(sql, [{ device_id: device, ts: '1970-01-01T00:00:05Z' }, { device_id: device }])
  t.match(await sql`select status from fleet.device_status`, [{ status: 'online' }])
})

t.test('the quarantine has a cap per device, and reports it', async t => {
  const { sql } = await withDatabase(t)
  const [full, other] = (await enroll(sql, 2)) as [number, number]
  await sql`update fleet.settings set quarantine_per_device = 3`
  const old = (device_id: number, n: number) => ({ device_id, ts: `2001-01-01T00:00:0${n}Z` })
  const first = await ingest(sql, [old(full, 1), old(full, 2)])
  const second = await ingest(sql, [old(full, 3), old(full, 4), old(other, 1)])
  t.same(
    [...first, ...second].map(row => [row.result, row.reason]),
    [
      ['quarantined', 'too_late'],
      ['quarantined', 'too_late'],
      ['quarantined', 'too_late'],
      ['rejected', 'quarantine_full'],
      ['quarantined', 'too_late'],
    ],
  )
  t.match(await ingest(sql, [old(full, 1)]), [{ result: 'quarantined' }], 'what is already quarantined stays quarantined')
  t.equal(await value(sql`select count(*) from fleet.heartbeat_quarantine`), '4')
})

t.test('heartbeats of a day without a partition are quarantined, even if it was retired a moment ago', async t => {
  const { sql, admin } = await withDatabase(t)
  const [device] = (await enroll(sql, 1)) as [number]
  const ts = daysAgo(3)
  const name = await partitionAt(sql, ts)
  await sql`select fleet.archive_partition(${name})`
  t.match(await ingest(sql, [{ device_id: device, ts }]), [{ result: 'quarantined', reason: 'no_partition' }])

  // Detached without the store's functions: fleet.hb_partitions still says that it is attached, and the insert fails (23514).
  const other = await partitionAt(sql, daysAgo(4))
  await admin.unsafe(`alter table fleet.device_heartbeats detach partition fleet.${other}`)
  const results = await ingest(sql, [{ device_id: device, ts: daysAgo(4) }, { device_id: device }])
  t.match(results, [{ result: 'quarantined', reason: 'no_partition' }, { result: 'stored' }])
  t.match(await sql`select state from fleet.hb_partitions where partition_name = ${other}`, [{ state: 'detached' }])
})

t.test('quarantined heartbeats are replayed once their partition exists', async t => {
  const db = await withDatabase(t)
  const { sql, admin } = db
  const [first, second] = (await enroll(sql, 2)) as [number, number]
  const day = daysAgo(3).slice(0, 10)
  const name = await partitionAt(sql, `${day}T12:00Z`)
  await ingest(sql, [{ device_id: first, ts: `${day}T10:00:00Z`, battery_pct: 1 }])
  await admin.unsafe(`alter table fleet.device_heartbeats detach partition fleet.${name}`)
  await ingest(sql, [
    { device_id: first, ts: `${day}T10:00:05Z`, battery_pct: 2 },
    { device_id: second, ts: `${day}T10:00:00Z`, battery_pct: 3, unity_running: false, extra: { a: [1] } },
    { device_id: second, ts: daysAgo(8) },
  ])
  const dba = asRole(t, db, 'fleet_dba')
  t.same(
    await dba`select * from fleet.replay_quarantine()`,
    [{ stored: '0', duplicate: '0', remaining: '3' }],
    'not while the partition is detached',
  )

  await admin.unsafe(
    `alter table fleet.device_heartbeats attach partition fleet.${name} for values from ('${day}T00:00Z') to ('${day}T00:00Z'::timestamptz + interval '1 day')`,
  )
  await sql`select fleet.sync_partitions()`
  t.same(await dba`select * from fleet.replay_quarantine(p_device_id => ${first})`, [
    { stored: '0', duplicate: '1', remaining: '0' },
  ])
  t.same(await dba`select * from fleet.replay_quarantine()`, [{ stored: '1', duplicate: '0', remaining: '1' }])
  t.match(await sql`select battery_pct, unity_running, extra from fleet.device_heartbeats where device_id = ${second}`, [
    { battery_pct: 3, unity_running: false, extra: { a: [1] } },
  ])
  t.match(await sql`select last_ts from fleet.device_last_status where device_id = ${second}`, [
    { last_ts: new Date(`${day}T10:00:00Z`) },
  ])
  t.match(await sql`select reason from fleet.heartbeat_quarantine`, [{ reason: 'too_late' }])

  await sql`update fleet.settings set max_late = '30 days'`
  t.same(await dba`select * from fleet.replay_quarantine()`, [{ stored: '1', duplicate: '0', remaining: '0' }], 'now allowed')
  await t.rejects(dba`select * from fleet.replay_quarantine('2026-08-15', '2026-08-14')`, { code: 'FL422' })
})

t.test('ingest waits for a running retirement, and loses nothing', async t => {
  const db = await withDatabase(t)
  const [device] = (await enroll(db.sql, 1)) as [number]
  const ts = daysAgo(3)
  const name = await partitionAt(db.sql, ts)
  const dba = asRole(t, db, 'fleet_dba')
  await dba`begin`
  await dba`select fleet.archive_partition(${name})`
  const answer = ingest(db.sql, [
    { device_id: device, ts },
    { device_id: device, ts: daysAgo(0) },
  ]).then(rows => rows)
  await db.admin`select pg_sleep(0.2)`
  await dba`commit`
  t.match(await answer, [{ result: 'quarantined', reason: 'no_partition' }, { result: 'stored' }])
})

t.test('store_ip decides which part of the address is stored', async t => {
  const { sql } = await withDatabase(t)
  const [device] = (await enroll(sql, 1)) as [number]
  const addresses: Record<string, unknown[]> = {}
  for (const [n, setting] of ['full', 'prefix', 'none'].entries()) {
    await sql`update fleet.settings set store_ip = ${setting}`
    await ingest(sql, [
      { device_id: device, ts: daysAgo(1 + n), ip: '192.0.2.77' },
      { device_id: device, ts: daysAgo(1.5 + n), ip: '2001:db8:1:2:3:4:5:6' },
    ])
    addresses[setting] = (await sql`select distinct ip from fleet.device_heartbeats order by ip`).map(row => row.ip as unknown)
  }
  t.same(addresses.full, ['192.0.2.77', '2001:db8:1:2:3:4:5:6'])
  t.same(addresses.prefix, ['192.0.2.0/24', '192.0.2.77', '2001:db8:1::/48', '2001:db8:1:2:3:4:5:6'])
  t.same(addresses.none, ['192.0.2.0/24', '192.0.2.77', '2001:db8:1::/48', '2001:db8:1:2:3:4:5:6', null])
})

t.test('a value that does not fit its column fails the whole batch, and nothing is stored', async t => {
  const { sql } = await withDatabase(t)
  const [device] = (await enroll(sql, 1)) as [number]
  for (const poison of [
    { battery_pct: 50.5 },
    { signal_dbm: 40_000 },
    { agent_version: 'a\u0000b' },
    { ts: '2026-02-30T00:00:00Z' },
  ]) {
    await t.rejects(
      ingest(sql, [{ device_id: device }, { device_id: device, ...poison }]),
      { code: /^22/ },
      JSON.stringify(poison),
    )
  }
  t.equal(await value(sql`select count(*) from fleet.device_heartbeats`), '0')
})

t.test('last status stays HOT: no index on columns that heartbeats change', async t => {
  const { sql } = await withDatabase(t)
  t.same(
    await sql`
    select regexp_replace(pg_get_indexdef(indexrelid), '.* USING ', '') as index
    from pg_index where indrelid = 'fleet.device_last_status'::regclass
    order by 1
  `,
    [
      { index: 'btree (device_id)' },
      { index: "btree (device_id) WHERE (status <> 'ok'::text)" },
      { index: 'btree (device_id) WHERE (status IS NULL)' },
      { index: 'btree (device_id) WHERE is_silent' },
    ],
  )
})
