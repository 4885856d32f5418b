import type { Sql } from 'postgres'
import t from 'tap'
import { leftToCi, size } from '../../local/config.ts'
import { generator } from '../../testing/random.ts'
import { SESSION_ENDED, waitFor, withCluster, withDatabase, type TestDatabase } from '../../testing/database.ts'
import { asRole, daysAgo, enroll, ingest, value } from '../../testing/fleet.ts'

const TABLE = 'public.device_heartbeats'

/** A table as the old application has it: another role owns it, and fleet_owner has the rights that an import needs. */
async function plainTable(
  { admin }: TestDatabase,
  columns = `
  id bigserial primary key, device_id text, ts timestamp, battery_pct integer, network_type varchar(20), unity_running boolean,
  signal_dbm double precision, agent_version text, ip text
`,
) {
  await admin.unsafe(`create table ${TABLE} (${columns}); grant select, trigger on ${TABLE} to fleet_owner`)
}

/** Writes as the old application does: one INSERT. */
function write(sql: Sql, rows: Record<string, unknown>[]) {
  return sql.unsafe(
    `
    insert into ${TABLE} (${Object.keys(rows[0] ?? {}).join(', ')})
    select ${Object.keys(rows[0] ?? {})
      .map(name => `r.${name}`)
      .join(', ')}
    from jsonb_populate_recordset(null::${TABLE}, $1::text::jsonb) r
  `,
    [JSON.stringify(rows)],
  )
}

/** Waits until no transaction of another test, in any database, makes older rows count as new. */
async function pastOthers({ admin }: TestDatabase) {
  const mine = await value(admin`select pg_current_xact_id()::text`)
  await waitFor(async () => (await value(admin`select pg_snapshot_xmin(pg_current_snapshot()) > ${String(mine)}::xid8`)) === true)
}

const importTable = async (sql: Sql, options = '') => await value(sql.unsafe(`call fleet.import_table('${TABLE}'${options})`))
const verify = async (sql: Sql) => await value(sql.unsafe(`call fleet.verify_import('${TABLE}')`))
const confirm = async (sql: Sql) => await value(sql.unsafe(`select fleet.confirm_import('${TABLE}')`))
const stored = async (sql: Sql) => Number(await value(sql`select count(*) from fleet.device_heartbeats`))
/** The time `minutes` ago, as a timestamp without a zone. */
const utc = (minutes: number) => new Date(Date.now() - minutes * 60_000).toISOString().replace('Z', '')

t.test('rows are forwarded while the columns of the heartbeats change', async t => {
  const db = await withDatabase(t)
  const { sql, admin } = db
  await enroll(sql, 1)
  await plainTable(db)
  await write(admin, [{ device_id: 'device-1', ts: utc(100) }])
  await importTable(asRole(t, db, 'fleet_dba'))
  const alter = 'alter table fleet.device_heartbeats'
  const changes = [
    `${alter} add column case_temperature integer`,
    `${alter} rename column case_temperature to free_mb`,
    `${alter} alter column free_mb type bigint`,
    `${alter} drop column free_mb`,
  ]
  for (const [n, change] of changes.entries()) {
    await sql.unsafe(change)
    await write(admin, [{ device_id: 'device-1', ts: utc(50 - n), battery_pct: n }])
    t.match(
      await sql`select battery_pct from fleet.device_heartbeats order by received_at desc, ts limit 1`,
      [{ battery_pct: n }],
      change,
    )
  }
  t.same(await sql`select * from fleet.events where event = 'import.forward'`, [])
})

t.test('rows of settled days are imported once, and the days stay open until the import is confirmed', async t => {
  const db = await withDatabase(t)
  const { sql, admin } = db
  const [device] = (await enroll(sql, 1)) as [number]
  const day = { 20: utc(20 * 24 * 60), 15: utc(15 * 24 * 60) }
  await admin`
    insert into fleet.device_heartbeats (ts, received_at, device_id)
    select ts, ts, ${device} from unnest(${Object.values(day).map(ts => `${ts}Z`)}::timestamptz[]) ts`
  await sql`call fleet.nightly()`
  const settled = () => value(sql`select count(*)::int from fleet.hb_partitions where settled_at is not null`)
  t.equal(await settled(), 2)

  await plainTable(db)
  await write(admin, [
    { device_id: 'device-1', ts: day[20] },
    { device_id: 'device-1', ts: utc(20 * 24 * 60 - 1) },
    { device_id: 'device-1', ts: utc(10) },
  ])
  const dba = asRole(t, db, 'fleet_dba')
  await importTable(dba)
  t.equal(await stored(sql), 4)
  t.equal(await settled(), 1, 'only the day with rows was opened')
  // Rows that the survey has not seen.
  await write(admin, [
    { device_id: 'device-1', ts: day[15] },
    { device_id: 'device-1', ts: utc(15 * 24 * 60 - 1) },
  ])
  await sql`call fleet.nightly()`
  await importTable(dba)
  t.equal(await stored(sql), 5)
  t.equal(await settled(), 0)
  await sql`call fleet.nightly()`
  t.equal(await settled(), 0, 'they are not settled while the import may still write')
  t.equal(await verify(dba), 'verified')
  await confirm(dba)
  await sql`call fleet.nightly()`
  t.equal(await settled(), 2)
  t.equal(await stored(sql), 5)
})

