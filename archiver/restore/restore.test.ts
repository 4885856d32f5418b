import { readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { asRole } from '../../testing/fleet.ts'
import { spawnNode, waitFor } from '../../testing/database.ts'
import { isDistributed } from '../../testing/distributed.ts'
import {
  archiverEnv,
  leftovers,
  pathsOf,
  retiredDay as day,
  runCli,
  stateOf,
  withRetiredDay,
  workAll,
} from '../../testing/archiver.ts'
import { ingest } from '../../testing/fleet.ts'

/** A database with one day that is only in the archive, and the rows it had. */
async function withDroppedDay(t: Test, rows: number | 'awkward') {
  const retired = await withRetiredDay(t, rows)
  const { db, directory, partition } = retired
  const before =
    await db.admin`select t.*, ts::text, received_at::text, extra::text from fleet_detached.${db.admin(partition)} t order by t.device_id, t.ts`
  await workAll(t, db, directory)
  t.match(await stateOf(db.sql, partition), { state: 'dropped' })
  const read = () => db.admin`
    select t.*, ts::text, received_at::text, extra::text from fleet.device_heartbeats t
    where ts >= ${day}::date and ts < ${day}::date + 1 order by t.device_id, t.ts`
  return { ...retired, before, read }
}

t.test('restore brings a dropped day back, row for row', async t => {
  for (const rows of ['awkward', 50_000] as const) {
    await t.test(String(rows), async t => {
      const { db, directory, partition, before, read } = await withDroppedDay(t, rows)
      const { code, output } = await runCli(t, db, directory, 'restore', day)
      t.equal(code, 0, output)
      t.match(output, new RegExp(`${partition}: restored, ${before.length} rows`))
      t.match(await stateOf(db.sql, partition), { state: 'restored' })
      const after = await read()
      t.equal(after.length, before.length)
      t.ok(JSON.stringify(after) === JSON.stringify(before), 'each row is as it was')
      t.same(await leftovers(directory), [])
      const [indexes] =
        await db.admin`select count(*)::int as count from pg_indexes where schemaname = 'fleet' and tablename = ${partition}`
      t.same(indexes, { count: 1 }, 'with its index for reads, and no dedupe key, because it is settled')
      const [order] = await db.admin.unsafe(`
        select count(*)::int as unsorted from (
          select (device_id, ts) < lag((device_id, ts)) over (order by ctid) as is_behind from fleet.${partition}
        ) r where is_behind`)
      // The large rows of the awkward day do not fit into every page, so smaller ones behind them fill it.
      if (rows !== 'awkward' && !isDistributed) t.same(order, { unsorted: 0 }, 'in the order of devices')
      await t.rejects(db.admin.unsafe(`insert into fleet.device_heartbeats select * from fleet.${partition} limit 1`), {
        code: isDistributed ? 'XX000' : '23514',
        message: /violates check constraint "device_heartbeats_settled/,
      })
    })
  }
})

t.test('late heartbeats of a restored day are stored once', async t => {
  const { db, directory, partition, before, read } = await withDroppedDay(t, 2000)
  t.equal((await runCli(t, db, directory, 'restore', day)).code, 0)
  const { device_id } = before[0] as { device_id: string }
  const moment = (hour: number) => `${day}T${hour}:59:58.000Z`
  const late = [21, 22, 23].map(hour => ({ device_id: Number(device_id), ts: moment(hour) }))
  await ingest(db.sql, [...late, { device_id: Number(device_id), ts: (before[0]!['ts'] as string).replace(' ', 'T') + ':00' }])
  await db.sql`update fleet.settings set max_late = '89 days'`
  t.match(await db.sql`select stored, duplicate, remaining from fleet.replay_quarantine()`, [
    { stored: '3', duplicate: '1', remaining: '0' },
  ])
  t.equal((await read()).length, before.length + 3)
  t.match(await db.sql`select state, settled_at from fleet.hb_partitions where partition_name = ${partition}`, [
    { state: 'restored', settled_at: null },
  ])
})

t.test('a day without rows is restored too', async t => {
  const { db, directory, partition } = await withDroppedDay(t, 0)
  const { code, output } = await runCli(t, db, directory, 'restore', day)
  t.equal(code, 0, output)
  t.match(await stateOf(db.sql, partition), { state: 'restored' })
})

t.test('a day without rows that is created again while it is restored is retired again', async t => {
  const { db, directory, partition } = await withDroppedDay(t, 0)
  await db.sql`select fleet.request_restore(${day}::date)`
  const cut = 'an archiver that is killed'
  await db.sql`select from fleet.claim_restore(${cut}, '0')`
  await db.sql`select fleet.begin_restore(${partition}, ${cut})`
  await db.sql`select fleet.create_partitions(${day}::date, ${day}::date)`
  t.match(await stateOf(db.sql, partition), { state: 'active' })
  await db.sql`select fleet.archive_partition(${partition})`
  await workAll(t, db, directory)
  t.match(await stateOf(db.sql, partition), { state: 'dropped' })
  t.match(await db.sql`select state from fleet.restore_items`, [{ state: 'done' }])
  t.same(
    await db.sql`select relname from pg_class where relname ~ ${partition} and relkind = 'r'`,
    [],
    'nothing is left of either table',
  )
})

t.test('it is no failure if a day comes back while it is restored', async t => {
  const { db, directory, partition } = await withDroppedDay(t, 0)
  await db.sql`select fleet.request_restore(${day}::date)`
  await db.sql`select from fleet.claim_restore('slow')`
  await db.sql`select fleet.begin_restore(${partition}, 'slow')`
  await db.sql`select fleet.create_partitions(${day}::date, ${day}::date)`
  await t.rejects(db.sql`select fleet.finish_restore(${partition}, 'slow')`, { code: 'FL002', message: /is active/ })
  await db.sql`select fleet.fail_restore(${partition}, 'slow', 'it is active')`
  t.match(await db.sql`select state, last_error from fleet.restore_items`, [{ state: 'done', last_error: null }])
  t.same(await db.sql`select relname from pg_class where relname ~ 'restoring'`, [])
  t.same((await workAll(t, db, directory)).results, [])
})

t.test('a day in two requests is given to one archiver', async t => {
  const { db } = await withDroppedDay(t, 0)
  for (let n = 0; n < 2; n++) await db.sql`select fleet.request_restore(${day}::date)`
  const claims = await db.admin
    .begin(async first => {
      const mine = await first`select from fleet.claim_restore('one')`
      const other = db.sql`select from fleet.claim_restore('other')`.execute()
      await waitFor(async () => (await db.admin`select from pg_locks where not granted`).length > 0)
      return { mine, other }
    })
    .then(async ({ mine, other }) => [mine.length, (await other).length])
  t.same(claims, [1, 0])
})

t.test('a running archiver does what fleet.request_restore() requests', async t => {
  const { db, directory, partition, before, read } = await withDroppedDay(t, 2000)
  const archiver = await spawnNode(t, 'archiver/main.ts', { env: archiverEnv(db, directory), ready: /archiver\.ready/ })
  await db.sql`select fleet.request_restore(${day}::date)`
  await waitFor(async () => (await stateOf(db.sql, partition)).state === 'restored')
  t.equal((await read()).length, before.length)
  t.same(await archiver.stop(), { code: 0, signal: null })
})

t.test('a restore that is killed with -9 in the middle is finished by the next run', async t => {
  const { db, directory, partition, before, read } = await withDroppedDay(t, 2000)
  await db.sql`select fleet.request_restore(${day}::date)`
  await db.admin.begin(async holder => {
    // finish_restore waits for this lock.
    await holder`select from fleet.hb_partitions where partition_name = ${partition} for update`
    const archiver = await spawnNode(t, 'archiver/main.ts', { env: archiverEnv(db, directory) })
    await waitFor(
      async () =>
        (
          await db.admin`
      select from pg_stat_activity where datname = current_database() and usename = 'fleet_archiver' and wait_event_type = 'Lock'`
        ).length > 0,
    )
    await archiver.stop('SIGKILL')
    await db.admin`
      select pg_terminate_backend(pid) from pg_stat_activity where usename = 'fleet_archiver' and datname = current_database()`
  })
  await db.admin`update fleet.restore_items set lease_until = now() - interval '1 second' where state = 'running'`
  t.same((await workAll(t, db, directory)).results, ['done'])
  t.match(await stateOf(db.sql, partition), { state: 'restored' })
  t.equal((await read()).length, before.length)
})

t.test('a backend that dies while rows are copied in is a failure, and the next attempt succeeds', async t => {
  const { db, directory, partition } = await withDroppedDay(t, 20_000)
  await db.sql`select fleet.request_restore(${day}::date)`
  // Looks on the server every millisecond, because the COPY lasts only about 50 ms.
  const cutting = db.admin
    .unsafe(
      `
    do $$
    begin
      for n in 1..30000 loop
        perform pg_stat_clear_snapshot();
        perform pg_terminate_backend(pid) from pg_stat_activity
        where datname = current_database() and usename = 'fleet_archiver' and query like 'copy%' and state = 'active';
        exit when found;
        perform pg_sleep(0.001);
      end loop;
    end $$`,
    )
    .execute()
  const { results } = await workAll(t, db, directory)
  await cutting
  t.same(results, ['failed'])
  t.match(await stateOf(db.sql, partition), { state: 'dropped' })
  await db.sql`select fleet.request_restore(${day}::date)`
  t.same((await workAll(t, db, directory)).results, ['done'])
  t.match(await stateOf(db.sql, partition), { state: 'restored' })
})

t.test('a damaged archive is not restored, and verify names it', async t => {
  const { db, directory, partition } = await withDroppedDay(t, 2000)
  const whole = await runCli(t, db, directory, 'verify', '--all')
  t.equal(whole.code, 0, whole.output)
  const bytes = await readFile(pathsOf(directory).parquet)
  bytes[1000] = (bytes[1000] ?? 0) ^ 1
  await writeFile(pathsOf(directory).parquet, bytes)

  t.equal((await runCli(t, db, directory, 'verify')).code, 0, 'its size is right, and nothing else is checked')
  for (const args of [[day], ['--all']]) {
    const { code, output } = await runCli(t, db, directory, 'verify', ...args)
    t.equal(code, 1)
    t.match(output, /\.parquet: the object differs from its manifest: sha256 should be/)
    t.equal(output.trim().split('\n').length, 2, 'one line for the fault and one for the total')
  }
  const { code, output } = await runCli(t, db, directory, 'restore', day)
  t.equal(code, 1)
  t.match(output, new RegExp(`${partition}: failed: .*differs from its manifest`))
  t.match(await stateOf(db.sql, partition), { state: 'dropped' })
})

t.test('list shows the archives, and wrong usage is reported', async t => {
  const { db, directory, partition } = await withDroppedDay(t, 2000)
  const { code, output } = await runCli(t, db, directory, 'list')
  t.equal(code, 0)
  t.match(output.trim().split('\n'), [/^from +partition +rows/, new RegExp(`^${day} +${partition} +2000 .* dropped `)])

  for (const args of [
    [],
    ['lisst'],
    ['verify', 'yesterday'],
    ['verify', '2026-02-30'],
    ['restore'],
    ['restore', '2026-01-02', '2026-01-01'],
  ]) {
    const wrong = await runCli(t, db, directory, ...args)
    t.equal(wrong.code, 2, args.join(' '))
    t.match(wrong.output, /usage: npm run archive/)
  }
  const unknown = await runCli(t, db, directory, 'restore', '2020-01-01')
  t.equal(unknown.code, 1)
  t.match(unknown.output, /there is nothing to restore from 2020-01-01 to 2020-01-01/)
})

t.test('reindex writes index.json again, and reports the manifests that cannot be read', async t => {
  const { db, directory } = await withDroppedDay(t, 100)
  const index = join(directory, 'archive/index.json')
  const before = await readFile(index)
  await rm(index)
  const { code, output } = await runCli(t, db, directory, 'reindex')
  t.equal(code, 0)
  t.equal(output, 'index.json lists 1 archive\n')
  t.same(await readFile(index), before)

  await writeFile(pathsOf(directory).manifest, '{')
  const broken = await runCli(t, db, directory, 'reindex')
  t.equal(broken.code, 1)
  t.match(broken.output, /^file:.*manifest\.json: the manifest is not JSON.*$/m)
  t.match(broken.output, /^index\.json lists 0 archives; 1 manifests could not be read$/m)
})

t.test('verify reports files that belong to no archive', async t => {
  const { db, directory } = await withDroppedDay(t, 100)
  t.equal((await runCli(t, db, directory, 'verify')).code, 0)
  const { folder } = pathsOf(directory)
  await writeFile(join(folder, 'copy.parquet'), 'PAR1')
  for (const args of [[], [day], ['--all']]) {
    const { code, output } = await runCli(t, db, directory, 'verify', ...args)
    t.equal(code, 1)
    t.match(output, /^file:.*\/copy\.parquet: the database has no proven archive of this name$/m)
  }
})

t.test('rows that an archiver only says it restored are not attached', async t => {
  const { db, directory, partition } = await withRetiredDay(t, 300)
  await db.admin.unsafe(
    `create table public.kept as table fleet_detached.${partition}; grant select on public.kept to fleet_archiver`,
  )
  await workAll(t, db, directory)
  const { rows_sha256 } = await stateOf(db.sql, partition)
  const archiver = asRole(t, db, 'fleet_archiver')
  const restore = async (change: string, claim: unknown) => {
    await archiver`select fleet.request_restore(${day}::date)`
    await archiver`select * from fleet.claim_restore('a', '0 seconds')`
    const [{ name } = { name: '' }] = await archiver<{ name: string }[]>`select fleet.begin_restore(${partition}, 'a') as name`
    await archiver.unsafe(`insert into ${name} select ${change} from public.kept`)
    await archiver`select fleet.finish_restore(${partition}, 'a', ${claim as string})`
  }
  const columns = (await db.sql`select name from fleet.archive_columns('fleet.device_heartbeats') order by position`).map(
    ({ name }) => name as string,
  )
  const forged = columns.map(name => (name === 'battery_pct' ? 'case device_id when 7 then 0 else battery_pct end' : name)).join()
  const refused = { code: 'FL010', message: /differ from what was archived; the table is not attached/ }
  await t.rejects(restore(forged, rows_sha256), refused, "Postgres's own hash differs")
  await t.rejects(restore(columns.join(), 'ab'.repeat(32)), refused, 'the SHA-256 that the archiver computed differs')
  await t.rejects(restore(columns.join(), null), refused, 'or is missing')
  await restore(columns.join(), rows_sha256)
  t.match(await stateOf(db.sql, partition), { state: 'restored' })
})
