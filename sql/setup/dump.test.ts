// A dump is taken from one cluster and restored into another, in every way that Postgres offers. The store must work there. Where an
// older PostgreSQL is installed, too (npm run test:trixie), the dump comes from that one.
import { execFile, spawn } from 'node:child_process'
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import postgres, { type Sql } from 'postgres'
import t, { type Test } from 'tap'
import { daysAgo, fillDay, makeDirectory, partitionOf, runCli, workAll } from '../../testing/archiver.ts'
import { clusterUser, throwawayCluster } from '../../local/cluster.ts'
import { findPostgres, OLDEST_POSTGRES, type Postgres } from '../../local/packages.ts'
import { plainEnv } from '../../local/config.ts'
import { repository } from '../../lib/repository.ts'
import { migrate } from '../../cli/migrate.ts'
import { testCluster, withCluster, withDatabase, type OwnCluster, type TestDatabase } from '../../testing/database.ts'
import { CHANGED_FUNCTION, pgRestore } from '../../testing/dumps.ts'
import { asRole, ingest, value } from '../../testing/fleet.ts'

const run = promisify(execFile)

// The state of each of these days when the dump is taken.
const day = {
  detached: daysAgo(72),
  archived: daysAgo(71),
  dropped: daysAgo(70),
  restored: daysAgo(69),
  held: daysAgo(68),
  renamed: daysAgo(67),
  detachedAndRenamed: daysAgo(66),
  plain: daysAgo(65),
  other: daysAgo(64),
  settled: daysAgo(63),
}
const ROWS = 500

