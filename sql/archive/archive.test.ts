import t from 'tap'
import type { Test } from 'tap'
import { withDatabase } from '../../testing/database.ts'
import { asRole, daysAgo, enroll, ingest, partitionAt, value } from '../../testing/fleet.ts'

/** A database with one retired partition of three rows, and a session with the archiver's role. */
async function withRetired(t: Test) {
  const db = await withDatabase(t)
  const { sql } = db
  const [device] = (await enroll(sql, 1)) as [number]
  await ingest(
    sql,
    [5.1, 5.2, 5.3].map(days => ({ device_id: device, ts: `${daysAgo(5).slice(0, 10)}T0${days.toFixed(1).at(-1)}:00:00Z` })),
  )
  const name = await partitionAt(sql, `${daysAgo(5).slice(0, 10)}T01:00:00Z`)
  await sql`select fleet.archive_partition(${name})`
  const archiver = asRole(t, db, 'fleet_archiver')
  const sums = async () => {
    const [row] = await archiver<{ row_count: string; rows_hash: string; min_ts: Date; max_ts: Date }[]>`
      select * from fleet.count_rows(${`fleet_detached.${name}`}::regclass)
    `
    if (!row) throw new Error('no count')
    return row
  }
  return { db, sql, name, archiver, sums, sha: 'ab'.repeat(32), rows: 'cd'.repeat(32) }
}

t.test('the steps of archiving lead to a drop, and only in the right order', async t => {
  const { sql, name, archiver, sums, sha, rows } = await withRetired(t)
  const sum = await sums()
  t.equal(sum.row_count, '3')
  t.match(await archiver`select * from fleet.claim_partition('a')`, [
    {
      partition_name: name,
      table_name: `fleet_detached.${name}`,
      state: 'archiving',
      step: 'claimed',
      row_count: '3',
      attempts: 0,
    },
  ])
  t.same(await archiver`select * from fleet.claim_partition('b')`, [], 'another archiver finds it taken')
  await t.rejects(archiver`select fleet.record_frozen(${name}, 'b')`, { code: 'FL003', hint: /stop working/ })
  await archiver`select fleet.record_frozen(${name}, 'a')`
  await t.rejects(
    archiver`select fleet.record_upload(${name}, 'a', 'file:///x', ${sha}, 10, 3)`,
    { code: 'FL002' },
    'cannot be uploaded before it is exported',
  )
  await t.rejects(archiver`select fleet.count_retired(${name}, 'a', 2, ${rows})`, {
    code: 'FL010',
    message: /has 3 rows, but a says that it copied 2/,
  })
  await t.rejects(archiver`select fleet.count_retired(${name}, 'a', null, ${rows})`, { code: 'FL010', message: /copied nothing/ })
  await t.rejects(
    archiver`select fleet.count_retired(${name}, 'a', 3, ${rows}, '[{"name": "ts", "type": "timestamp with time zone"}]')`,
    { code: 'FL010', detail: /battery_pct/ },
    'some columns are missing',
  )
  await t.rejects(
    archiver`select fleet.record_export(${name}, 'a')`,
    { code: 'FL002' },
    'cannot be exported before it is counted',
  )
  t.match(await archiver`select * from fleet.count_retired(${name}, 'a', ${sum.row_count}, ${rows})`, [sum])
  await archiver`select fleet.record_export(${name}, 'a')`
  const proof = (hex: string, content: string, count: string) =>
    archiver`select fleet.record_proof(${name}, 'a', ${hex}, null, ${count}, ${sum.min_ts}, ${sum.max_ts}, ${content})`.then(
      rows => rows,
    )
  await t.rejects(proof(sha, rows, '3'), { code: 'FL002' }, 'cannot be proven before it is uploaded')
  await archiver`select fleet.record_upload(${name}, 'a', 'file:///x', ${sha}, 10, 3)`
  await t.rejects(proof(rows, rows, '3'), { code: 'FL010', message: /partition is kept/ })
  await t.rejects(proof(sha, sha, '3'), { code: 'FL010' })
  await t.rejects(proof(sha, rows, '2'), { code: 'FL010', detail: /rows 3, read back 2/ })
  await t.rejects(archiver`select fleet.drop_partition(${name})`, { code: 'FL001' }, 'cannot be dropped before it is proven')
  await t.rejects(
    sql`update fleet.hb_partitions set state = 'archived' where partition_name = ${name}`,
    { message: /hb_partitions_archived_is_proven/ },
    'not even the owner can claim that it is proven',
  )
  await proof(sha, rows, '3')
  t.match(await sql`select state, step, archive_url from fleet.hb_partitions where partition_name = ${name}`, [
    { state: 'archived', step: 'proven', archive_url: 'file:///x' },
  ])
  t.equal(await value(archiver`select fleet.drop_partition(${name})`), true)
  t.equal(await value(sql`select to_regclass(${`fleet_detached.${name}`})`), null)
  t.equal(await value(archiver`select fleet.drop_partition(${name})`), true, 'already dropped')
  t.same(
    (await sql`select event from fleet.events where partition_name = ${name} order by event_id`).map(row => row.event as string),
    ['partition.create', 'partition.detach', 'partition.archive.start', 'partition.archive.end', 'partition.drop'],
  )
})

