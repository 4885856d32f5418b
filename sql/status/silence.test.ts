import type { Sql } from 'postgres'
import t from 'tap'
import { waitFor, withCluster, withDatabase } from '../../testing/database.ts'
import { plainOnly } from '../../testing/distributed.ts'
import { asRole, enroll, ingest, ingestOnTime, mixedFleet, value } from '../../testing/fleet.ts'

const secondsAgo = (seconds: number) => new Date(Date.now() - seconds * 1000).toISOString()
const marksHold = async (sql: Sql) => (await value(sql`select fleet.marks_hold()`)) as boolean

/** Compares what is found by the marks with a read of every device, at the same moment. */
async function differences(sql: Sql) {
  return await sql`
    with asked as (
      select status, older_than, cohort
      from unnest(array[null, 'offline', 'online', 'late', 'new', 'clock_skewed', 'unity_down', 'revoked']) as status,
        unnest(array[null, '1 minute', '6 minutes', '10 minutes', '12 minutes', '25 minutes', '1 hour']::interval[]) as older_than,
        unnest(array[null, 'default', 'slowed', 'none']) as cohort
    )
    select a.status, a.older_than::text, a.cohort, fast.ids as fast, plain.ids as plain
    from asked a
    cross join lateral (
      select array_agg(device_id) as ids from fleet.list_devices(a.status, a.older_than, 7, 1000, a.cohort)
    ) fast
    cross join lateral (
      select array_agg(device_id order by device_id) as ids
      from (
        select device_id, cohort, status, unity_running, last_received_at from fleet.device_status
        union all
        select device_id, cohort, 'revoked', null, last_received_at
        from fleet.devices left join fleet.device_last_status using (device_id)
        where revoked_at is not null
      ) d
      where device_id > 7
        and (
          d.status = a.status or a.status is null and d.status <> 'revoked'
          or a.status = 'unity_down' and d.unity_running is false and d.status in ('online', 'late', 'clock_skewed')
        )
        and (a.older_than is null or d.last_received_at < now() - a.older_than)
        and (a.cohort is null or d.cohort = a.cohort)
    ) plain
    where fast.ids is distinct from plain.ids
    union all
    select 'devices_offline', null, null,
      (select array_agg(device_id order by device_id) from fleet.devices_offline),
      (select array_agg(device_id order by device_id) from fleet.device_status where status = 'offline')
    where (select array_agg(device_id order by device_id) from fleet.devices_offline)
      is distinct from (select array_agg(device_id order by device_id) from fleet.device_status where status = 'offline')
    union all
    select 'unity_down', null, null,
      (select array_agg(device_id order by device_id) from fleet.unity_down),
      (select array_agg(device_id order by device_id) from fleet.device_status where unity_running is false and status in ('online', 'late', 'clock_skewed'))
    where (select array_agg(device_id order by device_id) from fleet.unity_down) is distinct from
      (select array_agg(device_id order by device_id) from fleet.device_status where unity_running is false and status in ('online', 'late', 'clock_skewed'))
  `
}

const notAtOnce = plainOnly('each node judges by its own now(), a moment after the coordinator')
t.test(
  'lists are right to the second, whether marks are fresh, late, incomplete, outdated or not set',
  { skip: notAtOnce },
  async t => {
    const { sql, admin } = await withDatabase(t)
    await mixedFleet(sql, admin)
    const expect = async (holds: boolean, what: string) => {
      t.equal(await marksHold(sql), holds, `${what}: the marks ${holds ? '' : 'do not '}hold`)
      t.same(await differences(sql), [], what)
    }
    await expect(false, 'never marked')
    // The time since the last run. What went offline since then is found all the same.
    for (const [ago, holds] of [
      ['0 s', true],
      ['70 s', true],
      ['100 s', true],
      ['3 minutes', false],
      ['1 hour', false],
    ] as const) {
      await sql`call fleet.mark_silent(50000, now() - ${ago}::interval)`
      await expect(holds, `marked ${ago} ago`)
      await admin`update fleet.device_last_status set is_silent = false`
      await admin`update fleet.silence_marks set marked_at = '-infinity'`
    }
    await sql`call fleet.mark_silent(3)`
    await expect(false, 'not all could be marked in one run')
    await sql`call fleet.mark_silent()`
    await expect(true, 'the next run marks the rest')
    await admin`update fleet.devices set heartbeat_interval = '1 minute'`
    await expect(false, 'intervals changed')
    await sql`call fleet.mark_silent()`
    await expect(true, 'marked by the new intervals')
    for (const [offlineAfter, before, after] of [
      ['6 minutes', false, true],
      ['2 hours', true, true],
      ['10 seconds', false, false],
    ] as const) {
      await admin`update fleet.settings set offline_after = ${offlineAfter}::interval`
      await expect(before, `offline_after is ${offlineAfter}`)
      await sql`call fleet.mark_silent()`
      await expect(after, `and marked with ${offlineAfter}`)
    }
  },
)