t.test('a table with different column names and types is imported, in any time zone', async t => {
  const db = await withDatabase(t)
  await plainTable(
    db,
    `
    hb_id uuid default gen_random_uuid(), device varchar(36) not null, "Time" timestamp not null, battery numeric(5,2), rssi text,
    network_type char(8), unity_running integer, agent_version varchar, ip varchar(45), uptime_s bigint, created_at timestamptz,
    extra varchar
  `,
  )
  const [first, second] = (await enroll(db.sql, 2)) as [number, number]
  await db.admin.unsafe(`
    insert into ${TABLE} (device, "Time", battery, rssi, network_type, unity_running, agent_version, ip, created_at, extra) values
    ('device-1', '2026-03-29 02:30:00.123456', 81.4, '-61', 'wifi', 1, '3.1.0', '10.1.2.3', '2026-03-29 02:30:01+00', '{"a": [1, {}]}'),
    ('device-2', '2026-03-29 02:30:00', null, null, null, null, null, null, 'infinity', null),
    ('device-1', '2026-03-29 02:31:00', 0, '-120', '', 0, 'ünï|:~', '2001:db8::1/64', null, '{}')
  `)
  const dba = asRole(t, db, 'fleet_dba', { TimeZone: 'America/New_York', DateStyle: 'SQL, DMY' })
  const columns = JSON.stringify({
    device_id: 'device',
    ts: 'Time',
    battery_pct: 'battery',
    signal_dbm: 'rssi',
    received_at: 'created_at',
  })
  const plan = await dba`select item, detail, rows::int from fleet.import_plan(${TABLE}, ${columns}::text::jsonb)`
  t.match(
    plan.filter(row => row.item !== 'column'),
    [
      { item: 'taken', rows: 3 },
      { item: 'partitions', rows: 1, detail: /2026-03-29/ },
    ],
  )
  t.match(
    plan.find(row => /^device_id/.test(row.detail as string)),
    { detail: 'device_id: device, character varying(36), the alias in fleet.devices' },
  )
  t.equal(await stored(db.sql), 0, 'the plan changes nothing')
  t.equal(await importTable(dba, `, p_columns => '${columns}'`), 'moved')
  t.same(
    await db.sql`
      select b.ts::text, b.received_at::text, b.device_id, b.signal_dbm, b.battery_pct, b.unity_running, b.network_type,
        b.agent_version, b.ip, b.extra
      from fleet.device_heartbeats b
      order by b.ts, b.device_id desc`,
    [
      {
        ts: '2026-03-29 02:30:00+00',
        received_at: '2026-03-29 02:30:00+00',
        device_id: String(second),
        signal_dbm: null,
        battery_pct: null,
        unity_running: null,
        network_type: null,
        agent_version: null,
        ip: null,
        extra: null,
      },
      {
        ts: '2026-03-29 02:30:00.123456+00',
        received_at: '2026-03-29 02:30:01+00',
        device_id: String(first),
        signal_dbm: -61,
        battery_pct: 81,
        unity_running: true,
        network_type: 'wifi',
        agent_version: '3.1.0',
        ip: '10.1.2.3',
        extra: { a: [1, {}] },
      },
      {
        ts: '2026-03-29 02:31:00+00',
        received_at: '2026-03-29 02:31:00+00',
        device_id: String(first),
        signal_dbm: -120,
        battery_pct: 0,
        unity_running: false,
        network_type: '',
        agent_version: 'ünï|:~',
        ip: '2001:db8::1/64',
        extra: {},
      },
    ],
  )
  t.equal(await verify(dba), 'verified')
  const [day] = await dba`select rows_kept::int, rows_duplicate::int, source_checksum, store_checksum from fleet.import_days`
  const [checksum] = await db.sql`select * from fleet.content_checksum('fleet.device_heartbeats')`
  t.match(day, {
    rows_kept: 3,
    rows_duplicate: 0,
    source_checksum: checksum?.content_checksum as string,
    store_checksum: checksum?.content_checksum as string,
  })
  t.match(await dba`select last_ts, battery_pct, unity_running from fleet.device_status where device_id = ${first}`, [
    { last_ts: new Date('2026-03-29T02:31:00Z'), battery_pct: 0, unity_running: false },
  ])
  t.match(
    await dba`select enrolled_at from fleet.devices where device_id = ${first}`,
    [{ enrolled_at: new Date('2026-03-29T02:30:01Z') }],
    'the roster shows it as enrolled since its first heartbeat',
  )
})

t.test('each problem of a table is reported before anything is changed', async t => {
  const db = await withDatabase(t)
  const { admin } = db
  const dba = asRole(t, db, 'fleet_dba')
  await admin.unsafe(`
    create role old_application;
    grant create on schema public to old_application;
    create schema private authorization old_application;
    set role old_application;
    create table private.beats (device_id bigint, ts timestamptz);
    create table public.beats (device_id bigint, ts timestamptz);
    reset role;
    create table public.parted (device_id bigint, ts timestamptz) partition by range (ts);
    create table public.part partition of public.parted default;
    create table public.mother (device_id bigint, ts timestamptz);
    create table public.child () inherits (public.mother);
    create table public.guarded (device_id bigint, ts timestamptz);
    alter table public.guarded enable row level security;
    create view public.seen as select * from public.mother;
    create extension postgres_fdw;
    create server elsewhere foreign data wrapper postgres_fdw;
    create foreign table public.far (device_id bigint, ts timestamptz) server elsewhere;
    create table public.no_ts (device_id bigint, sent_at timestamptz);
    create table public.epoch (device_id bigint, ts bigint, battery_pct boolean);
    create table public.empty (device_id bigint, ts timestamptz);
    create table public.fine (device_id bigint, ts timestamptz, battery bytea);
    insert into public.fine values (1, now());
    grant select, trigger on all tables in schema public to fleet_owner;
    revoke all on public.beats from fleet_owner;
    grant usage on schema private to fleet_dba;
  `)
  t.teardown(async () => {
    await admin.unsafe('drop owned by old_application cascade; drop role old_application')
  })
  for (const [name, options, code, message, hint] of [
    ['public.parted', '', 'FL422', /it is partitioned/, /plain table/],
    ['public.part', '', 'FL422', /partition of another table/, /plain table/],
    ['public.mother', '', 'FL422', /inherit/, /plain table/],
    ['public.seen', '', 'FL422', /it is a view/, /plain table/],
    ['public.far', '', 'FL422', /foreign table/, /plain table/],
    ['public.guarded', '', 'FL422', /row-level security/, /alter table public.guarded disable row level security/],
    ['fleet.device_last_status', '', 'FL422', /belongs to the store/, /plain table/],
    [
      'public.beats',
      '',
      'FL422',
      /fleet_owner lacks SELECT and TRIGGER/,
      /^As its owner: grant select, trigger on public.beats to fleet_owner;/,
    ],
    [
      'private.beats',
      '',
      'FL422',
      /lacks USAGE on its schema, SELECT/,
      /grant usage on schema private to fleet_owner; grant select, trigger on private.beats to fleet_owner;/,
    ],
    ['public.no_ts', '', 'FL422', /has no column ts for ts/, /"ts": "name".*device_id, sent_at/],
    ['public.epoch', '', 'FL422', /column ts is bigint, which cannot be converted to timestamp with time zone for ts/, /./],
    ['public.empty', '', 'FL422', /it is empty/, /./],
    [
      'public.fine',
      `, p_columns => '{"battery_pct": "battery"}'`,
      'FL422',
      /column battery is bytea, which cannot be converted to smallint/,
      /"battery_pct": null/,
    ],
    ['public.fine', `, p_columns => '{"battery": "battery_pct"}'`, 'FL422', /has no column battery/, /p_columns/],
    ['public.fine', `, p_columns => '["battery"]'`, 'FL422', /JSON object/, /p_columns/],
    [
      'public.fine',
      `, p_columns => '{"ip": "nowhere"}'`,
      'FL422',
      /has no column nowhere for ip/,
      /Its columns: device_id, ts, battery/,
    ],
    ['public.fine', `, p_columns => '{"ts": null}'`, 'FL422', /p_columns gives it no column for ts/, /./],
    ['public.fine', `, p_unknown_devices => 'ignore'`, 'FL422', /p_unknown_devices => ignore/, /refuse or enroll/],
    ['public.fine', `, p_oldest => 'infinity'`, 'FL422', /p_oldest => infinity/, /in the past/],
    ['public.fine', ', p_batch_rows => 0', 'FL422', /batches of 0 rows/, /1 to 100000/],
    ['0', '', 'FL404', /no table/, /import_table/],
  ] as const) {
    await t.rejects(dba.unsafe(`call fleet.import_table('${name}'${options})`), { code, message, hint }, `${name}${options}`)
  }
  t.same(await dba`select * from fleet.import_progress`, [])
  t.same(await dba`select h from fleet.lock_holders('import') h`, [], 'the lock is released')
  for (const call of [
    `call fleet.verify_import('public.fine')`,
    `select fleet.confirm_import('public.fine')`,
    `call fleet.abandon_import('public.fine')`,
    `select * from fleet.refused_rows('public.fine')`,
  ]) {
    await t.rejects(dba.unsafe(call), { code: 'FL404', hint: /import_progress/ }, call)
  }
  await t.rejects(
    dba.begin(s => s.unsafe(`call fleet.import_table('public.fine')`)),
    { code: '2D000' },
    'it refuses to run inside a transaction, because each batch is one',
  )
  t.same(await dba`select h from fleet.lock_holders('import') h`, [])
  for (const role of ['fleet_server', 'fleet_archiver', 'fleet_reader'] as const) {
    await t.rejects(asRole(t, db, role).unsafe(`call fleet.import_table('public.fine')`), { code: '42501' }, role)
  }
})