t.test('a proven partition may also be dropped by hand, but not if it changed after the proof', async t => {
  const { db, sql, name, archiver, sums, sha, rows } = await withRetired(t)
  const sum = await sums()
  await archiver`select * from fleet.claim_partition('a')`
  await archiver`select fleet.count_retired(${name}, 'a', ${sum.row_count}, ${rows})`
  await archiver`select fleet.record_export(${name}, 'a')`
  await archiver`select fleet.record_upload(${name}, 'a', 'file:///x', ${sha}, 10, 3)`
  await archiver`select fleet.record_proof(${name}, 'a', ${sha}, null, 3, ${sum.min_ts}, ${sum.max_ts}, ${rows})`

  await db.admin.unsafe(
    `insert into fleet_detached.${name} (ts, device_id) values ('${sum.min_ts.toISOString()}'::timestamptz + interval '11 s', 99)`,
  )
  await t.rejects(archiver`select fleet.drop_partition(${name})`, { code: 'FL010', message: /has 4 rows and its archive 3/ })
  await db.admin.unsafe(`delete from fleet_detached.${name} where device_id = 99`)

  await sql`select fleet.hold_partition(${name}, 'wait')`
  await t.rejects(archiver`select fleet.drop_partition(${name})`, { code: 'FL002', message: /held \(wait\)/ })
  t.same(await archiver`select * from fleet.claim_partition('a')`, [], 'a held partition is not claimed')
  await sql`select fleet.release_partition(${name})`
  await sql`update fleet.settings set archive_grace = '1 day'`
  t.equal(await value(archiver`select fleet.drop_partition(${name})`), false, 'archive_grace lasts')
  t.same(await archiver`select * from fleet.claim_partition('a')`, [], 'nothing to do until the grace period is over')

  await t.rejects(archiver.unsafe(`drop table fleet_detached.${name}`), { code: '42501' })
  await sql.unsafe(`drop table fleet_detached.${name}`)
  t.equal(await value(sql`select to_regclass(${`fleet_detached.${name}`})`), null)
})

t.test('a lease runs out, is renewed, and is given back', async t => {
  const { sql, name, archiver } = await withRetired(t)
  await archiver`select * from fleet.claim_partition('a', '0 seconds')`
  t.equal(await value(archiver`select fleet.renew_lease(${name}, 'a')`), true)
  t.same(await archiver`select * from fleet.claim_partition('b')`, [])
  await archiver`select fleet.renew_lease(${name}, 'a', '-1 second')`
  t.match(await archiver`select partition_name from fleet.claim_partition('b')`, [{ partition_name: name }])
  t.equal(await value(archiver`select fleet.renew_lease(${name}, 'a')`), false, 'the first archiver has lost it')
  await archiver`select fleet.record_frozen(${name}, 'b')`
  await archiver`select fleet.release_lease(${name}, 'b')`
  t.match(await sql`select state, step, lease_owner from fleet.hb_partitions where partition_name = ${name}`, [
    { state: 'detached', step: 'frozen', lease_owner: null },
  ])
})