t.test('devices with long intervals are found by age without a mark', async t => {
  const { sql, admin } = await withDatabase(t)
  const [slow, quick] = (await enroll(sql, 2)) as [number, number]
  await admin`update fleet.devices set heartbeat_interval = '1 hour' where device_id = ${slow}`
  await ingestOnTime(
    sql,
    [slow, quick].map(device_id => ({ device_id, ts: secondsAgo(1200) })),
  )
  await sql`call fleet.mark_silent()`
  t.same(
    await sql`select device_id::int, is_silent from fleet.device_last_status order by 1`,
    [
      { device_id: slow, is_silent: true },
      { device_id: quick, is_silent: true },
    ],
    'a late heartbeat leaves the mark that enrolment did not set',
  )
  await admin`update fleet.device_last_status set is_silent = false where device_id = ${slow}`
  await sql`call fleet.mark_silent()`
  t.equal(await marksHold(sql), true)
  t.same(await sql`select device_id::int, is_silent from fleet.device_last_status where not is_silent`, [
    { device_id: slow, is_silent: false },
  ])
  t.same(await differences(sql), [])
  t.same(
    (await sql`select device_id::int from fleet.list_devices(null, '12 minutes')`).map(row => row.device_id as number),
    [slow, quick],
  )
})

t.test('only a fresh heartbeat removes the mark; the job removes marks that were not needed', async t => {
  const { sql, admin } = await withDatabase(t)
  const devices = await enroll(sql, 3)
  const [back, late, healed] = devices as [number, number, number]
  const marked = async () =>
    (await sql`select device_id::int as id from fleet.device_last_status where is_silent order by 1`).map(row => row.id as number)
  await ingestOnTime(
    sql,
    [back, late].map(device_id => ({ device_id, ts: secondsAgo(3600) })),
  )
  await ingestOnTime(sql, [{ device_id: healed, ts: secondsAgo(90) }])
  t.same(await marked(), [back, late])
  await ingestOnTime(sql, [
    { device_id: back, ts: secondsAgo(1) },
    { device_id: late, ts: secondsAgo(1800) },
  ])
  t.same(await marked(), [late])
  await admin`delete from fleet.device_last_status where device_id = ${healed}`
  await sql`select fleet.reconcile()`
  t.same(await marked(), [late, healed], 'reconcile marks the rows that it writes')
  await sql`call fleet.mark_silent()`
  t.same(await marked(), [late])
  t.equal(await marksHold(sql), true)
})

t.test('a run does not count if the intervals change meanwhile', async t => {
  const db = await withDatabase(t)
  const { sql } = db
  await enroll(sql, 2)
  const other = asRole(t, db, 'fleet_owner')
  await other`begin`
  await other`update fleet.devices set heartbeat_interval = '2 minutes'`
  await t.rejects(sql`call fleet.mark_silent()`, { code: '55P03' }, 'it does not wait for long')
  await other`commit`
  t.equal(await marksHold(sql), false)
  await sql`call fleet.mark_silent()`
  t.equal(await marksHold(sql), true)
})