t.test("the first row of a device's bucket is stored, the others are counted as duplicates", async t => {
  const db = await withDatabase(t)
  await plainTable(db)
  const [device] = (await enroll(db.sql, 1)) as [number]
  const base = Math.floor((Date.now() - 3_600_000) / 10_000) * 10_000
  const at = (ms: number) => new Date(base + ms).toISOString()
  await ingest(db.sql, [{ device_id: device, ts: at(20_000), battery_pct: 1 }])
  await write(db.admin, [
    { device_id: 'device-1', ts: at(5000), battery_pct: 10 },
    { device_id: 'device-1', ts: at(0), battery_pct: 11 },
    { device_id: 'device-1', ts: at(9999), battery_pct: 12 },
    { device_id: 'device-1', ts: at(10_000), battery_pct: 13 },
    { device_id: 'device-1', ts: at(10_000), battery_pct: 13 },
    { device_id: 'device-1', ts: at(20_000), battery_pct: 14 },
  ])
  const dba = asRole(t, db, 'fleet_dba')
  await importTable(dba)
  t.match(await dba`select * from fleet.import_progress`, [
    {
      state: 'moved',
      rows_read: '6',
      rows_stored: '2',
      rows_duplicate: '4',
      rows_refused: '0',
      percent: '100',
      is_running: false,
    },
  ])
  t.same(
    (await db.sql`select battery_pct from fleet.device_heartbeats order by ts`).map(row => row.battery_pct as number),
    [10, 13, 1],
  )
  t.equal(await verify(dba), 'verified')
  t.match(
    await dba`select sum(rows_kept)::int as kept, sum(rows_duplicate)::int as duplicate, sum(rows_missing + rows_changed)::int as bad from fleet.import_days`,
    [{ kept: 2, duplicate: 4, bad: 0 }],
  )
  t.equal(await importTable(dba), 'moved')
  t.match(await dba`select pass, rows_stored, rows_duplicate from fleet.import_progress`, [
    { pass: 2, rows_stored: '0', rows_duplicate: '6' },
  ])
  t.equal(await stored(db.sql), 3, 'a second pass adds nothing')
})

t.test(
  'duplicates do not count as changed, even while a transaction in another database makes older rows count as new',
  async t => {
    const db = await withDatabase(t)
    await plainTable(db)
    await enroll(db.sql, 1)
    const elsewhere = (await withDatabase(t)).admin
    const writer = await elsewhere.reserve()
    await writer`begin`
    await writer`select pg_current_xact_id()`
    const ts = utc(60)
    await write(db.admin, [
      { device_id: 'device-1', ts, battery_pct: 10 },
      { device_id: 'device-1', ts, battery_pct: 11 },
    ])
    const dba = asRole(t, db, 'fleet_dba')
    await importTable(dba)
    t.equal(await verify(dba), 'verified')
    t.match(await confirm(dba), /is confirmed; 2 rows/)
    await writer`rollback`
    writer.release()
  },
)

t.test('rows that cannot become heartbeats stay in the table, are counted by reason, and can be listed', async t => {
  const db = await withDatabase(t)
  await plainTable(db)
  await enroll(db.sql, 2)
  const retired = daysAgo(95).slice(0, 10)
  await db.sql`select fleet.create_partitions(${retired}::date, ${retired}::date)`
  await db.admin`insert into fleet.device_heartbeats (ts, device_id) values (${retired}::date + interval '1 hour', 1)`
  await db.sql`call fleet.nightly(null, '94 days')`
  await write(db.admin, [
    { device_id: 'device-1', ts: utc(60), battery_pct: 1, ip: '10.0.0.1' },
    { device_id: 'device-1', ts: utc(70), battery_pct: 99_999 },
    { device_id: 'device-1', ts: utc(80), ip: 'unknown' },
    { device_id: 'device-1', ts: null },
    { device_id: 'device-1', ts: '1970-01-01T00:00:07' },
    { device_id: 'device-1', ts: '-infinity' },
    { device_id: 'device-2', ts: utc(-120) },
    { device_id: 'device-2', ts: 'infinity' },
    { device_id: 'device-3', ts: utc(60) },
    { device_id: 'device-3', ts: utc(61) },
    { device_id: null, ts: utc(62) },
    { device_id: 'device-2', ts: `${retired}T12:00:00` },
  ])
  const dba = asRole(t, db, 'fleet_dba')
  await importTable(dba)
  t.match(await dba`select rows_read, rows_stored, rows_refused from fleet.import_progress`, [
    { rows_read: '12', rows_stored: '1', rows_refused: '11' },
  ])
  t.same(await dba`select reason, source_device, rows::int from fleet.import_refusals order by 1, 2`, [
    { reason: 'in_future', source_device: '', rows: 2 },
    { reason: 'no_ts', source_device: '', rows: 1 },
    { reason: 'retired_day', source_device: '', rows: 1 },
    { reason: 'too_old', source_device: '', rows: 2 },
    { reason: 'unknown_device', source_device: '', rows: 1 },
    { reason: 'unknown_device', source_device: 'device-3', rows: 2 },
    { reason: 'unreadable', source_device: '', rows: 2 },
  ])
  const refused = await dba<{ reason: string; source_row: { battery_pct: number | null; ip: string | null } }[]>`
    select * from fleet.refused_rows(${TABLE})
  `
  t.equal(refused.length, 11)
  t.same(
    refused
      .filter(row => row.reason === 'unreadable')
      .map(({ source_row: row }) => row.ip ?? row.battery_pct)
      .sort(),
    ['unknown', 99_999].sort(),
  )
  t.equal((await dba`select * from fleet.refused_rows(${TABLE}, 3)`).length, 3)
  t.equal(await verify(dba), 'verified', 'refused rows are not differences')

  await db.admin.unsafe(`update ${TABLE} set ip = null where ip = 'unknown'`)
  t.equal(await verify(dba), 'moved', 'a row that was fixed counts as missing')
  t.match(await dba`select rows_missing from fleet.import_days where rows_missing > 0`, [{ rows_missing: '1' }])
  await importTable(dba, `, p_unknown_devices => 'enroll'`)
  t.equal(await verify(dba), 'verified')
  t.equal(await stored(db.sql), 4, 'the fixed row, and two rows of the device that was enrolled')
  t.same(await dba`select source_device from fleet.import_refusals where reason = 'unknown_device'`, [{ source_device: '' }])
  const [third] = await dba`select device_id, alias, last_ts from fleet.device_status where alias = 'device-3'`
  t.ok(third?.last_ts)
  const token = (await value(dba`select fleet.renew_token(${third?.device_id as string})`)) as string
  const server = asRole(t, db, 'fleet_server')
  t.match(
    await server`select * from fleet.authenticate(sha256(${token}::text::bytea))`,
    [{ name: 'device-3' }],
    'an enrolled device can get a token later',
  )
  await t.rejects(dba`select fleet.renew_token(12345)`, { code: 'FL404' })
})

