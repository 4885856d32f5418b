import { readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { GetObjectCommand, PutObjectCommand } from '@aws-sdk/client-s3'
import t, { type Test } from 'tap'
import { leftToCi } from '../../local/config.ts'
import { spawnNode, withDatabase, type TestDatabase } from '../../testing/database.ts'
import { literal, withDuckDB } from '../duckdb.ts'
import { queryArchive, QueryError } from './query.ts'
import { withObjectStore, withoutStore } from '../../testing/s3.ts'
import {
  archiverEnv,
  daysAgo,
  fillAwkwardDay,
  fillDay,
  leftovers,
  makeDirectory,
  partitionOf,
  pathsOf,
  runCli,
  stateOf,
  withWorker,
  workAll,
} from '../../testing/archiver.ts'

/** A day in each place where rows can be, with 10 rows or a power of 2 times that. */
async function withDays(t: Test) {
  const db = await withDatabase(t)
  const directory = await makeDirectory(t)
  const [dropped, restored, kept, detached, active] = [daysAgo(80), daysAgo(79), daysAgo(78), daysAgo(77), daysAgo(5)]
  for (const [index, day] of [dropped, restored, kept, detached, active].entries()) await fillDay(db.admin, day, 10 * 2 ** index)
  const archive = async (day: string) => db.sql`select fleet.archive_partition(${await partitionOf(db.sql, day)})`
  await archive(dropped)
  await archive(restored)
  await workAll(t, db, directory)
  await db.sql`update fleet.settings set archive_grace = '7 days'`
  await archive(kept)
  await workAll(t, db, directory)
  await db.sql`select fleet.request_restore(${restored}::date)`
  await workAll(t, db, directory)
  // It has gained one row since it was archived.
  await db.sql`select fleet.unsettle_partition(${await partitionOf(db.sql, restored)})`
  await db.admin`insert into fleet.device_heartbeats (ts, received_at, device_id) values ((${restored} || ' 12:00:03.000001Z')::timestamptz, now(), 4711)`
  await archive(detached)
  return { db, directory, dropped, restored, kept, detached, active }
}

async function ask(t: Test, db: TestDatabase, directory: string, sql: string, ...options: string[]) {
  const { code, output } = await runCli(t, db, directory, 'query', sql, '--json', ...options)
  if (code !== 0) throw new Error(output)
  return JSON.parse(output) as unknown
}

t.test('each row is read once, wherever its day is', async t => {
  const { db, directory, dropped, restored, kept, detached, active } = await withDays(t)
  const states = await db.sql<{ state: string }[]>`
    select p.state from unnest(${[dropped, restored, kept, detached, active]}::date[]) with ordinality as d(day, n)
    join fleet.hb_partitions p on p.range_start = d.day order by n`
  t.same(
    states.map(row => row.state),
    ['dropped', 'restored', 'archived', 'detached', 'active'],
  )

  const byDay = (relation: string) =>
    `select ts::date::varchar as day, count(*) as rows from ${relation} group by all order by all`
  t.same(await ask(t, db, directory, byDay('archive')), [
    { day: dropped, rows: 10 },
    { day: restored, rows: 20 },
    { day: kept, rows: 40 },
  ])
  t.same(await ask(t, db, directory, byDay('online')), [
    { day: restored, rows: 21 },
    { day: kept, rows: 40 },
    { day: detached, rows: 80 },
    { day: active, rows: 160 },
  ])
  t.same(await ask(t, db, directory, byDay('device_heartbeats')), [
    { day: dropped, rows: 10 },
    { day: restored, rows: 21 },
    { day: kept, rows: 40 },
    { day: detached, rows: 80 },
    { day: active, rows: 160 },
  ])
  t.same(await ask(t, db, directory, byDay('device_heartbeats'), '--from', restored, '--to', kept), [
    { day: restored, rows: 21 },
    { day: kept, rows: 40 },
  ])
  t.same(await ask(t, db, directory, `select count(*) as rows from archive join device_heartbeats using (ts, device_id)`), [
    { rows: 70 },
  ])

  // Archives outside the requested days and relations are not read.
  await rm(pathsOf(directory, dropped).parquet)
  t.same(await ask(t, db, directory, `select count(*) as rows from device_heartbeats`, '--from', restored), [{ rows: 301 }])
  t.same(await ask(t, db, directory, `select count(*) as rows from online`), [{ rows: 301 }])
  const { code, output } = await runCli(t, db, directory, 'query', 'select count(*) from device_heartbeats')
  t.equal(code, 1)
  t.match(output.trim(), /^file:\/\/.*\.parquet: the object is missing$/)
  t.same(await leftovers(directory), [])
})

t.test('of days in the database only the devices and times that the query names are copied', async t => {
  const { db, directory, dropped, restored, kept, detached, active } = await withDays(t)
  const { worker } = await withWorker(t, db, directory)
  // Without its object, a query that needs this archive fails.
  await rm(pathsOf(directory, dropped).parquet)
  /** The answer, and how many rows were copied of each day. */
  const query = async (sql: string) =>
    await queryArchive(worker, sql, {}, async ({ rows }) => {
      const answer = []
      for await (const chunk of rows) answer.push(...chunk)
      const files = (await readdir(worker.directory, { recursive: true })).filter(name => name.endsWith('.online.parquet'))
      const copied = await withDuckDB(directory, '256MB', duckdb =>
        Promise.all(
          files.map(async file => {
            const found = await duckdb.runAndReadAll(
              `select min(ts)::date::varchar, count(*)::integer from read_parquet(${literal(join(worker.directory, file))})`,
            )
            return found.getRows()[0] as [string, number]
          }),
        ),
      )
      return { answer, copied: Object.fromEntries(copied) }
    })

  t.same(await query('select count(*) from online where device_id = 7'), {
    answer: [[5]],
    copied: { [restored]: 1, [kept]: 1, [detached]: 1, [active]: 2 },
  })
  t.same(await query('select ts::date::varchar, battery_pct from online where device_id = 4711 order by ts desc limit 1'), {
    answer: [[restored, null]],
    copied: { [restored]: 1 },
  })
  t.same(await query('select count(*) from online where device_id in (7, 33)'), {
    answer: [[9]],
    copied: { [restored]: 1, [kept]: 2, [detached]: 2, [active]: 4 },
  })
  const hour = `ts >= '${active} 00:00' and ts < '${active} 10:00'`
  t.same(await query(`select count(*) from device_heartbeats where ${hour}`), { answer: [[99]], copied: { [active]: 99 } })
  await t.rejects(query('select count(*) from device_heartbeats where device_id = 7'), { message: /the object is missing/ })
})

t.test('rows have the columns of the table and keep their values', async t => {
  const db = await withDatabase(t)
  const directory = await makeDirectory(t)
  const [archived, online] = [daysAgo(80), daysAgo(5)]
  await fillAwkwardDay(db.admin, archived)
  await fillAwkwardDay(db.admin, online)
  await db.sql`select fleet.archive_partition(${await partitionOf(db.sql, archived)})`
  const rows = await db.admin`
    select (extract(epoch from ts) * 1000000)::bigint::text as ts, device_id::text, signal_dbm, unity_running,
      upper(encode(convert_to(network_type, 'UTF8'), 'hex')) as network_type,
      upper(encode(convert_to(agent_version, 'UTF8'), 'hex')) as agent_version, abbrev(ip) as ip,
      upper(encode(convert_to(extra::text, 'UTF8'), 'hex')) as extra
    from (select * from fleet.device_heartbeats union all select * from fleet_detached.${db.admin(await partitionOf(db.sql, archived))}) r
    order by r.ts, r.device_id`.values()
  await workAll(t, db, directory)
  const got = (await ask(
    t,
    db,
    directory,
    `
    select epoch_us(ts)::varchar as ts, device_id::varchar as device_id, signal_dbm, unity_running,
      hex(encode(network_type)) as network_type, hex(encode(agent_version)) as agent_version, ip, hex(encode(extra)) as extra
    from device_heartbeats h order by h.ts, h.device_id`,
  )) as object[]
  t.ok(JSON.stringify(got.map(row => Object.values(row) as unknown[])) === JSON.stringify(rows), 'row for row')
  t.same(
    await ask(
      t,
      db,
      directory,
      `select (extra->>'store')::int as store, extra->'kiosk' as kiosk, count(*) > 0 as found
      from device_heartbeats where extra->>'store' = '12' group by all`,
    ),
    [{ store: 12, kiosk: 'true', found: true }],
    'with the JSON functions of DuckDB',
  )
  const columns = await db.sql<
    { name: string }[]
  >`select name from fleet.archive_columns('fleet.device_heartbeats'::regclass) order by position`
  for (const relation of ['archive', 'online', 'device_heartbeats']) {
    const found = (await ask(t, db, directory, `select column_name from (describe ${relation})`)) as { column_name: string }[]
    t.same(
      found.map(row => row.column_name),
      columns.map(row => row.name),
    )
  }
})

t.test('the output is a table, JSON or CSV', async t => {
  const db = await withDatabase(t)
  const directory = await makeDirectory(t)
  const query = `
    select 12 as n, 9007199254740993 as big, null as nothing, '' as empty, 'a "b",' || chr(10) || 'c' as text, true as yes, 0.5::double as half,
      '2026-08-15 01:02:03.000004Z'::timestamptz as ts, [1, 2] as list, 13 as n`
  const run = async (...args: string[]) => (await runCli(t, db, directory, 'query', ...args)).output
  t.equal(
    await run(query, '--json'),
    `[\n${JSON.stringify({
      n: 12,
      big: '9007199254740993',
      nothing: null,
      empty: '',
      text: 'a "b",\nc',
      yes: true,
      half: 0.5,
      ts: '2026-08-15 01:02:03.000004+00',
      list: [1, 2],
      'n:1': 13,
    })}\n]\n`,
  )
  t.equal(
    await run(query, '--csv'),
    'n,big,nothing,empty,text,yes,half,ts,list,n:1\n' +
      '12,9007199254740993,,"","a ""b"",\nc",true,0.5,2026-08-15 01:02:03.000004+00,"[1,2]",13\n',
  )
  t.equal(await run(`select range as n, 'x' || range as name from range(9, 11)`), 'n   name\n9   x9\n10  x10\n2 rows\n')
  t.equal(await run('select * from device_heartbeats', '--json'), '[]\n', 'an empty fleet has no rows')
  const long = await run('from range(2500)')
  t.match(long, /^2500 rows, of which the first 1000 are shown/m)
  t.equal(long.trim().split('\n').length, 1002, 'the rows and the header')
  t.equal(
    (await run('from range(300000)', '--csv')).length,
    'range\n'.length + 10 * 2 + 90 * 3 + 900 * 4 + 9000 * 5 + 90_000 * 6 + 200_000 * 7,
  )
})

t.test('a query that is wrong is told in one line, and one that would write is refused', async t => {
  const { db, directory, dropped } = await withDays(t)
  const { parquet } = pathsOf(directory, dropped)
  const before = await readFile(parquet)
  await writeFile(`${directory}/secret.csv`, 'a,b\n1,2\n')
  const wrong: Record<string, RegExp> = {
    'selec 1': /^Parser Error: syntax error at or near "selec"$/,
    'select nope from archive': /^Binder Error: Referenced column "nope" not found in FROM clause! Candidate bindings: .*$/,
    'select * from heartbeats': /^Catalog Error: Table with name heartbeats does not exist!.*$/,
    'select 1; select 2': /^expected one SELECT, got 2 statements$/,
    '/* nothing */ -- at all': /^the query is empty$/,
    'select $1': /^the query has parameters/,
    [`select cast(network_type as integer) from archive`]: /^Conversion Error: .*$/,
    [`copy archive to '${parquet}' (format parquet, use_tmp_file false)`]: /^expected a SELECT, got COPY|^Permission Error/,
    [`explain analyze copy archive to '${parquet}' (format parquet, use_tmp_file false)`]:
      /^expected a SELECT, got EXPLAIN|^Permission Error/,
    [`copy (select 1) to '${directory}/new.csv'`]: /^expected a SELECT, got COPY|^Permission Error/,
    [`select * from read_csv('${directory}/secret.csv')`]: /^Permission Error: Cannot access file .*$/,
    [`attach '${directory}/new.db'`]: /^expected a SELECT|^Permission Error/,
    'set threads = 1': /^expected a SELECT, got SET/,
    'create table x as from archive': /^expected a SELECT, got CREATE/,
    'drop view archive': /^expected a SELECT, got DROP/,
    'install httpfs': /^expected a SELECT|^Permission Error/,
  }
  const { worker } = await withWorker(t, db, directory)
  for (const [sql, message] of Object.entries(wrong)) {
    const error = await queryArchive(worker, sql, {}, async ({ rows }) => {
      for await (const chunk of rows) t.ok(chunk)
    }).catch((error: unknown) => error)
    t.ok(error instanceof QueryError, sql)
    t.match(error, { message })
    t.notMatch(error, { message: '\n' }, 'one line')
  }
  const { code, output } = await runCli(t, db, directory, 'query', 'select nope\nfrom archive')
  t.equal(code, 1)
  t.match(output, /^Binder Error: .*\n$/)
  t.same(await readFile(parquet), before)
  const misused = [
    [],
    ['select 1', 'select 2'],
    ['select 1', '--xml'],
    ['select 1', '--json', '--csv'],
    ['select 1', '--from', 'monday'],
    ['select 1', '--from', '2026-02-01', '--to', '2026-01-01'],
  ]
  for (const args of misused) {
    const { code, output } = await runCli(t, db, directory, 'query', ...args)
    t.equal(code, 2, args.join(' '))
    t.match(output, /usage: npm run archive/)
  }
})

t.test(
  'the objects of a bucket are fetched and checked, including those of a revision',
  { skip: withoutStore || leftToCi() },
  async t => {
    const db = await withDatabase(t)
    const directory = await makeDirectory(t)
    const { url, endpoint, bucket, env: credentials, client } = await withObjectStore(t)
    const env = { ...archiverEnv(db, directory), ARCHIVE_URL: url, AWS_ENDPOINT_URL_S3: endpoint, ...credentials }
    const run = async (script: string, ...args: string[]) => {
      const process = await spawnNode(t, script, { args, env })
      const { code } = await process.exited
      return { code, output: process.output() }
    }
    const archiveAll = async () => {
      const { code, output } = await run('archiver/main.ts', '--once')
      if (code !== 0) throw new Error(output)
    }
    const [first, second] = [daysAgo(80), daysAgo(79)]
    for (const day of [first, second]) {
      await fillDay(db.admin, day, 100)
      await db.sql`select fleet.archive_partition(${await partitionOf(db.sql, day)})`
    }
    await archiveAll()
    const partition = await partitionOf(db.sql, second)
    await db.sql`select fleet.request_restore(${second}::date)`
    await archiveAll()
    await db.sql`select fleet.unsettle_partition(${partition})`
    await db.admin`insert into fleet.device_heartbeats (ts, received_at, device_id) values ((${second} || ' 12:00:03Z')::timestamptz, now(), 4711)`
    await db.sql`select fleet.release_partition(${partition})`
    await db.sql`select fleet.archive_partition(${partition})`
    await archiveAll()
    const { archive_url } = (await stateOf(db.sql, partition)) as { archive_url: string }
    t.match(archive_url, /_r2\.parquet$/)
    const verified = await run('archiver/cli.ts', 'verify', '--all')
    t.equal(verified.code, 0, verified.output)

    const ask = (...options: string[]) =>
      run('archiver/cli.ts', 'query', 'select count(*) as rows from device_heartbeats', '--csv', ...options)
    t.match(await ask(), { code: 0, output: /^rows\n201\n$/m })

    // It has the same size, so only the SHA-256 differs.
    const Key = archive_url.slice(`s3://${bucket}/`.length)
    const object = await client.send(new GetObjectCommand({ Bucket: bucket, Key }))
    const bytes = Buffer.from((await object.Body?.transformToByteArray()) ?? [])
    bytes[1000] = (bytes[1000] ?? 0) ^ 1
    await client.send(new PutObjectCommand({ Bucket: bucket, Key, Body: bytes }))
    const { code, output } = await ask()
    t.equal(code, 1)
    t.match(output, `${archive_url}: the object differs from its manifest: sha256 should be`)
    t.match(await ask('--to', first), { code: 0, output: /^rows\n100\n$/m }, 'other days are not fetched')
  },
)
