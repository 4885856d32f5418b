import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import fc from 'fast-check'
import t, { type Test } from 'tap'
import { hostileText } from '../../testing/hostile-text.ts'
import { spawnNode, withDatabase } from '../../testing/database.ts'
import { asRole } from '../../testing/fleet.ts'
import { confine, literal, withDuckDB } from '../duckdb.ts'
import { describeError } from '../../lib/errors.ts'
import { parseManifest } from './manifest.ts'
import { readContent } from './parquet.ts'
import { locate, openStore } from '../store/open-store.ts'
import { archiverEnv, eventsOf, makeDirectory, withRetiredDay } from '../../testing/archiver.ts'
import { repository } from '../../lib/repository.ts'

const KEYS_OUTSIDE = [
  '../x',
  'a/../../x',
  '/../x',
  'device_heartbeats/../../../etc/passwd',
  '..',
  '.',
  '',
  './../archive-of-others/x',
]

/** A server, the requests that it got, and its port. */
async function listen(
  t: Test,
  answer: (request: IncomingMessage, response: ServerResponse) => void = (_, response) => response.end('x'),
) {
  const asked: string[] = []
  const server = createServer((request, response) => {
    asked.push(`${request.method} ${request.url}`)
    answer(request, response)
  }).listen(0, '127.0.0.1')
  await new Promise(resolve => server.once('listening', resolve))
  t.teardown(() => server.close())
  return { asked, port: (server.address() as AddressInfo).port }
}

t.test('no key leads out of the directory of a store', async t => {
  const directory = await makeDirectory(t)
  await mkdir(join(directory, 'archive'))
  await mkdir(join(directory, 'archive-of-others'))
  await writeFile(join(directory, 'x'), 'theirs')
  await writeFile(join(directory, 'archive-of-others/x'), 'theirs')
  const store = await openStore(pathToFileURL(join(directory, 'archive')).href)
  const isRefused = async (call: Promise<unknown>, key: string) => {
    const error: unknown = await call.catch((caught: unknown) => caught)
    t.match(describeError(error), /this key leads out of the store/, key)
  }
  for (const key of KEYS_OUTSIDE) {
    await isRefused(store.getBytes(key), key)
    await isRefused(store.getToFile(key, join(directory, 'copy')), key)
    await isRefused(store.putBytes(key, Buffer.from('ours')), key)
    await isRefused(store.put(key, join(directory, 'x'), 'ab'), key)
    await isRefused(store.head(key), key)
    await isRefused(store.delete(key), key)
  }
  const { key } = await locate(`${store.url}/../x`, store)
  await isRefused(store.getBytes(key), 'even if the database says so')
  t.equal(String(await readFile(join(directory, 'x'))), 'theirs')
  t.same((await readdir(directory)).sort(), ['archive', 'archive-of-others', 'x'])
})

t.test('no manifest names a file or a table outside its day, and none is taken for code', async t => {
  const good = JSON.parse(await readFile(join(repository, 'archiver/archive/fixtures/manifest-1.json'), 'utf8')) as object
  const parse = (change: object) => parseManifest('m', Buffer.from(JSON.stringify({ ...good, ...change })))
  t.ok(parse({}))
  const work = await makeDirectory(t)
  await writeFile(join(work, 'x.parquet'), 'PAR1')
  await fc.assert(
    fc.asyncProperty(hostileText, async text => {
      const isName = /^\w{1,63}$/.test(text)
      for (const change of [
        { file: text },
        { file: `${text}.parquet` },
        { file: `../${text}.parquet` },
        { revision: text },
        { range_start: text },
      ]) {
        t.throws(() => parse(change), { message: /the manifest is not valid/ })
      }
      if (!isName) t.throws(() => parse({ partition: text }), { message: /partition/ })
      // A column may have any name, but its type must be a known one.
      for (const column of [
        { name: 'ts', type: text },
        { name: text, type: 'bigint' },
        { name: 'ts', type: 'constructor' },
      ]) {
        const { columns } = parse({ columns: [column] })
        await t.rejects(readContent(join(work, 'x.parquet'), columns, work, { checksum: 'rows_sha256' }), {
          message: /cannot read it as an archive|for which the archive has no form/,
        })
      }
    }),
    { numRuns: 25, endOnFailure: true },
  )
  t.same(await readdir(work), ['x.parquet'])
})

