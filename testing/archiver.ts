// Helpers for the archiver's tests.
import { mkdtemp, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import type { Sql } from 'postgres'
import type { Test } from 'tap'
import { spawnNode, waitFor, withDatabase, type TestDatabase } from './database.ts'
import { exportTable } from '../archiver/archive/export.ts'
import { createLog } from '../lib/log.ts'
import { isoMicros } from '../archiver/archive/iso-micros.ts'
import type { Column, Content } from '../archiver/archive/parquet.ts'
import { runCommand } from '../archiver/commands.ts'
import { closeWorker, openWorker, type WorkerSettings } from '../archiver/context.ts'
import { refreshIndex, workOnce } from '../archiver/worker.ts'

/** Makes a directory that is removed after the test. */
export async function makeDirectory(t: Test) {
  const directory = await mkdtemp(join(tmpdir(), 'fleet-test-'))
  t.teardown(() => rm(directory, { recursive: true, force: true }))
  return directory
}

type Env = Record<string, string | undefined>

/** The settings of an archiver process that stores into a directory, unless `env` says otherwise. */
export function archiverEnv(db: TestDatabase, directory: string, env: Env = {}) {
  return {
    ARCHIVER_DATABASE_URL: db.url('fleet_archiver'),
    ARCHIVE_URL: pathToFileURL(join(directory, 'archive')).href,
    TMPDIR: directory,
    ...env,
  }
}

/** The files that archivers of other processes left in their TMPDIR. */
export async function leftovers(directory: string) {
  return (await readdir(directory)).filter(
    name => name.startsWith('fleet-archiver-') && !name.startsWith(`fleet-archiver-${process.pid}-`),
  )
}

/** Runs `npm run archiver -- --once` as a process and waits until it ends. */
export async function runOnce(t: Test, db: TestDatabase, directory: string, env?: Env) {
  const archiver = await spawnNode(t, 'archiver/main.ts', { args: ['--once'], env: archiverEnv(db, directory, env) })
  const { code } = await archiver.exited
  return { code, output: archiver.output(), events: eventsOf(archiver.output()) }
}

/** Opens an archiver in this process; `events` returns its log. */
export async function withWorker(t: Test, db: TestDatabase, directory: string, settings: Partial<WorkerSettings> = {}) {
  const { ARCHIVER_DATABASE_URL, ARCHIVE_URL } = archiverEnv(db, directory)
  const lines: string[] = []
  const log = createLog('archiver', 'info', { write: line => void lines.push(line) })
  const worker = await openWorker(
    { database: { url: ARCHIVER_DATABASE_URL }, archiveUrl: ARCHIVE_URL, temporary: directory, ...settings },
    log,
  )
  t.teardown(() => closeWorker(worker))
  return { worker, events: () => eventsOf(lines.join('')) }
}

/** Does all the archiver's work in this process. */
export async function workAll(t: Test, db: TestDatabase, directory: string, settings: Partial<WorkerSettings> = {}) {
  const { worker, events } = await withWorker(t, db, directory, settings)
  const { signal } = new AbortController()
  const results: string[] = []
  for (let result = await workOnce(worker, signal); result !== 'idle'; result = await workOnce(worker, signal))
    results.push(result)
  await refreshIndex(worker, signal)
  return { results, events: events() }
}

/** Runs `npm run archive -- …` to its end. */
export async function runCli(t: Test, db: TestDatabase, directory: string, ...args: string[]) {
  return await runCliWith(t, db, directory, {}, ...args)
}

/**
 * The same, with other settings. The command runs in this process, as a process of its own takes half a second to start. With a
 * bucket it is a process, because the AWS SDK reads its own environment.
 */
export async function runCliWith(t: Test, db: TestDatabase, directory: string, env: Env, ...args: string[]) {
  const settings = archiverEnv(db, directory, env)
  if (/^s3:/.test(settings.ARCHIVE_URL)) {
    const cli = await spawnNode(t, 'archiver/cli.ts', { args, env: settings })
    const { code } = await cli.exited
    return { code, output: cli.output() }
  }
  let output = ''
  const code = await runCommand(args, settings, {
    write: text => {
      output += text
      return Promise.resolve()
    },
    say: line => {
      output += `${line}\n`
    },
  })
  return { code, output }
}

/** The log lines of a process. */
export function eventsOf(output: string) {
  return output
    .split('\n')
    .filter(line => line.startsWith('{'))
    .map(line => JSON.parse(line) as Record<string, unknown>)
}

/** A UTC day some days ago, like 2026-08-15. */
export function daysAgo(days: number) {
  return new Date(Date.now() - days * 86_400_000).toISOString().slice(0, 10)
}

/** Fills a day with plain heartbeats of 100 devices, evenly spread. */
export async function fillDay(sql: Sql, date: string, rows: number) {
  await sql`
    insert into fleet.device_heartbeats
      (ts, received_at, device_id, signal_dbm, battery_pct, unity_running, network_type, agent_version, ip)
    select t.ts, t.ts + interval '70 milliseconds', n % 100, -60 - n % 40, n % 101, n % 7 > 0,
      (array['wifi', 'lte', null])[1 + n % 3], '1.2.' || n % 5, '10.0.0.0'::inet + n % 200
    from generate_series(1, ${rows}::int) as n
    cross join lateral (
      select (${date} || ' 00:00Z')::timestamptz + interval '1 day' * ((n / 100)::float8 / (${rows}::int / 100 + 1)) as ts
    ) t`
}

/** Fills a day with rows that break a careless format: all kinds of text, null, number, address and JSON. */
export async function fillAwkwardDay(sql: Sql, date: string, table = 'fleet.device_heartbeats') {
  const texts = [
    null,
    '',
    ' ',
    '~',
    '|',
    '\\N',
    '\\n',
    '\\.',
    '"',
    '""',
    ',',
    'a,"b"',
    'line\nbreak',
    'carriage\rreturn',
    '\r\n',
    '\t',
    'null',
    'NULL',
    '\\',
    '\\\\',
    `'`,
    'é',
    '日本語',
    '🛰️',
    'a|1:~|b',
    '3:abc',
    '\u0001',
    '\u007f',
    '﻿',
    '#',
    '\u2028',
    'ﬁ́',
  ]
  const addresses = [
    null,
    '10.0.0.1',
    '10.0.0.0/8',
    '0.0.0.0',
    '255.255.255.255',
    '::',
    '::1',
    '2001:db8::1',
    '2001:db8::/32',
    '::ffff:10.0.0.1',
    'fe80::1',
  ]
  const times = [
    '00:00:00',
    '00:00:00.000001',
    '00:00:00.5',
    '11:59:59.123456',
    '12:00:00',
    '23:59:59.999999',
    '23:59:59.1',
    '23:59:59.000009',
  ]
  const numbers = [null, -32768, 32767, 0, -1]
  // As text, because JavaScript would round the numbers and drop the first of two equal keys.
  const objects = [
    null,
    '{}',
    '{"store": 12, "kiosk": true, "rate": 1.10}',
    '{"n": [1e400, -1e-400, 9007199254740993, 123456789012345678901234567890.5, -0, 1e2]}',
    '{"a": 1, "b": [], "a": {"b": [null, false, {}]}}',
    '{"ü 🛰️": "日本\\"\\\\\\n", "": ["\\\\N", "~", "|", "3:abc", "\\u0001\\u2028\\r\\t", ",", "\\"\\""]}',
    '{"a": {"b": {"c": {"d": "e"}}}}',
    JSON.stringify({ long: 'x,"é'.repeat(400) }),
  ]
  await sql`
    with lists as (
      select ${sql.json(texts)}::jsonb as texts, ${sql.json(addresses)}::jsonb as addresses, ${sql.json(times)}::jsonb as times,
        ${sql.json(numbers)}::jsonb as numbers, ${sql.json(objects)}::jsonb as objects
    )
    insert into ${sql(table)}
      (ts, received_at, device_id, signal_dbm, battery_pct, unity_running, network_type, agent_version, ip, extra)
    select (${date} || ' ' || (times ->> (n % jsonb_array_length(times))) || '+00')::timestamptz,
      '1970-01-01 00:00:00Z'::timestamptz + n * interval '1 microsecond' - (n % 2) * interval '1000 years',
      case n % 3 when 0 then 9223372036854775807 - n when 1 then n else -9223372036854775808 + n end,
      (numbers ->> (n % jsonb_array_length(numbers)))::smallint, (numbers ->> (n / 5 % jsonb_array_length(numbers)))::smallint,
      (array[true, false, null])[1 + n / 3 % 3],
      texts ->> (n % jsonb_array_length(texts)),
      texts ->> (n / 7 % jsonb_array_length(texts)),
      (addresses ->> (n % jsonb_array_length(addresses)))::inet,
      (objects ->> (n / 3 % jsonb_array_length(objects)))::jsonb
    from generate_series(1, 4000) as n, lists`
}

/** The name of the partition that holds a day. */
export async function partitionOf(sql: Sql, date: string) {
  const [row] = await sql<{ partition_name: string }[]>`
    select partition_name from fleet.hb_partitions where range_start <= ${date}::date and range_end > ${date}::date`
  if (!row) throw new Error(`no partition holds ${date}`)
  return row.partition_name
}

/** A partition's row of hb_partitions. */
export async function stateOf(sql: Sql, partition: string) {
  const [row] = await sql`select * from fleet.hb_partitions where partition_name = ${partition}`
  if (!row) throw new Error(`there is no partition ${partition}`)
  return row
}

/**
 * Runs an archiver until it has recorded a step, and kills it with -9 after it has done the next step but not recorded it. A
 * trigger makes that record wait for a lock that the test holds.
 */
export async function killAfter(t: Test, db: TestDatabase, directory: string, partition: string, step: string, env: Env = {}) {
  await db.admin.unsafe(`
    create function public.stop_after_step() returns trigger language plpgsql security definer as $$
    begin
      if old.step = '${step}' and (new.step <> '${step}' or new.state = 'dropped') then
        perform pg_advisory_xact_lock(4711);
      end if;
      return new;
    end $$;
    create trigger stop_after_step before update on fleet.hb_partitions for each row execute function public.stop_after_step()`)
  await db.admin.begin(async holder => {
    await holder`select pg_advisory_xact_lock(4711)`
    const archiver = await spawnNode(t, 'archiver/main.ts', { env: archiverEnv(db, directory, env) })
    await waitFor(async () => {
      const waiting = await db.admin`
        select from pg_locks where locktype = 'advisory' and objid = 4711 and not granted
          and database = (select oid from pg_database where datname = current_database())`
      return waiting.length > 0
    })
    await archiver.stop('SIGKILL')
    await db.admin`
      select pg_terminate_backend(pid) from pg_stat_activity where usename = 'fleet_archiver' and datname = current_database()`
  })
  await db.admin`drop trigger stop_after_step on fleet.hb_partitions`
  // Lets the dead archiver's lease expire.
  await db.admin`update fleet.hb_partitions set lease_until = now() - interval '1 second' where lease_until is not null`
}

/** The day that withRetiredDay fills. */
export const retiredDay = daysAgo(70)

/** Makes a database with one retired day that waits for the archiver. */
export async function withRetiredDay(t: Test, rows: number | 'awkward' = 1000) {
  const db = await withDatabase(t)
  if (rows === 'awkward') await fillAwkwardDay(db.admin, retiredDay)
  else await fillDay(db.admin, retiredDay, rows)
  const directory = await makeDirectory(t)
  const partition = await partitionOf(db.sql, retiredDay)
  await db.sql`select fleet.archive_partition(${partition})`
  return { db, directory, partition }
}

/** The events of a partition, in order. */
export async function stepsOf(sql: Sql, partition: string) {
  const events = await sql<{ event: string }[]>`
    select event from fleet.events where partition_name = ${partition} and event like 'partition.%' and event <> 'partition.create' order by event_id`
  return events.map(row => row.event)
}

/** The paths of an archive in the directory of a test. */
export function pathsOf(directory: string, date = retiredDay) {
  const folder = join(directory, 'archive/device_heartbeats', `date=${date}`)
  return {
    folder,
    parquet: join(folder, `device_heartbeats_${date.replaceAll('-', '')}.parquet`),
    manifest: join(directory, 'archive/manifests', `date=${date}`, 'manifest.json'),
    superseded: join(directory, 'archive/superseded', `date=${date}`),
    /** Where versions before manifest format 4 stored it. */
    oldManifest: join(folder, 'manifest.json'),
  }
}

/**
 * Exports a table with the archiver's login and returns what Postgres counts in it.
 * @throws if the file has a different number of rows, or COPY sent others than Postgres has
 */
export async function exportCounted(
  db: TestDatabase,
  table: string,
  file: string,
  work: string,
): Promise<{ columns: Column[]; content: Content }> {
  const { columns, row_count, rows_sha256 } = await exportTable({ url: db.url('fleet_archiver') }, table, file, work)
  const [counted] = await db.admin<{ row_count: string; min_ts: string | null; max_ts: string | null }[]>`
    select row_count, (min_ts at time zone 'UTC')::text as min_ts, (max_ts at time zone 'UTC')::text as max_ts
    from fleet.count_rows(${table}::text::regclass)`
  if (Number(counted?.row_count) !== row_count)
    throw new Error(`${table} has ${counted?.row_count} rows, but its export has ${row_count}`)
  const micros = (text: string | null = null) => (text === null ? null : isoMicros(`${text}Z`))
  return { columns, content: { row_count, rows_sha256, min_ts: micros(counted?.min_ts), max_ts: micros(counted?.max_ts) } }
}
