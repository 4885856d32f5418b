// The second proof: if settings.proofs_needed is 2, nothing is dropped on the archiver's word alone.
import { copyFile, readFile, rename, stat, writeFile } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { DuckDBInstance } from '@duckdb/node-api'
import t from 'tap'
import { hashFile } from './hash.ts'
import type { Manifest } from './manifest.ts'
import { readContent } from './parquet.ts'
import { asRole } from '../../testing/fleet.ts'
import { spawnNode, withDatabase, type TestDatabase } from '../../testing/database.ts'
import type { Test } from 'tap'
import { archiverEnv, daysAgo, fillDay, makeDirectory, runOnce } from '../../testing/archiver.ts'

async function confirm(t: Test, db: TestDatabase, directory: string, env: Record<string, string | undefined> = {}) {
  const cli = await spawnNode(t, 'archiver/cli.ts', {
    args: ['confirm'],
    env: { ...archiverEnv(db, directory), VERIFIER_DATABASE_URL: db.url('fleet_verifier'), ...env },
  })
  const { code } = await cli.exited
  return { code, output: cli.output() }
}

async function withArchived(t: Test, days: number[]) {
  const db = await withDatabase(t)
  const directory = await makeDirectory(t)
  await asRole(t, db, 'fleet_dba')`update fleet.settings set proofs_needed = 2`
  for (const day of days) {
    await fillDay(db.sql, daysAgo(day), 300)
    await db.sql`
      select fleet.archive_partition(partition_name) from fleet.attached_partitions() where range_start = ${daysAgo(day)}::date::timestamptz`
  }
  t.match(await runOnce(t, db, directory), { code: 0 })
  const states = () => db.sql<{ state: string; is_confirmed: boolean; url: string }[]>`
    select state, confirmed_at is not null as is_confirmed, archive_url as url from fleet.hb_partitions where archive_url is not null order by range_start`
  return { db, directory, states }
}

t.test('an archive is dropped once a second login has read it back', async t => {
  const { db, directory, states } = await withArchived(t, [20])
  t.match(await states(), [{ state: 'archived', is_confirmed: false }])
  const [{ name } = { name: '' }] = await db.sql<{ name: string }[]>`select partition_name as name from fleet.archives`
  for (const role of ['fleet_archiver', 'fleet_dba', 'fleet_owner'] as const) {
    t.match(await asRole(t, db, role)`select fleet.drop_partition(${name}) as gone`, [{ gone: false }], role)
  }
  t.match(await runOnce(t, db, directory), { code: 0 })
  t.match(await states(), [{ state: 'archived' }], 'the archiver waits')
  await t.rejects(asRole(t, db, 'fleet_dba')`select fleet.accept_archive(${name}, 'a test')`, {
    code: 'FL001',
    message: /not confirmed by a second login/,
  })
  t.match(
    await db.sql`select status, detail from fleet.check(now() + interval '2 days') where check_name = 'archive_unconfirmed'`,
    [{ status: 'warn', detail: RegExp(name) }],
  )

  t.match(await confirm(t, db, directory), { code: 0, output: /1 confirmed/ })
  t.match(await states(), [{ state: 'archived', is_confirmed: true }])
  t.match(await confirm(t, db, directory), { code: 0, output: /0 confirmed/ }, 'an archive is confirmed once')
  t.match(await db.sql`select detail from fleet.events where event = 'partition.archive.confirm'`, [{ detail: 'fleet_verifier' }])
  t.match(await runOnce(t, db, directory), { code: 0 })
  t.match(await states(), [{ state: 'dropped' }])
})

t.test('an archive that the second login finds damaged stays and is named', async t => {
  const { db, directory, states } = await withArchived(t, [21, 20])
  const [damaged] = await states()
  const file = fileURLToPath(damaged!.url)
  const bytes = await readFile(file)
  bytes[bytes.length >> 1] = (bytes[bytes.length >> 1] ?? 0) ^ 1
  await writeFile(file, bytes)
  t.match(await confirm(t, db, directory), { code: 1, output: /sha256 should be [\s\S]*1 confirmed; 1 not confirmed/ })
  t.match(await runOnce(t, db, directory), { code: 0 })
  t.match(await states(), [{ state: 'archived', is_confirmed: false }, { state: 'dropped' }])
})

