import { MAX_BATCH_BYTES, MAX_BATCH_ITEMS, MAX_CONTAINERS, MAX_LINES, MAX_VALUES } from '../ingest/batch.ts'
import { exampleFields } from '../ingest/fields.ts'
import { BAD_TS } from '../ingest/item.ts'
import { MAX_BODY_BYTES, MAX_INFLATION } from '../body.ts'
import { answer, jsonBody, needs, problems, schemaRef } from './answers.ts'

// Most heartbeats have neither, and an example is copied.
const { next_in_s, stopping, ...usual } = exampleFields()

const single = {
  operationId: 'postHeartbeat',
  tags: ['heartbeats'],
  summary: 'Send a heartbeat',
  description:
    `The body has at most ${MAX_BODY_BYTES} bytes. The answer comes after the commit. A heartbeat that is sent ` +
    `again with the same \`ts\` is a duplicate. ` +
    'Without `ts` the server uses its own time, and a retry is not recognised.',
  security: [{ device: [] }],
  requestBody: jsonBody('Heartbeat', {
    wrong_clock: { summary: 'A device whose clock is wrong', value: { ts: '2001-01-01T00:00:00Z', battery_pct: 80 } },
    stored: {
      summary: 'A heartbeat',
      value: {
        ts: '2026-01-31T12:00:00Z',
        ...usual,
      },
    },
    retry: {
      summary: 'The same heartbeat again, because the answer was lost',
      value: { ts: '2026-01-31T12:00:00Z', battery_pct: 81 },
    },
    promise: {
      summary: 'The last one before the device restarts, which says when the next one comes',
      value: { ts: '2026-01-31T11:59:50Z', battery_pct: 80, next_in_s, stopping },
    },
  }),
  responses: {
    201: answer('The heartbeat is stored.', 'Stored', {
      stored: { result: 'stored', ts: '2026-01-31T12:00:00Z', next_interval_s: 60 },
      promise: { result: 'stored', ts: '2026-01-31T11:59:50Z', next_interval_s: 60 },
    }),
    200: answer(
      'The device already has a heartbeat in the ten seconds of `ts`, usually this one. Or it is `rejected`: the device has too ' +
        'many heartbeats in quarantine, and this one is not kept.',
      'Stored',
      { retry: { result: 'duplicate', ts: '2026-01-31T12:00:00Z', next_interval_s: 60 } },
    ),
    202: answer('The heartbeat is quarantined: `ts` is too old, too far in the future or has no partition.', 'Stored', {
      wrong_clock: { result: 'quarantined', reason: 'too_late', ts: '2001-01-01T00:00:00Z', next_interval_s: 60 },
    }),
    ...problems(400, 401, 413, 415, 422, 429, 500, 503),
  },
}

const NDJSON_LINES = '{"ts":"2026-01-31T11:55:00Z","battery_pct":84}\n{"ts":"2026-01-31 11:56","battery_pct":84}\n'

