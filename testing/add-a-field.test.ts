// Follows docs/add-a-field.md in a copy of the repository: applies its diffs, for a field of each type, migrates a store, and
// follows the values from the request to the archive and back.
import { access, readFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { DuckDBInstance } from '@duckdb/node-api'
import t from 'tap'
import { archiverEnv, daysAgo, makeDirectory, partitionOf, pathsOf, stateOf, workAll } from './archiver.ts'
import { built } from '../lib/repository.ts'
import { spawnProgram, withClone, withDatabase, type ProcessOptions } from './database.ts'
import { ingest, value } from './fleet.ts'
import { missingColumns } from './heartbeat-columns.ts'
import { blocksOf, readPage, runShell } from './pages.ts'
import { client, enroll, gatewayToken, serverEnv, withProcess } from './server.ts'
import { FIELDS, type Field } from '../server/ingest/fields.ts'

const EXAMPLE = 'storage_free_mb'

/** For each type in the table of fields: a field of it, how it is written there and in the migration, and a value. */
const added: Record<string, { name: string; field: string; column: string; value: unknown; bad: unknown }> = {
  integer: { name: EXAMPLE, field: '', column: 'integer', value: 20_480, bad: 'plenty' },
  boolean: {
    name: 'is_rooted',
    field: `boolean({ description: 'Whether the device is rooted.', example: false })`,
    column: 'boolean',
    value: false,
    bad: 'perhaps',
  },
  string: {
    name: 'carrier',
    field: `text(16, { description: 'The carrier.', example: 'Example Mobile' })`,
    column: 'text',
    value: 'Ünï|:~ "x"',
    bad: 'x'.repeat(17),
  },
  object: {
    name: 'sensors',
    field: `object(1_024, 3, { description: 'Readings of sensors.', example: { light: 3 } })`,
    column: 'jsonb',
    value: { light: [3, 4.5, null], door: { open: true } },
    bad: [1],
  },
}
const furtherFields = Object.values(added).filter(({ name }) => name !== EXAMPLE)
const names = Object.values(added).map(({ name }) => name)
const values = Object.fromEntries(Object.values(added).map(field => [field.name, field.value]))

/** A diff for the field of the page, extended to the fields of the other types. */
function extend(diff: string) {
  return diff
    .split('\n')
    .flatMap(line => {
      if (!line.startsWith('+') || !line.includes(EXAMPLE)) return [line]
      const inList = new RegExp(`, (\\w+\\.)?${EXAMPLE}(?=\\}|$)`)
      if (inList.test(line)) {
        return [
          line.replace(inList, (found, prefix = '') => found + furtherFields.map(({ name }) => `, ${prefix}${name}`).join('')),
        ]
      }
      return [line, ...furtherFields.map(other => rename(line, other))]
    })
    .join('\n')
}

function rename(line: string, { name, field, column }: { name: string; field: string; column: string }) {
  return line
    .replaceAll(EXAMPLE, name)
    .replace(/\binteger\(.*\)\],$/, () => `${field}],`)
    .replace(/\binteger\b/, column)
}

/** Only the new fields of a row. JSON that was read as text is parsed. */
function picked(row: unknown) {
  return Object.fromEntries(
    Object.entries(added).map(([type, { name }]) => {
      const found = (row as Record<string, unknown> | undefined)?.[name]
      return [name, type === 'object' && typeof found === 'string' ? (JSON.parse(found) as unknown) : found]
    }),
  )
}

const nothing = Object.fromEntries(names.map(name => [name, null]))

