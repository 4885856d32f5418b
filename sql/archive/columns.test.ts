import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { repository } from '../../lib/repository.ts'
import { withDatabase, type TestDatabase } from '../../testing/database.ts'
import { plainOnly } from '../../testing/distributed.ts'
import { asRole, daysAgo, partitionAt, value } from '../../testing/fleet.ts'

type Mapped = [name: string, today: string | null, type: string | null]

/** Today's names of these columns of an archive that was made at some time. */
async function mapped({ sql }: TestDatabase, columns: string[], at: string | null = null) {
  const shape = columns.map(name => ({ name, type: 'text' }))
  const rows = await sql<{ name: string; today_name: string | null; today_type: string | null }[]>`
    select * from fleet.map_columns(${sql.json(shape)}, ${at}::timestamptz) order by position`
  return rows.map(({ name, today_name, today_type }): Mapped => [name, today_name, today_type])
}

async function changesOf({ sql }: TestDatabase) {
  await sql`select fleet.note_columns()`
  const rows = await sql<{ change: string; name: string; new_name: string | null; new_type: string | null }[]>`
    select change, name, new_name, new_type from fleet.column_changes order by change_id`
  return rows.map(({ change, name, new_name, new_type }) =>
    [change, name, new_name ?? new_type].filter(text => text !== null).join(' '),
  )
}

const ALTER_HEARTBEATS = 'alter table fleet.device_heartbeats'

t.test("changes of columns are recorded, and an old name leads to today's name", async t => {
  const db = await withDatabase(t)
  const { sql } = db
  t.same(await changesOf(db), [], 'a new database has no changes')
  await sql.unsafe(`${ALTER_HEARTBEATS} add column a text, add column b smallint, add column c text`)
  const before = (await value(sql`select clock_timestamp()::text`)) as string
  await sql.unsafe(`${ALTER_HEARTBEATS} rename column a to a2`)
  await sql.unsafe(`${ALTER_HEARTBEATS} rename column a2 to a3`)
  await sql.unsafe(`${ALTER_HEARTBEATS} alter column b type bigint`)
  await sql.unsafe(`${ALTER_HEARTBEATS} drop column c`)
  await sql.unsafe(`${ALTER_HEARTBEATS} add column c integer`)
  t.same(await changesOf(db), [
    'added a text',
    'added b smallint',
    'added c text',
    'renamed a a2',
    'renamed a2 a3',
    'retyped b bigint',
    'dropped c',
    'added c integer',
  ])
  t.same(await mapped(db, ['a', 'b', 'c', 'never'], before), [
    ['a', 'a3', 'text'],
    ['b', 'b', 'bigint'],
    ['c', null, null],
    ['never', null, null],
  ])
  t.same(
    await mapped(db, ['a3', 'c'], '2100-01-01'),
    [
      ['a3', 'a3', 'text'],
      ['c', 'c', 'integer'],
    ],
    'for an archive made after the renames',
  )
  t.same(
    await mapped(db, ['a', 'a3']),
    [
      ['a', null, null],
      ['a3', 'a3', 'text'],
    ],
    'of two columns, the one that already has the name',
  )
  t.match(await sql`select detail from fleet.events where event = 'columns.change' order by event_id`, [
    { detail: 'added a text, added b smallint, added c text' },
    { detail: 'renamed a to a2' },
    { detail: 'renamed a2 to a3' },
    { detail: 'retyped b to bigint' },
    { detail: 'dropped c text' },
    { detail: 'added c integer' },
  ])
})

