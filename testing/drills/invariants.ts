// Checks what must be true after each fault.
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import type { Sql } from 'postgres'
import { plainEnv } from '../../local/config.ts'
import { nodeArgs, repository } from '../../lib/repository.ts'
import { waitFor } from '../database.ts'
import type { System } from './system.ts'
import { contentOf, contentWith, NO_ROWS, type Rows } from '../rows.ts'

const run = promisify(execFile)

/** Something that was acknowledged or archived is missing or was changed. */
export class Loss extends Error {}

/** A heartbeat that was acknowledged, by device and ms. */
export interface Beat {
  device_id: number
  ts: number
  status: number
}

/** The parts of a system that the checks need. */
type Looked = Pick<System, 'ask' | 'written'>

const wanted = (rows: Rows | undefined, columns: number) => (rows ? contentWith(rows, columns) : NO_ROWS)

/** Problems of files that belong to no archive. They take space, but no row is lost. */
const UNTIDY = /superseded by|the database has no proven archive of this name/

/** @throws Loss with a sentence for each problem */
async function check(...checks: (() => Promise<string[]>)[]) {
  const wrong: string[] = []
  for (const find of checks) wrong.push(...(await find()))
  if (wrong.length > 0) throw new Loss(wrong.join('\n'))
}

/** Checks what can be checked at any time, while everything runs. */
export async function checkNow(system: Looked, fresh: Beat[]) {
  await system.ask(sql =>
    check(
      () => heartbeats(sql, fresh),
      () => lastStatus(sql),
      () => coverage(sql),
      () => attached(sql),
      () => archivesRecorded(sql, system),
    ),
  )
}

/**
 * Waits until the archivers have done all their work, and checks everything: each acknowledged heartbeat, each past day row by
 * row, and the bytes and rows of each archive. Before that, each archiver does some work alone, because one that hangs would
 * otherwise hide behind the others.
 * @returns how many archives were read back
 */
export async function checkAll(system: System, all: Beat[], random: () => number) {
  await idle(system)
  for (const place of system.places) {
    await system.alone(place, async () => {
      // A reader of the day can prevent it.
      await waitFor(async () => (await system.addWork(1, random)) > 0)
      await idle(system)
    })
  }
  await check(() => system.told.problems())
  await system.ask(sql =>
    check(
      () => heartbeats(sql, all),
      () => once(sql),
      () => lastStatus(sql),
      () => coverage(sql),
      () => attached(sql),
      () => archivesRecorded(sql, system),
      () => daysOnline(sql, system),
      () => leftovers(sql),
    ),
  )
  return archives(system)
}

async function idle(system: System) {
  let left = ''
  const since = performance.now()
  await waitFor(
    async () => {
      await system.hurry()
      // The leases of archivers that could not record their failure because Postgres was down.
      if (performance.now() > since + 5_000) await system.freeLeases()
      left = await system.ask(async sql => {
        const rows = await sql<{ name: string; state: string; last_error: string | null }[]>`
        select partition_name as name, state, last_error from fleet.hb_partitions where state not in ('active', 'restored', 'dropped')
        union all
        select partition_name, 'restore ' || state, last_error from fleet.restore_items where state in ('pending', 'running')
      `
        return rows.map(({ name, state, last_error }) => `${name} is ${state} ${last_error ?? ''}`).join('\n')
      })
      return left === ''
    },
    {
      timeoutMs: 120_000,
      what: () =>
        `the archivers to finish their work:\n${left}\n${system.archivers.map(({ program }) => program.output()).join('\n')}`,
    },
  )
}

/**
 * 201 means that this heartbeat is stored, 200 that its bucket was taken, 202 that it was quarantined. At most ten of each 50,000
 * are reported.
 */
export async function heartbeats(sql: Sql, beats: Beat[]) {
  const wrong: string[] = []
  for (let from = 0; from < beats.length; from += 50_000) {
    const some = beats.slice(from, from + 50_000)
    const rows = await sql<{ device_id: string; ts: Date; status: number }[]>`
      select b.device_id, b.at as ts, b.status
      from (
        select g.device_id, to_timestamp(g.ts / 1000.0) as at, g.status
        from json_to_recordset(${JSON.stringify(some)}::text::json) as g (device_id bigint, ts bigint, status integer)
      ) b
      where case b.status
        when 201 then (select count(*) from fleet.device_heartbeats h where h.device_id = b.device_id and h.ts = b.at) <> 1
        when 202 then not exists (select from fleet.heartbeat_quarantine q where q.device_id = b.device_id and q.ts = b.at)
        else not exists (
          select from fleet.device_heartbeats h
          where h.device_id = b.device_id
            and h.ts >= date_bin('10 seconds', b.at, timestamptz '2000-01-01 00:00:00+00')
            and h.ts < date_bin('10 seconds', b.at, timestamptz '2000-01-01 00:00:00+00') + interval '10 seconds'
        )
      end
      order by b.at
      limit 10
    `
    wrong.push(
      ...rows.map(
        ({ device_id, ts, status }) =>
          `heartbeat of device ${device_id} at ${ts.toISOString()}, answered with ${status}, is not stored exactly once`,
      ),
    )
  }
  return wrong
}

/** Checks without the indexes, which may be wrong themselves. */
async function once(sql: Sql) {
  await sql`set enable_indexscan = off`
  await sql`set enable_indexonlyscan = off`
  await sql`set enable_bitmapscan = off`
  const rows = await sql<{ device_id: string; bucket: Date; count: string }[]>`
    select device_id, date_bin('10 seconds', ts, timestamptz '2000-01-01 00:00:00+00') as bucket, count(*)
    from fleet.device_heartbeats
    where ts > now() - interval '2 days'
    group by 1, 2
    having count(*) > 1
    limit 10
  `
  await sql`reset all`
  return rows.map(
    ({ device_id, bucket, count }) => `device ${device_id} has ${count} heartbeats in the bucket of ${bucket.toISOString()}`,
  )
}