t.test('numeric ids match device_id, stay the same when enrolled, or are looked up in import_devices', async t => {
  const db = await withDatabase(t)
  await plainTable(db, 'device_id integer, ts timestamptz, received_at timestamptz')
  await enroll(db.sql, 2)
  await write(
    db.admin,
    [1, 2, 3, 70, 70].map((device_id, n) => ({ device_id, ts: daysAgo(n + 1) })),
  )
  const dba = asRole(t, db, 'fleet_dba')
  await importTable(dba)
  t.same(
    (await db.sql`select device_id::int from fleet.device_heartbeats order by 1`).map(row => row.device_id as number),
    [1, 2],
  )
  await importTable(dba, `, p_unknown_devices => 'enroll'`)
  t.same(
    (await db.sql`select device_id::int from fleet.device_heartbeats order by 1`).map(row => row.device_id as number),
    [1, 2, 3, 70, 70],
  )
  t.same(
    (await dba`select device_id::int, alias from fleet.devices where device_id > 2 order by 1`).map(row => [
      row.device_id as number,
      row.alias as string,
    ]),
    [
      [3, '3'],
      [70, '70'],
    ],
  )
  t.ok(Number((await enroll(db.sql, 1, 'new'))[0]) > 70, 'a device that is enrolled later gets a higher number')
  t.equal(await verify(dba), 'verified')

  const other = await withDatabase(t)
  await plainTable(other)
  await other.admin.unsafe(
    `create table public.devices (id uuid primary key default gen_random_uuid(), alias text); insert into public.devices (alias) select 'device-' || n from generate_series(1, 3) n`,
  )
  const [first] = (await enroll(other.sql, 2)) as [number]
  await other.admin.unsafe(
    `insert into ${TABLE} (device_id, ts) select id, now() - right(alias, 1)::integer * interval '1 hour' from public.devices`,
  )
  await other.admin`insert into fleet.import_devices select ${TABLE}, d.id, f.device_id from public.devices d join fleet.devices f using (alias)`
  const otherDba = asRole(t, other, 'fleet_dba')
  await importTable(otherDba)
  t.match(await otherDba`select rows_stored, rows_refused from fleet.import_progress`, [{ rows_stored: '2', rows_refused: '1' }])
  t.equal(await value(other.sql`select count(*)::int from fleet.device_heartbeats where device_id = ${first}`), 1)
  await otherDba`insert into fleet.import_devices select source, source_device, ${first}::bigint + 1 from fleet.import_refusals`
  t.equal(await verify(otherDba), 'moved', 'the device is known now, and its row is missing')
  await importTable(otherDba)
  t.equal(await verify(otherDba), 'verified')
})

t.test('the old application keeps writing, and its rows arrive immediately', async t => {
  const db = await withDatabase(t)
  await plainTable(db)
  const [first] = (await enroll(db.sql, 2)) as [number]
  const { admin, sql } = db
  await admin.unsafe(
    `create role old_writer login; grant insert, select on ${TABLE} to old_writer; grant usage on sequence public.device_heartbeats_id_seq to old_writer`,
  )
  t.teardown(async () => {
    await admin.unsafe('drop owned by old_writer; drop role old_writer')
  })
  await write(admin, [{ device_id: 'device-1', ts: utc(30), battery_pct: 50 }])
  const dba = asRole(t, db, 'fleet_dba')
  await importTable(dba)
  const old = asRole(t, db, 'postgres')
  await old`set role old_writer`
  await write(old, [
    { device_id: 'device-1', ts: utc(1), battery_pct: 49, ip: '10.0.0.9' },
    { device_id: 'device-2', ts: utc(2), unity_running: false },
    { device_id: 'device-9', ts: utc(2) },
  ])
  t.match(await sql`select last_ts, battery_pct, ip from fleet.device_last_status where device_id = ${first}`, [
    { battery_pct: 49, ip: '10.0.0.9' },
  ])
  t.equal(await stored(sql), 3)
  t.match(await ingest(sql, [{ device_id: first }]), [{ result: 'stored' }], 'meanwhile devices post to the new server')

  // Rows that the store cannot take must not cause errors in the old application.
  await write(old, [{ device_id: 'device-1', ts: utc(0.5), ip: 'somewhere' }])
  await write(old, [{ device_id: 'device-1', ts: daysAgo(400).replace('Z', '') }])
  await sql`begin`.catch(() => {})
  const locker = asRole(t, db, 'postgres')
  await locker`begin`
  await locker`lock table fleet.device_last_status in access exclusive mode`
  await write(old, [{ device_id: 'device-2', ts: utc(0.2), battery_pct: 7 }])
  await locker`rollback`
  t.equal(await value(admin.unsafe(`select count(*)::int from ${TABLE}`)), 7)
  t.equal(await stored(sql), 4)
  t.match(
    await dba`select detail, is_ok from fleet.events where event = 'import.forward'`,
    [{ is_ok: false, detail: /somewhere/ }],
    'reported once a minute',
  )
  t.match(await dba`select check_name, remedy from fleet.check() where check_name ~ 'import' and status <> 'ok'`, [
    { check_name: 'import_forwards', remedy: `call fleet.import_table('${TABLE}');` },
  ])
  t.equal(await verify(dba), 'moved')
  await importTable(dba)
  t.equal(await verify(dba), 'verified', 'a second pass imports what was left out, even for a day 400 days ago')
  t.equal(await stored(sql), 6)
  t.match(await confirm(dba), /is confirmed.*drop table public\.device_heartbeats/)
  await write(old, [{ device_id: 'device-2', ts: utc(0) }])
  t.equal(await stored(sql), 6, 'the trigger is gone')
  t.equal(await value(admin`select count(*)::int from pg_proc where proname ~ '^forward_'`), 0)
  t.match(await confirm(dba), /was confirmed at/)
  await t.rejects(dba.unsafe(`call fleet.abandon_import('${TABLE}')`), { code: 'FL002', message: /can no longer be abandoned/ })
  t.same(await dba`select event from fleet.events where event ~ '^import' and is_ok order by event_id`, [
    { event: 'import.start' },
    { event: 'import.moved' },
    { event: 'import.start' },
    { event: 'import.moved' },
    { event: 'import.verified' },
    { event: 'import.confirmed' },
  ])
  t.equal(await value(dba`select fleet.forget_import(${TABLE})`), true)
  t.equal(await value(dba`select fleet.forget_import(${TABLE})`), false)
  t.same(await dba`select * from fleet.import_days`, [])
})

