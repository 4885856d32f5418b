// Looks for places that miss a column of the heartbeats. The columns come from the catalog.
import { isDeepStrictEqual } from 'node:util'
import type { JSONValue } from 'postgres'
import type { Test } from 'tap'
import type { TestDatabase } from './database.ts'
import { asRole, daysAgo, enroll, ingest, value } from './fleet.ts'
import { ago, type Call } from './server.ts'
import type { Field } from '../server/ingest/fields.ts'

/** The columns of fleet.device_heartbeats that are not fields: what tells one heartbeat from another. */
const NOT_FIELDS = ['ts', 'received_at', 'device_id']
/** The server adds it; no device sends it. */
const ADDRESS = 'ip'

/** Where each column has to be. */
export const PLACES = [
  'server/ingest/fields.ts',
  'openapi.json: Heartbeat',
  'openapi.json: Device',
  'fleet.ingest()',
  'fleet.device_last_status',
  'fleet.record_last_status(), the trigger',
  'fleet.reconcile()',
  'fleet.device_status',
  'fleet.device_status_legacy',
  'GET /v1/devices/:id',
  'GET /v1/devices',
  'a refused heartbeat in fleet.device_last_status',
  'a refused heartbeat in fleet.device_status_legacy',
  'fleet.import_table()',
  'an import, while it forwards',
  'fleet.archive_columns()',
] as const

type Place = (typeof PLACES)[number]

/** A value of each type that the archive has a form for. */
const samples: Record<string, JSONValue> = {
  smallint: 7,
  integer: 7,
  bigint: 7,
  numeric: 7.5,
  'double precision': 7.5,
  boolean: true,
  text: 'seven',
  'text[]': ['seven'],
  jsonb: { seven: 7 },
  inet: '10.1.2.3',
  uuid: '00000000-0000-0000-0000-000000000007',
  date: '2026-07-07',
  'timestamp with time zone': '2026-07-07T07:00:00+00:00',
  'timestamp without time zone': '2026-07-07T07:00:00',
}

/**
 * Sends a value in each column on every way into the store, and returns `place: column` for each place that does not have it.
 * @param fields the table of fields of the server behind `call`
 */
export async function missingColumns(t: Test, db: TestDatabase, fields: ReadonlyMap<string, Field>, call: Call) {
  const { sql, admin } = db
  const columns = await sql<{ name: string; type: string }[]>`
    select a.attname as name, format_type(a.atttypid, null) as type
    from pg_attribute a
    where a.attrelid = 'fleet.device_heartbeats'::regclass and a.attnum > 0 and not a.attisdropped
      and a.attname <> all (${NOT_FIELDS})
    order by a.attnum`
  const names = columns.map(({ name }) => name)
  const given: Record<string, JSONValue> = {}
  for (const { name, type } of columns) {
    const sample = (fields.get(name)?.example as JSONValue | undefined) ?? samples[type]
    if (sample === undefined) throw new Error(`there is no sample for a column of type ${type}`)
    given[name] = sample
  }
  const missing: string[] = []
  const lookFor = (place: Place, found: (name: string) => boolean, wanted = names) => {
    for (const name of wanted) if (!found(name)) missing.push(`${place}: ${name}`)
  }
  const compare = (place: Place, row: unknown) => {
    lookFor(place, name => isDeepStrictEqual((row as Record<string, unknown> | undefined)?.[name], given[name]))
  }

  const sent = names.filter(name => name !== ADDRESS)
  lookFor('server/ingest/fields.ts', name => fields.has(name), sent)
  const { components } = (await call('GET /openapi.json')).body as {
    components: { schemas: Record<'Heartbeat' | 'Device', { properties: object }> }
  }
  lookFor('openapi.json: Heartbeat', name => name in components.schemas.Heartbeat.properties, sent)
  lookFor('openapi.json: Device', name => name in components.schemas.Device.properties)

  await sql`update fleet.settings set store_ip = 'full'`
  const [ingested, written, refused, imported] = (await enroll(sql, 4, 'columns')) as [number, number, number, number]
  const beats = (id: number) =>
    value(sql`select to_jsonb(h) from fleet.device_heartbeats h where h.device_id = ${id} order by ts desc`)
  const status = (id: number) => value(sql`select to_jsonb(s) from fleet.device_last_status s where s.device_id = ${id}`)
  const legacy = (id: number) => value(sql`select to_jsonb(s) from fleet.device_status_legacy s where s.device_id = ${id}`)

  await ingest(sql, [{ ...given, device_id: ingested, ts: ago(60) }])
  compare('fleet.ingest()', await beats(ingested))

  await admin`
    insert into fleet.device_heartbeats
    select r.* from jsonb_populate_record(
      null::fleet.device_heartbeats,
      ${admin.json({ ...given, device_id: written, ts: ago(60), received_at: ago(59) })}::jsonb
    ) r`
  const kept = (await status(written)) as object
  lookFor('fleet.device_last_status', name => name in kept)
  compare('fleet.record_last_status(), the trigger', kept)
  await admin`delete from fleet.device_last_status where device_id = ${written}`
  await sql`select fleet.reconcile()`
  compare('fleet.reconcile()', await status(written))
  compare('fleet.device_status', await value(sql`select to_jsonb(s) from fleet.device_status s where s.device_id = ${written}`))
  compare('fleet.device_status_legacy', await legacy(written))
  compare('GET /v1/devices/:id', (await call(`GET /v1/devices/${written}`, { admin: true })).body)
  const { devices } = (await call('GET /v1/devices?alias=columns-2', { admin: true })).body as { devices: unknown[] }
  compare('GET /v1/devices', devices[0])

  await ingest(sql, [{ ...given, device_id: refused, ts: daysAgo(30) }])
  compare('a refused heartbeat in fleet.device_last_status', await status(refused))
  compare('a refused heartbeat in fleet.device_status_legacy', await legacy(refused))

  await admin`create table public.given_heartbeats (like fleet.device_heartbeats)`
  await admin`grant select, trigger on public.given_heartbeats to fleet_owner`
  const write = (seconds: number) => admin`
    insert into public.given_heartbeats
    select r.* from jsonb_populate_record(
      null::public.given_heartbeats,
      ${admin.json({ ...given, device_id: imported, ts: ago(seconds), received_at: ago(seconds) })}::jsonb
    ) r`
  await write(120)
  await asRole(t, db, 'fleet_dba')`call fleet.import_table('public.given_heartbeats')`
  compare('fleet.import_table()', await beats(imported))
  await write(30)
  compare('an import, while it forwards', await beats(imported))

  const archived = await sql<{ name: string }[]>`
    select c.name from fleet.attached_partitions() a, fleet.archive_columns(a.relid::regclass) c
    where a.range_start <= now() and a.range_end > now()`
  lookFor('fleet.archive_columns()', name => archived.some(column => column.name === name))
  return missing
}
