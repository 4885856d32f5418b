import { readdir, readFile, stat, truncate } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { DuckDBInstance } from '@duckdb/node-api'
import t, { type Test } from 'tap'
import { archiverEnv, eventsOf, leftovers, makeDirectory, runOnce, withWorker, workAll } from '../../testing/archiver.ts'
import { spawnNode, type TestDatabase, waitFor, withDatabase } from '../../testing/database.ts'
import { asRole, enroll, value } from '../../testing/fleet.ts'
import { withObjectStore, withoutStore as skip } from '../../testing/s3.ts'
import { workOnce } from '../worker.ts'

t.setTimeout(300_000)

/** A month as its first day, so many months ago, in UTC. */
function monthAgo(months: number) {
  const now = new Date()
  return new Date(Date.UTC(now.getUTCFullYear(), now.getUTCMonth() - months, 1)).toISOString().slice(0, 10)
}

/** Rows in the first and the last microsecond of a month, and between, with texts that break a careless format. */
async function fillMonth({ admin }: TestDatabase, month: string) {
  await admin`
    insert into fleet.audit_log (at, actor, how, action, target, before, after, address)
    select m.at, (array['ann', 'b"c,d', 'é|\\N', ''])[1 + n % 4], 'key', 'x.done', (array[null, 'device:1', E'a\\nb'])[1 + n % 3],
      case when n % 5 > 0 then jsonb_build_object('n', n, 'text', E'line\\n"quoted", 日本') end,
      (array['"text"', 'null', '[1, 2.50]', '{}'])[1 + n % 4]::jsonb, '192.0.2.1'
    from generate_series(0, 300) n
    cross join lateral (
      select case n
        when 0 then ${month}::timestamp at time zone 'UTC'
        when 1 then (${month}::timestamp + interval '1 month') at time zone 'UTC' - interval '1 microsecond'
        else ${month}::timestamp at time zone 'UTC' + n * interval '2 hours'
      end as at
    ) m`
}

async function withMonths(t: Test, ...months: number[]) {
  const db = await withDatabase(t)
  for (const ago of months) await fillMonth(db, monthAgo(ago))
  await db.sql`update fleet.settings set audit_archive = true`
  return { db, directory: await makeDirectory(t), folder: (directory: string) => join(directory, 'archive/audit_log') }
}

/** What a file has, by DuckDB alone: the columns of the table, as texts. */
async function rowsOfFile(file: string) {
  const duckdb = await (await DuckDBInstance.create()).connect()
  await duckdb.run(`set TimeZone = 'UTC'`)
  const found = await duckdb.runAndReadAll(`
    select audit_id::varchar, epoch_us("at")::varchar, actor, how, action, target, before, after, request_id, address
    from read_parquet('${file}') order by audit_id`)
  duckdb.closeSync()
  return found.getRows()
}

async function rowsOfMonth({ admin }: TestDatabase, month: string) {
  const rows = await admin`
    select l.audit_id::text, (extract(epoch from at) * 1000000)::bigint::text, actor, how, action, target, before::text, after::text,
      request_id, address
    from fleet.audit_log l
    where at >= ${month}::timestamp at time zone 'UTC' and at < (${month}::timestamp + interval '1 month') at time zone 'UTC'
    order by l.audit_id`.values()
  return rows.map(row => Array.from<unknown>(row))
}

const archives = ({ sql }: TestDatabase) =>
  sql<
    {
      month: string
      url: string
      sha256: string
      rows: string
      archived_at: Date
      pruned_at: Date | null
      last_error: string | null
    }[]
  >`
    select month::text, url, sha256, rows, archived_at, pruned_at, last_error from fleet.audit_archives order by month`

t.test('each past month goes into one file with the same rows, once', async t => {
  const { db, directory, folder } = await withMonths(t, 1, 3)
  await db.admin`insert into fleet.audit_log (actor, how, action) values ('now', 'sql', 'this.month')`
  t.equal(await value(db.sql`select fleet.wake_archiver()`), true, 'the archiver is woken for it')
  const { code, output } = await runOnce(t, db, directory)
  t.equal(code, 0, output)
  const found = await archives(db)
  t.match(
    found.map(({ month, rows }) => ({ month, rows })),
    [
      { month: monthAgo(3), rows: '301' },
      { month: monthAgo(1), rows: '301' },
    ],
    'not the current month, and none without rows',
  )
  t.same(
    (await readdir(folder(directory))).sort(),
    [3, 1].map(ago => `${monthAgo(ago).slice(0, 7)}.parquet`),
  )
  for (const { month, url } of found) t.same(await rowsOfFile(fileURLToPath(url)), await rowsOfMonth(db, month), month)
  t.same(await readdir(join(directory, 'archive')).then(names => names.includes('device_heartbeats')), false)

  t.same((await workAll(t, db, directory)).results, [], 'nothing is written again')
  t.same(await archives(db), found)
  t.equal(await value(db.sql`select fleet.wake_archiver()`), false)
  t.same(await leftovers(directory), [])
})