t.test('the import waits for transactions of the old application that are open when it creates the trigger', async t => {
  const db = await withDatabase(t)
  await plainTable(db)
  await enroll(db.sql, 1)
  await write(db.admin, [{ device_id: 'device-1', ts: utc(30) }])
  const old = asRole(t, db, 'postgres')
  await old`begin`
  await write(old, [{ device_id: 'device-1', ts: utc(20) }])
  const dba = asRole(t, db, 'fleet_dba')
  const move = importTable(dba)
  await waitFor(async () => (await db.sql`select from fleet.imports where step = 'forward'`).length === 1)
  await write(db.admin, [{ device_id: 'device-1', ts: utc(10) }])
  await db.sql`select pg_sleep(1)`
  await old`commit`
  t.equal(await move, 'moved')
  t.equal(await stored(db.sql), 3)
})

t.test('without the trigger, another call imports what was written since', async t => {
  const db = await withDatabase(t)
  await plainTable(db)
  await enroll(db.sql, 1)
  await write(db.admin, [{ device_id: 'device-1', ts: utc(30) }])
  const dba = asRole(t, db, 'fleet_dba')
  await importTable(dba, ', p_forward => false')
  t.same(await db.admin`select tgname from pg_trigger where tgrelid = ${TABLE}::regclass`, [])
  await pastOthers(db)
  t.equal(await verify(dba), 'verified')
  await write(db.admin, [
    { device_id: 'device-1', ts: utc(20) },
    { device_id: 'device-1', ts: utc(10) },
  ])
  await t.rejects(confirm(dba), {
    code: 'FL010',
    message: /of 2 rows written .* 2 are not in the store/,
    hint: /import_table.*verify_import/,
  })
  t.match(await dba`select state from fleet.import_progress`, [{ state: 'verified' }])
  t.same(
    await db.admin`select tgname from pg_trigger where tgrelid = ${TABLE}::regclass`,
    [],
    'the failed attempt leaves no trigger behind',
  )
  await importTable(dba)
  await pastOthers(db)
  await verify(dba)
  t.match(await confirm(dba), /confirmed; 0 rows that were written/)
  t.equal(await stored(db.sql), 3)
})

t.test('every kind of difference is found, by day, and prevents confirmation', async t => {
  const db = await withDatabase(t)
  await plainTable(db)
  const [device] = (await enroll(db.sql, 3)) as [number]
  const { admin } = db
  const rows = Array.from({ length: 300 }, (_, n) => ({
    device_id: `device-${(n % 3) + 1}`,
    ts: utc(1440 * (1 + (n % 10)) + n),
    battery_pct: n % 101,
  }))
  await write(admin, rows)
  const dba = asRole(t, db, 'fleet_dba')
  await t.rejects(confirm(dba), { code: 'FL404' })
  await importTable(dba)
  await t.rejects(confirm(dba), { code: 'FL002', message: /moved, not verified/ })
  t.equal(await verify(dba), 'verified')
  const bad = async () =>
    (
      await dba<{ missing: number; changed: number }[]>`
    select sum(rows_missing)::int as missing, sum(rows_changed)::int as changed from fleet.import_days where rows_missing + rows_changed > 0
    or source_checksum <> store_checksum
  `
    )[0]

  await admin.unsafe(`update ${TABLE} set battery_pct = 100 where id = 7`)
  await t.rejects(confirm(dba), { code: 'FL010', message: /1 are there with different content/ })
  t.equal(await verify(dba), 'moved')
  t.same(await bad(), { missing: 0, changed: 1 }, 'changed in the table')
  await admin.unsafe(`update ${TABLE} set battery_pct = 6 where id = 7`)
  t.equal(await verify(dba), 'verified')

  await admin.unsafe('grant update, delete on fleet.device_heartbeats to postgres')
  await admin`update fleet.device_heartbeats set network_type = 'x' where ts = (select max(ts) from fleet.device_heartbeats)`
  t.equal(await verify(dba), 'moved')
  t.same(await bad(), { missing: 0, changed: 1 }, 'changed in the store')
  await admin`update fleet.device_heartbeats set network_type = null where network_type = 'x'`
  // Now each looks as if it came from the new server. They would count as duplicates if the import had not stored them itself.
  await admin`update fleet.device_heartbeats set received_at = received_at + interval '1 second' where device_id = ${device}`
  t.equal(await verify(dba), 'moved')
  t.same(await bad(), { missing: 0, changed: 100 }, 'a changed received_at')
  await admin`update fleet.device_heartbeats set received_at = received_at - interval '1 second' where device_id = ${device}`
  await admin`delete from fleet.device_heartbeats where device_id = ${device}`
  t.equal(await verify(dba), 'moved')
  t.same(await bad(), { missing: 100, changed: 0 }, 'lost in the store')
  await importTable(dba)
  t.equal(await verify(dba), 'verified', 'another pass restores them')
  await admin.unsafe(`delete from ${TABLE} where id > 250`)
  t.equal(await verify(dba), 'verified', 'rows that the old application deletes meanwhile are not differences')
  t.equal(await stored(db.sql), 300)
})

t.test('days are not retired until the import into them is confirmed', async t => {
  const db = await withDatabase(t)
  await plainTable(db)
  await enroll(db.sql, 1)
  await write(
    db.admin,
    [120, 100, 10].map(days => ({ device_id: 'device-1', ts: daysAgo(days).replace('Z', '') })),
  )
  const dba = asRole(t, db, 'fleet_dba')
  await importTable(dba)
  t.match(await dba`select distinct action, reason from fleet.retention_plan() where range_end < now() - interval '90 days'`, [
    { action: 'hold', reason: `${TABLE} is being imported; confirm or abandon the import` },
  ])
  await dba`call fleet.nightly()`
  const name = (await value(
    db.sql`select partition_name from fleet.attached_partitions() order by range_start limit 1`,
  )) as string
  await t.rejects(dba`select fleet.archive_partition(${name})`, {
    code: 'FL002',
    message: /are being imported into/,
    hint: /confirm_import/,
  })
  await verify(dba)
  await confirm(dba)
  await dba`call fleet.nightly()`
  t.match(
    await dba`select state, row_count from fleet.hb_partitions where partition_name = ${name}`,
    [{ state: 'detached', row_count: '1' }],
    'the next nightly run retires them',
  )
  t.equal(await stored(db.sql), 1)
})