t.test('failures are counted, retried at growing intervals, and then left to the nightly run', async t => {
  const { sql, name, archiver } = await withRetired(t)
  const waits: number[] = []
  for (let attempt = 1; attempt <= 5; attempt++) {
    t.equal((await archiver`select * from fleet.claim_partition('a')`).length, 1, `attempt ${attempt}`)
    await archiver`select fleet.record_failure(${name}, 'a', ${`no space, attempt ${attempt}`})`
    const [row] = await sql<{ wait: number | null }[]>`
      select round(extract(epoch from next_attempt_at - now()))::int as wait from fleet.hb_partitions where partition_name = ${name}
    `
    if (row?.wait != null) waits.push(row.wait)
    t.same(await archiver`select * from fleet.claim_partition('a')`, [], 'not before the retry is due')
    await sql`update fleet.hb_partitions set next_attempt_at = now() where partition_name = ${name} and next_attempt_at is not null`
  }
  t.same(
    waits.map(wait => Math.round(wait / 60)),
    [1, 2, 4, 8],
  )
  t.match(
    await sql`select state, attempts, last_error, next_attempt_at from fleet.hb_partitions where partition_name = ${name}`,
    [{ state: 'archive_failed', attempts: 5, last_error: 'no space, attempt 5', next_attempt_at: null }],
  )
  t.match(await sql`select status, detail from fleet.check() where check_name = 'archive_failed'`, [
    { status: 'fail', detail: `${name}: no space, attempt 5` },
  ])
  t.equal(await value(sql`select total::int from fleet.counters where counter = 'archive_failures_total'`), 5)
  await sql`call fleet.nightly()`
  t.equal((await archiver`select * from fleet.claim_partition('a')`).length, 1, 'the nightly run makes it due again')
  await archiver`select fleet.record_failure(${name}, 'a', 'again')`
  t.match(await value(sql`select fleet.retry_archive(${name})`), /is waiting for the archiver/)
  t.equal((await archiver`select * from fleet.claim_partition('a')`).length, 1, 'so does a DBA')
})

t.test('check names each failed partition, and says an error that they share once', async t => {
  const { sql } = await withDatabase(t)
  const names = (await sql`select partition_name from fleet.hb_partitions order by range_start limit 4`).map(
    row => row.partition_name as string,
  )
  await sql`update fleet.hb_partitions set state = 'archive_failed', last_error = 'no space' where partition_name in ${sql(names)}`
  await sql`update fleet.hb_partitions set last_error = 'no network' where partition_name = ${names[1]!}`
  await sql`update fleet.hb_partitions set last_error = null where partition_name = ${names[3]!}`
  t.match(await sql`select status, detail, remedy from fleet.check() where check_name = 'archive_failed'`, [
    {
      status: 'fail',
      detail: `${names[0]}, ${names[2]}: no space; ${names[1]}: no network; ${names[3]}: `,
      remedy: new RegExp([names[0], names[2], names[1], names[3]].map(name => `retry_archive\\('${name}'\\)`).join('[^]+')),
    },
  ])
})

t.test('the archiver is notified, and only when there is work', async t => {
  const db = await withDatabase(t)
  const { sql } = db
  const heard: string[] = []
  await sql.listen('fleet_archiver', payload => heard.push(payload))
  t.equal(await value(sql`select fleet.wake_archiver()`), false)
  await sql`select fleet.archive_partition(${await partitionAt(sql, daysAgo(20))})`
  t.equal(await value(sql`select fleet.wake_archiver('now')`), true)
  await sql`call fleet.nightly()`
  await sql`select pg_sleep(0.1)`
  t.same(heard, [await value(sql`select partition_name from fleet.hb_partitions where state = 'detached'`), 'now', 'nightly'])
})