t.test('without the event trigger, changes are recorded by maintain() and by a retirement before it', async t => {
  const db = await withDatabase(t)
  const { sql, admin } = db
  await admin`drop event trigger fleet_guard_columns`
  await sql.unsafe(`${ALTER_HEARTBEATS} add column a text`)
  await sql.unsafe(`${ALTER_HEARTBEATS} add column b text`)
  t.equal(await value(sql`select count(*)::int from fleet.column_changes`), 0)
  await sql`call fleet.maintain()`
  t.equal(await value(sql`select count(*)::int from fleet.column_changes`), 2)
  // Before the retirement, two columns swap their names.
  await sql.unsafe(`${ALTER_HEARTBEATS} rename column a to between`)
  await sql.unsafe(`${ALTER_HEARTBEATS} rename column b to a`)
  await sql.unsafe(`${ALTER_HEARTBEATS} rename column between to b`)
  const name = await partitionAt(sql, daysAgo(5))
  await sql`select fleet.archive_partition(${name})`
  t.same(await changesOf(db), ['added a text', 'added b text', 'renamed a b', 'renamed b a'])
  t.same(await mapped(db, ['a', 'b'], '2020-01-01'), [
    ['a', 'b', 'text'],
    ['b', 'a', 'text'],
  ])
  const [retired] = await sql<{ is_after: boolean }[]>`
    select detached_at >= (select max(changed_at) from fleet.column_changes) as is_after from fleet.hb_partitions where partition_name = ${name}`
  t.ok(retired?.is_after, 'it has the new names')
})

t.test('changes by a superuser are recorded once, even with two sessions at a time', async t => {
  const db = await withDatabase(t)
  const { sql, admin } = db
  await admin.unsafe(`${ALTER_HEARTBEATS} add column a text`)
  await Promise.all(Array.from({ length: 5 }, () => sql`select fleet.note_columns()`))
  t.same(await changesOf(db), ['added a text'])
})

t.test('in a restored dump columns are recognized by their names, whatever their numbers are', async t => {
  const db = await withDatabase(t)
  const { sql } = db
  await sql.unsafe(`${ALTER_HEARTBEATS} add column gone text`)
  await sql.unsafe(`${ALTER_HEARTBEATS} add column a text, add column b text`)
  await sql.unsafe(`${ALTER_HEARTBEATS} drop column gone`)
  await sql`select fleet.note_columns()`
  const before = await changesOf(db)
  // As after pg_restore: the recorded numbers belong to another table in another cluster, and the new table has no gap.
  for (const other of ['relid = relid::bigint + 1', 'system_identifier = system_identifier + 1']) {
    await sql.unsafe(
      `update fleet.heartbeat_columns set ${other}, attnum = attnum - case when name in ('a', 'b') then 1 else 0 end`,
    )
    t.same(await changesOf(db), before, 'nothing was renamed')
    t.equal(
      await value(sql`select count(*)::int from fleet.heartbeat_columns where relid = 'fleet.device_heartbeats'::regclass`),
      await value(sql`select count(*)::int from fleet.archive_columns('fleet.device_heartbeats')`),
      'the columns are recorded again',
    )
  }
  await sql.unsafe(`update fleet.heartbeat_columns set relid = relid::bigint + 1, attnum = attnum + 1`)
  await sql.unsafe(`${ALTER_HEARTBEATS} rename column a to a2`)
  t.same((await changesOf(db)).slice(before.length), ['added a2 text', 'dropped a'])
})

const forms: Record<string, boolean> = {
  smallint: true,
  integer: true,
  bigint: true,
  boolean: true,
  numeric: true,
  'numeric(10,2)': true,
  'numeric(3,-2)': true,
  'double precision': true,
  text: true,
  'text[]': true,
  jsonb: true,
  inet: true,
  uuid: true,
  date: true,
  timestamp: true,
  'timestamp(3)': true,
  timestamptz: true,
  'timestamptz(0)': true,
  real: false,
  json: false,
  bytea: false,
  'character varying(20)': false,
  'character(3)': false,
  'integer[]': false,
  time: false,
  interval: false,
  cidr: false,
  money: false,
  xml: false,
  point: false,
  'inet[]': false,
  'fleet.some_enum': false,
  'fleet.some_domain': false,
}

