import { z } from 'zod'
import { newCommand } from '../fleet/commands.ts'
import { deviceChanges, listQuery, newDevice } from '../fleet/devices.ts'
import { deviceItemSchema, gatewayItemSchema, heartbeatSchema } from '../ingest/heartbeat.ts'
import { nightlyQuery } from '../ops/ops.ts'

type JsonSchema = Record<string, unknown>

const count = z.int().nonnegative()
const time = z.string().meta({ format: 'date-time' })
const percent = z.int().min(0).max(100)

const fieldError = z.object({
  path: z.string().describe('The field, as in `battery_pct` or `payload.zone`; empty for the whole.'),
  message: z.string(),
})

const answered = {
  reason: z.enum(['too_late', 'in_future', 'no_partition']).optional().describe('Why it is quarantined.'),
  ts: time.describe("The time that counts: the device's, or the server's where the device gave none."),
  next_interval_s: count.describe('Seconds until the next heartbeat is due.'),
}

const step = {
  step: z.string(),
  partition_name: z.string().nullable(),
  detail: z.string().nullable(),
}

/** What goes in are the schemas that the routes validate with; what comes out is held to these by a test. */
const bodies = {
  Heartbeat: heartbeatSchema.describe('Every field may be left out; null counts as left out, unknown fields are ignored.'),
  DeviceItem: deviceItemSchema.describe(
    "A heartbeat in a device's batch. It may name the device, but only the one whose token is used.",
  ),
  GatewayItem: gatewayItemSchema.describe("A heartbeat in a gateway's batch."),
  NewCommand: newCommand,
  NewDevice: newDevice.describe('The alias is unique, among revoked devices too. Without a cohort it is `default`.'),
  DeviceChanges: deviceChanges.describe('What shall be another; at least one of them.'),

  Problem: z
    .object({
      type: z.string(),
      title: z.string(),
      status: z.int().min(400).max(599),
      detail: z.string().describe('What happened, for people.'),
      hint: z.string().optional().describe('What to do about it.'),
      errors: z.array(fieldError).optional().describe('On 422: each field that is wrong.'),
      request_id: z.string().optional().describe('As in X-Request-Id; a fault of the server is logged with it.'),
    })
    .describe('RFC 9457. More members may be added.'),
  Stored: z.object({ result: z.enum(['stored', 'duplicate', 'quarantined']), ...answered }),
  BatchResults: z.object({
    results: z
      .array(
        z.object({
          result: z.enum(['stored', 'duplicate', 'quarantined', 'rejected']),
          reason: z.enum(['too_late', 'in_future', 'no_partition', 'quarantine_full']).optional(),
          ts: answered.ts.optional(),
          next_interval_s: answered.next_interval_s.optional(),
          errors: z
            .array(fieldError)
            .optional()
            .describe(
              'What is wrong with a rejected item. Only the first error is given for some items if the batch has very many errors.',
            ),
        }),
      )
      .describe('One for each item, in their order.'),
    stored: count,
    duplicate: count,
    quarantined: count,
    rejected: count,
  }),
  Commands: z.object({
    commands: z.array(
      z.object({
        command_id: z.int(),
        command: z.string(),
        payload: z.unknown(),
        created_at: time,
      }),
    ),
  }),
  CommandSent: z.object({ command_id: z.int() }),
  DeviceEnrolled: z.object({
    device_id: z.int(),
    token: z
      .string()
      .regex(/^nxd_[0-9a-f]{64}$/)
      .describe('Shown only now; of it only a digest is kept.'),
  }),
  Device: z
    .looseObject({
      device_id: z.int(),
      alias: z.string(),
      cohort: z.string(),
      status: z.enum(['new', 'online', 'late', 'offline', 'clock_skewed']),
      last_ts: time.nullable(),
      seconds_since: z.int().nullable().describe('Since last_ts. Not part of the ETag.'),
      battery_pct: percent.nullable(),
      network_type: z.string().nullable(),
      unity_running: z.boolean().nullable(),
      signal_dbm: z.int().nullable(),
      agent_version: z.string().nullable(),
      ip: z.string().nullable(),
      last_received_at: time.nullable(),
      heartbeat_interval: z.string().describe('As PostgreSQL writes an interval: `00:01:00`.'),
      enrolled_at: time,
    })
    .describe('A row of the view fleet.device_status; what is added to the view is added here.'),
  DevicePage: z.object({
    devices: z.array(z.unknown().meta({ $ref: '#/components/schemas/Device' })),
    next_cursor: z.string().nullable().describe('The `cursor` of the next page; null on the last.'),
  }),
  Steps: z.object({
    steps: z
      .array(
        z.object({
          ...step,
          rows: z.int().nullable().optional(),
          duration_ms: z.int().nullable().optional(),
          ok: z.boolean().nullable().optional(),
        }),
      )
      .describe('What was done, with rows, duration_ms and ok; of a dry run what would be, without them.'),
  }),
  Reconciled: z.object({ checked: count, updated: count, elapsed_ms: z.number().min(0) }),
  PoolHealth: z.object({
    status: z.enum(['ok', 'warn', 'critical']).describe('warn from 80 %, critical from 95 %.'),
    pool: z.object({ in_use: count, max: count, utilization_pct: percent, waiting: count }),
    replica: z.object({ in_use: z.boolean(), lag_seconds: z.number() }).optional().describe('With READ_DATABASE_URL only.'),
  }),
  Health: z.object({ status: z.literal('ok'), version: z.string().describe("Of the server's software, such as 0.2.0.") }),
  Readiness: z.object({ status: z.literal('ready') }),
}

export type SchemaName = keyof typeof bodies

/** For components.schemas. */
export function componentSchemas() {
  return Object.fromEntries(Object.entries(bodies).map(([name, schema]) => [name, toJsonSchema(schema)]))
}

const queries = { listDevices: listQuery, nightly: nightlyQuery }

/** A parameter for each field of what a route takes as its query, with what there is to say of it. */
export function queryParameters(name: keyof typeof queries, about: Record<string, { description: string; example?: unknown }>) {
  const { properties } = toJsonSchema(queries[name]) as { properties: Record<string, JsonSchema> }
  return Object.entries(properties).map(([field, schema]) => ({ name: field, in: 'query', schema, ...about[field] }))
}

/** As it is sent: a schema that transforms is described by what goes in. */
function toJsonSchema(schema: z.ZodType): JsonSchema {
  const { $schema, ...rest } = z.toJSONSchema(schema, { io: 'input' })
  void $schema
  return rest
}