t.test('a restore is requested, filled, compared and attached', async t => {
  const { db, sql, name, archiver, sums, sha, rows } = await withRetired(t)
  const day = daysAgo(5).slice(0, 10)
  await t.rejects(sql`select fleet.request_restore(${day})`, { code: 'FL404', hint: /data_coverage/ }, 'nothing is archived yet')
  await t.rejects(sql`select fleet.request_restore('2026-08-15', '2026-08-14')`, { code: 'FL422' })
  const sum = await sums()
  // Copied on the server, because postgres.js rounds to milliseconds.
  await db.admin.unsafe(`create table public.kept as table fleet_detached.${name}; grant select on public.kept to fleet_archiver`)
  await archiver`select * from fleet.claim_partition('a')`
  await archiver`select fleet.count_retired(${name}, 'a', ${sum.row_count}, ${rows})`
  await archiver`select fleet.record_export(${name}, 'a')`
  await archiver`select fleet.record_upload(${name}, 'a', 'file:///x', ${sha}, 10, 3)`
  await archiver`select fleet.record_proof(${name}, 'a', ${sha}, null, 3, ${sum.min_ts}, ${sum.max_ts}, ${rows})`
  await archiver`select fleet.drop_partition(${name})`
  t.match(await sql`select "where", row_count from fleet.data_coverage where day = ${day}`, [
    { where: 'archived', row_count: '3' },
  ])
  t.same(await sql`select fleet.create_partitions(${day}, ${day})`, [], 'no empty partition is created in its place')

  const dba = asRole(t, db, 'fleet_dba')
  const request = await value(dba`select fleet.request_restore(${day})`)
  t.match(await archiver`select * from fleet.claim_restore('a')`, [
    { request_id: request, partition_name: name, archive_url: 'file:///x', row_count: '3' },
  ])
  const table = (await value(archiver`select fleet.begin_restore(${name}, 'a')`)) as string
  await archiver`insert into ${archiver(table)} select * from public.kept limit 2`
  await t.rejects(archiver`select fleet.finish_restore(${name}, 'a', ${rows})`, { code: 'FL010', message: /not attached/ })
  await archiver`select fleet.fail_restore(${name}, 'a', 'short')`
  t.equal(await value(sql`select to_regclass(${table})`), null, 'the half-filled table is gone')
  t.match(await sql`select status, detail from fleet.check() where check_name = 'restores'`, [
    { status: 'warn', detail: `failed: ${name}: short` },
  ])

  await dba`select fleet.request_restore(${day})`
  await archiver`select * from fleet.claim_restore('a')`
  await archiver`select fleet.begin_restore(${name}, 'a')`
  await archiver`insert into ${archiver(table)} table public.kept`
  await archiver`select fleet.finish_restore(${name}, 'a', ${rows})`
  t.same(
    await db.admin`
    (table fleet.device_heartbeats except all table public.kept)
    union all (table public.kept except all table fleet.device_heartbeats)
  `,
    [],
    'row for row',
  )
  t.match(await sql`select state from fleet.hb_partitions where partition_name = ${name}`, [{ state: 'restored' }])
  t.match(await sql`select "where" from fleet.data_coverage where day = ${day}`, [{ where: 'both' }])
  t.same(await sql`select * from fleet.check() where status = 'fail'`, [])
  await t.rejects(sql`drop table ${sql(`fleet.${name}`)}`, { code: 'FL001' }, 'rows may have been added, so it is guarded again')
  await dba`call fleet.nightly(null, '2 days')`
  t.match(
    await sql`select state from fleet.hb_partitions where partition_name = ${name}`,
    [{ state: 'restored' }],
    'it stays until it is released',
  )
  await dba`select fleet.release_partition(${name})`
  await db.admin.unsafe(
    `insert into fleet.${name} (ts, device_id) values ('${sum.min_ts.toISOString()}'::timestamptz + interval '11 s', 99)`,
  )
  await dba`call fleet.nightly(null, '2 days')`
  t.match(
    await sql`select row_count, rows_sha256 from fleet.archives where partition_name = ${name}`,
    [{ row_count: '3', rows_sha256: rows }],
    'the record of the archive is unchanged',
  )
  t.match(await sql`select state from fleet.hb_partitions where partition_name = ${name}`, [{ state: 'detached' }])
})

