import type { Handler } from 'hono'
import { z } from 'zod'
import type { AppEnv } from '../env.ts'
import { MAX_BODY_BYTES, readJson } from '../body.ts'
import type { ServerConfig } from '../config.ts'
import type { Pool } from '../database.ts'
import { acting } from '../auth/acting.ts'
import type { Metrics } from '../ops/metrics.ts'
import { Problem, toProblem } from '../problem.ts'
import { type Tokens, wrongKind } from '../auth/tokens.ts'
import { deviceId, fields, text, valid } from '../valid.ts'

const MAX_DEPTH = 32
const DEVICES_ONLY = 'Commands are for devices; a gateway has none.'

interface Command {
  command_id: number
  command: string
  payload: unknown
  created_at: string
}

type NoCommand = Record<keyof Command, null>

export const newCommand = fields({
  device_id: deviceId.describe('The device that gets the command.'),
  command: text(1, 64).describe('The name of the command, as the agent knows it.'),
  payload: z
    .unknown()
    .optional()
    .superRefine((value, context) => {
      const fault = faultOf(value)
      if (fault !== undefined) context.addIssue({ code: 'custom', message: fault })
    })
    .describe(`Any JSON of at most ${MAX_DEPTH} levels, with numbers up to 2^53 and text without NUL.`),
})

/** Sends a command to a device, which gets it at its next poll. */
export function postCommand(config: ServerConfig, pool: Pool, metrics: Metrics): Handler<AppEnv> {
  return async c => {
    const { device_id, command, payload } = valid(newCommand, await readJson(c.env.incoming, MAX_BODY_BYTES))
    // As text, because the driver would encode the JSON a second time.
    const json = payload === undefined ? null : JSON.stringify(payload)
    const [sent] = await counted(
      metrics,
      () => 1,
      pool.run(
        sql => sql<{ command_id: number }[]>`
      select fleet.send_command(${device_id}, ${command}, ${json}::text::jsonb) as command_id
      from ${acting(sql, c, 'command', config)}
    `,
      ),
    )
    return c.json(sent!, 201, { 'cache-control': 'no-store' })
  }
}

/** The device's commands, oldest first. Each is handed over again until it is acknowledged. */
export function getCommands(tokens: Tokens, metrics: Metrics): Handler<AppEnv> {
  return async c => {
    const { incoming } = c.env
    const rows = await counted(
      metrics,
      rows => rows.filter(({ command_id }) => command_id !== null).length,
      // A gateway has no device_id, and so it gets no commands.
      tokens.ask(
        tokens.read(incoming),
        incoming,
        (sql, hash) => sql<((Command | NoCommand) & { kind: string })[]>`
      select a.kind, c.command_id, c.command, c.payload, c.created_at
      from fleet.authenticate(${hash}::text::bytea) a
      left join lateral fleet.take_commands(a.device_id) c on true
    `,
      ),
    )
    if (rows[0]!.kind !== 'device') throw wrongKind(DEVICES_ONLY)
    const commands = rows.flatMap(({ command_id, command, payload, created_at }) =>
      command_id === null ? [] : [{ command_id, command, payload, created_at }],
    )
    return c.json({ commands }, 200, { 'cache-control': 'no-store' })
  }
}

/** The device confirms that it has the command. Doing that twice is not an error. */
export function ackCommand(tokens: Tokens, metrics: Metrics): Handler<AppEnv> {
  return async c => {
    const { incoming } = c.env
    const token = tokens.read(incoming)
    const id = c.req.param('id') ?? ''
    if (!/^\d{1,15}$/.test(id)) {
      const { kind } = await tokens.authenticate(token, incoming)
      throw kind === 'device' ? new Problem(404, `There is no command ${id}.`) : wrongKind(DEVICES_ONLY)
    }
    const [row] = await counted(
      metrics,
      ([row]) => Number(row!.is_new ?? false),
      tokens.ask(
        token,
        incoming,
        (sql, hash) => sql<{ kind: string; is_new: boolean | null }[]>`
      select a.kind, case when a.kind = 'device' then fleet.ack_command(a.device_id, ${Number(id)}) end as is_new
      from fleet.authenticate(${hash}::text::bytea) a
    `,
      ),
    )
    if (row!.kind !== 'device') throw wrongKind(DEVICES_ONLY)
    return c.body(null, 204)
  }
}

/** Counts for the error budget whether a statement succeeded that also writes the dispatch log. */
async function counted<T extends readonly object[]>(metrics: Metrics, entries: (rows: T) => number, statement: Promise<T>) {
  try {
    const rows = await statement
    metrics.dispatchLogStatements.inc()
    metrics.dispatchLogWrites.inc(entries(rows))
    return rows
  } catch (error) {
    // An unknown device or command is the caller's fault.
    if (toProblem(error).status >= 500) metrics.dispatchLogWritesFailed.inc()
    throw error
  }
}

/** Why a JSON value cannot be stored and handed over unchanged; undefined if it can. */
function faultOf(value: unknown, depth = 0): string | undefined {
  if (depth > MAX_DEPTH) return `must not be nested deeper than ${MAX_DEPTH} levels`
  if (typeof value === 'string') return text(0, Infinity).safeParse(value).error?.issues[0]!.message
  if (typeof value === 'number') {
    const isExact = Number.isFinite(value) && (Number.isSafeInteger(value) || !Number.isInteger(value))
    return isExact ? undefined : 'must not contain numbers beyond 2^53; send them as strings'
  }
  if (typeof value !== 'object' || value === null) return undefined
  const parts: unknown[] = Array.isArray(value) ? value : [...Object.keys(value), ...(Object.values(value) as unknown[])]
  for (const part of parts) {
    const fault = faultOf(part, depth + 1)
    if (fault !== undefined) return fault
  }
  return undefined
}
