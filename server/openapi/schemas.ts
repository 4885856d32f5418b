import { z } from 'zod'
import { newCommand } from '../fleet/commands.ts'
import { deviceChanges, listQuery, newDevice } from '../fleet/devices.ts'
import { FIELDS } from '../ingest/fields.ts'
import { MAX_NAMES } from '../ingest/ignored.ts'
import { feedQuery, historyQuery } from '../fleet/transitions.ts'
import { nightlyQuery } from '../ops/ops.ts'

type JsonSchema = Record<string, unknown>

const count = z.int().nonnegative()
const time = z.string().meta({ format: 'date-time' })
const percent = z.int().min(0).max(100)
const deviceId = z.int().describe('The id of the device.')

/** The optional fields, as they are sent and as they are shown with a device. */
const optionalFields: Record<string, JsonSchema> = Object.fromEntries(
  [...FIELDS].map(([name, { schema, description }]) => [
    name,
    {
      ...schema,
      type: [schema.type, 'null'],
      ...(schema.enum !== undefined && { enum: [...(schema.enum as string[]), null] }),
      description,
    },
  ]),
)

/** The fields of a heartbeat. Each may be left out, and null is the same as left out. */
const heartbeatFields = {
  ts: {
    type: ['string', 'null'],
    format: 'date-time',
    description:
      'When it was measured: a real time in the years 0001 to 9999, in RFC 3339 with an offset. ' +
      "Left out: the server's time. The only field for which a heartbeat is refused.",
  },
  ...optionalFields,
}

function heartbeat(description: string, deviceId?: JsonSchema, required?: string[]): JsonSchema {
  return {
    type: 'object',
    description,
    properties: { ...heartbeatFields, ...(deviceId && { device_id: deviceId }) },
    ...(required && { required }),
  }
}

const namedDevice = { type: 'integer', minimum: 1, maximum: Number.MAX_SAFE_INTEGER }

const reportedFields = Object.fromEntries(
  Object.entries(optionalFields).map(([name, schema]) => [name, z.unknown().meta(schema)]),
)

const ignored = z
  .array(z.string())
  .optional()
  .describe(
    'The names of fields that were left out, once each: unknown ones, and those whose value cannot be read. ' +
      `At most ${MAX_NAMES}; absent if there are none.`,
  )

const fieldError = z.object({
  path: z.string().describe('The field, such as `battery_pct` or `payload.zone`; empty for the whole body.'),
  message: z.string().describe('What is wrong with it.'),
})

const answered = {
  reason: z
    .enum(['too_late', 'in_future', 'no_partition', 'quarantine_full'])
    .optional()
    .describe('Why the heartbeat is quarantined; `quarantine_full`: why it is rejected.'),
  ts: time.describe("The time of the heartbeat: the device's, or the server's if the device gave none."),
  next_interval_s: count.describe(
    'Seconds until the next heartbeat is due. It differs from answer to answer, so that each device has its own second.',
  ),
}

const STATUSES = ['new', 'online', 'late', 'offline', 'clock_skewed', 'unity_down', 'revoked'] as const

const reason = z
  .enum([
    'ingest_down',
    'cohort_silent',
    'network_silent',
    'shutdown',
    'reboot',
    'update',
    'app',
    'sleep',
    'battery',
    'signal',
    'unknown',
  ])
  .nullable()

const transition = {
  transition_id: z.int().describe('Its number. Of one device, later transitions have higher numbers.'),
  device_id: deviceId,
  cohort: z.string().describe('Its cohort at that time.'),
  at: time.describe('When it was seen.'),
  since: time.describe('Since when the new status has held.'),
  event: z
    .enum(['online', 'late', 'offline', 'clock_skewed', 'unity_down', 'back', 'revoked'])
    .describe('The new status; or `back`: it was offline or revoked, and is heard from again.'),
  status: z.enum(STATUSES).describe('The new status.'),
  previous_status: z.enum(STATUSES).describe('The status before.'),
  previous_for: z.string().nullable().describe('How long it had the status before, as PostgreSQL writes an interval.'),
  reason: reason.describe('Why it is late or offline, or was until it came back; docs/views.md says what each means.'),
  incident_id: z.int().nullable().describe('The incident in which it fell silent together with others.'),
  battery_pct: percent.nullable().describe('The battery charge that it reported last.'),
  network_type: z.string().nullable().describe('The network that it reported last.'),
  agent_version: z.string().nullable().describe('The version of its agent.'),
}

