import { join } from 'node:path'
import t from 'tap'
import { withDatabase } from '../../testing/database.ts'
import { readContent } from './parquet.ts'
import { queryArchive } from '../query/query.ts'
import { load } from '../restore/restore.ts'
import { exportCounted, makeDirectory, partitionOf, retiredDay, stateOf, withWorker, workAll } from '../../testing/archiver.ts'

/** Values that a careless format would change, as Postgres reads them. */
const values: Record<string, string[]> = {
  numeric: [
    '0',
    '-0',
    '1.10',
    '1.1',
    '0.000000000000000000000000000000000000001',
    '-123456789012345678901234567890.123456789012345678901234567890',
    'NaN',
    'Infinity',
    '-Infinity',
    `1e${'0'.repeat(3)}40`,
    `${'9'.repeat(300)}.5`,
  ],
  'numeric(10,2)': ['1', '1.10', '-99999999.99', 'NaN', '0.005'],
  'double precision': [
    '0',
    '-0',
    'NaN',
    'Infinity',
    '-Infinity',
    '5e-324',
    '-5e-324',
    '2.2250738585072009e-308',
    '2.2250738585072014e-308',
    '1.7976931348623157e308',
    '0.1',
    '0.30000000000000004',
    '9007199254740993',
    '1e22',
    '1e23',
    '123456789.12345679',
    '-1.5e-7',
  ],
  date: [
    '1970-01-01',
    '2024-02-29',
    '0001-01-01',
    '0001-12-31 BC',
    '0044-03-15 BC',
    '4713-11-24 BC',
    '9999-12-31',
    '12345-06-07',
    '5874897-12-31',
    'infinity',
    '-infinity',
  ],
  timestamp: [
    '1970-01-01 00:00:00',
    '1969-12-31 23:59:59.999999',
    '2026-08-15 12:34:56.000001',
    '2026-08-15 12:34:56.1',
    '0001-01-01 00:00:00.000001',
    '0044-03-15 12:00:00.0001 BC',
    '0044-03-15 12:00:00 BC',
    '4713-11-24 00:00:00.5 BC',
    '294246-12-31 23:59:59.999999',
    'infinity',
    '-infinity',
  ],
  'timestamp(3)': ['2026-08-15 12:34:56.789', 'infinity'],
  timestamptz: [
    '1970-01-01 00:00:00+02',
    '2026-08-15 12:34:56.000001Z',
    '0044-03-15 12:00:00.0001+00 BC',
    '4713-11-24 00:00:00Z BC',
    '294246-12-31 23:59:59.999999Z',
    'infinity',
    '-infinity',
  ],
  uuid: ['00000000-0000-0000-0000-000000000000', 'ffffffff-ffff-ffff-ffff-ffffffffffff', 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'],
  jsonb: [
    'null',
    'true',
    '""',
    '{}',
    '[]',
    '{"b": 1, "a": [1.10, 1e2, null, "\\u0001", "a\\"b\\\\c\\n", "日本 🛰️"]}',
    '1e-400',
    '123456789012345678901234567890',
    '"\\\\N"',
    '{"": {"": [[]]}}',
    JSON.stringify('x'.repeat(100_000)),
  ],
  'text[]': [
    '{}',
    '{a,b}',
    '{NULL,"NULL","",null}',
    '{"a,b","\\"q\\"","back\\\\slash","new\nline","{braces}"," "}',
    '{{a,b},{c,NULL}}',
    '[2:3]={a,b}',
    '[0:1][-1:0]={{a,b},{c,d}}',
    '{"\\\\N","~","|","3:abc","日本"}',
  ],
  text: ['', '\\N', '~', 'x|y', '2:ab'],
}

t.test('each value of each type is unchanged after archive and restore', async t => {
  const db = await withDatabase(t)
  const directory = await makeDirectory(t)
  const names = Object.keys(values).map((type, n) => ({ name: `c${n}`, type }))
  await db.sql.unsafe(
    `alter table fleet.device_heartbeats ${names.map(({ name, type }) => `add column ${name} ${type}`).join(', ')}`,
  )
  // A role's setting for fewer digits or another date style changes nothing.
  await db.admin.unsafe(
    `alter database ${db.name} set extra_float_digits = 0; alter database ${db.name} set datestyle = 'German, DMY'`,
  )
  let row = 0
  for (const { name, type } of names) {
    for (const value of [...(values[type] ?? []), null]) {
      await db.admin.unsafe(
        `insert into fleet.device_heartbeats (ts, received_at, device_id, ${name}) values ('${retiredDay}Z'::timestamptz, now(), $1, $2::text::${type})`,
        [++row, value],
      )
    }
  }
  // A few thousand doubles with random bits, and values between the listed ones.
  await db.admin.unsafe(`
    insert into fleet.device_heartbeats (ts, received_at, device_id, c2, c0, c4)
    select '${retiredDay}Z'::timestamptz, now(), 10000 + n,
      (case when n % 2 = 0 then random() * power(10::float8, (n % 600 - 300)) else (random() * 1e6)::numeric(12,4)::float8 end),
      (random() * 1e9)::numeric(30, 12), timestamp '2000-01-01' + n * interval '12345678.901234 seconds'
    from generate_series(1, 4000) n`)
  const partition = await partitionOf(db.sql, retiredDay)
  await db.sql`select fleet.archive_partition(${partition})`
  await db.admin`create table public.kept as table fleet_detached.${db.admin(partition)}`

  // Postgres and DuckDB write the same text for each single column.
  const work = await makeDirectory(t)
  for (const { name } of names) {
    await db.admin.unsafe(
      `create table fleet_detached.only_${name} as select ts, device_id, ${name} from public.kept where device_id <= ${row} or ${name} is not null`,
    )
    await db.admin.unsafe(`grant select on fleet_detached.only_${name} to fleet_archiver`)
    const file = join(work, `${name}.parquet`)
    const { columns, content } = await exportCounted(db, `fleet_detached.only_${name}`, file, work)
    const type = columns.at(-1)?.type ?? ''
    t.same(await readContent(file, columns, work, { checksum: 'rows_sha256' }), content, type)
    await db.admin.unsafe(
      `create table public.back_${name} (like fleet_detached.only_${name}); alter table public.back_${name} owner to fleet_archiver`,
    )
    await load(
      { database: { url: db.url('fleet_archiver') } },
      `public.back_${name}`,
      columns,
      file,
      work,
      new AbortController().signal,
      () => {},
    )
    const value = type === 'double precision' ? `float8send(${name})::text` : `${name}::text`
    t.same(
      [
        ...(await db.admin.unsafe(
          `select ${value} as value from fleet_detached.only_${name} except all select ${value} from public.back_${name}`,
        )),
      ],
      [],
      `${type}, back`,
    )
  }

  t.same((await workAll(t, db, directory)).results, ['done'])
  t.match(await stateOf(db.sql, partition), { state: 'dropped', manifest_format: 4 })
  await db.sql`select fleet.request_restore(${retiredDay}::date)`
  t.same(
    (await workAll(t, db, directory)).results,
    ['done'],
    String((await db.sql`select last_error from fleet.restore_items`)[0]?.last_error),
  )
  // Compared as text, because -0 equals 0 and NaN equals NaN.
  const text = `ts, received_at, device_id, ${names.map(({ name, type }) => (type === 'double precision' ? `float8send(${name})` : `${name}::text`)).join(', ')}`
  t.same(
    await db.admin
      .unsafe(
        `
    set extra_float_digits = 1;
    (select ${text} from fleet.${partition} except all select ${text} from public.kept)
    union all (select ${text} from public.kept except all select ${text} from fleet.${partition})`,
      )
      .then(results => [...results].flat()),
    [[]].slice(1),
    'row for row',
  )

  const { worker } = await withWorker(t, db, directory)
  const sample = await queryArchive(
    worker,
    `
    select typeof(any_value(c2)) as double, typeof(any_value(c3)) as date, max(c3) as last_date, min(c3) as first_date, max(c4)::varchar as last,
      typeof(any_value(c7)) as uuid, any_value(c0) filter (device_id = 3) as number, count(*) filter (isnan(c2)) as nans
    from archive`,
    {},
    async ({ rows }) => {
      const found: unknown[] = []
      for await (const chunk of rows) found.push(...chunk)
      return found
    },
  )
  t.same(sample, [['DOUBLE', 'DATE', 'infinity', '-infinity', 'infinity', 'UUID', '1.10', 1]])
})

t.test('a day with a year that does not fit into Parquet is kept, and the error names the value', async t => {
  const db = await withDatabase(t)
  const directory = await makeDirectory(t)
  await db.sql`alter table fleet.device_heartbeats add column seen timestamp`
  await db.admin`insert into fleet.device_heartbeats (ts, received_at, device_id, seen) values (${retiredDay}::date, now(), 1, '294276-12-31')`
  const partition = await partitionOf(db.sql, retiredDay)
  await db.sql`select fleet.archive_partition(${partition})`
  t.same((await workAll(t, db, directory)).results, ['failed'])
  t.match(await stateOf(db.sql, partition), { state: 'archive_failed', last_error: /294276-12-31/ })
  t.match(await db.admin`select seen::text from fleet_detached.${db.admin(partition)}`, [{ seen: '294276-12-31 00:00:00' }])
})
