// Helpers for the tests of the SQL: devices, batches, and sessions as other roles.
import postgres, { type JSONValue, type Sql } from 'postgres'
import type { Test } from 'tap'
import type { Role } from '../local/cluster.ts'
import type { TestDatabase } from './database.ts'
import { isDistributed } from './distributed.ts'

export interface Beat {
  device_id: number
  ts?: string
  [field: string]: JSONValue | undefined
}

export interface IngestResult {
  item: number
  result: 'stored' | 'duplicate' | 'quarantined' | 'rejected'
  reason: string | null
  ts: Date
}

/** Opens a session that logs in as `role`. It ends in teardown. */
export function asRole(t: Test, db: TestDatabase, role: Role, connection: Record<string, string> = {}): Sql {
  const sql = postgres(db.url(role), { max: 1, onnotice: () => {}, connection })
  t.teardown(() => sql.end({ timeout: 1 }))
  return sql
}

/** Makes this database believe that Postgres started so long ago. In fact the cluster of the tests has just started. */
export async function startedAgo(admin: Sql, ago: string) {
  await admin.unsafe(`create or replace function fleet.postgres_started_at() returns timestamptz language sql stable
    set search_path = pg_catalog, pg_temp return now() - interval '${ago}'`)
}

/**
 * Stores heartbeats past fleet.ingest(), with last status as a trigger keeps it in a plain store and ingest in a distributed one.
 * @param beats a query for rows of fleet.device_heartbeats, such as `select now(), now(), 1`
 */
export async function storeDirectly(admin: Sql, columns: string, beats: string) {
  await admin.unsafe(`insert into fleet.device_heartbeats (${columns}) ${beats}`)
  if (!isDistributed) return
  await admin`
    select fleet.upsert_last_status(array_agg(jsonb_populate_record(null::fleet.device_heartbeats, n.beat)), true)
    from (
      select distinct on (h.device_id) to_jsonb(h) as beat from fleet.device_heartbeats h order by h.device_id, h.ts desc
    ) n`
}

/** A timestamptz some time earlier, as an update of a distributed table may say it: `timestamptz - interval` is only stable. */
export function earlier(sql: Sql, column: string, by: string) {
  return sql`(${sql(column)} at time zone 'UTC' - ${by}::text::interval) at time zone 'UTC'`
}

/** Enrolls `count` devices named `prefix`-1 and so on, and returns their ids in order. */
export async function enroll(sql: Sql, count: number, prefix = 'device') {
  const rows = await sql<{ device_id: string }[]>`
    select d.device_id from generate_series(1, ${count}) as n, fleet.create_device(${prefix} || '-' || n) d
    order by n
  `
  return rows.map(row => Number(row.device_id))
}

/**
 * A fleet whose devices have been silent for 0 to 40 minutes. Some have long intervals, some announced their next heartbeat for later,
 * some sent nothing, some are revoked.
 */
export async function mixedFleet(sql: Sql, admin: Sql, devices = 400) {
  await enroll(sql, devices)
  await admin`select setseed(0.42)`
  await admin`update fleet.devices set heartbeat_interval = (array[1, 5, 7, 15])[1 + device_id % 4] * interval '1 minute'`
  await sql`
    select fleet.ingest(
      json_build_array(json_build_object(
        'device_id', d.device_id, 'unity_running', d.device_id % 9 > 0,
        'next_in_s', case when d.device_id % 7 = 3 then 1 + d.device_id % 5 * 600 end
      )),
      d.ts
    )
    from (select device_id, now() - random() * interval '40 minutes' as ts from fleet.devices where device_id % 20 <> 0) d
  `
  await admin`update fleet.devices set cohort = 'slowed' where device_id % 10 < 3`
  await sql`select fleet.set_cohort_interval('slowed', '8 minutes')`
  await admin`update fleet.device_last_status set status = 'clock_skewed' where device_id % 17 = 0 and status is not null`
  await sql`select fleet.revoke_device(device_id) from fleet.devices where device_id % 19 = 0`
}

/** Sends one batch to fleet.ingest(). */
export function ingest(sql: Sql, beats: Beat[], receivedAt?: string) {
  return sql<IngestResult[]>`
    select * from fleet.ingest(${JSON.stringify(beats)}::text::json, coalesce(${receivedAt ?? null}::timestamptz, now()))
  `
}

/** As ingest(). What ingest notes in a plain store, the job of the next minute notes in a distributed one; this does so at once. */
export async function ingestAndNote(sql: Sql, beats: Beat[], receivedAt?: string) {
  const results = await ingest(sql, beats, receivedAt)
  if (isDistributed) {
    await sql`select fleet.note_gaps()`
    await sql`select fleet.note_transitions(${beats.map(beat => beat.device_id)}, ${receivedAt ?? new Date().toISOString()})`
  }
  return results
}

/** Sends heartbeats as devices with a right clock do: each arrives at its ts, or at this moment if that is later. */
export function ingestOnTime(sql: Sql, beats: Beat[]) {
  return sql<IngestResult[]>`
    select r.*
    from json_array_elements(${JSON.stringify(beats)}::text::json) with ordinality e (beat, nth)
    cross join lateral fleet.ingest(json_build_array(e.beat), least((e.beat ->> 'ts')::timestamptz, now())) r
    order by e.nth
  `
}

/** Takes the oldest retired partition through all of the archiver's steps until it is dropped, but without the files. */
export async function archive(archiver: Sql) {
  const [claimed] = await archiver<{ name: string; table: string }[]>`
    select partition_name as name, table_name as table from fleet.claim_partition('test')`
  if (!claimed) throw new Error('no partition waits for the archiver')
  const { name, table } = claimed
  await archiver`select fleet.record_frozen(${name}, 'test')`
  await archiver`
    select fleet.count_retired(${name}, 'test', row_count, ${'cd'.repeat(32)}) from fleet.count_rows(${table}::regclass)`
  await archiver`select fleet.record_export(${name}, 'test')`
  await archiver`select fleet.record_upload(${name}, 'test', 'file:///nowhere', ${'ab'.repeat(32)}, 1, 3)`
  await archiver`
    select fleet.record_proof(${name}, 'test', ${'ab'.repeat(32)}, null, row_count, min_ts, max_ts, ${'cd'.repeat(32)})
    from fleet.count_rows(${table}::regclass)`
  await archiver`select fleet.drop_partition(${name})`
}

/** The first value of the first row. */
export async function value(rows: Promise<readonly object[]>): Promise<unknown> {
  const [row] = await rows
  return row && Object.values(row)[0]
}

/** The name of the attached partition that contains this time. */
export async function partitionAt(sql: Sql, moment: string) {
  return (await value(sql`
    select partition_name from fleet.attached_partitions()
    where range_start <= ${moment}::timestamptz and range_end > ${moment}::timestamptz
  `)) as string
}

/** The time `days` ago, as ISO text. */
export function daysAgo(days: number) {
  return new Date(Date.now() - days * 86_400_000).toISOString()
}