t.test('a wrong clock does not create thousands of partitions', async t => {
  const db = await withDatabase(t)
  await plainTable(db)
  await enroll(db.sql, 1)
  await write(db.admin, [
    { device_id: 'device-1', ts: daysAgo(3000).replace('Z', '') },
    { device_id: 'device-1', ts: utc(30) },
  ])
  const dba = asRole(t, db, 'fleet_dba')
  const today = new Date().toISOString().slice(0, 10)
  await t.rejects(importTable(dba), {
    code: 'FL422',
    message: /none on 29\d\d days in between: some clocks were wrong/,
    hint: RegExp(`p_oldest => '${today}'|p_oldest => '${daysAgo(1).slice(0, 10)}'`),
  })
  t.match(await dba`select state, last_error from fleet.import_progress`, [{ state: 'moving', last_error: /clocks were wrong/ }])
  t.match(await dba`select remedy from fleet.check() where check_name = 'imports'`, [
    { remedy: `call fleet.import_table('${TABLE}');` },
  ])
  t.equal(await value(db.sql`select count(*)::int from fleet.attached_partitions()`), 105)
  t.equal(
    await value(dba.unsafe(`call fleet.abandon_import('${TABLE}')`)),
    'abandoned',
    'no INSERT right is needed when there is nothing to write back',
  )
  await importTable(dba, `, p_oldest => '${daysAgo(30)}'`)
  t.match(await dba`select reason from fleet.import_refusals`, [{ reason: 'too_old' }])
  t.equal(await importTable(dba), 'moved', 'an option that was given once is remembered')
  t.equal(await verify(dba), 'verified')
})

t.test('two runs do not collide, and a stuck one can be ended by force', async t => {
  const db = await withDatabase(t)
  await plainTable(db)
  await enroll(db.sql, 1)
  await db.admin.unsafe(
    `insert into ${TABLE} (device_id, ts) select 'device-1', now() - n * interval '1 minute' from generate_series(1, 5000) n`,
  )
  const dba = asRole(t, db, 'fleet_dba')
  const slow = importTable(dba, `, p_batch_rows => 50, p_pause => '1 second'`).catch((error: unknown) => error)
  const other = asRole(t, db, 'fleet_dba')
  await waitFor(async () => (await other`select from fleet.import_progress where is_running and step = 'survey'`).length === 1)
  await t.rejects(importTable(other), {
    code: 'FL003',
    message: /already being imported, in backend \d+/,
    hint: /force_unlock\('import'\)/,
  })
  await t.rejects(verify(other), { code: 'FL002', message: /is moving and cannot be verified/ })
  t.match(await other`select is_ended from fleet.force_unlock('import')`, [{ is_ended: true }])
  t.ok((await slow) instanceof Error)
  t.match(await other`select is_running, state from fleet.import_progress`, [{ is_running: false, state: 'moving' }])

  // A cancelled call releases its lock and says how to continue.
  const [{ backend } = { backend: 0 }] = await db.sql<{ backend: number }[]>`select backend from fleet.imports`
  const cancelled = importTable(other, `, p_batch_rows => 50, p_pause => '1 minute'`).catch((error: unknown) => error)
  await waitFor(
    async () => (await db.admin`select pg_cancel_backend(backend) from fleet.imports where backend <> ${backend}`).length === 1,
  )
  t.match(await cancelled, { code: '57014', hint: /the same call continues from there/ })
  t.same(await db.sql`select h from fleet.lock_holders('import') h`, [])
  t.equal(await importTable(other), 'moved')
  t.equal(await stored(db.sql), 5000)
  t.match(
    await other`select pass, rows_read from fleet.import_progress`,
    [{ pass: 1, rows_read: '5000' }],
    'it finished the same pass',
  )
})

t.test('a table that is rewritten during the import is read from the start again', async t => {
  const db = await withDatabase(t)
  await plainTable(db)
  await enroll(db.sql, 1)
  await db.admin.unsafe(
    `insert into ${TABLE} (device_id, ts) select 'device-1', now() - n * interval '1 minute' from generate_series(1, 8000) n`,
  )
  const dba = asRole(t, db, 'fleet_dba')
  const first = importTable(dba, `, p_batch_rows => 2000, p_pause => '200 ms'`).catch((error: unknown) => error)
  await waitFor(async () => (await db.sql`select from fleet.imports where step = 'move' and rows_read > 2000`).length === 1)
  await db.admin`select pg_terminate_backend(backend) from fleet.imports`
  await first
  // This moves the first rows to the end, among the blocks that were not read yet.
  await db.admin.unsafe(`create index by_ts on ${TABLE} (ts desc nulls last); cluster ${TABLE} using by_ts`)
  const again = asRole(t, db, 'fleet_dba')
  t.equal(await importTable(again), 'moved')
  t.equal(await stored(db.sql), 8000)
  t.equal(await verify(again), 'verified')
})

t.test('until it is confirmed, an import can be abandoned without losing heartbeats', async t => {
  const db = await withDatabase(t)
  await plainTable(db)
  const [first, second] = (await enroll(db.sql, 2)) as [number, number]
  const { admin, sql } = db
  await write(admin, [
    { device_id: 'device-1', ts: utc(30), battery_pct: 50 },
    { device_id: 'device-2', ts: utc(29), battery_pct: 51 },
  ])
  const dba = asRole(t, db, 'fleet_dba')
  await importTable(dba)
  await write(admin, [{ device_id: 'device-1', ts: utc(5), battery_pct: 49 }])
  const ours = [
    {
      device_id: first,
      ts: daysAgo(2),
      battery_pct: 60,
      network_type: 'wifi',
      unity_running: true,
      signal_dbm: -50,
      agent_version: '9',
      ip: '10.9.8.7',
    },
    { device_id: second, battery_pct: 61 },
    { device_id: second, ts: daysAgo(3), network_type: 'a network with a name that is too long' },
  ]
  t.match(await ingest(sql, ours), [{ result: 'stored' }, { result: 'stored' }, { result: 'stored' }])
  await t.rejects(dba.unsafe(`call fleet.abandon_import('${TABLE}')`), {
    code: 'FL422',
    hint: 'As its owner: grant insert on public.device_heartbeats to fleet_owner; grant usage on sequence public.device_heartbeats_id_seq to fleet_owner;',
  })
  await admin.unsafe(`alter table ${TABLE} add serial_no text; update ${TABLE} set serial_no = ''; alter table ${TABLE} alter serial_no set not null;
    grant insert on public.device_heartbeats to fleet_owner; grant usage on sequence device_heartbeats_id_seq to fleet_owner;`)
  await t.rejects(dba.unsafe(`call fleet.abandon_import('${TABLE}')`), {
    code: 'FL422',
    message: /no values for its columns serial_no/,
    hint: /alter serial_no set default/,
  })
  await admin.unsafe(`alter table ${TABLE} alter serial_no set default ''`)
  t.equal(await value(dba.unsafe(`call fleet.abandon_import('${TABLE}')`)), 'abandoned')
  t.match(await dba`select state, rows_written_back, percent from fleet.import_progress`, [
    { state: 'abandoned', rows_written_back: '2' },
  ])
  t.same(
    await admin.unsafe(
      `select device_id, battery_pct, network_type, unity_running, signal_dbm, agent_version, ip from ${TABLE} where id > 3 order by ts`,
    ),
    [
      {
        device_id: 'device-1',
        battery_pct: 60,
        network_type: 'wifi',
        unity_running: true,
        signal_dbm: -50,
        agent_version: '9',
        ip: '10.9.8.7',
      },
      {
        device_id: 'device-2',
        battery_pct: 61,
        network_type: null,
        unity_running: null,
        signal_dbm: null,
        agent_version: null,
        ip: null,
      },
    ],
  )
  t.match(
    await dba`select rows::int, detail from fleet.events where event = 'import.write_back'`,
    [{ rows: 1, detail: /too long/ }],
    'rows that the table refuses are reported',
  )
  t.same(
    await admin`select tgname from pg_trigger where tgrelid = ${TABLE}::regclass and not tgisinternal`,
    [],
    'the trigger is gone',
  )
  await ingest(sql, [{ device_id: first }])
  await dba.unsafe(`call fleet.abandon_import('${TABLE}')`)
  t.equal(
    await value(admin.unsafe(`select count(*)::int from ${TABLE}`)),
    6,
    'another call writes back what arrived since, and nothing twice',
  )
  t.equal(await stored(sql), 7, 'the store keeps its rows')

  t.equal(await importTable(dba), 'moved', 'and the import can start again')
  t.equal(await verify(dba), 'verified')
  t.equal(await stored(sql), 7)
  await confirm(dba)
})

