import { createHash } from 'node:crypto'
import type { Context, Handler } from 'hono'
import { accepts } from 'hono/accepts'
import { z } from 'zod'
import type { AppEnv } from '../env.ts'
import type { Backpressure } from '../ingest/backpressure.ts'
import { MAX_BODY_BYTES, readJson } from '../body.ts'
import { csv } from './csv.ts'
import type { ServerConfig } from '../config.ts'
import type { Pool } from '../database.ts'
import { acting } from '../auth/acting.ts'
import type { DeviceReads, DeviceStatus } from './device-reads.ts'
import { Problem, unavailable } from '../problem.ts'
import { fields, text, valid, validQuery } from '../valid.ts'

const STATUSES = ['new', 'online', 'late', 'offline', 'clock_skewed', 'unity_down', 'revoked'] as const
const SECONDS = { s: 1, m: 60, h: 3_600, d: 86_400 } as const

/** The query parameters of GET /v1/devices. */
export const listQuery = z.object({
  status: z.enum(STATUSES, `must be one of ${STATUSES.join(', ')}`).optional(),
  older_than: z
    .string()
    .regex(/^\d{1,6}[smhd]$/, 'must be a number followed by s, m, h or d, such as 12m')
    .transform(age => Number(age.slice(0, -1)) * SECONDS[age.at(-1) as keyof typeof SECONDS])
    .optional(),
  limit: z
    .string()
    .regex(/^(?:[1-9]\d{0,2}|1000)$/, 'must be a whole number from 1 to 1000')
    .meta({ type: 'integer', minimum: 1, maximum: 1000, pattern: undefined })
    .transform(Number)
    .default(100),
  cursor: z
    .string()
    .regex(/^\d{1,15}$/, 'must be the next_cursor of an answer')
    .transform(Number)
    .default(0),
  cohort: text(1, 100).optional(),
  alias: text(1, 200).optional(),
})

/** Lists devices by id, page by page. Each page starts after an id, so that pages stay right while devices come and go. */
export function listDevices(reads: DeviceReads, backpressure: Backpressure): Handler<AppEnv> {
  return async c => {
    if (backpressure.sheds('device_list'))
      throw unavailable('The server is busy with heartbeats and sends no lists of devices for now.')
    const { limit, cursor, ...filters } = validQuery(listQuery, c)
    const type = accepts(c, { header: 'Accept', supports: ['application/json', 'text/csv'], default: 'application/json' })
    const { rows, columns } = await reads.list(c.get('principal'), c.env.incoming.url!, {
      ...filters,
      after: cursor,
      limit: limit + 1,
    })
    const devices = rows.slice(0, limit)
    const next_cursor = rows.length > limit ? String(devices.at(-1)!.device_id) : null
    tag(c, devices, type)
    c.header('vary', 'Accept')
    if (type === 'application/json') return c.json({ devices, next_cursor })
    if (next_cursor !== null) c.header('link', `<${nextPage(c, next_cursor)}>; rel="next"`)
    return c.body(csv(columns, devices), 200, { 'content-type': 'text/csv; charset=utf-8; header=present' })
  }
}

/** The URL of the next page: the same query, from the cursor on. */
function nextPage(c: Context<AppEnv>, cursor: string) {
  const query = new URLSearchParams(c.req.query())
  query.set('cursor', cursor)
  return `${c.req.path}?${query.toString()}`
}

export function getDevice(reads: DeviceReads): Handler<AppEnv> {
  return async c => {
    const deviceId = pathId(c)
    const device = await reads.get(c.get('principal'), c.env.incoming.url!, deviceId)
    if (device === undefined) throw new Problem(404, `There is no device ${deviceId}.`)
    tag(c, [device], 'application/json')
    return c.json(device)
  }
}

export const newDevice = fields({
  alias: text(1, 200).describe('Its name, unique among all devices, revoked ones included.'),
  cohort: text(1, 100).nullish().describe('Its cohort; `default` if it is left out.'),
})

export function createDevice(config: ServerConfig, pool: Pool): Handler<AppEnv> {
  return async c => {
    const { alias, cohort } = valid(newDevice, await readJson(c.env.incoming, MAX_BODY_BYTES))
    const [device] = await pool.run(
      sql => sql<{ device_id: number; token: string }[]>`
      select d.device_id, d.token
      from ${acting(sql, c, 'enroll', config)}
      cross join lateral fleet.create_device(case when is_acting then ${alias}::text end, ${cohort ?? 'default'}) d
    `,
    )
    return c.json(device!, 201, { 'cache-control': 'no-store' })
  }
}

export const deviceChanges = fields({
  alias: text(1, 200).optional().describe('The new alias.'),
  cohort: text(1, 100).optional().describe('The new cohort.'),
})
  .refine(({ alias, cohort }) => alias !== undefined || cohort !== undefined, 'must have alias, cohort or both')
  .meta({ minProperties: 1 })

/** Changes the alias, the cohort, or both in one transaction. Doing that twice is not an error. */
export function changeDevice(config: ServerConfig, pool: Pool): Handler<AppEnv> {
  return async c => {
    const deviceId = pathId(c)
    const { alias = null, cohort = null } = valid(deviceChanges, await readJson(c.env.incoming, MAX_BODY_BYTES))
    await pool.run(
      sql => sql`
      select case when ${alias}::text is not null then fleet.rename_device(${deviceId}, ${alias}) end,
        case when ${cohort}::text is not null then fleet.move_device(${deviceId}, ${cohort}) end
      from ${acting(sql, c, 'enroll', config)}
    `,
    )
    return c.body(null, 204)
  }
}

/** A new token for a device that lost its own. The old one stops at once. */
export function renewToken(config: ServerConfig, pool: Pool): Handler<AppEnv> {
  return async c => {
    const device_id = pathId(c)
    const [row] = await pool.run(
      sql => sql<{ token: string }[]>`
      select fleet.renew_token(${device_id}) as token from ${acting(sql, c, 'enroll', config)}
    `,
    )
    return c.json({ device_id, token: row!.token }, 201, { 'cache-control': 'no-store' })
  }
}

/** Stops the token of a device at once. Its heartbeats stay. Doing that twice is not an error. */
export function revokeDevice(config: ServerConfig, pool: Pool): Handler<AppEnv> {
  return async c => {
    await pool.run(sql => sql`select fleet.revoke_device(${pathId(c)}) from ${acting(sql, c, 'enroll', config)}`)
    return c.body(null, 204)
  }
}

export function pathId(c: Context<AppEnv>) {
  const id = c.req.param('id') ?? ''
  if (!/^\d{1,15}$/.test(id)) throw new Problem(404, `There is no device ${id}.`)
  return Number(id)
}

/**
 * Sets a weak ETag over everything except seconds_since, which changes every second and follows from last_received_at. The etag middleware
 * turns a match into a 304.
 */
function tag(c: Context<AppEnv>, devices: DeviceStatus[], type: string) {
  const hash = createHash('sha1').update(type)
  for (const device of devices) hash.update(JSON.stringify({ ...device, seconds_since: null }))
  c.header('etag', `W/"${hash.digest('base64url')}"`)
  c.header('cache-control', 'private, no-cache')
}