const noMarks = plainOnly('it does not use the marks')
t.test('with marks that hold, the list of offline devices looks at no other device', { skip: noMarks }, async t => {
  const { sql, admin } = await withDatabase(t)
  await enroll(sql, 2000)
  const beat = (where: string) =>
    sql.unsafe(`
    select fleet.ingest(json_agg(json_build_object('device_id', d.device_id)), d.ts)
    from (select device_id, now() - case when ${where} then interval '1 hour' else interval '1 second' end as ts from fleet.devices) d
    group by d.ts
  `)
  await beat('device_id % 100 = 0')
  await sql`call fleet.mark_silent()`
  await admin`vacuum analyze fleet.device_last_status`
  await admin`vacuum analyze fleet.devices`
  const plan = await sql`explain (analyze, format json) select * from fleet.devices_offline`
  const reads: string[] = []
  const visit = (node: Record<string, unknown>) => {
    if (/^device/.test(String(node['Relation Name'])) && Number(node['Actual Loops'])) {
      reads.push(
        `${node['Relation Name'] as string}: ${Number(node['Actual Rows']) * Number(node['Actual Loops'])} + ${Number(node['Rows Removed by Filter'] ?? 0)}`,
      )
    }
    for (const child of (node.Plans ?? []) as Record<string, unknown>[]) visit(child)
  }
  visit((plan[0]!['QUERY PLAN'] as { Plan: Record<string, unknown> }[])[0]!.Plan)
  t.same(reads, ['device_last_status: 20 + 0', 'devices: 20 + 0', 'device_last_status: 20 + 0'])
})

const onePage = plainOnly('it would count the pages of one node')
t.test('updates of last status stay HOT while devices fall silent and come back', { skip: onePage }, async t => {
  // Its own cluster: an open transaction that writes, in any database, keeps old rows from being pruned.
  const { sql, admin } = await withCluster(t)
  await sql`select cron.unschedule(jobid) from cron.job`
  const devices = await enroll(sql, 2000)
  // So that they are marked but not late: this is about the marks.
  await admin`update fleet.devices set heartbeat_interval = '5 minutes'`
  await sql`select fleet.note_changed_devices()`
  // In production, rounds are a minute apart. Here, autovacuum would last for several of them.
  const alone = () =>
    waitFor(
      async () =>
        (await value(admin`
    select count(*) from pg_stat_activity where backend_xmin is not null and pid <> pg_backend_pid()
  `)) === '0',
    )
  const rounds = 40
  let marked = 0
  // Rounds are a bucket apart, as far into the future as heartbeats may be. They arrive within two minutes, and marks are set as if
  // more time had passed. In turn, 40 devices are silent for 15 rounds and come back, and 20 say that Unity is down, then up.
  const at = (round: number) => -100 + round * 9.9
  const start = Date.now() - 105_000
  const arrival = (round: number) => start + round * 2600
  for (let round = 0; round < rounds; round++) {
    const isSilent = (n: number) => n % 50 === Math.floor(round / 20) && round % 20 < 16
    await alone()
    await ingest(
      sql,
      devices
        .filter((_, n) => !isSilent(n))
        .map(device_id => ({
          device_id,
          ts: secondsAgo(-at(round)),
          battery_pct: round,
          unity_running: device_id % 100 !== Math.floor(round / 10),
        })),
      new Date(arrival(round)).toISOString(),
    )
    await sql`call fleet.mark_silent(50000, ${new Date(arrival(round) + 413_000).toISOString()}::timestamptz)`
    marked = Math.max(marked, Number(await value(sql`select count(*) from fleet.device_last_status where is_silent`)))
  }
  t.ok(marked >= 40, `${marked} devices were marked at the same time`)
  const stats = async () =>
    (
      await sql<{ all: number; hot: number }[]>`
    select n_tup_upd::int as all, n_tup_hot_upd::int as hot from pg_stat_user_tables where relname = 'device_last_status'
  `
    )[0]!
  // Each session reports its statistics when it is idle, after a second at the latest.
  await waitFor(async () => (await stats()).all >= 1900 * rounds, { what: () => 'the statistics of all rounds' })
  const { all, hot } = await stats()
  t.ok(hot / all > 0.95, `${hot} of ${all} updates were HOT`)
})