t.test('the import of a table that is gone can be forgotten', async t => {
  const db = await withDatabase(t)
  await plainTable(db)
  await enroll(db.sql, 1)
  await write(db.admin, [{ device_id: 'device-1', ts: daysAgo(100).replace('Z', '') }])
  const dba = asRole(t, db, 'fleet_dba')
  await importTable(dba)
  await t.rejects(dba`select fleet.forget_import(${TABLE})`, { code: 'FL002', hint: /confirm_import/ })
  await db.admin.unsafe(`drop table ${TABLE}`)
  t.match(await dba`select detail, remedy from fleet.check() where check_name = 'imports'`, [
    { detail: `${TABLE} is gone`, remedy: `select fleet.forget_import('${TABLE}');` },
  ])
  t.same(await dba`select from fleet.retention_plan() where action = 'hold'`, [], 'and it holds no days')
  await dba`select fleet.forget_import(${TABLE})`
  t.match(await dba`select status from fleet.check() where check_name = 'imports'`, [{ status: 'ok' }])
  t.equal(await value(db.admin`select count(*)::int from pg_proc where proname ~ '^forward_'`), 0)
})

/** Counts the differences between the store and the old table, without using any function of the store. */
async function differences({ admin }: TestDatabase) {
  await admin.unsafe(`analyze ${TABLE}; analyze fleet.device_heartbeats`)
  const [found] = await admin.unsafe(`
    with source as (
      select d.device_id, r.ts at time zone 'UTC' as ts, r.battery_pct, r.network_type, r.unity_running, r.signal_dbm, r.agent_version,
        r.ip::inet as ip, floor(extract(epoch from r.ts) / 10) as bucket
      from ${TABLE} r join fleet.devices d on d.alias = r.device_id
    ),
    store as (
      select h.*, floor(extract(epoch from h.ts) / 10) as bucket from fleet.device_heartbeats h
    )
    select
      (select count(*)::int from (select distinct device_id, bucket from source) b
        where not exists (select from store h where h.device_id = b.device_id and h.bucket = b.bucket)) as missing,
      (select count(*)::int from store h where h.network_type is distinct from 'new' and not exists (
        select from source s where s.device_id = h.device_id and s.ts = h.ts and h.received_at = h.ts
          and (s.battery_pct, s.network_type, s.unity_running, s.signal_dbm, s.agent_version, s.ip)
            is not distinct from (h.battery_pct::int, h.network_type, h.unity_running, h.signal_dbm::float8, h.agent_version, h.ip)
      )) as invented,
      (select count(*)::int from (select from store group by device_id, bucket having count(*) > 1) b) as twice,
      (select count(*)::int from fleet.devices d join lateral (
        select h.ts from fleet.device_heartbeats h where h.device_id = d.device_id order by h.ts desc limit 1
      ) h on true join fleet.device_last_status ls using (device_id) where ls.last_ts is distinct from h.ts) as wrong_status
  `)
  return found
}
const noDifferences = { missing: 0, invented: 0, twice: 0, wrong_status: 0 }

/** Until stopped, devices post to the new server and an old application keeps writing. Counts what was acknowledged. */
function traffic(db: TestDatabase, devices: number[], { pause = 20 } = {}) {
  let going = true
  const counts = { stored: 0, posted: 0, written: 0, failed: 0 }
  const latencies: number[] = []
  const rest = () => new Promise(resolve => setTimeout(resolve, pause))
  const post = async () => {
    for (let n = 0; going; n++) {
      const since = performance.now()
      // Half of them are devices that the old application writes about too.
      const beats = devices
        .filter(device => device % 4 === n % 4)
        .map(device_id => ({ device_id, network_type: 'new', battery_pct: n % 101 }))
      counts.posted += beats.length
      const results = await ingest(db.sql, beats).catch(() => {
        counts.failed++
        return []
      })
      if (results.length) latencies.push(performance.now() - since)
      counts.stored += results.filter(row => row.result === 'stored').length
      await rest()
    }
  }
  const writeOn = async () => {
    for (let n = 0; going; n++) {
      const rows = [1, 2, 3].map(k => ({
        device_id: `device-${1 + ((n * 3 + k) % devices.length)}`,
        ts: utc(0),
        battery_pct: n % 101,
        ip: '10.0.0.1',
      }))
      await write(db.admin, rows).then(
        () => {
          counts.written += 3
        },
        () => {
          counts.failed++
        },
      )
      await rest()
    }
  }
  const ended = Promise.all([post(), writeOn()])
  return {
    counts,
    stop: async () => {
      going = false
      await ended
      latencies.sort((a, b) => a - b)
      return {
        ...counts,
        p50: latencies[Math.floor(latencies.length / 2)] ?? 0,
        p99: latencies[Math.floor(latencies.length * 0.99)] ?? 0,
      }
    },
  }
}

async function fill({ admin }: TestDatabase, { rows, devices, days }: { rows: number; devices: number; days: number }) {
  await admin.unsafe(`
    insert into ${TABLE} (device_id, ts, battery_pct, network_type, unity_running, signal_dbm, agent_version, ip)
    select 'device-' || 1 + n % ${devices},
      -- Every twentieth row is a retry within the same 10 seconds or an exact copy.
      date_trunc('second', now() at time zone 'utc') - interval '${days} days'
        + (n / ${devices}) * interval '${Math.floor((days * 86_400) / (rows / devices))} s' - case when n % 20 = 0 then interval '0.5 s' else '0' end,
      n % 101, (array['wifi', 'lte', null])[1 + n % 3], n % 7 > 0, -50 - n % 60, '3.' || n % 5, '10.0.' || n % 250 || '.7'
    from generate_series(0, ${rows} - 1) n;
    insert into ${TABLE} (device_id, ts, battery_pct) select device_id, ts + n * interval '0.3 s', battery_pct
    from ${TABLE} cross join generate_series(0, 1) n where id % 40 = 0;
  `)
}