t.test('docs/add-a-field.md adds a field of each type, in at most five files', { timeout: 300_000 }, async t => {
  const page = await readPage('docs/add-a-field.md')
  const diffs = blocksOf(page, 'diff')
  const files = diffs.flatMap(diff => [...diff.matchAll(/^\+\+\+ b\/(.*)$/gm)].map(([, file]) => file))
  t.equal(files.length, diffs.length, 'each diff is of one file')
  t.ok(new Set(files).size <= 5, files.join(', '))
  const types = new Set([...FIELDS.values()].map(({ schema }) => schema.type as string))
  t.same(
    [...types].filter(type => !(type in added)),
    [],
    'there is a field of each type that the table has',
  )

  // A store of the version before, with a day in the archive, and a server that keeps running.
  const db = await withDatabase(t)
  const directory = await makeDirectory(t)
  const devices = await Promise.all(['one', 'two', 'three', 'four'].map(alias => enroll(db, alias)))
  const [single, batch, behindGateway, broken] = devices as [Device, Device, Device, Device]
  const [oldDay, day] = [daysAgo(5), daysAgo(3)]
  await ingest(db.sql, [{ device_id: single.device_id, ts: `${oldDay}T12:00:00Z`, battery_pct: 7 }])
  await db.sql`select fleet.archive_partition(${await partitionOf(db.sql, oldDay)})`
  t.same((await workAll(t, db, directory)).results, ['done'])
  const older = await withProcess(t, db)
  t.equal((await older.call(`GET /v1/devices/${single.device_id}`, { admin: true })).status, 200)

  const clone = await withClone(t)
  const apply = (diff: string) =>
    runShell('git apply --recount -', { GIT_CEILING_DIRECTORIES: dirname(clone) }, { cwd: clone, input: diff })
  for (const diff of diffs) t.match(await apply(extend(diff)), { code: 0 }, `applied to ${/^\+\+\+ b\/(.*)$/m.exec(diff)?.[1]}`)
  const [commands = '', ...more] = blocksOf(page, 'sh')
  t.same(more, [])
  const [tests = '', ...rest] = commands.trimEnd().split('\n')
  for (const file of tests.replace('npm test -- ', '').split(' ')) await t.resolves(access(join(clone, file)), file)
  const [commit = '', ...others] = rest
  const inClone = async (command: string, env = {}) => {
    const { code, output } = await runShell(command, env, { cwd: clone })
    t.equal(code, 0, command, { output })
  }
  await inClone(commit)

  const run = (script: string, args: string[], options: ProcessOptions) =>
    spawnProgram(t, process.execPath, [built(script, clone), ...args], { cwd: clone, name: script, ...options })
  const start = async (env = {}) => {
    const server = await run('server/main.ts', [], { env: { ...serverEnv(db), ...env }, ready: /"server.listening"/ })
    return client(`http://127.0.0.1:${/"port":(\d+)/.exec(server.output())![1]}`)
  }
  const migrateAndStart = async () => {
    await inClone('npm run migrate', { DATABASE_URL: db.url('postgres') })
    return await Promise.all([start(), start({ READ_FROM_LAST_STATUS: 'false' })])
  }
  const [[call, withoutLastStatus]] = await Promise.all([migrateAndStart(), ...others.map(command => inClone(command))])
  for (const file of ['docs/api.md', 'docs/sql.md']) {
    const text = await readFile(join(clone, file), 'utf8')
    for (const name of names) t.ok(text.includes(`\`${name}\``), `${file} shows ${name}`)
  }
  const at = (time: string) => `${day}T12:${time}Z`
  const beat = { battery_pct: 81, ...values }

  await t.test('an older server leaves the new fields out', async t => {
    const answer = await older.call('POST /v1/heartbeat', { token: single.token, body: { ts: at('00:00'), ...beat } })
    t.match(answer, { status: 201, body: { result: 'stored' } })
    t.same((answer.body as { ignored: string[] }).ignored.sort(), [...names].sort())
    const shown = await older.call(`GET /v1/devices/${single.device_id}`, { admin: true })
    t.match(shown, { status: 200, body: { battery_pct: 81, ...nothing } })
  })

  await t.test('single, in a batch and from a gateway', async t => {
    const gateway = await gatewayToken(db, 'warehouse')
    const sent = [
      await call('POST /v1/heartbeat', { token: single.token, body: { ts: at('01:00'), ...beat } }),
      await call('POST /v1/heartbeats', { token: batch.token, body: [{ ts: at('01:00'), ...beat }] }),
      await call('POST /v1/heartbeats', {
        token: gateway,
        body: [{ ts: at('01:00'), device_id: behindGateway.device_id, ...beat }],
      }),
    ]
    for (const { body } of sent) {
      t.match(JSON.stringify(body), '"result":"stored"')
      t.notMatch(JSON.stringify(body), 'ignored')
    }
    const table = await partitionOf(db.sql, day)
    for (const { device_id } of [single, batch, behindGateway]) {
      const [stored] = await db.sql`
        select * from fleet.${db.sql(table)} where device_id = ${device_id} order by ts desc limit 1`
      t.same(picked(stored), values, 'in the partition')
      const [status] = await db.sql`select * from fleet.device_last_status where device_id = ${device_id}`
      t.same(picked(status), values, 'in last status')
      for (const from of [call, withoutLastStatus]) {
        const { body } = await from(`GET /v1/devices/${device_id}`, { admin: true })
        t.same(picked(body), values, from === call ? 'shown' : 'shown from the heartbeats')
      }
    }
    await db.admin`delete from fleet.device_last_status where device_id = ${batch.device_id}`
    await db.sql`select fleet.reconcile('7 days')`
    const [repaired] = await db.sql`select * from fleet.device_last_status where device_id = ${batch.device_id}`
    t.same(picked(repaired), values, 'in last status after a repair')
  })

  await t.test('a bad value costs only its field', async t => {
    for (const [n, { name, bad }] of Object.values(added).entries()) {
      const answer = await call('POST /v1/heartbeat', {
        token: broken.token,
        body: { ts: at(`0${n}:30`), ...beat, [name]: bad },
      })
      t.match(answer, { status: 201, body: { result: 'stored', ignored: [name] } }, name)
      const [status] = await db.sql`select * from fleet.device_last_status where device_id = ${broken.device_id}`
      t.same(picked(status), { ...values, [name]: null })
      t.equal(status!.battery_pct, 81)
    }
  })

  await t.test('openapi.json and every place that has a column have them', async t => {
    const { FIELDS: fields } = (await import(pathToFileURL(built('server/ingest/fields.ts', clone)).href)) as {
      FIELDS: ReadonlyMap<string, Field>
    }
    t.ok(names.every(name => fields.has(name)))
    t.same(await missingColumns(t, db, fields, call), [])
  })

  await t.test('archived, queried and restored', async t => {
    const archive = async (...args: string[]) => {
      const archiver = await run('archiver/cli.ts', args, { env: archiverEnv(db, directory) })
      t.match(await archiver.exited, { code: 0 }, args.join(' '), { output: archiver.output() })
      return archiver.output()
    }
    const partition = await partitionOf(db.sql, day)
    const rows = () => db.sql`
      select * from fleet.device_heartbeats where ts >= ${`${day}T00:00Z`} and ts < ${`${day}T00:00Z`}::timestamptz + interval '1 day'
      order by device_id, ts`
    const before = [...(await rows())]
    await db.sql`select fleet.archive_partition(${partition})`
    const archiver = await run('archiver/main.ts', ['--once'], { env: archiverEnv(db, directory) })
    t.match(await archiver.exited, { code: 0 }, 'archived', { output: archiver.output() })
    t.match(await stateOf(db.sql, partition), { state: 'dropped' })

    const duckdb = await (await DuckDBInstance.create()).connect()
    const file = await duckdb.runAndReadAll(
      `select * from read_parquet('${pathsOf(directory, day).parquet}') where device_id = ${batch.device_id}`,
    )
    t.same(file.getRowObjectsJson().map(picked), [values], 'in the Parquet file')
    duckdb.closeSync()

    const found = await archive(
      'query',
      `select * from archive where device_id = ${single.device_id} order by ts`,
      ...['--from', oldDay, '--to', day, '--json'],
    )
    t.same((JSON.parse(found) as unknown[]).map(picked), [nothing, nothing, values], 'in a query')

    await archive('restore', oldDay, day)
    t.same([...(await rows())], before, 'equal after the restore')
    t.equal(await value(db.sql`select count(*)::int from fleet.device_heartbeats where device_id = ${single.device_id}`), 3)
    const [old] = await db.sql`
      select * from fleet.device_heartbeats where device_id = ${single.device_id} order by ts limit 1`
    t.match(old, { battery_pct: 7, ...nothing }, 'an older archive')
  })
})

type Device = Awaited<ReturnType<typeof enroll>>
