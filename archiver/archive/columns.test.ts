import { cp, readdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { DuckDBInstance } from '@duckdb/node-api'
import t, { type Test } from 'tap'
import { withDatabase, type TestDatabase } from '../../testing/database.ts'
import { isDistributed, plainOnly } from '../../testing/distributed.ts'
import { registerArchives } from './register.ts'
import { FORMAT_VERSION, type Manifest } from './manifest.ts'
import { queryArchive } from '../query/query.ts'
import {
  fillAwkwardDay,
  fillDay,
  makeDirectory,
  partitionOf,
  pathsOf,
  retiredDay,
  runCli,
  stateOf,
  withRetiredDay,
  withWorker,
  workAll,
} from '../../testing/archiver.ts'
import { findOrphans, listArchives, verifyArchive } from './verify.ts'
import type { Worker } from '../context.ts'
import { repository } from '../../lib/repository.ts'

/** A change to the columns of the table, and how older rows are seen afterwards. */
interface Change {
  statements: string[]
  today: Partial<Record<keyof typeof archived, string>>
  leftOut: string | null
}

/** The columns of the archives in this file, as they are compared. */
const archived = {
  ts: 'ts',
  received_at: 'received_at',
  device_id: 'device_id',
  signal_dbm: 'signal_dbm',
  battery_pct: 'battery_pct',
  unity_running: 'unity_running',
  network_type: 'network_type',
  agent_version: 'agent_version',
  ip: 'ip',
  extra: 'extra',
}

const ADD_COLUMN = 'alter table fleet.device_heartbeats add column case_temperature integer'
const DROP_COLUMN = 'alter table fleet.device_heartbeats drop column network_type'
const RENAME_COLUMN = 'alter table fleet.device_heartbeats rename column agent_version to agent'
const WIDEN_COLUMNS = [
  'alter table fleet.device_heartbeats alter column signal_dbm type integer',
  'alter table fleet.device_heartbeats alter column battery_pct type bigint',
]
const changes: Record<string, Change> = {
  added: { statements: [ADD_COLUMN], today: {}, leftOut: null },
  dropped: { statements: [DROP_COLUMN], today: { network_type: '' }, leftOut: 'network_type (text)' },
  renamed: { statements: [RENAME_COLUMN], today: { agent_version: 'agent' }, leftOut: null },
  widened: { statements: WIDEN_COLUMNS, today: {}, leftOut: null },
  'all columns': {
    statements: [ADD_COLUMN, DROP_COLUMN, RENAME_COLUMN, ...WIDEN_COLUMNS],
    today: { network_type: '', agent_version: 'agent' },
    leftOut: 'network_type (text)',
  },
}

/** An archive, and a way to put its rows into a table of a database. */
interface Archived {
  day: string
  rows: number
  format: number
  columns: (keyof typeof archived)[]
  directory: string
  /** Where the manifests are. */
  manifests: string
  expect: (db: TestDatabase) => Promise<void>
}

const columns3 = Object.keys(archived) as (keyof typeof archived)[]
const columns1 = columns3.filter(name => name !== 'extra')

/** The archive that version 0.1.0 made. */
const format1: Archived = {
  day: '2026-06-30',
  rows: 80,
  format: 1,
  columns: columns1,
  directory: join(repository, 'archiver/archive/fixtures/archive-1'),
  manifests: 'device_heartbeats',
  async expect(db) {
    const copy = await db.admin
      .unsafe(`copy public.expected (${columns1.join(', ')}) from stdin (format csv, header, null '\\N')`)
      .writable()
    copy.end(await readFile(join(this.directory, 'rows.csv')))
    await new Promise((resolve, reject) => copy.on('finish', resolve).on('error', reject))
  },
}

/** An archive that this version makes. */
async function makeCurrent(t: Test): Promise<Archived> {
  const { db, directory } = await withRetiredDay(t, 'awkward')
  t.same((await workAll(t, db, directory)).results, ['done'])
  return {
    day: retiredDay,
    rows: 4000,
    format: FORMAT_VERSION,
    columns: columns3,
    directory: join(directory, 'archive'),
    manifests: 'manifests',
    expect: db => fillAwkwardDay(db.admin, retiredDay, 'public.expected'),
  }
}

/** Changes the table as its owner. The one view over the table would prevent changes of its columns. */
async function alter(db: TestDatabase, ...statements: string[]) {
  await db.sql`drop view if exists fleet.device_status_legacy cascade`
  for (const statement of statements) await db.sql.unsafe(statement)
}

async function verifyAll(worker: Worker) {
  const faults: string[] = []
  for (const isQuick of [true, false]) {
    for (const archive of await listArchives(worker)) faults.push(...(await verifyArchive(worker, archive, isQuick)))
  }
  return [...faults, ...(await findOrphans(worker))]
}

async function ask(worker: Worker, sql: string) {
  return await queryArchive(worker, sql, {}, async ({ columns, rows }) => {
    const found: Record<string, unknown>[] = []
    for await (const chunk of rows) found.push(...chunk.map(row => Object.fromEntries(columns.map((name, n) => [name, row[n]]))))
    return found
  })
}

/** The rows of a day that differ from what was archived, by the columns that the table still has. */
async function differingRows(db: TestDatabase, day: string, { today }: Change) {
  const kept = Object.keys(archived).filter(name => today[name as keyof typeof archived] !== '') as (keyof typeof archived)[]
  const old = kept.join(', ')
  const now = kept.map(name => today[name] ?? name).join(', ')
  const rows = `select ${now} from fleet.device_heartbeats where ts >= '${day}Z' and ts < '${day}Z'::timestamptz + interval '1 day'`
  return await db.admin.unsafe(`
    (${rows} except all select ${old} from public.expected) union all (select ${old} from public.expected except all ${rows})`)
}

/** Adds a row to a restored day, and lets it be archived again. */
async function archiveAgain(t: Test, db: TestDatabase, directory: string, partition: string, day: string, device_id = 4711) {
  await db.sql`select fleet.unsettle_partition(${partition})`
  await db.admin.unsafe(
    `insert into fleet.${partition} (ts, received_at, device_id) values ('${day} 12:34:56Z', now(), ${device_id})`,
  )
  await db.sql`select fleet.release_partition(${partition})`
  await db.sql`select fleet.archive_partition(${partition})`
  t.same((await workAll(t, db, directory)).results, ['done'])
}

async function filesOf(folder: string) {
  return (await readdir(folder).catch(() => [])).sort()
}

for (const archivedAs of [format1, await makeCurrent(t)]) {
  const { day, rows, format, columns } = archivedAs
  for (const [name, change] of Object.entries(changes)) {
    await t.test(
      `an archive of format ${format}, column ${name}: verified, queried, restored, registered, and archived again`,
      { skip: format > 1 && plainOnly('an archive of a day that is online and empty cannot be registered') },
      async t => {
        const db = await withDatabase(t)
        const directory = await makeDirectory(t)
        await cp(archivedAs.directory, join(directory, 'archive'), { recursive: true })
        await db.admin`create table public.expected (like fleet.device_heartbeats)`
        await archivedAs.expect(db)
        await alter(db, ...change.statements)

        // Registered.
        const { worker } = await withWorker(t, db, directory)
        t.same(await registerArchives(worker, () => {}), { registered: 1, alreadyKnown: 0, faults: [] })
        const [{ partition_name: partition } = { partition_name: '' }] = await db.sql<{ partition_name: string }[]>`
        select partition_name from fleet.archives where range_start = ${day}::date`
        t.match(await db.sql`select manifest_format, checksum_version, columns from fleet.archives`, [
          { manifest_format: format, checksum_version: format < 3 ? format : null, columns: columns.map(name => ({ name })) },
        ])
        if (format === 1) {
          // The state of a database that made this archive before it recorded columns.
          await db.sql`update fleet.hb_partitions set columns = null, columns_at = null, checksum_version = null, manifest_format = null`
        }

        // Queried.
        const agent = change.today.agent_version ?? 'agent_version'
        const [found] = await ask(
          worker,
          `
        select count(*) as rows, count(${agent}) as agents, count(network_type) as networks, typeof(any_value(signal_dbm)) as signal
        from archive`,
        )
        const [expected] = await db.admin<{ agents: number; networks: number }[]>`
        select count(agent_version)::int as agents, count(network_type)::int as networks from public.expected`
        t.same(found, { rows, ...expected, signal: change.statements.includes(WIDEN_COLUMNS[0] ?? '') ? 'INTEGER' : 'SMALLINT' })
        t.match(
          await db.sql`select manifest_format, columns from fleet.archives`,
          [{ manifest_format: format, columns: columns.map(name => ({ name })) }],
          'the database has recorded the columns that it did not know',
        )

        // Verified.
        t.same(await verifyAll(worker), [])

        // Restored.
        await db.sql`select fleet.request_restore(${day}::date)`
        t.same((await workAll(t, db, directory)).results, ['done'])
        t.match(await stateOf(db.sql, partition), { state: 'restored', last_error: null })
        t.same(await differingRows(db, day, change), [])
        t.match(await db.sql`select left_out from fleet.restore_items`, [{ left_out: change.leftOut }])
        t.match(await db.sql`select detail from fleet.events where event = 'partition.restore'`, [
          { detail: change.leftOut === null ? null : `left out, and kept in the archive: ${change.leftOut}` },
        ])
        // alter() has dropped views that a distributed store misses.
        const expectedFaults = isDistributed ? ['archiver', 'node_versions'] : ['archiver']
        t.same(await db.sql`select * from fleet.check() where status = 'fail' and check_name <> all (${expectedFaults})`, [])
        t.same(await ask(worker, 'select count(*) as rows from device_heartbeats'), [{ rows }])

        // Archived again.
        await archiveAgain(t, db, directory, partition, day)
        t.match(await stateOf(db.sql, partition), {
          state: 'dropped',
          row_count: String(rows + 1),
          archive_url: /_r2\.parquet$/,
          manifest_format: 4,
        })
        const { folder, parquet, manifest, superseded: aside } = pathsOf(directory, day)
        const file = parquet.slice(folder.length + 1)
        const second = JSON.parse(await readFile(manifest, 'utf8')) as Manifest
        const first = JSON.parse(
          await readFile(join(archivedAs.directory, archivedAs.manifests, `date=${day}/manifest.json`), 'utf8'),
        ) as Manifest
        t.same(await filesOf(folder), [file.replace('.parquet', '_r2.parquet')], 'readers of *.parquet see each row once')
        if (change.leftOut === null) {
          t.equal(second.superseded, undefined)
          t.same(await filesOf(aside), [], 'the new file holds everything that was in the old one')
        } else {
          t.same(second.superseded, [{ file, bytes: first.bytes, sha256: first.sha256, columns: ['network_type'] }])
          t.same(await filesOf(aside), [file.replace('.parquet', '.manifest.json'), file])
          t.same(
            await readFile(join(aside, file)),
            await readFile(join(archivedAs.directory, `device_heartbeats/date=${day}`, file)),
            'whole',
          )
        }
        t.same(await verifyAll(worker), [])

        // And registered and restored from that.
        const other = await withDatabase(t)
        await alter(other, ...change.statements)
        const { worker: registrar } = await withWorker(t, other, directory)
        t.same(await registerArchives(registrar, () => {}), { registered: 1, alreadyKnown: 0, faults: [] })
        await db.sql`select fleet.request_restore(${day}::date)`
        t.same((await workAll(t, db, directory)).results, ['done'])
        await db.admin.unsafe(`delete from fleet.${partition} where device_id = 4711`)
        t.same(await differingRows(db, day, change), [])
      },
    )
  }
}

t.test('a day that was archived and dropped before a column was added is restored', async t => {
  // The sequence for which version 0.1.0 reported "the restored rows … differ from what was archived; it is not attached".
  const { db, directory, partition } = await withRetiredDay(t)
  t.same((await workAll(t, db, directory)).results, ['done'])
  await db.sql`alter table fleet.device_heartbeats add column case_temperature integer`
  const { code, output } = await runCli(t, db, directory, 'restore', retiredDay)
  t.equal(code, 0, output)
  t.match(output, new RegExp(`^${partition}: restored, 1000 rows$`, 'm'))
  t.match(
    await db.sql`
    select count(*)::int as rows, count(case_temperature)::int as sizes from fleet.device_heartbeats where ts < ${retiredDay}::date + 1`,
    [{ rows: 1000, sizes: 0 }],
  )
})

t.test('the command names the column that was left out', async t => {
  const { db, directory, partition } = await withRetiredDay(t)
  await workAll(t, db, directory)
  await alter(db, 'alter table fleet.device_heartbeats drop column ip, drop column network_type')
  const { output } = await runCli(t, db, directory, 'restore', retiredDay)
  t.match(
    output,
    `${partition}: restored, 1000 rows; left out because the table no longer has it, and kept in the archive: network_type (text), ip (inet)\n`,
  )
})

t.test('a day that was detached before a column was added is archived unchanged', async t => {
  const { db, directory, partition } = await withRetiredDay(t)
  const columns = await db.sql<{ name: string }[]>`select name from fleet.archive_columns('fleet.device_heartbeats')`
  await db.sql`alter table fleet.device_heartbeats add column case_temperature integer`
  await db.sql`alter table fleet.device_heartbeats rename column agent_version to agent`
  const { worker } = await withWorker(t, db, directory)
  t.match(await stateOf(db.sql, partition), { state: 'detached' })
  t.same(
    await ask(worker, 'select count(*) as rows, count(agent) as agents from online'),
    [{ rows: 1000, agents: 1000 }],
    'queried before',
  )
  t.same((await workAll(t, db, directory)).results, ['done'])
  const manifest = JSON.parse(await readFile(pathsOf(directory).manifest, 'utf8')) as Manifest
  t.same(
    manifest.columns.map(({ name }) => name),
    columns.map(({ name }) => name),
  )
  t.same(await ask(worker, 'select count(*) as rows, count(agent) as agents from device_heartbeats'), [
    { rows: 1000, agents: 1000 },
  ])
  t.equal((await runCli(t, db, directory, 'restore', retiredDay)).code, 0)
  t.match(
    await db.sql`
    select count(agent)::int as agents, count(case_temperature)::int as sizes from fleet.device_heartbeats where ts < ${retiredDay}::date + 1`,
    [{ agents: 1000, sizes: 0 }],
  )
})

t.test("a value that does not fit today's column is reported, and nothing is attached", async t => {
  const { db, directory, partition } = await withRetiredDay(t)
  await workAll(t, db, directory)
  const { worker } = await withWorker(t, db, directory)
  const impossible: Record<string, [RegExp, string, string]> = {
    'a smaller type': [
      /column signal_dbm: the archive has smallint, the table has numeric\(1,0\).*(overflow)/,
      'alter column signal_dbm type numeric(1,0)',
      'alter column signal_dbm type smallint',
    ],
    'a type that rounds': [
      /column received_at: the archive has timestamp with time zone, the table has date not null, .*\(1000 values would change\); nothing is attached/,
      'alter column received_at type date',
      'alter column received_at type timestamptz',
    ],
    'another kind of type': [
      /column agent_version: the archive has text, the table has uuid, .*invalid input syntax for type uuid/,
      'alter column agent_version type uuid using null',
      'alter column agent_version type text',
    ],
    'not null': [
      /column network_type: the archive has text, the table has text not null, .*contains null values/,
      'alter column network_type set not null',
      'alter column network_type drop not null',
    ],
    'a new one, not null and without a default': [
      /column model: the archive has no such column, the table has text not null, .*contains null values.*; nothing is attached \(Give it a default/,
      'add column model text not null',
      'drop column model',
    ],
  }
  for (const [name, [message, change, back]] of Object.entries(impossible)) {
    await t.test(name, async t => {
      await alter(db, `alter table fleet.device_heartbeats ${change}`)
      const { code, output } = await runCli(t, db, directory, 'restore', retiredDay)
      t.equal(code, 1)
      t.match(output, message)
      t.match(await stateOf(db.sql, partition), { state: 'dropped' })
      t.same(await db.sql`select relname from pg_class where relname ~ 'restoring'`, [])
      t.same(await ask(worker, 'select count(*) as rows from archive'), [{ rows: 1000 }], 'and it can be queried')
      t.same(await verifyAll(worker), [])
      await db.sql.unsafe(`alter table fleet.device_heartbeats ${back}`)
    })
  }
  await db.sql`alter table fleet.device_heartbeats add column model text not null default 'unknown'`
  await db.sql`alter table fleet.device_heartbeats alter column battery_pct type numeric(4,1), alter column signal_dbm type smallint`
  t.equal((await runCli(t, db, directory, 'restore', retiredDay)).code, 0, 'values that fit are converted')
  t.match(
    await db.sql`select distinct model, count(battery_pct)::int as n from fleet.device_heartbeats where ts < ${retiredDay}::date + 1 group by 1`,
    [{ model: 'unknown', n: 1000 }],
  )
})

t.test('two columns that swapped their names, and one that was dropped and created again', async t => {
  const { db, directory } = await withRetiredDay(t)
  await workAll(t, db, directory)
  await db.sql.begin(async sql => {
    await sql`alter table fleet.device_heartbeats rename column network_type to between`
    await sql`alter table fleet.device_heartbeats rename column agent_version to network_type`
    await sql`alter table fleet.device_heartbeats rename column between to agent_version`
  })
  await alter(db, 'alter table fleet.device_heartbeats drop column ip')
  await db.sql`alter table fleet.device_heartbeats add column ip inet`
  const { worker } = await withWorker(t, db, directory)
  const swapped = { versions: 1000, addresses: 0 }
  t.same(
    await ask(worker, `select count(*) filter (network_type like '1.2.%') as versions, count(ip) as addresses from archive`),
    [swapped],
  )
  t.match((await runCli(t, db, directory, 'restore', retiredDay)).output, /left out .*: ip \(inet\)/)
  t.match(
    await db.sql`
    select count(*) filter (where network_type like '1.2.%')::int as versions, count(ip)::int as addresses
    from fleet.device_heartbeats where ts < ${retiredDay}::date + 1`,
    [swapped],
  )
})

t.test('later revisions keep naming a superseded file, and verify checks it', async t => {
  const { db, directory, partition } = await withRetiredDay(t)
  await workAll(t, db, directory)
  await alter(db, 'alter table fleet.device_heartbeats drop column ip')
  await db.sql`select fleet.request_restore(${retiredDay}::date)`
  await workAll(t, db, directory)
  await archiveAgain(t, db, directory, partition, retiredDay)
  const { worker } = await withWorker(t, db, directory)
  t.same(await verifyAll(worker), [])
  const { folder, parquet, superseded: aside } = pathsOf(directory)
  const kept = join(aside, parquet.slice(folder.length + 1))
  const bytes = await readFile(kept)

  // A third revision still names it.
  await alter(db, 'alter table fleet.device_heartbeats drop column network_type')
  await db.sql`select fleet.request_restore(${retiredDay}::date)`
  await workAll(t, db, directory)
  await archiveAgain(t, db, directory, partition, retiredDay, 4712)
  const manifest = JSON.parse(await readFile(pathsOf(directory).manifest, 'utf8')) as Manifest
  t.match(manifest, { revision: 3, superseded: [{ columns: ['ip'] }, { columns: ['network_type'] }] })
  t.same(await readFile(kept), bytes)
  t.same(await verifyAll(worker), [])

  await writeFile(kept, bytes.fill(0, 100, 101))
  const damaged = await verifyAll(worker)
  t.match(damaged, [/superseded\/date=.*: the object differs from its manifest: sha256/])
  await writeFile(join(aside, 'copy.parquet'), 'PAR1')
  t.match((await verifyAll(worker)).at(-1), /superseded\/date=.*\/copy\.parquet: no manifest of a later revision names it/)
})

t.test('days with different columns, archived or online, form one relation', async t => {
  const db = await withDatabase(t)
  const directory = await makeDirectory(t)
  const days = [80, 79, 78, 5].map(days => new Date(Date.now() - days * 86_400_000).toISOString().slice(0, 10)) as [
    string,
    string,
    string,
    string,
  ]
  const archive = async (day: string) => {
    await db.sql`select fleet.archive_partition(${await partitionOf(db.sql, day)})`
    await workAll(t, db, directory)
  }
  await fillDay(db.admin, days[0], 10)
  await archive(days[0])
  await db.sql`alter table fleet.device_heartbeats add column free smallint, add column model text`
  await fillDay(db.admin, days[1], 20)
  await db.admin`update fleet.device_heartbeats set free = 1, model = 'a' where ts < ${`${days[2]}T00:00Z`}`
  await archive(days[1])
  await db.sql`alter table fleet.device_heartbeats rename column free to case_temperature`
  await db.sql`alter table fleet.device_heartbeats alter column case_temperature type integer`
  await fillDay(db.admin, days[2], 40)
  await db.admin`update fleet.device_heartbeats set case_temperature = 100000, model = 'b' where ts < ${`${days[3]}T00:00Z`}`
  await db.sql`select fleet.archive_partition(${await partitionOf(db.sql, days[2])})`
  await db.sql`alter table fleet.device_heartbeats drop column model`
  await fillDay(db.admin, days[3], 80)
  await db.admin`update fleet.device_heartbeats set case_temperature = 7 where ts >= ${`${days[3]}T00:00Z`}`
  const { worker } = await withWorker(t, db, directory)
  t.same(
    await ask(
      worker,
      `
    select ts::date::varchar as day, count(*) as rows, min(case_temperature) as free, min(model) as model from device_heartbeats group by all order by all`,
    ),
    [
      { day: days[0], rows: 10, free: null, model: null },
      { day: days[1], rows: 20, free: 1, model: 'a' },
      { day: days[2], rows: 40, free: 100000, model: 'b' },
      { day: days[3], rows: 80, free: 7, model: null },
    ],
  )

  // The plain files, read without this project as README.md says, with the column names in the files.
  await workAll(t, db, directory)
  const duckdb = await (await DuckDBInstance.create()).connect()
  const plain = await duckdb.runAndReadAll(`
    select count(*)::int, max(free)::int, max(case_temperature)::int
    from read_parquet('${directory}/archive/device_heartbeats/date=*/*.parquet', union_by_name = true)`)
  duckdb.closeSync()
  t.same(plain.getRows(), [[70, 1, 100000]])
})