t.test(
  'a large table is imported completely during traffic, despite a killed backend and a crash of Postgres',
  { skip: leftToCi(), timeout: 400_000 },
  async t => {
    const db = await withCluster(t)
    await plainTable(db)
    const devices = await enroll(db.sql, 400)
    const rows = size({ deep: 1_000_000, quick: 200_000 })
    await fill(db, { rows, devices: 400, days: 110 })
    await db.admin`update cron.job set active = false`
    // With wal_level minimal and no checkpoint, a crash resets a sequence that was used in the transaction that created it.
    await db.admin`checkpoint`
    const busy = traffic(db, devices)

    const since = performance.now()
    let dba = asRole(t, db, 'fleet_dba')
    const progress = async () =>
      (
        await db.sql<
          { step: string; rows_read: string; rows_per_s: string; percent: string }[]
        >`select * from fleet.import_progress`.catch(() => [])
      )[0]
    const whenRead = (share: number) =>
      waitFor(
        async () => {
          const now = await progress()
          return now?.step === 'move' && Number(now.rows_read) > share * rows
        },
        { timeoutMs: 120_000, what: () => `${share} of the rows to be read` },
      )

    let run = importTable(dba).catch((error: unknown) => error)
    await whenRead(0.25)
    await db.admin`select pg_terminate_backend(backend) from fleet.imports`
    t.match(await run, { code: new RegExp(SESSION_ENDED.join('|')) })
    t.match(await progress(), { state: 'moving', is_running: false })

    dba = asRole(t, db, 'fleet_dba')
    run = importTable(dba).catch((error: unknown) => error)
    await whenRead(0.6)
    await db.cluster.stop('immediate')
    t.ok((await run) instanceof Error)
    await db.cluster.start()
    await waitFor(async () => (await progress()) !== undefined)
    t.match(await progress(), { state: 'moving', is_running: false })

    dba = asRole(t, db, 'fleet_dba')
    t.equal(await importTable(dba), 'moved')
    const moved = performance.now()
    t.comment('moved', await progress())
    t.equal(await verify(dba), 'verified', 'during traffic')
    const verified = performance.now()
    const found = await busy.stop()
    t.match(await confirm(dba), /is confirmed/)
    t.comment(
      `${Math.round((moved - since) / 1000)} s for the import with both kills, ${Math.round((verified - moved) / 1000)} s for the verification; heartbeats meanwhile`,
      found,
    )

    t.same(await differences(db), noDifferences)
    const [sums] =
      await db.sql`select sum(rows_found)::int as found, sum(rows_kept)::int as kept, sum(rows_duplicate)::int as duplicate, sum(rows_missing + rows_changed)::int as bad from fleet.import_days`
    t.equal(sums?.bad, 0)
    // Rows of today are still written between the survey, which counts them, and the comparison.
    t.same(
      await db.sql`select day, rows_found, rows_kept + rows_duplicate as compared from fleet.import_days where rows_found <> rows_kept + rows_duplicate and day < current_date - 1`,
      [],
      'each row is either stored or a duplicate',
    )
    t.ok(Number(sums?.kept) + Number(sums?.duplicate) >= Number(sums?.found))
    t.ok(Number(sums?.duplicate) > rows / 50, `${sums?.duplicate} duplicates`)
    const fresh = Number(await value(db.sql`select count(*) from fleet.device_heartbeats where network_type = 'new'`))
    t.ok(
      fresh >= found.stored && fresh <= found.posted,
      `${fresh} from the new server, ${found.stored} acknowledged as stored, ${found.posted} sent`,
    )
    t.ok(
      Number(await value(db.admin.unsafe(`select count(*) from ${TABLE}`))) >= rows * 1.05 + found.written,
      'the old application lost nothing',
    )
  },
)

t.test('the import is complete whatever the table contains and whenever it is killed', { timeout: 200_000 }, async t => {
  const seed = 20261121
  t.comment(`seed ${seed}`)
  const random = generator(seed)
  const pick = <T>(values: T[]) => values[Math.floor(random() * values.length)] as T
  for (let round = 0; round < size({ deep: 4, quick: 2 }); round++) {
    const db = await withDatabase(t)
    await plainTable(db)
    const devices = await enroll(db.sql, 8)
    const rows = Array.from({ length: 4000 }, () => ({
      device_id: `device-${1 + Math.floor(random() * 9)}`,
      ts: pick([
        utc(random() * 3),
        utc(random() * 60),
        utc(random() * 200_000),
        utc(random() * 200_000),
        utc(Math.floor(random() * 100) / 6),
        null,
        '1999-12-31T23:59:59',
        utc(-5000),
      ]),
      battery_pct: pick([null, 0, 1, 100, -5, 32_767]),
      network_type: pick([null, '', 'wifi', '|~:', 'ж']),
      unity_running: pick([null, true, false]),
      signal_dbm: pick([null, -61, -120]),
      agent_version: pick([null, '1', '~']),
      ip: pick([null, '10.0.0.1', '10.0.0.1/8', '::1', 'fe80::1/64']),
    }))
    for (let n = 0; n < rows.length; n += 500) await write(db.admin, rows.slice(n, n + 500))
    if (random() < 0.5)
      await db.admin.unsafe(
        `insert into ${TABLE} (device_id, ts, ip) values ('device-1', now(), 'broken'), ('device-2', now(), null)`,
      )
    await db.admin.unsafe(
      `delete from ${TABLE} where id % ${3 + Math.floor(random() * 5)} = 0; vacuum ${TABLE}`.split('; ')[0] ?? '',
    )
    await db.admin.unsafe(`vacuum ${TABLE}`)

    const busy = traffic(db, devices, { pause: 5 })
    let state: unknown
    for (let kills = 0; state !== 'moved'; kills++) {
      const dba = asRole(t, db, 'fleet_dba')
      const run = importTable(
        dba,
        `, p_oldest => '2020-01-01', p_batch_rows => ${pick([50, 200, 1000])}, p_pause => '2 ms'`,
      ).catch((error: unknown) => error)
      if (kills < 4) {
        await new Promise(resolve => setTimeout(resolve, 300 + random() * 1500))
        await db.admin`select pg_terminate_backend(backend) from fleet.imports where backend in (select pid from pg_stat_activity)`
      }
      state = await run
      t.ok(state === 'moved' || (state as { code?: string }).code === '57P01' || kills < 4, `${kills}: ${String(state)}`)
    }
    const dba = asRole(t, db, 'fleet_dba')
    const before = await verify(dba)
    const found = await busy.stop()
    t.equal(await verify(dba), 'verified', `after the traffic (${String(before)} during it)`)
    t.match(await confirm(dba), /confirmed/)
    await db.admin.unsafe(
      `delete from ${TABLE} where id in (select (source_row ->> 'id')::bigint from fleet.refused_rows('${TABLE}', 100000))`,
    )
    t.comment(found)
    await db.admin.unsafe(
      `delete from ${TABLE} where ts is null or ts < '2020-01-01' or ts > now() + interval '1 day' or ip = 'broken'`,
    )
    t.same(await differences(db), noDifferences, `round ${round}`)
  }
})