const step = {
  step: z.string().describe('The kind of step, such as `retire`.'),
  partition_name: z.string().nullable().describe('The partition that it is about, if any.'),
  detail: z.string().nullable().describe('What was done or why, for people.'),
}

/** Requests: the schemas that the routes validate with. Answers: a test compares them with these. */
const bodies = {
  Heartbeat: heartbeat(
    'Every field may be left out. null is the same as left out. Apart from ts, a value that cannot be read costs only its field, ' +
      'and unknown fields are ignored; the answer names both.',
  ),
  DeviceItem: heartbeat('A heartbeat in the batch of a device.', {
    ...namedDevice,
    type: ['integer', 'null'],
    description: 'May be left out; otherwise it must be the device whose token is used.',
  }),
  GatewayItem: heartbeat(
    'A heartbeat in the batch of a gateway.',
    { ...namedDevice, description: 'The device that the heartbeat is of.' },
    ['device_id'],
  ),
  NewCommand: newCommand,
  NewDevice: newDevice,
  DeviceChanges: deviceChanges.describe('At least one of the two.'),

  Problem: z
    .object({
      type: z.string(),
      title: z.string(),
      status: z.int().min(400).max(599),
      detail: z.string().describe('What happened, for people.'),
      hint: z.string().optional().describe('What to do about it.'),
      errors: z.array(fieldError).optional().describe('With 422: each field that is wrong.'),
      results: z
        .array(z.looseObject({ result: z.string().describe('As in BatchResults, or `unavailable`: the item was not stored.') }))
        .optional()
        .describe(
          "With 503, if a part of a gateway's batch was stored: the result of each item, in the order of the items. Only what is " +
            '`unavailable` has to be sent again.',
        ),
      request_id: z.string().optional().describe('As in X-Request-Id. The server logs its own errors with this id.'),
    })
    .describe('A problem document (RFC 9457). More members may be added.'),
  Stored: z.object({
    result: z.enum(['stored', 'duplicate', 'quarantined', 'rejected']).describe('What became of the heartbeat.'),
    ...answered,
    ignored,
  }),
  BatchResults: z.object({
    results: z
      .array(
        z.object({
          result: z.enum(['stored', 'duplicate', 'quarantined', 'rejected']).describe('What became of the item.'),
          reason: answered.reason,
          ts: answered.ts.optional(),
          next_interval_s: answered.next_interval_s.optional(),
          errors: z.array(fieldError).optional().describe('What is wrong with a rejected item.'),
        }),
      )
      .describe('One result for each item, in the order of the items.'),
    stored: count.describe('How many items are stored.'),
    duplicate: count.describe('How many are duplicates.'),
    quarantined: count.describe('How many are quarantined.'),
    rejected: count.describe('How many are rejected.'),
    ignored,
  }),
  Commands: z.object({
    commands: z.array(
      z.object({
        command_id: z.int().describe('The id to acknowledge it with.'),
        command: z.string().describe('The name of the command.'),
        payload: z.unknown().describe('What was sent with it; null if nothing was.'),
        created_at: time.describe('When it was sent.'),
      }),
    ),
  }),
  CommandSent: z.object({ command_id: z.int().describe('The id of the command.') }),
  DeviceEnrolled: z.object({
    device_id: deviceId,
    token: z
      .string()
      .regex(/^nxd_\d+_[0-9a-f]{64}$/)
      .describe('The token. It is shown only now; the database keeps only a digest of it.'),
  }),
  Device: z
    .looseObject({
      device_id: deviceId,
      alias: z.string().describe('Its name.'),
      cohort: z.string().describe('Its cohort.'),
      status: z
        .enum(['new', 'online', 'late', 'offline', 'clock_skewed', 'revoked'])
        .describe('Its status now; docs/views.md says what each means. `revoked` only in a list of revoked devices.'),
      last_ts: time.nullable().describe('`ts` of its newest heartbeat, by its own clock.'),
      seconds_since: z.int().nullable().describe('Seconds since last_received_at. Not part of the ETag.'),
      last_received_at: time.nullable().describe('When it was last heard from, by the clock of Postgres.'),
      heartbeat_interval: z
        .string()
        .describe('How often the device is asked to send, as PostgreSQL writes an interval: `00:01:00`.'),
      enrolled_at: time.describe('When the device was enrolled.'),
      reason: reason.describe('Why it is silent; docs/views.md says what each means. Null: it is not.'),
      ...reportedFields,
      ip: z.string().nullable().describe('The address it came from, or its prefix, as settings.store_ip says.'),
    })
    .describe('A row of the view fleet.device_status. Columns that are added to the view are added here.'),
  DevicePage: z.object({
    devices: z.array(z.unknown().meta({ $ref: '#/components/schemas/Device' })),
    next_cursor: z.string().nullable().describe('The `cursor` of the next page; null on the last page.'),
  }),
  TransitionPage: z.object({
    transitions: z.array(
      z.object({ ...transition, previous_since: time.nullable().describe('Since when it had the status before.') }),
    ),
    next_cursor: z.string().nullable().describe('The `cursor` of the next page; null on the last page.'),
  }),
  TransitionFeed: z.object({
    transitions: z.array(z.object({ ...transition, alias: z.string().nullable().describe('Its name.') })),
    next_after: z.string().describe('The `after` of the next request.'),
  }),
  Steps: z.object({
    steps: z
      .array(
        z.object({
          ...step,
          rows: z.int().nullable().optional().describe('How many rows or tables it was about.'),
          duration_ms: z.int().nullable().optional().describe('How long it took, in milliseconds.'),
          ok: z.boolean().nullable().optional().describe('Whether it succeeded.'),
        }),
      )
      .describe('What was done. A dry run lists what would be done, without rows, duration_ms and ok.'),
  }),
  Reconciled: z.object({
    checked: count.describe('Devices that were compared.'),
    updated: count.describe('Devices whose last status was repaired.'),
    elapsed_ms: z.number().min(0).describe('How long it took, in milliseconds.'),
  }),
  PoolHealth: z.object({
    status: z
      .enum(['ok', 'warn', 'critical'])
      .describe('warn from 80 % utilization, critical from 95 %, or if a new connection is refused, by one node at least.'),
    reason: z.string().optional().describe('Why a new connection cannot be opened. Connections that are open may still work.'),
    pool: z.object({
      in_use: count.describe('Connections that are running a statement.'),
      max: count.describe('Connections that there may be.'),
      utilization_pct: percent.describe('in_use as a share of max, in percent.'),
      waiting: count.describe('Statements that wait for a connection.'),
    }),
    nodes: z
      .array(
        z.object({
          node: z.string().describe('Its host and port.'),
          status: z
            .enum(['ok', 'refuses', 'away'])
            .describe(
              '`refuses`: a new connection is refused; `away`: there is none, and heartbeats of its devices are answered 503.',
            ),
          reason: z.string().optional().describe('Why a new connection cannot be opened.'),
          shards: count.describe('Shards whose heartbeats are sent to it.'),
          pool: z
            .object({ in_use: count, max: count, waiting: count })
            .describe('The connections of the worker process that answers.'),
        }),
      )
      .optional()
      .describe('Only of a distributed store; the node of SERVER_DATABASE_URL is the first.'),
    replica: z
      .object({
        in_use: z.boolean().describe('Whether device lists are read from it.'),
        lag_seconds: z.number().describe('How far behind it is, in seconds.'),
      })
      .optional()
      .describe('Only with READ_DATABASE_URL.'),
  }),
  Health: z.object({ status: z.literal('ok'), version: z.string().describe("Of the server's software, such as 0.2.0.") }),
  Readiness: z.object({
    status: z.literal('ready'),
    away: z
      .array(z.string())
      .optional()
      .describe('The nodes of a distributed store that cannot be reached. Heartbeats of their devices are answered 503.'),
  }),
}

export type SchemaName = keyof typeof bodies

/** For components.schemas. */
export function componentSchemas() {
  return Object.fromEntries(
    Object.entries(bodies).map(([name, schema]) => [name, schema instanceof z.ZodType ? toJsonSchema(schema) : schema]),
  )
}

const queries = {
  listDevices: listQuery,
  listTransitions: feedQuery,
  listDeviceTransitions: historyQuery,
  nightly: nightlyQuery,
}

/** A parameter for each field of the query of a route, with its description. */
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