t.test('a column without an archive form is refused when it is added', async t => {
  const db = await withDatabase(t)
  const { sql, admin } = db
  await sql`create type fleet.some_enum as enum ('a')`
  await sql`create domain fleet.some_domain as text`
  for (const [type, hasForm] of Object.entries(forms)) {
    for (const by of [sql, admin]) {
      const adding = by.unsafe(`${ALTER_HEARTBEATS} add column x ${type}`).then(() => 'added')
      if (hasForm) {
        t.equal(await adding, 'added', type)
        await by.unsafe(`${ALTER_HEARTBEATS} drop column x`)
      } else {
        await t.rejects(adding, {
          code: 'FL422',
          message: /^column x of fleet.device_heartbeats is refused: the archive has no form for its type /,
          hint: /sql\/archive\/archive_form\.sql, sql\/setup\/shape-guard\.sql and archiver\/archive\/parquet\.ts/,
        })
      }
    }
  }
  await sql.unsafe(`${ALTER_HEARTBEATS} add column x text`)
  await t.rejects(
    sql.unsafe(`${ALTER_HEARTBEATS} alter column x type bytea using null`),
    { code: 'FL422' },
    'a type cannot be changed to one either',
  )
  await t.rejects(sql.unsafe(`${ALTER_HEARTBEATS} add column y bigint generated always as (device_id + 1) stored`), {
    code: 'FL422',
    message: /\(generated\)/,
  })
  await t.rejects(
    sql.unsafe(`alter table fleet.device_heartbeats_template add column y bytea`),
    { code: 'FL422' },
    'not in the template either',
  )
  await t.rejects(
    sql.begin(async s => {
      await s.savepoint(s => s.unsafe(`${ALTER_HEARTBEATS} add column y bytea`))
    }),
    { code: 'FL422' },
    'not in a subtransaction either',
  )
  t.match(await sql`select status, detail from fleet.check() where check_name = 'archive_columns'`, [{ status: 'ok' }])
  // Tables of other applications may have columns of any type.
  await admin`grant create on schema public to fleet_reader`
  const reader = asRole(t, db, 'fleet_reader', { default_transaction_read_only: 'off' })
  await reader`create table public.mine (a int)`
  await reader`alter table public.mine add column b bytea`
})