const batch = {
  operationId: 'postHeartbeats',
  tags: ['heartbeats'],
  summary: 'Send many heartbeats',
  description:
    'A batch has the heartbeats that a device collected while it was offline, or those of the devices of a gateway: at ' +
    'most ' +
    `${MAX_BATCH_ITEMS} items, ${MAX_CONTAINERS} arrays and objects, ${MAX_VALUES} values, ${MAX_LINES} lines of NDJSON ` +
    `(blank lines included) ` +
    `and ${MAX_BATCH_BYTES} bytes, before and after inflation. Gzip may expand to ${MAX_INFLATION} times its size plus 64 KiB. ` +
    'One bad item never blocks the others: each has its own result. After a 5xx, send the whole batch again; items that were ' +
    "stored the first time are then duplicates. If a part of a gateway's batch was stored, the 503 has `results`, in which what " +
    'has to be sent again is `unavailable`.',
  security: [{ device: [] }, { gateway: [] }],
  parameters: [
    {
      name: 'Content-Encoding',
      in: 'header',
      description: 'How the body is compressed.',
      schema: { type: 'string', enum: ['identity', 'gzip'], default: 'identity' },
    },
  ],
  requestBody: {
    required: true,
    content: {
      'application/json': {
        schema: {
          type: 'array',
          maxItems: MAX_BATCH_ITEMS,
          items: {
            description: 'An item that is not valid is rejected on its own.',
            anyOf: [schemaRef('DeviceItem'), schemaRef('GatewayItem')],
          },
        },
        examples: {
          buffer: {
            summary: 'The buffer of a device',
            value: [
              { ts: '2026-01-31T11:58:00Z', battery_pct: 83 },
              { ts: '2026-01-31T11:59:00Z', battery_pct: 82 },
            ],
          },
          gateway: {
            summary: 'The batch of a gateway; one of its devices is not enrolled',
            value: [
              { device_id: 42, ts: '2026-01-31T11:57:00Z' },
              { device_id: 999999, ts: '2026-01-31T11:57:00Z' },
            ],
          },
        },
      },
      'application/x-ndjson': {
        schema: { type: 'string', description: 'One item a line; blank lines are skipped.' },
        examples: { lines: { summary: 'The buffer of a device with one wrong line', value: NDJSON_LINES } },
      },
    },
  },
  responses: {
    200: answer('The result of each item.', 'BatchResults', {
      buffer: {
        results: [
          { result: 'stored', ts: '2026-01-31T11:58:00Z', next_interval_s: 60 },
          { result: 'stored', ts: '2026-01-31T11:59:00Z', next_interval_s: 60 },
        ],
        stored: 2,
        duplicate: 0,
        quarantined: 0,
        rejected: 0,
      },
      gateway: {
        results: [
          { result: 'stored', ts: '2026-01-31T11:57:00Z', next_interval_s: 60 },
          { result: 'rejected', errors: [{ path: 'device_id', message: 'is not an enrolled device' }] },
        ],
        stored: 1,
        duplicate: 0,
        quarantined: 0,
        rejected: 1,
      },
      lines: {
        results: [
          { result: 'stored', ts: '2026-01-31T11:55:00Z', next_interval_s: 60 },
          { result: 'rejected', errors: [{ path: 'ts', message: BAD_TS.message }] },
        ],
        stored: 1,
        duplicate: 0,
        quarantined: 0,
        rejected: 1,
      },
    }),
    ...problems(400, 401, 413, 415, 422, 429, 500, 503),
  },
}

const send = {
  operationId: 'sendCommand',
  tags: ['commands'],
  summary: 'Send a command to a device',
  description: `The device gets the command at its next poll. The body has at most ${MAX_BODY_BYTES} bytes.`,
  security: needs('command'),
  requestBody: jsonBody('NewCommand', {
    volume: { summary: 'With a payload', value: { device_id: 42, command: 'set_volume', payload: { percent: 30 } } },
  }),
  responses: {
    201: answer('The command waits for the device.', 'CommandSent', { volume: { command_id: 7 } }, 'noStore'),
    ...problems(400, 401, 403, 404, 413, 415, 422, 429, 500, 503),
  },
}

const take = {
  operationId: 'getCommands',
  tags: ['commands'],
  summary: "Fetch the device's commands",
  description:
    'The oldest command comes first. A command is sent again at each poll until it is acknowledged or expires, so ' +
    'the agent must remember what it has done.',
  security: [{ device: [] }],
  responses: {
    200: answer(
      'The commands that are not acknowledged.',
      'Commands',
      {
        one: {
          commands: [{ command_id: 7, command: 'set_volume', payload: { percent: 30 }, created_at: '2026-01-31T12:00:00Z' }],
        },
      },
      'noStore',
    ),
    ...problems(401, 429, 500, 503),
  },
}

const acknowledge = {
  operationId: 'acknowledgeCommand',
  tags: ['commands'],
  summary: 'Acknowledge a command',
  description: 'Acknowledging a command again is not an error.',
  security: [{ device: [] }],
  parameters: [
    {
      name: 'id',
      in: 'path',
      required: true,
      description: 'The command_id of the command.',
      schema: { type: 'string', pattern: '^\\d{1,15}$' },
      example: '7',
    },
  ],
  responses: { 204: { description: 'The command is not sent again.' }, ...problems(401, 404, 429, 500, 503) },
}

/** What devices and gateways call, and how commands are sent to them. */
export const agentPaths = {
  '/v1/heartbeat': { post: single },
  '/v1/heartbeats': { post: batch },
  '/admin/command': { post: send },
  '/v1/commands': { get: take },
  '/v1/commands/{id}/ack': { post: acknowledge },
}