t.test('a store works after its dump was restored into another cluster', { timeout: 600_000 }, async t => {
  const newest = testCluster().postgres
  const oldest = await oldestPostgres(newest)
  t.comment(`from ${oldest.major} to ${newest.major}`)
  const source = await withCluster(t, { version: oldest })
  const directory = await makeDirectory(t)
  const { token, name } = await fill(t, source, directory)
  if (newest.major > oldest.major) await updatePartman(t, source)
  const before = await storeOf(source)
  const troubles = await troublesOf(source.sql)
  const dump = (...args: string[]) =>
    run(source.cluster.program('pg_dump'), [...args, source.url('postgres')], { env: plainEnv() })
  await Promise.all([
    dump('-Fd', '--jobs=2', '-f', join(directory, 'all.d')),
    dump('-Fc', '-f', join(directory, 'all.dump')),
    dump('-Fc', '--exclude-table-data=cron.*', '-f', join(directory, 'store.dump')),
    dump('--exclude-table-data=cron.*', '-f', join(directory, 'store.sql')),
  ])

  await source.admin.unsafe(`alter table fleet_detached.${name.detachedAndRenamed} rename to somebody_renamed_it_too`)
  await dump('-Fc', '--exclude-table-data=cron.*', '-f', join(directory, 'renamed.dump'))
  const renamed = await storeOf(source)

  const ways: { what: string; restore: (target: OwnCluster) => Promise<unknown> }[] = [
    {
      what: 'pg_restore --jobs, of a directory',
      restore: target => pgRestore(target.cluster, target.url('postgres'), join(directory, 'all.d'), { options: ['--jobs=3'] }),
    },
    {
      what: 'pg_restore, of a dump without the data of pg_cron',
      restore: target => pgRestore(target.cluster, target.url('postgres'), join(directory, 'store.dump')),
    },
    { what: 'psql', restore: target => psqlFile(target, join(directory, 'store.sql')) },
  ]
  for (const { what, restore } of ways) {
    await t.test(what, async t => {
      const target = await withEmptyCluster(t)
      await restore(target)

      t.equal(
        await value(target.admin`
        select count(*)::int from fleet.hb_partitions p join pg_class c on c.oid = p.relid where c.relname = p.partition_name
      `),
        0,
        'no oid is valid by chance',
      )
      t.same(await storeOf(target), before, 'each partition has its table and its rows, even before any maintenance')
      const found = await troublesOf(target.sql)
      t.same(
        found.filter(({ check_name }) => check_name !== 'partition_oids'),
        troubles,
        'check() reports the same as before the dump, with the same remedies',
      )
      t.match(
        found.find(({ check_name }) => check_name === 'partition_oids'),
        { remedy: 'call fleet.maintain();' },
      )
      if (what === ways[0]?.what) await guards(t, target, name)

      const dba = asRole(t, target, 'fleet_dba')
      await dba`select fleet.hold_partition(${name.plain}, 'a hold')`
      t.same(
        await target.admin`
        select conrelid::regclass::text as table from pg_constraint where conname = 'device_heartbeats_within_range' order by 1
      `,
        [{ table: `fleet.${name.held}` }, { table: `fleet.${name.plain}` }, { table: `fleet.${name.restored}` }].sort((a, b) =>
          a.table < b.table ? -1 : 1,
        ),
      )
      await dba`select fleet.release_partition(${name.plain})`

      await dba`call fleet.maintain()`
      await isHealed(t, target)
      t.same(await storeOf(target), before)
      t.same(await troublesOf(target.sql), troubles)
      await migrate(target.url('postgres'), { current: true, log: () => {} })
      await hasJobs(t, target)
      t.same(
        await target.admin`select distinct database, nodeport from cron.job where jobname like 'fleet-%'`,
        [{ database: 'fleet', nodeport: target.cluster.port }],
        'and run in this database',
      )
    })
  }

  await t.test('days can be archived, dropped and restored in the restored store', async t => {
    const target = await withEmptyCluster(t)
    for (const section of ['pre-data', 'data'])
      await pgRestore(target.cluster, target.url('postgres'), join(directory, 'all.dump'), { options: [`--section=${section}`] })
    // pg_cron starts its jobs as soon as they are restored.
    for (const job of ['maintain', 'nightly']) {
      await t.rejects(
        target.sql.unsafe(`call fleet.${job}()`),
        { code: 'FL002', message: /a restore of a dump is running/ },
        `${job} waits`,
      )
    }
    await pgRestore(target.cluster, target.url('postgres'), join(directory, 'all.dump'), { options: ['--section=post-data'] })
    await livesOn(t, target, directory, name, token)

    // This drops the guard first and then even days without an archive, as the runbook says.
    await target.admin`update fleet.settings set retention = '90 days'`
    await pgRestore(target.cluster, target.url('postgres'), join(directory, 'store.dump'), {
      options: ['--clean', '--if-exists'],
    })
    t.same(await storeOf(target), before, 'after pg_restore --clean over a live store it contains what is in the dump')
    t.match(
      (await troublesOf(target.sql)).find(({ check_name }) => check_name === 'partition_oids'),
      { status: 'warn' },
    )
    await target.sql`call fleet.maintain()`
    await isHealed(t, target)
  })

  await t.test('the store can be restored into a database with another name and without pg_cron', async t => {
    const target = await withEmptyCluster(t)
    await target.admin`create database elsewhere`
    const elsewhere = {
      ...target,
      url: (role: Parameters<TestDatabase['url']>[0]) => target.url(role).replace(/fleet$/, 'elsewhere'),
    }
    await pgRestore(elsewhere.cluster, elsewhere.url('postgres'), join(directory, 'renamed.dump'), { leaveOut: /\b(pg_)?cron\b/ })
    const store = { ...elsewhere, sql: asRole(t, elsewhere, 'fleet_owner'), admin: asRole(t, elsewhere, 'postgres') }
    t.match(
      (await troublesOf(store.sql)).find(({ check_name }) => check_name === 'partition_tables'),
      { remedy: /call fleet.maintain\(\);$/ },
    )
    await migrate(elsewhere.url('postgres'), { current: true, log: () => {} })
    await store.sql`call fleet.maintain()`
    await isHealed(t, store)
    t.same(await storeOf(store), renamed, 'even a retired table that was renamed before the dump is found')
    t.match(await store.sql`select jobname, statement from fleet.jobs_elsewhere() where jobname = 'fleet-maintain'`, [
      { statement: /elsewhere/ },
    ])
  })
})