t.test('nothing is archived unless that is set, and rows are then deleted by their age alone', async t => {
  const { db, directory } = await withMonths(t, 1, 3)
  await db.sql`update fleet.settings set audit_archive = false, audit_keep = '1 day'`
  t.same((await workAll(t, db, directory)).results, [])
  await db.sql`select fleet.prune()`
  t.same(await rowsOfMonth(db, monthAgo(3)), [])
})

t.test('only months whose archive has every row are deleted online', async t => {
  const { db, directory, folder } = await withMonths(t, 2, 3)
  await db.sql`update fleet.settings set audit_keep = '1 day'`
  await db.sql`select fleet.prune()`
  t.equal((await rowsOfMonth(db, monthAgo(3))).length, 301, 'not before they are archived')
  t.same((await workAll(t, db, directory)).results, ['done', 'done'])
  // A transaction that began in that month commits only now.
  await db.admin`
    insert into fleet.audit_log (at, actor, how, action) values (${`${monthAgo(2)} 12:00Z`}, 'late', 'sql', 'came.late')`
  const late = await rowsOfMonth(db, monthAgo(2))
  await db.sql`select fleet.prune()`
  t.same(await rowsOfMonth(db, monthAgo(3)), [])
  t.same(await rowsOfMonth(db, monthAgo(2)), late, 'a month that got another row stays')
  t.same((await workAll(t, db, directory)).results, ['done'], 'and is archived again')
  t.same(await rowsOfFile(join(folder(directory), `${monthAgo(2).slice(0, 7)}.parquet`)), late)
  await db.sql`select fleet.prune()`
  t.same(await rowsOfMonth(db, monthAgo(2)), [])
  t.equal((await rowsOfFile(join(folder(directory), `${monthAgo(3).slice(0, 7)}.parquet`))).length, 301)
  t.match(await archives(db), [{ pruned_at: Date }, { pruned_at: Date }])

  await db.admin`
    insert into fleet.audit_log (at, actor, how, action) values (${`${monthAgo(3)} 12:00Z`}, 'later', 'sql', 'came.late')`
  t.same((await workAll(t, db, directory)).results, [], 'a file is never replaced by one with fewer rows')
  await db.sql`select fleet.prune()`
  t.equal((await rowsOfMonth(db, monthAgo(3))).length, 1, 'the row stays online')
})

t.test('a store that loses bytes proves nothing, and the rows stay', async t => {
  const { db, directory } = await withMonths(t, 2)
  await db.sql`update fleet.settings set audit_keep = '1 day'`
  const { worker, events } = await withWorker(t, db, directory)
  const { signal } = new AbortController()
  const put = worker.store.put.bind(worker.store)
  worker.store.put = async (key, file, sha256, signal) => {
    await put(key, file, sha256, signal)
    await truncate(join(directory, 'archive', key), (await stat(file)).size - 1)
  }
  t.equal(await workOnce(worker, signal), 'failed')
  t.match(events(), [{ event: 'audit.archive.failed' }])
  await db.sql`select fleet.prune()`
  t.equal((await rowsOfMonth(db, monthAgo(2))).length, 301)
  t.match(await archives(db), [{ archived_at: null, last_error: /store confirmed this object, but has/ }])
  t.equal(await workOnce(worker, signal), 'idle', 'it is tried again later')
  worker.store.put = put
  await db.admin`update fleet.audit_archives set next_attempt_at = now()`
  t.equal(await workOnce(worker, signal), 'done')
  t.match(await archives(db), [{ archived_at: Date, last_error: null }])
})