t.test('the content checksum depends on every value, and not on the order', async t => {
  const { sql } = await withDatabase(t)
  await sql`create table fleet.sample (like fleet.device_heartbeats)`
  const rows = [
    ['2026-08-15T00:00:00Z', '2026-08-15T00:00:00.000001Z', 1, null, null, null, null, null, null],
    ['2026-08-15T00:00:00Z', '2026-08-15T00:00:00.000001Z', 1, 0, 0, false, '', '~', '192.0.2.7'],
    [
      '2026-08-15T00:00:00Z',
      '2026-08-15T00:00:00.000001Z',
      9007199254740993n,
      -32768,
      32767,
      true,
      'a|b',
      '日本',
      '2001:db8::/48',
    ],
  ]
  const sum = async () => (await value(sql`select content_checksum from fleet.content_checksum('fleet.sample')`)) as string
  t.equal(await sum(), '0', 'no rows')
  const insert = (
    row: unknown[],
  ) => sql`insert into fleet.sample values (${row[0] as string}, ${row[1] as string}, ${String(row[2])}::bigint,
    ${row[3] as number}, ${row[4] as number}, ${row[5] as boolean}, ${row[6] as string}, ${row[7] as string}, ${row[8] as string})`
  for (const row of rows) await insert(row)
  const whole = await sum()
  await sql`truncate fleet.sample`
  for (const row of [...rows].reverse()) await insert(row)
  t.equal(await sum(), whole)
  for (const change of [
    "received_at = received_at + interval '1 microsecond'",
    'signal_dbm = coalesce(signal_dbm, 0) + 1',
    'unity_running = null',
    "network_type = null where network_type = ''",
    "network_type = 'a', agent_version = 'b|日本' where network_type = 'a|b'",
  ]) {
    await t.rejects(
      sql.begin(async s => {
        await s.unsafe(`update fleet.sample set ${change}`)
        t.not(await value(s`select content_checksum from fleet.content_checksum('fleet.sample')`), whole, change)
        throw new Error('undo')
      }),
      { message: 'undo' },
    )
  }
})

t.test('the rows are compared by their hash before the drop, and those of an older archive then by its checksum', async t => {
  const { db, sql, name, archiver, sums, sha, rows } = await withRetired(t)
  const sum = await sums()
  const table = `fleet_detached.${name}`
  await archiver`select * from fleet.claim_partition('a')`
  await archiver`select fleet.count_retired(${name}, 'a', 3, ${rows})`
  await archiver`select fleet.record_export(${name}, 'a')`
  await archiver`select fleet.record_upload(${name}, 'a', 'file:///x', ${sha}, 10, 3)`
  await archiver`select fleet.record_proof(${name}, 'a', ${sha}, null, 3, ${sum.min_ts}, ${sum.max_ts}, ${rows})`
  await sql`update fleet.hb_partitions set rows_hash = rows_hash + 1 where partition_name = ${name}`
  const refused = {
    code: 'FL010',
    message: /differs from its archive .* 3 rows and its archive 3 \(row hash -?\d+ and row hash -?\d+\)/,
  }
  await t.rejects(archiver`select fleet.drop_partition(${name})`, refused, 'nothing else says that the rows are the same')

  // As an older archiver recorded it, in a cluster that was since restored from a dump of a machine with another byte order.
  await sql`
    update fleet.hb_partitions
    set rows_sha256 = null, checksum_version = 2,
      content_checksum = (select content_checksum from fleet.content_checksum(${table}::text::regclass))
    where partition_name = ${name}`
  await db.admin.unsafe(`update ${table} set battery_pct = 7 where ts = (select min(ts) from ${table})`)
  await t.rejects(archiver`select fleet.drop_partition(${name})`, {
    code: 'FL010',
    message: /\(content checksum \d+ and content/,
  })
  await db.admin.unsafe(`update ${table} set battery_pct = null where battery_pct = 7`)
  t.equal(await value(archiver`select fleet.drop_partition(${name})`), true)
})
