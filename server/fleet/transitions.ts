import type { Handler } from 'hono'
import { z } from 'zod'
import type { AppEnv } from '../env.ts'
import type { Reader } from '../reader.ts'
import { text, validQuery } from '../valid.ts'
import { pathId } from './devices.ts'
import { cohortsOf } from '../auth/principal.ts'

const limit = z
  .string()
  .regex(/^(?:[1-9]\d{0,2}|1000)$/, 'must be a whole number from 1 to 1000')
  .meta({ type: 'integer', minimum: 1, maximum: 1000, pattern: undefined })
  .transform(Number)
  .default(100)

/** The query parameters of GET /v1/transitions. */
export const feedQuery = z.object({
  after: z
    .string()
    .regex(/^\d{1,18}-\d{1,18}$/, 'must be the next_after of an answer')
    .optional(),
  limit,
  cohort: text(1, 100).optional(),
})

/** The query parameters of GET /v1/devices/:id/transitions. */
export const historyQuery = z.object({
  limit,
  cursor: z
    .string()
    .regex(/^\d{1,15}$/, 'must be the next_cursor of an answer')
    .optional(),
})

interface FeedRow {
  cursor: string
  [column: string]: unknown
}

/** The feed of all transitions. next_after is always given, so that a client goes on from it whenever it likes. */
export function listTransitions(reader: Reader): Handler<AppEnv> {
  return async c => {
    const { after, limit, cohort } = validQuery(feedQuery, c)
    const cohorts = cohortsOf(c.get('principal'))
    const rows = await reader.run(sql =>
      cohorts === null
        ? sql<FeedRow[]>`select * from fleet.transitions_after(${after ?? null}, ${limit}, ${cohort ?? null})`
        : sql<FeedRow[]>`
      select * from fleet.transitions_of_cohorts(${cohorts}::text::text[], ${after ?? null}, ${limit}, ${cohort ?? null})
    `,
    )
    const transitions = rows.map(row => without(row, 'cursor'))
    return c.json({ transitions, next_after: rows.at(-1)?.cursor ?? after ?? '0-0' }, 200, { 'cache-control': 'no-store' })
  }
}

/** What became of one device, newest first. */
export function listDeviceTransitions(reader: Reader): Handler<AppEnv> {
  return async c => {
    const { limit, cursor } = validQuery(historyQuery, c)
    const deviceId = pathId(c)
    const all = await reader.run(
      sql => sql<{ transition_id: number; [column: string]: unknown }[]>`
      select * from fleet.transitions_of(
        ${deviceId}, ${cursor ?? null}, ${limit + 1}, ${cohortsOf(c.get('principal'))}::text::text[]
      )
    `,
    )
    const transitions = all.slice(0, limit).map(row => without(row, 'position'))
    const next_cursor = all.length > limit ? String(transitions.at(-1)!.transition_id) : null
    return c.json({ transitions, next_cursor }, 200, { 'cache-control': 'no-store' })
  }
}

function without<Row extends object, Key extends keyof Row>(row: Row, key: Key): Omit<Row, Key> {
  return Object.fromEntries(Object.entries(row).filter(([name]) => name !== key)) as Omit<Row, Key>
}