t.test('the guard and the archive have the same list of types', async t => {
  const { admin } = await withDatabase(t)
  const types = await admin<{ type: string }[]>`
    select format_type(t.oid, m.typmod) as type
    from pg_type t
    cross join lateral (select null::int as typmod union all select n from generate_series(0, 3) n where t.typname in ('timestamp', 'timestamptz')
      union all select ((10 << 16) | 2) + 4 where t.typname = 'numeric') m
    where t.typtype in ('b', 'd', 'e', 'r') and t.typnamespace = 'pg_catalog'::regnamespace`
  const [guard] = await admin<{ pattern: string }[]>`
    select string_agg(l[1], '') as pattern from regexp_matches(
      (select substring(prosrc from '!~ \\((.*?)\\)\\n') from pg_proc where proname = 'refuse_unarchivable_column'), '''([^'']*)''', 'g') l`
  t.match(guard?.pattern, /^\^\(smallint/)
  const differing = await admin`
    select type from unnest(${types.map(({ type }) => type)}::text[]) type
    where (fleet.archive_form(type) is not null) <> (type ~ ${guard?.pattern ?? ''})`
  t.same(differing, [])
  t.equal(
    await value(admin`select count(distinct regexp_replace(type, '\\(.*\\)', ''))::int from unnest(${types.map(({ type }) => type)}::text[]) type
    where fleet.archive_form(type) is not null`),
    14,
  )
})

const notPlain = plainOnly('Citus cannot make a plain column of a generated one')
t.test(
  'a column from before the guard is reported within the minute, and does not stop the nightly runs',
  { skip: notPlain },
  async t => {
    const db = await withDatabase(t)
    const { sql, admin } = db
    await admin`drop event trigger fleet_guard_columns`
    const checked = async () =>
      (
        await sql<{ status: string; detail: string; remedy: string }[]>`
    select status, detail, remedy from fleet.check() where check_name = 'archive_columns'`
      )[0]
    t.match(await checked(), { status: 'warn', detail: /fleet_guard_columns is missing/ })
    await sql.unsafe(`${ALTER_HEARTBEATS} add column x bytea, add column y bigint generated always as (device_id + 1) stored`)
    const bad = await checked()
    t.match(bad, { status: 'fail', detail: /no form for x bytea, y bigint \(generated\)/ })
    for (const line of bad!.remedy.split('\n').filter(line => !line.startsWith('--'))) await admin.unsafe(line)
    const missing = await checked()
    t.match(missing, { status: 'warn' }, 'the remedy changes the columns')
    t.equal(missing?.remedy, '# in a shell, with DATABASE_URL of a superuser\nnpm run migrate')
    // What npm run migrate does in this case.
    await admin.unsafe(await readFile(join(repository, 'sql/setup/shape-guard.sql'), 'utf8'))
    t.match(await checked(), { status: 'ok', remedy: null })

    await admin`alter event trigger fleet_guard_columns disable`
    await sql.unsafe(`${ALTER_HEARTBEATS} add column z bytea`)
    await admin`alter event trigger fleet_guard_columns enable always`
    await sql`select fleet.archive_partition(${await partitionAt(sql, daysAgo(40))})`
    await sql.unsafe(`${ALTER_HEARTBEATS} add column w text`)
    await t.rejects(sql`select * from fleet.archive_columns('fleet.device_heartbeats')`, {
      code: 'FL422',
      hint: /archiver\/archive\/parquet\.ts/,
    })
  },
)

t.test('the checksum covers the requested columns', async t => {
  const { sql } = await withDatabase(t)
  await sql`create table fleet.sample (ts timestamptz, a text, b numeric(10,2))`
  await sql`insert into fleet.sample values ('2026-08-15Z', 'x', 1.5), ('2026-08-15Z', null, 'NaN')`
  const sum = (columns: string[] | null, version: number | null = null) =>
    value(sql`
    select content_checksum from fleet.content_checksum('fleet.sample', ${
      columns
        ? sql.json(
            columns.map(column => {
              const [name, type] = column.split(':')
              return { name: name ?? '', type: type ?? '' }
            }),
          )
        : null
    }::jsonb, ${version}::int)`)
  const all = ['ts:timestamp with time zone', 'a:text', 'b:numeric(10,2)']
  t.equal(await sum(null), await sum(all))
  t.equal(await sum(all, 2), await sum(all))
  const older = await sum(all.slice(0, 2), 1)
  t.equal(await sum(all.slice(0, 2), 2), older, 'the same in both versions')
  t.not(older, await sum(all))
  await sql`alter table fleet.sample drop column b`
  t.equal(await sum(all.slice(0, 2), 1), older)
  await t.rejects(sum(all), { code: 'FL010', message: /lacks columns that its checksum covers: b/ })
  await sql`alter table fleet.sample add column b numeric(10,2)`
  await t.rejects(sum(all, 1), { code: 'FL422', message: /of version 1: the archive has no form for b numeric\(10,2\)/ })
  await t.rejects(sum(all, 3), { code: 'FL422', message: /checksum version 3 is unknown/ })
  await t.rejects(sum(['ts:text); drop table fleet.sample; --']), { code: 'FL422' }, 'a type cannot inject SQL')
})

/** An archived and dropped day, as versions left it that did not record columns. */
async function withLegacyArchive(t: Test) {
  const db = await withDatabase(t)
  const sha = 'ab'.repeat(32)
  await db.sql`
    insert into fleet.hb_partitions (partition_name, range_start, range_end, state, step, row_count, min_ts, max_ts, checksum_sha256,
      content_checksum, archive_url, archive_bytes, archived_at, proven_at, dropped_at)
    values ('device_heartbeats_p2026_01_01', '2026-01-01Z', '2026-01-02Z', 'dropped', 'proven', 0, null, null, ${sha}, 0, 'file:///x', 10, now(), now(), now())`
  return { db, sha, archiver: asRole(t, db, 'fleet_archiver') }
}

t.test('the columns of an older archive are never guessed from the table as it is today', async t => {
  const { db, sha, archiver } = await withLegacyArchive(t)
  const { sql } = db
  await sql`select fleet.request_restore('2026-01-01')`
  await archiver`select * from fleet.claim_restore('a')`
  await t.rejects(archiver`select fleet.begin_restore('device_heartbeats_p2026_01_01', 'a')`, {
    code: 'FL002',
    message: /are not recorded/,
  })
  const columns = [
    { name: 'ts', type: 'timestamp with time zone' },
    { name: 'device_id', type: 'bigint' },
    { name: 'imei', type: 'text' },
  ]
  const record = (list: object[], hash: string) =>
    value(archiver`
    select fleet.record_columns('device_heartbeats_p2026_01_01', ${hash}, ${archiver.json(list as typeof columns)}, 1, 1)`)
  await t.rejects(record([{ name: 'x', type: 'text, y text' }], sha), {
    code: 'FL422',
    message: /columns of unknown types: x text, y text/,
  })
  t.equal(await record(columns, 'cd'.repeat(32)), false, 'the columns of another file')
  t.equal(await record(columns, sha), true)
  t.equal(await record(columns, sha), false, 'they are already known')
  t.match(await sql`select columns, checksum_version, manifest_format from fleet.archives`, [
    { columns, checksum_version: 1, manifest_format: 1 },
  ])
  const table = (await value(archiver`select fleet.begin_restore('device_heartbeats_p2026_01_01', 'a')`)) as string
  t.same(
    (await sql`select name from fleet.archive_columns(${table}::text::regclass) order by position`).map(
      row => row.name as string,
    ),
    ['ts', 'device_id', 'imei'],
  )
})

t.test('an archiver of version 0.1.0 cannot record its exports, and its day is kept', async t => {
  const db = await withDatabase(t)
  const { sql } = db
  const name = await partitionAt(sql, daysAgo(40))
  await sql`select fleet.archive_partition(${name})`
  const archiver = asRole(t, db, 'fleet_archiver')
  await archiver`select * from fleet.claim_partition('a')`
  await t.rejects(archiver`select fleet.record_export(${name}, 'a', 0, 0, null, null)`, { code: '42883' })
  await t.rejects(archiver`select fleet.record_upload(${name}, 'a', 'file:///x', ${'ab'.repeat(32)}, 10)`, { code: 'FL002' })
  await archiver`select fleet.record_failure(${name}, 'a', 'no such function')`
  t.match(await sql`select state, proven_at from fleet.hb_partitions where partition_name = ${name}`, [
    { state: 'archive_failed', proven_at: null },
  ])

  // Today's archiver continues where it stopped.
  await sql`select fleet.retry_archive(${name})`
  await archiver`select * from fleet.claim_partition('b')`
  await archiver`select fleet.count_retired(${name}, 'b', 0, ${'cd'.repeat(32)})`
  await archiver`select fleet.record_export(${name}, 'b')`
  await archiver`select fleet.record_upload(${name}, 'b', 'file:///x', ${'ab'.repeat(32)}, 10, 3)`
  await archiver`select fleet.record_proof(${name}, 'b', ${'ab'.repeat(32)}, null, 0, null, null, ${'cd'.repeat(32)})`
  t.match(await sql`select checksum_version, manifest_format, jsonb_array_length(columns) as columns from fleet.archives`, [
    {
      checksum_version: null,
      manifest_format: 3,
      columns: await value(sql`select count(*)::int from fleet.archive_columns('fleet.device_heartbeats')`),
    },
  ])
})
