// Logins of fleet.create_reader() for tests, and a store with the devices of two companies, of which a reader may see one.
import postgres, { type Sql } from 'postgres'
import type { Test } from 'tap'
import type { TestDatabase } from './database.ts'
import { ingest, value } from './fleet.ts'

/** The cohort that the reader sees, and the one that it must not. Everything of the latter contains its name, or SECRET. */
export const OWN = 'acme'
export const OTHER = 'borealis'
/** A number that only devices of the other cohort report. */
export const SECRET = 77

export interface Reader {
  name: string
  password: string
  sql: Sql
}

/** Opens a session that logs in with this name and password. It ends in teardown. */
export function login(t: Test, db: TestDatabase, name: string, password: string) {
  const url = new URL(db.url('fleet_reader'))
  const sql = postgres({
    host: url.hostname,
    port: Number(url.port),
    database: url.pathname.slice(1),
    username: name,
    password,
    max: 1,
    onnotice: () => {},
  })
  t.teardown(() => sql.end({ timeout: 1 }))
  return sql
}

/** Makes a reader of these cohorts, and a session of it. Roles belong to the cluster, so the name has that of the database. */
export async function createReader(t: Test, db: TestDatabase, cohorts: string[], suffix = 'reader'): Promise<Reader> {
  const name = `${db.name}_${suffix}`
  dropAfter(t, db, name)
  const password = (await value(db.sql`select fleet.create_reader(${name}, ${cohorts})`)) as string
  return { name, password, sql: login(t, db, name, password) }
}

/** Drops a role in teardown, if it still exists. */
export function dropAfter(t: Test, db: TestDatabase, name: string) {
  t.teardown(() => db.admin.unsafe(`drop role if exists ${name}`))
}

/**
 * Devices of both cohorts, with rows in every table that a reader may read. Those of the other cohort come first, so that a scan
 * that looks at them before the policy does is noticed.
 */
export async function twoCompanies({ sql, admin }: Pick<TestDatabase, 'sql' | 'admin'>) {
  const make = async (cohort: string, secret: number) => {
    const ids: number[] = []
    for (const what of ['down', 'late', 'gone']) {
      const [row] = await sql<{ device_id: string }[]>`
        select device_id from fleet.create_device(${`${cohort}-${what}`}, ${cohort})`
      ids.push(Number(row!.device_id))
    }
    const [first, , last] = ids as [number, number, number]
    const values = (device_id: number) => ({
      device_id,
      battery_pct: secret,
      signal_dbm: -secret,
      network_type: `${cohort}-net`,
      agent_version: `${cohort}-9`,
      unity_running: device_id !== first,
      extra: { owner: cohort },
    })
    await ingest(sql, ids.map(values))
    await admin`update fleet.device_last_status set ip = ${`203.0.113.${secret}`} where device_id = any (${ids})`
    await admin`
      update fleet.device_last_status
      set last_ts = now() - interval '1 hour', last_received_at = now() - interval '1 hour', noted_reason = ${cohort}
      where device_id = ${last}`
    await sql`select fleet.set_cohort_interval(${cohort}, '2 minutes')`
    const [command] = await sql<{ id: string }[]>`select fleet.send_command(${first}, ${cohort}, ${sql.json({ cohort })}) as id`
    await sql`select * from fleet.take_commands(${first})`
    await sql`select fleet.ack_command(${first}, ${command!.id})`
    await sql`select fleet.record_unreadable_fields(${JSON.stringify([
      { device_id: first, field: 'battery_pct', times: secret, example: cohort },
    ])}::text::json)`
    await admin`
      insert into fleet.device_availability_daily
        (device_id, day, expected, seen, beats, heartbeat_interval, longest_gap, first_ts, last_ts)
      select d, current_date - 1, 1440, ${secret}::integer, ${secret}::integer, '1 minute', '2 minutes', now() - interval '1 day', now() - interval '1 day'
      from unnest(${ids}::bigint[]) d`
    return ids
  }
  const other = await make(OTHER, SECRET)
  const own = await make(OWN, 55)
  await sql`call fleet.mark_silent()`
  // As in a large fleet, so that the kept counts have rows.
  await sql`select fleet.count_fleet(1)`
  for (const table of ['devices', 'device_last_status', 'device_transitions']) await admin`analyze fleet.${admin(table)}`
  return { own, other }
}