t.test('an archiver that was killed after the upload leaves nothing that counts, and the next one finishes', async t => {
  const { db, directory, folder } = await withMonths(t, 2)
  await db.admin.unsafe(`
    create function public.stop_here() returns trigger language plpgsql security definer as $$
    begin
      perform pg_advisory_xact_lock(4711);
      return new;
    end $$;
    create trigger stop_here before update on fleet.audit_archives for each row when (new.done > old.done)
      execute function public.stop_here()`)
  await db.admin.begin(async holder => {
    await holder`select pg_advisory_xact_lock(4711)`
    const archiver = await spawnNode(t, 'archiver/main.ts', { env: archiverEnv(db, directory) })
    await waitFor(
      async () =>
        (
          await db.admin`
            select from pg_locks where locktype = 'advisory' and objid = 4711 and not granted
              and database = (select oid from pg_database where datname = current_database())`
        ).length > 0,
    )
    await archiver.stop('SIGKILL')
    await db.admin`
      select pg_terminate_backend(pid) from pg_stat_activity where usename = 'fleet_archiver' and datname = current_database()`
  })
  await db.admin`drop trigger stop_here on fleet.audit_archives`
  t.match(await archives(db), [{ archived_at: null }])
  t.same((await workAll(t, db, directory)).results, [], 'its lease has not ended')
  await db.admin`update fleet.audit_archives set lease_until = now() - interval '1 second'`
  t.same((await workAll(t, db, directory)).results, ['done'])
  t.same(await rowsOfFile(join(folder(directory), `${monthAgo(2).slice(0, 7)}.parquet`)), await rowsOfMonth(db, monthAgo(2)))
})

t.test('a month that names an erased device is archived again, without what it says', async t => {
  const { db, directory, folder } = await withMonths(t)
  const [device] = (await enroll(db.sql, 1, 'person')) as [number]
  const month = monthAgo(1)
  await db.admin`
    insert into fleet.audit_log (at, actor, how, action, target, after)
    values (${`${month} 12:00Z`}, 'ann', 'sql', 'device.renamed', ${`device:${device}`}, '"person-1"')`
  t.same((await workAll(t, db, directory)).results, ['done'])
  const file = join(folder(directory), `${month.slice(0, 7)}.parquet`)
  t.match(JSON.stringify(await rowsOfFile(file)), /person-1/)
  await db.sql`select fleet.erase_device(${device}, 'request 4711')`
  t.same((await workAll(t, db, directory)).results, ['done'])
  const found = await rowsOfFile(file)
  t.equal(found.length, 1)
  t.notMatch(JSON.stringify(found), /person-1/)
  t.notOk((await readFile(file)).includes('person-1'))
})

t.test('only an archiver with the lease records a month, and reads the audit log', async t => {
  const { db } = await withMonths(t, 1)
  const archiver = asRole(t, db, 'fleet_archiver')
  const [claimed] = await archiver`select month::text, revision from fleet.claim_audit_month('me')`
  t.match(claimed, { month: monthAgo(1), revision: 1 })
  t.same(await archiver`select * from fleet.claim_audit_month('another')`, [])
  const record = (worker: string, rows: number) => archiver`
    select fleet.record_audit_archive(${monthAgo(1)}, ${worker}, 1, 'file:///x', 'ab', 1, ${rows}, 'cd')`
  await t.rejects(record('another', 301), { code: 'FL003', message: /is leased to me, not to another/ })
  await t.rejects(record('me', 300), { code: 'FL010', message: /has 301 rows, and its archive 300/ })
  for (const statement of [
    'delete from fleet.audit_log',
    `update fleet.audit_archives set rows = 0`,
    'select fleet.prune_audit_log()',
  ])
    await t.rejects(archiver.unsafe(statement), { code: '42501' }, statement)
  for (const role of ['fleet_reader', 'fleet_server', 'fleet_verifier', 'fleet_notifier'] as const) {
    const other = asRole(t, db, role)
    // The ops page shows it to operators.
    if (role !== 'fleet_server') await t.rejects(other`select from fleet.audit_log`, { code: '42501' }, role)
    await t.rejects(other`select from fleet.claim_audit_month('me')`, { code: '42501' }, role)
  }
})

t.test('it works with a bucket, too', { skip }, async t => {
  const { db, directory } = await withMonths(t, 1)
  const { url, endpoint, env } = await withObjectStore(t)
  const { code, output } = await runOnce(t, db, directory, { ARCHIVE_URL: url, AWS_ENDPOINT_URL_S3: endpoint, ...env })
  t.equal(code, 0, output)
  t.match(
    eventsOf(output).filter(({ event }) => event === 'audit.archived'),
    [{ rows: 301 }],
  )
  t.match(await archives(db), [{ url: `${url}/audit_log/${monthAgo(1).slice(0, 7)}.parquet`, rows: '301' }])
})