t.test('the archiver cannot give the second proof with any login, and the verifier can do nothing else', async t => {
  const { db, directory, states } = await withArchived(t, [20])
  t.match(await confirm(t, db, directory, { VERIFIER_DATABASE_URL: db.url('fleet_archiver') }), {
    code: 1,
    output: /permission denied/,
  })
  t.match(await confirm(t, db, directory, { VERIFIER_DATABASE_URL: db.url('fleet_owner') }), {
    code: 1,
    output: /cannot confirm what the archiver proved/,
  })
  t.match(await confirm(t, db, directory, { VERIFIER_DATABASE_URL: '' }), {
    code: 2,
    output: /VERIFIER_DATABASE_URL: is not set/,
  })
  t.match(await states(), [{ is_confirmed: false }])

  const verifier = asRole(t, db, 'fleet_verifier')
  const [archive] = await verifier`select * from fleet.archives`
  const claim = (sha: string, content: string, rows: string, inTable: string | null = content) =>
    verifier`
    select fleet.confirm_archive(${archive!.partition_name as string}, ${sha}, null, ${rows}, ${archive!.min_ts as Date},
      ${archive!.max_ts as Date}, ${content}, ${inTable})`.then(() => {})
  const { checksum_sha256: sha, rows_sha256: content, row_count: rows } = archive as Record<string, string>
  await t.rejects(claim('ab'.repeat(32), content!, rows!), { code: 'FL010', message: /as fleet_verifier read it, differs/ })
  await t.rejects(claim(sha!, '1', rows!), { code: 'FL010' })
  await t.rejects(claim(sha!, content!, rows!, '1'), {
    code: 'FL010',
    message: /the table of .*, as fleet_verifier read it, differs/,
  })
  await t.rejects(claim(sha!, content!, rows!, null), { code: 'FL010', detail: /of the table not read/ })
  await t.rejects(claim(sha!, content!, '1'), { code: 'FL010', detail: /rows 300, read 1/ })
  for (const statement of [
    'select * from fleet.device_heartbeats',
    'select * from fleet.hb_partitions',
    `select fleet.drop_partition('x')`,
    `select * from fleet.claim_partition('x')`,
    `select fleet.record_proof('x', 'x', 'x', 0, 0, now(), now())`,
    `update fleet.settings set proofs_needed = 1`,
    `delete from fleet_detached.${archive!.partition_name as string}`,
    'create table fleet.mine ()',
    'select fleet.check()',
  ]) {
    await t.rejects(verifier.unsafe(statement), { code: '42501' }, statement)
  }
})

t.test('an archiver that lies about the rows is found by the second login, which reads the table, too', async t => {
  const { db, directory, states } = await withArchived(t, [20])
  const [{ name, url }] = (await db.sql`select partition_name as name, archive_url as url from fleet.archives`) as unknown as [
    { name: string; url: string },
  ]
  // What it could do with its own rights: store other rows of the same number and times, and prove those.
  const file = fileURLToPath(url)
  const duckdb = await (await DuckDBInstance.create()).connect()
  await duckdb.run(
    `copy (select * replace (0::smallint as battery_pct) from read_parquet('${file}', hive_partitioning = false)) to '${file}.new' (format parquet)`,
  )
  duckdb.closeSync()
  await rename(`${file}.new`, file)
  const work = await makeDirectory(t)
  await copyFile(file, join(work, 'x.parquet'))
  const folder = dirname(file)
  const path = join(folder, '../../manifests', basename(folder), 'manifest.json')
  const manifest = JSON.parse(await readFile(path, 'utf8')) as Manifest
  const [content, sha256, { size: bytes }] = [
    await readContent(join(work, 'x.parquet'), manifest.columns, work, { checksum: 'rows_sha256' }),
    await hashFile(file),
    await stat(file),
  ]
  const { rows_sha256 } = content
  await writeFile(path, JSON.stringify({ ...manifest, bytes, sha256, rows_sha256 }))
  await db.sql`select fleet.retry_archive(${name})`
  await db.admin`update fleet.hb_partitions set state = 'detached', step = 'frozen' where partition_name = ${name}`
  const archiver = asRole(t, db, 'fleet_archiver')
  await archiver`select * from fleet.claim_partition('a')`
  await archiver`select fleet.count_retired(${name}, 'a', 300, ${rows_sha256!})`
  await archiver`select fleet.record_export(${name}, 'a')`
  await archiver`select fleet.record_upload(${name}, 'a', ${url}, ${sha256}, ${bytes}, 3)`
  await archiver`select fleet.record_proof(${name}, 'a', ${sha256}, null, 300, ${content.min_ts}, ${content.max_ts}, ${rows_sha256!})`
  t.match(await confirm(t, db, directory), {
    code: 1,
    output: /the table of .*, as fleet_verifier read it, differs from its archive/,
  })
  t.match(await states(), [{ state: 'archived', is_confirmed: false }])
  t.match(await asRole(t, db, 'fleet_dba')`select fleet.drop_partition(${name}) as gone`, [{ gone: false }])
})