/** Checks the devices of the load, in one statement, so that all of it is from the same moment. */
async function lastStatus(sql: Sql) {
  const rows = await sql<{ device_id: string; last_ts: Date | null; ts: Date }[]>`
    select ls.device_id, ls.last_ts, n.ts
    from fleet.device_last_status ls
    cross join lateral (
      select h.* from fleet.device_heartbeats h
      where h.device_id = ls.device_id and h.ts > now() - interval '1 day'
      order by h.ts desc
      limit 1
    ) n
    where (ls.last_ts, ls.battery_pct, ls.network_type, ls.unity_running, ls.signal_dbm, ls.agent_version, ls.extra)
      is distinct from (n.ts, n.battery_pct, n.network_type, n.unity_running, n.signal_dbm, n.agent_version, n.extra)
    limit 10
  `
  return rows.map(
    ({ device_id, last_ts, ts }) =>
      `last status of device ${device_id} is from ${last_ts?.toISOString() ?? 'never'}, but its newest heartbeat is from ${ts.toISOString()}`,
  )
}

async function coverage(sql: Sql) {
  const rows = await sql<{ day: string }[]>`select day::text from fleet.data_coverage where "where" = 'missing'`
  return rows.map(({ day }) => `${day} is neither online nor archived`)
}

/** A query for heartbeats sees each day that counts as online. In one statement, so that all of it is from the same moment. */
async function attached(sql: Sql) {
  const rows = await sql<{ partition_name: string; state: string | null; is_attached: boolean }[]>`
    select coalesce(p.partition_name, a.partition_name) as partition_name, p.state, a.relid is not null as is_attached
    from fleet.hb_partitions p
    full join fleet.attached_partitions() a on a.relid = p.relid
    where (coalesce(p.state in ('active', 'restored'), false) and p.relid is not null) <> (a.relid is not null)
    limit 10
  `
  return rows.map(
    ({ partition_name, state, is_attached }) =>
      `${partition_name} is ${state ?? 'unknown'}, but ${is_attached ? 'attached' : 'not attached'}`,
  )
}

/** When no work is under way, each table belongs to a partition. */
export async function leftovers(sql: Sql) {
  const rows = await sql<{ name: string }[]>`
    select c.oid::regclass::text as name from pg_class c
    where c.relkind = 'r'
      and (c.relnamespace = 'fleet_detached'::regnamespace or c.relnamespace = 'fleet'::regnamespace and c.relname like 'restoring\_%')
      and not exists (select from fleet.hb_partitions p where p.relid = c.oid)
  `
  return rows.map(({ name }) => `${name} was left behind`)
}

/** A day that is only in the archive must have the content that was written. */
async function archivesRecorded(sql: Sql, { written }: Looked) {
  const rows = await sql<
    { partition_name: string; state: string; row_count: string | null; rows_sha256: string | null; columns: number }[]
  >`
    select partition_name, state, row_count::text, coalesce(rows_sha256, ${NO_ROWS.rows_sha256}) as rows_sha256,
      coalesce(jsonb_array_length(columns), 0) as columns
    from fleet.hb_partitions where state in ('archived', 'dropped')
  `
  return rows.flatMap(({ partition_name, state, row_count, rows_sha256, columns }) => {
    const want = wanted(written.get(partition_name), columns)
    return want.row_count === row_count && want.rows_sha256 === rows_sha256
      ? []
      : [
          `${partition_name} is ${state} with ${row_count} rows and SHA-256 ${rows_sha256}, but ${want.row_count} rows with SHA-256 ${want.rows_sha256} were written`,
        ]
  })
}

/** Checks each past day that is in the database, row by row. */
export async function daysOnline(sql: Sql, { written }: Looked) {
  const wrong: string[] = []
  for (const { partition_name, table, columns } of await sql<{ partition_name: string; table: string; columns: number }[]>`
    select partition_name, relid::regclass::text as table,
      (select count(*)::integer from fleet.archive_columns(relid)) as columns
    from fleet.hb_partitions where relid is not null and range_end < now() - interval '9 days'
  `) {
    const found = await contentOf(sql, table)
    const want = wanted(written.get(partition_name), columns)
    if (found.row_count !== want.row_count || found.rows_sha256 !== want.rows_sha256) {
      wrong.push(
        `${table} has ${found.row_count} rows with SHA-256 ${found.rows_sha256}, but ${want.row_count} rows with SHA-256 ${want.rows_sha256} were written`,
      )
    }
  }
  return wrong
}

/** Uses the command that a person would use. */
async function archives(system: System) {
  const env = { ...plainEnv(), ...system.archiverEnv('file') }
  const cli = await run(process.execPath, [...nodeArgs('archiver/cli.ts'), 'verify', '--all'], {
    cwd: repository,
    env,
  }).catch((error: unknown) => error as { stdout: string; stderr: string })
  const read = /^(\d+) archives,/m.exec(cli.stderr)?.[1]
  const faults = cli.stdout.split('\n').filter(line => line !== '' && !UNTIDY.test(line))
  if (read === undefined) faults.push(`npm run archive -- verify --all did not finish: ${cli.stderr}`)
  if (faults.length > 0) throw new Loss(faults.join('\n'))
  return Number(read)
}