t.test('pg_upgrade from the oldest installed PostgreSQL keeps the store', { timeout: 300_000 }, async t => {
  const newest = testCluster().postgres
  const oldest = await oldestPostgres(newest)
  // An upgrade to the same version also keeps the oids and changes the system identifier.
  t.comment(
    `from ${oldest.major} to ${newest.major}${newest.major > oldest.major ? '' : ', the only one with pg_partman and pg_cron'}`,
  )
  const source = await withCluster(t, { version: oldest })
  const { sql, admin, url, cluster: old } = source
  const directory = await makeDirectory(t)
  const { token, name } = await fill(t, source, directory)
  const before = await storeOf(source)
  const troubles = await troublesOf(sql)
  const oids = await sql`select partition_name, relid from fleet.hb_partitions order by 1`
  // As docs/upgrade.md says of versions before 17.
  for (const type of oldest.major < 17 ? ['text', 'bytea'] : [])
    await admin.unsafe(`grant execute on function ${CHANGED_FUNCTION}(boolean, text, ${type}) to public`)
  const { cluster, end } = await throwawayCluster({
    postgres: newest,
    databases: [],
    cronDatabase: 'fleet',
  })
  t.teardown(end)
  const password = new URL(url('postgres')).password
  const fresh = postgres(cluster.url('postgres', 'postgres'), { max: 1 })
  await fresh.unsafe(`alter role postgres password '${password}'`) // generated by the test: only letters, digits, - and _
  await Promise.all([sql, admin, fresh].map(session => session.end({ timeout: 1 })))
  await Promise.all([old.stop(), cluster.stop()])
  // Each cluster is started by its own user, which knows the password of both.
  const ran = await run(
    join(newest.bin, 'pg_upgrade'),
    [
      '-b',
      oldest.bin,
      '-B',
      newest.bin,
      '-d',
      old.data,
      '-D',
      cluster.data,
      '-U',
      'postgres',
      '--no-sync',
      '-p',
      String(cluster.port),
      '-P',
      String(cluster.port),
      '-s',
      cluster.dir,
    ],
    { ...clusterUser(), cwd: cluster.dir, env: { ...plainEnv(), PGPASSWORD: password } },
  ).catch((error: unknown) => error as { stdout: string; stderr: string })
  if (!/Upgrade Complete/.test(ran.stdout)) throw new Error(`${ran.stdout}${ran.stderr}${await logsOf(cluster.data)}`)
  await cluster.start()

  const urlOf: TestDatabase['url'] = role => url(role).replace(/:\d+\//, `:${cluster.port}/`)
  const upgraded: TestDatabase = {
    ...source,
    url: urlOf,
    sql: asRole(t, { ...source, url: urlOf }, 'fleet_owner'),
    admin: asRole(t, { ...source, url: urlOf }, 'postgres'),
  }
  t.same(await storeOf(upgraded), before)
  t.same(await upgraded.sql`select partition_name, relid from fleet.hb_partitions order by 1`, oids, 'the oids stay the same')
  t.match(
    await upgraded.sql`select status from fleet.check() where check_name = 'partition_oids'`,
    [{ status: 'warn' }],
    'but they are checked again',
  )
  for (const extension of ['pg_cron', 'pg_partman']) await upgraded.admin.unsafe(`alter extension ${extension} update`)
  await migrate(upgraded.url('postgres'), { current: true, log: () => {} })
  await upgraded.sql`call fleet.maintain()`
  await isHealed(t, upgraded)
  t.same(await storeOf(upgraded), before)
  t.same(await troublesOf(upgraded.sql), troubles, 'check() reports the same as before')
  await hasJobs(t, upgraded)
  await livesOn(t, { ...upgraded, cluster }, directory, name, token)
})

/** The end of each log of a pg_upgrade that failed. */
async function logsOf(data: string) {
  const output = join(data, 'pg_upgrade_output.d')
  const files = (await readdir(output, { recursive: true })).filter(name => name.endsWith('.log'))
  const ends = files.map(async file => `${file}:\n${(await readFile(join(output, file), 'utf8')).slice(-3_000)}`)
  return (await Promise.all(ends)).join('\n')
}

/** The oldest installed PostgreSQL that has both extensions. */
async function oldestPostgres(newest: Postgres) {
  for (let major = OLDEST_POSTGRES; major < newest.major; major++) {
    const found = await findPostgres(major)
    if (found) return found
  }
  return newest
}

/** To the version of the tests' own Postgres, because the tables of pg_partman 4 cannot be restored into pg_partman 5. */
async function updatePartman(t: Test, { admin, url }: TestDatabase) {
  const own = await withDatabase(t, 'template0')
  const version = await value(own.admin`select default_version from pg_available_extensions where name = 'pg_partman'`)
  await admin.unsafe(`alter extension pg_partman update to '${String(version)}'`)
  await migrate(url('postgres'), { current: true, log: () => {} })
}

/** Makes days in every state, a table that is being imported, and settings that are not the defaults. */
async function fill(t: Test, source: OwnCluster, directory: string) {
  const { sql, admin } = source
  const [device] = await sql<
    { device_id: string; token: string }[]
  >`select device_id, token from fleet.create_device('one', 'default')`
  if (!device) throw new Error('no device was made')
  await ingest(sql, [{ device_id: Number(device.device_id), battery_pct: 50 }])
  await sql`select fleet.set_premake(20)`
  await sql`call fleet.maintain()`
  const name = {} as Record<keyof typeof day, string>
  for (const [what, date] of Object.entries(day)) {
    await fillDay(admin, date, ROWS)
    name[what as keyof typeof day] = await partitionOf(sql, date)
  }
  for (const what of ['dropped', 'restored'] as const) await sql`select fleet.archive_partition(${name[what]})`
  await workAll(t, source, directory)
  await sql`select fleet.request_restore(${day.restored})`
  await workAll(t, source, directory)
  await admin`update fleet.settings set archive_grace = '1 day'`
  await sql`select fleet.archive_partition(${name.archived})`
  await workAll(t, source, directory)
  for (const what of ['detached', 'detachedAndRenamed'] as const) await sql`select fleet.archive_partition(${name[what]})`
  await sql`select fleet.hold_partition(${name.held}, 'legal hold')`
  await admin.unsafe(`alter table fleet.${name.renamed} rename to somebody_renamed_it`)
  await sql`select fleet.settle_partition(${name.settled})`
  // Transaction IDs that the other cluster has not reached.
  await admin`update fleet.hb_partitions set cold_xid = '3000000000' where partition_name = ${name.other}`
  const [token] = await sql<{ token: string }[]>`select fleet.renew_token(${device.device_id}) as token`
  await admin.unsafe(`
    create table public.old_beats (device_id bigint, ts timestamptz, battery_pct integer);
    grant select, trigger on public.old_beats to fleet_owner;
    insert into public.old_beats select ${device.device_id}, date_trunc('day', now()) - n * interval '1 minute', n from generate_series(1, 100) n`)
  await asRole(t, source, 'fleet_dba').unsafe(`call fleet.import_table('public.old_beats')`)
  t.match(await sql`select state, count(*)::int from fleet.hb_partitions where state <> 'active' group by state order by state`, [
    { state: 'archived', count: 1 },
    { state: 'detached', count: 2 },
    { state: 'dropped', count: 1 },
    { state: 'restored', count: 1 },
  ])
  return { token: token!.token, name }
}

/** A new cluster in which everything gets a different oid. */
async function withEmptyCluster(t: Test) {
  const target = await withCluster(t, { isEmpty: true })
  await target.admin.unsafe(`create role fleet_reader; create role fleet_dba; create role somebody`)
  await target.admin.unsafe(await readFile(join(repository, 'sql/setup/roles.sql'), 'utf8'))
  await target.cluster.allowLogins()
  await target.admin.unsafe(`do $$ begin
    for n in 1..300 loop execute format('create table public.object_%s (id bigint primary key)', n); end loop;
  end $$`)
  return target
}

/** Like grep -av … file | psql; see pgRestore(). */
function psqlFile(target: OwnCluster, file: string) {
  return new Promise<void>((resolve, reject) => {
    const psql = spawn(target.cluster.program('psql'), ['-q', '-v', 'ON_ERROR_STOP=1', target.url('postgres')], {
      env: plainEnv(),
      stdio: ['pipe', 'ignore', 'pipe'],
    })
    let said = ''
    psql.stderr.on('data', (chunk: Buffer) => {
      said += chunk.toString()
    })
    psql.stdin.on('error', () => {})
    const grep = spawn('grep', ['-av', `ON FUNCTION pg_catalog.${CHANGED_FUNCTION}(`, file], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    grep.once('error', reject)
    grep.stdout.pipe(psql.stdin)
    psql.once('error', reject)
    psql.once('close', code => (code === 0 ? resolve() : reject(new Error(`psql ended with ${code}: ${said}`))))
  })
}

/** What the store contains, by name and without oids. */
async function storeOf({ sql, admin }: TestDatabase) {
  const tables = await sql<{ partition_name: string; table: string | null }[]>`
    select partition_name, state, range_start, range_end, held_reason, fleet.table_of(p)::regclass::text as table
    from fleet.hb_partitions p order by range_start`
  const counts: Record<string, number> = {}
  for (const { table } of tables) if (table) counts[table] = Number(await value(admin.unsafe(`select count(*) from ${table}`)))
  return {
    tables: tables.map(row => ({ ...row })),
    counts,
    settled: (
      await sql`select partition_name, settled_at, fleet.is_settled(fleet.table_of(p)) from fleet.hb_partitions p where settled_at is not null order by range_start`
    ).map(row => ({ ...row })),
    health: (await sql`select partition_name, bytes_size > 0 as has_bytes from fleet.partition_health`).map(row => ({ ...row })),
    plan: (await sql`select partition_name, action, reason from fleet.retention_plan('60 days')`).map(row => ({ ...row })),
    rollups: (await sql`select day, partition_name, action from fleet.rollup_plan()`).map(row => ({ ...row })),
    config: (await sql`select parent_table, partition_interval, premake, retention, template_table from partman.part_config`).map(
      row => ({ ...row }),
    ),
    settings: (await sql`select * from fleet.settings`).map(row => ({ ...row })),
    imports: (await sql`select source, state from fleet.imports`).map(row => ({ ...row })),
    holds: (await sql`select * from fleet.import_holds()`).map(row => ({ ...row })),
    guard: (await admin`select partition_name, is_proven from fleet_guard.partitions order by 1`).map(row => ({ ...row })),
    triggers: (await admin`select evtname, evtenabled from pg_event_trigger order by 1`).map(row => ({ ...row })),
    // What a login of fleet.create_reader() may read, and the conditions for it.
    bound: (
      await admin`
      select c.oid::regclass::text as name, c.relrowsecurity, c.reloptions, array(
        select a.attname::text from pg_attribute a
        where a.attrelid = c.oid and a.attnum > 0 and has_column_privilege('fleet_cohort_reader', c.oid, a.attnum, 'select') order by 1
      ) as columns, array(
        select concat_ws(' ', p.polname, p.polpermissive, p.polroles::regrole[], pg_get_expr(p.polqual, p.polrelid))
        from pg_policy p where p.polrelid = c.oid order by 1
      ) as policies
      from pg_class c
      where c.relnamespace = 'fleet'::regnamespace and has_any_column_privilege('fleet_cohort_reader', c.oid, 'select')
      order by 1`
    ).map(row => ({ ...row })),
  }
}

/** What check() complains about, except the settings of a throwaway cluster and what depends on time and on other sessions. */
async function troublesOf(sql: Sql) {
  const found = await sql<{ check_name: string; status: string; detail: string; remedy: string | null }[]>`
    select * from fleet.check()
    where status <> 'ok' and check_name not like 'setting%' and check_name not in ('archiver', 'jobs')
    order by check_name`
  return found.map(({ check_name, status, detail, remedy }) => ({ check_name, status, detail, remedy }))
}

async function isHealed(t: Test, { sql, admin }: TestDatabase) {
  if (testCluster().postgres.major >= 17) {
    t.same(
      await admin`
      select c.oid::regclass::text from pg_class c
      where c.relkind in ('r', 'p') and (c.relnamespace in ('fleet'::regnamespace, 'fleet_detached'::regnamespace)
          and not has_table_privilege('fleet_owner', c.oid, 'maintain')
        or c.relnamespace = 'fleet_detached'::regnamespace and not has_table_privilege('fleet_archiver', c.oid, 'maintain'))`,
      [],
      'each table may be vacuumed',
    )
  }
  t.same(await sql`select status from fleet.check() where check_name = 'partition_oids'`, [{ status: 'ok' }])
  t.same(
    await sql`
    select partition_name from fleet.hb_partitions p
    where relid is distinct from fleet.table_of(p) or relid_seal is distinct from fleet_guard.seal(relid)
      or (relid is null) <> (state = 'dropped')`,
    [],
    'each recorded oid is that of the table in this cluster',
  )
  t.same(
    await admin`
    select partition_name from fleet.hb_partitions p join fleet_guard.partitions g using (partition_name)
    where (p.relid, p.relid_seal) is distinct from (g.relid, g.relid_seal)`,
    [],
    'and the guard has the same oid',
  )
  t.same(await sql`select cold_xid from fleet.hb_partitions where age(cold_xid) < 0`, [], 'no transaction ID is in the future')
  t.same(
    await sql`select event, is_ok, detail from fleet.events where event = 'store.relinked'`,
    [{ event: 'store.relinked', is_ok: true, detail: 'tables found by name' }],
    'the tables were looked up once',
  )
}

async function hasJobs(t: Test, { sql }: TestDatabase) {
  t.same(await sql`select jobname, status from fleet.job_health where status not in ('ok', 'waiting')`, [], 'the jobs exist')
}

/** Right after the restore, before any maintenance: which drops are refused. Each runs in a transaction that is rolled back. */
async function guards(t: Test, { admin, sql }: TestDatabase, name: Record<keyof typeof day, string>) {
  const attempt = async (...statements: string[]) => {
    const session = await admin.reserve()
    try {
      await session.unsafe('begin')
      for (const statement of statements) await session.unsafe(statement)
      return 'allowed'
    } catch (error) {
      return (error as { code: string }).code
    } finally {
      await session.unsafe('rollback')
      session.release()
    }
  }
  for (const [what, ...statements] of [
    ['drop of a retired day', `drop table fleet_detached.${name.detached}`],
    ['drop of an attached day', `drop table fleet.${name.plain}`],
    ['rename, then drop', `alter table fleet.${name.plain} rename to x`, 'drop table fleet.x'],
    ['rename by ALTER INDEX, then drop', `alter index fleet.${name.plain} rename to x`, 'drop table fleet.x'],
    [
      'move, then drop',
      `alter table fleet_detached.${name.detached} set schema public`,
      `alter table public.${name.detached} rename to x`,
      'drop table public.x',
    ],
    [
      'schema renamed, then drop',
      'alter schema fleet_detached rename to d',
      `alter table d.${name.detached} rename to x`,
      'drop table d.x',
    ],
    ['drop of the schemas', 'drop schema fleet, fleet_detached cascade'],
    ['drop of what the roles own', 'drop owned by fleet_owner, fleet_archiver cascade'],
    // The oid in the dump is by chance that of another table here.
    [
      'the oid of a proven day that is by chance that of an unproven one',
      `update fleet_guard.partitions set relid = 'fleet.${name.plain}'::regclass where partition_name = '${name.dropped}'`,
      `alter event trigger fleet_guard_find disable`,
      `alter table fleet.${name.plain} rename to device_heartbeats_p`,
      `drop table fleet.device_heartbeats_p`,
    ],
  ] as const)
    t.equal(await attempt(...statements), 'FL001', what)
  for (const [what, ...statements] of [
    [
      'drop of a table whose oid is by chance that of an unproven day',
      `update fleet_guard.partitions set relid = 'public.object_1'::regclass where partition_name = '${name.plain}'`,
      'drop table public.object_1',
    ],
    ['drop of a proven day', `drop table fleet_detached.${name.archived}`],
  ] as const)
    t.equal(await attempt(...statements), 'allowed', what)
  t.equal(await value(sql`select count(*)::int from fleet.events where event = 'store.relinked'`), 0, 'no maintenance has run')
}

/** Uses the restored store like any other store. */
async function livesOn(t: Test, target: OwnCluster, directory: string, name: Record<keyof typeof day, string>, token: string) {
  const { sql, admin } = target
  const dba = asRole(t, target, 'fleet_dba')
  t.match(
    await asRole(t, target, 'fleet_server')`select kind, name from fleet.authenticate(sha256(convert_to(${token}, 'UTF8')))`,
    [{ kind: 'device', name: 'one' }],
  )
  t.match(
    await ingest(sql, [
      { device_id: 1, battery_pct: 51 },
      { device_id: 1, ts: `${daysAgo(3)}T12:00:00Z` },
    ]),
    [{ result: 'stored' }, { result: 'stored' }],
  )

  // The table of the archived day is found by its name and dropped, before any maintenance.
  await admin`update fleet.settings set archive_grace = '0'`
  await sql`select fleet.drop_partition(${name.archived})`
  t.equal(await value(admin`select to_regclass(${`fleet_detached.${name.archived}`})`), null)
  t.match((await sql`select state, relid from fleet.hb_partitions where partition_name = ${name.archived}`)[0], {
    state: 'dropped',
    relid: null,
  })

  // New rows of the imported table are still forwarded, and the import can be verified and confirmed.
  await admin`insert into public.old_beats select 1, date_trunc('day', now()) - interval '3 hours', 77`
  t.equal(
    await value(sql`select count(*)::int from fleet.device_heartbeats where ts = date_trunc('day', now()) - interval '3 hours'`),
    1,
    'rows that are written into the old table arrive',
  )
  t.equal(await value(dba.unsafe(`call fleet.verify_import('public.old_beats')`)), 'verified')
  await dba.unsafe(`select fleet.confirm_import('public.old_beats')`)
  t.same(await admin`select proname from pg_proc where proname like 'forward\_%'`, [], 'its trigger is gone')

  // Restored, held, renamed and detached days are archived, and archived days can be restored.
  for (const what of ['restored', 'held'] as const) await dba`select fleet.release_partition(${name[what]})`
  await dba`select fleet.set_retention('60 days')`
  await dba`call fleet.maintain()`
  await admin.unsafe(`alter table fleet.somebody_renamed_it rename to ${name.renamed}`)
  await dba`call fleet.nightly()`
  t.same(await sql`select event, detail from fleet.events where event like 'maintenance.%' and not is_ok`, [])
  await workAll(t, target, directory)
  t.same(
    await sql`select partition_name, state, last_error from fleet.hb_partitions where range_end < now() - interval '61 days' and state <> 'dropped'`,
    [],
  )
  t.equal(
    await value(admin`select count(*)::int from pg_class where relnamespace = 'fleet_detached'::regnamespace and relkind = 'r'`),
    0,
    'every table was dropped',
  )
  t.same(
    await sql`select row_count::int from fleet.archives where row_count > 0`,
    Object.keys(day).map(() => ({ row_count: ROWS })),
  )
  const { code, output } = await runCli(t, target, directory, 'restore', day.archived)
  t.equal(code, 0, output)
  t.equal(
    await value(
      sql`select count(*)::int from fleet.device_heartbeats where ts >= ${day.archived}::date and ts < ${day.archived}::date + 1`,
    ),
    ROWS,
  )
  t.same(
    (await troublesOf(sql)).filter(({ check_name }) => check_name.startsWith('partition') || check_name === 'guard'),
    [],
  )
}