t.test('a store is a directory or a bucket, and no URL of one names a server', async t => {
  const { asked, port } = await listen(t)
  const current = await openStore('file:///archive')
  for (const url of [
    `http://127.0.0.1:${port}/x`,
    `https://127.0.0.1:${port}/x`,
    `ftp://127.0.0.1/x`,
    `s3://127.0.0.1:${port}/x`,
    `s3://user:password@bucket/x`,
    's3://bucket:80/x',
    's3:///x',
    'file://127.0.0.1/share/x',
    'file:///',
    'gopher://x/',
    'data:,x',
    's3:x',
    'x',
    '',
    's3://a%2f..%2fb/x',
    's3://bucket?endpoint=http://x/',
    's3://bucket#@evil/',
  ]) {
    await t.rejects(openStore(url), { message: /expected file:\/\/\/absolute\/path or s3:\/\/bucket\/prefix/ }, url)
    await t.rejects(locate(`${url}/x.parquet`, current), { message: /expected file/ }, url)
  }
  t.same(asked, [])
})

t.test('a bucket that sends the archiver elsewhere is not followed', async t => {
  const trap = await listen(t)
  for (const status of [301, 307]) {
    const store = await listen(t, (_, response) => {
      response.writeHead(status, {
        location: `http://127.0.0.1:${trap.port}/latest/meta-data/`,
        'x-amz-bucket-region': 'elsewhere',
      })
      response.end(`<Error><Code>TemporaryRedirect</Code><Endpoint>127.0.0.1:${trap.port}</Endpoint></Error>`)
    })
    const { db, directory } = await withRetiredDay(t, 10)
    const archiver = await spawnNode(t, 'archiver/main.ts', {
      args: ['--once'],
      env: archiverEnv(db, directory, {
        ARCHIVE_URL: 's3://bucket/prefix',
        AWS_ENDPOINT_URL_S3: `http://127.0.0.1:${store.port}`,
        AWS_REGION: 'us-east-1',
        AWS_ACCESS_KEY_ID: 'x',
        AWS_SECRET_ACCESS_KEY: 'y',
      }),
    })
    t.not((await archiver.exited).code, 0)
    t.ok(eventsOf(archiver.output()).length > 0)
    t.ok(store.asked.length > 0, `${status}: ${store.asked.length} requests to the store`)
  }
  t.same(trap.asked, [], 'none to where it pointed')
})

t.test('DuckDB reads and writes its work directory and nothing else, and spills there', async t => {
  const { asked, port } = await listen(t)
  const [work, other] = [await makeDirectory(t), await makeDirectory(t)]
  await writeFile(join(other, 'a.csv'), 'a\n1\n')
  await writeFile(`${work}-not.csv`, 'a\n1\n')
  t.teardown(() => rm(`${work}-not.csv`))
  await withDuckDB(work, '150MB', async duckdb => {
    await confine(duckdb, { directories: [work] })
    for (const statement of [
      `select * from read_csv(${literal(join(other, 'a.csv'))})`,
      `select * from read_csv(${literal(`${work}/../${other.split('/').at(-1)}/a.csv`)})`,
      `select * from read_csv(${literal(`${work}-not.csv`)})`,
      "select * from read_text('/etc/passwd')",
      "select * from glob('/etc/*')",
      `select * from read_parquet('http://127.0.0.1:${port}/x.parquet')`,
      "select * from read_parquet('s3://bucket/x.parquet')",
      'install httpfs',
      'load httpfs',
      `attach ${literal(join(other, 'x.db'))}`,
      `copy (select 1) to ${literal(join(other, 'y'))}`,
      'set enable_external_access = true',
      "set allowed_directories = ['/']",
      'reset lock_configuration',
    ])
      await t.rejects(Promise.resolve(duckdb.run(statement)), { message: /Permission Error|has been locked|Cannot/ }, statement)
    await duckdb.run(
      `copy (select range as a, md5(range::varchar) as b from range(2000000) order by b) to ${literal(join(work, 'out.parquet'))} (format parquet)`,
    )
  })
  t.same(await readdir(other), ['a.csv'])
  t.same(asked, [])
})

t.test('where archives are is said by the archiver alone: neither a DBA nor a reader can point it elsewhere', async t => {
  const db = await withDatabase(t)
  for (const role of ['fleet_dba', 'fleet_reader', 'fleet_server'] as const) {
    const sql = asRole(t, db, role)
    await sql`set default_transaction_read_only = off`
    for (const statement of [
      "update fleet.hb_partitions set archive_url = 'file:///etc'",
      "insert into fleet.hb_partitions (partition_name) values ('x')",
      'insert into fleet.restore_items select * from fleet.restore_items',
      'delete from fleet.restore_requests',
      "select fleet.record_upload('x', 'x', 'file:///etc', 'x', 1)",
      "select fleet.register_archive('x', now(), now(), 1, 1, null, null, 'file:///etc/x', 'x', 1)",
      "copy fleet.settings to program 'id'",
      "copy fleet.settings to '/tmp/x'",
      'create extension dblink',
      'create extension postgres_fdw',
      'create server x foreign data wrapper y',
      "load '$libdir/x'",
    ])
      await t.rejects(sql.unsafe(statement), { code: /^(42501|42704|58P01|0A000)$/ }, `${role}: ${statement}`)
  }
})
