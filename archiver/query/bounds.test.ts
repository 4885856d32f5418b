import t from 'tap'
import { allowBounds, conditionOf, overlaps, readBounds } from './bounds.ts'
import { withDuckDB } from '../duckdb.ts'
import { makeDirectory } from '../../testing/archiver.ts'

const TABLES = ['device_heartbeats', 'online'] as const

async function withReader(
  t: Parameters<typeof makeDirectory>[0],
  use: (read: (query: string) => Promise<string>) => Promise<void>,
) {
  await withDuckDB(await makeDirectory(t), '256MB', async duckdb => {
    for (const table of TABLES)
      await duckdb.run(`create table ${table} (ts timestamptz, device_id bigint, battery_pct smallint, network_type varchar)`)
    await allowBounds(duckdb)
    await use(async query => conditionOf((await readBounds(duckdb, query, TABLES)).device_heartbeats) ?? 'all')
  })
}

t.test('a query reads only the devices and times that it names', async t => {
  await withReader(t, async read => {
    const day = `ts >= '2026-08-15 00:00:00+00'`
    for (const [query, condition] of [
      ['select * from device_heartbeats where device_id = 17', '(device_id in (17))'],
      ['from device_heartbeats where device_id in (17, -18, 99);', '(device_id in (-18, 17, 99))'],
      ['select count(*) from device_heartbeats where device_id = 17 or device_id = 20', '(device_id in (17, 20))'],
      ['select * from device_heartbeats where device_id between 3 and 5', '(device_id >= 3 and device_id <= 5)'],
      [`select * from device_heartbeats where device_id = 5 order by ts desc limit 3`, '(device_id in (5))'],
      [
        `select * from device_heartbeats where ts >= '2026-08-15' and ts < '2026-08-15 02:30:00.5+02' and device_id = 1`,
        `(${day} and ts <= '2026-08-15 00:30:00.5+00' and device_id in (1))`,
      ],
      [`select * from device_heartbeats where ts >= '2026-08-15' and ts <= now()`, `(${day})`],
      [`select * from device_heartbeats where ts >= '2026-08-15' and hour(ts) = 3`, `(${day})`],
      ['with x as (select * from device_heartbeats) select max(ts) from x where not device_id <> 4', '(device_id in (4))'],
      [
        'select * from device_heartbeats a join device_heartbeats b using (device_id) where device_id = 5',
        '(device_id in (5)) or (device_id in (5))',
      ],
      [
        'select * from device_heartbeats where device_id = 1 union all select * from device_heartbeats where device_id = 2',
        '(device_id in (1)) or (device_id in (2))',
      ],
      [`select * from device_heartbeats where device_id = 17 and network_type = 'device_id=4 AND ts>='`, '(device_id in (17))'],
    ] as const)
      t.equal(await read(query), condition, query)
  })
})

t.test('what is not limited for sure is read whole', async t => {
  await withReader(t, async read => {
    for (const query of [
      'select * from device_heartbeats',
      'select max(ts) from device_heartbeats',
      'select count(*) from device_heartbeats',
      'summarize device_heartbeats',
      'select * from device_heartbeats where device_id = 1 or battery_pct = 3',
      'select * from device_heartbeats where device_id <> 1',
      // The day may end between this and the query.
      'select * from device_heartbeats where ts < current_date',
      `select * from device_heartbeats where ts <= date_trunc('month', now())`,
      `select * from device_heartbeats where network_type = 'a\ndevice_id=42' and device_id > 0`,
      'select * from device_heartbeats where device_id = battery_pct',
      `select * from device_heartbeats where device_id::varchar = '17'`,
      `select * from device_heartbeats where ts >= '2026-08-15' or device_id = 1`,
      `select * from device_heartbeats where network_type = 'device_id=4' or network_type = 'ts>=''2026-08-15 00:00:00+00''::TIMESTAMP WITH TIME ZONE'`,
      'select * from device_heartbeats where device_id = (select max(device_id) from device_heartbeats)',
      'select (select count(*) from device_heartbeats) from device_heartbeats where device_id = 1',
      'select * from device_heartbeats where device_id = 1 union all select * from device_heartbeats',
      'select * from online o left join device_heartbeats d using (device_id) where o.battery_pct = 1',
    ])
      t.equal(await read(query), 'all', query)
  })
})

t.test('a day is skipped only if no scan needs it', async t => {
  await withDuckDB(await makeDirectory(t), '256MB', async duckdb => {
    await duckdb.run('create table online (ts timestamptz, device_id bigint)')
    await allowBounds(duckdb)
    const read = async (query: string) => (await readBounds(duckdb, query, ['online'])).online
    const day = { start: '2026-08-15 00:00:00+00', end: '2026-08-16 00:00:00+00' }
    t.ok(overlaps(undefined, day))
    t.ok(overlaps(await read('from online where device_id = 1'), day))
    t.ok(overlaps(await read(`from online where ts >= '2026-08-15 23:59:59.999999'`), day))
    t.notOk(overlaps(await read(`from online where ts >= '2026-08-16'`), day))
    t.ok(overlaps(await read(`from online where ts < '2026-08-15 00:00:01'`), day))
    t.notOk(overlaps(await read(`from online where ts < '2026-08-14 20:00'`), day))
    const two = `from online where ts >= '2026-08-20' union all from online where ts < '2026-08-15 03:00'`
    t.ok(overlaps(await read(two), day))
  })
})
