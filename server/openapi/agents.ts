import { MAX_BATCH_BYTES, MAX_BATCH_ITEMS, MAX_CONTAINERS, MAX_LINES, MAX_VALUES } from '../ingest/batch.ts'
import { MAX_BODY_BYTES, MAX_INFLATION } from '../body.ts'
import { answer, jsonBody, problems, schemaRef } from './answers.ts'

const single = {
  operationId: 'postHeartbeat',
  tags: ['heartbeats'],
  summary: 'Send a heartbeat',
  description:
    `At most ${MAX_BODY_BYTES} bytes. The answer comes after the commit. Sent again with the same \`ts\`, a heartbeat is a duplicate; ` +
    "without `ts` the server's time counts and a retry is not recognised. `ts` is RFC 3339 with an offset, a real time in the years 0001 to 9999.",
  security: [{ device: [] }],
  requestBody: jsonBody('Heartbeat', {
    wrong_clock: { summary: 'A device whose clock is wrong', value: { ts: '2001-01-01T00:00:00Z', battery_pct: 80 } },
    stored: {
      summary: 'A heartbeat',
      value: {
        ts: '2026-01-31T12:00:00Z',
        battery_pct: 81,
        network_type: 'wifi',
        unity_running: true,
        signal_dbm: -61,
        agent_version: '3.1.0',
      },
    },
    retry: { summary: 'The same once more, since the answer was lost', value: { ts: '2026-01-31T12:00:00Z', battery_pct: 81 } },
  }),
  responses: {
    201: answer('It is stored.', 'Stored', { stored: { result: 'stored', ts: '2026-01-31T12:00:00Z', next_interval_s: 60 } }),
    200: answer("The device's ten seconds of `ts` are taken: by the same heartbeat, as a rule.", 'Stored', {
      retry: { result: 'duplicate', ts: '2026-01-31T12:00:00Z', next_interval_s: 60 },
    }),
    202: answer('It is kept aside, for `ts` is too late, too far ahead or has no partition.', 'Stored', {
      wrong_clock: { result: 'quarantined', reason: 'too_late', ts: '2001-01-01T00:00:00Z', next_interval_s: 60 },
    }),
    ...problems(400, 401, 413, 415, 422, 429, 500, 503),
  },
}

const lines = '{"ts":"2026-01-31T11:55:00Z","battery_pct":84}\n{"ts":"2026-01-31T11:56:00Z","battery_pct":184}\n'

const batch = {
  operationId: 'postHeartbeats',
  tags: ['heartbeats'],
  summary: 'Send many heartbeats',
  description:
    'Heartbeats that a device collected while it was offline, or a gateway for its devices: at most ' +
    `${MAX_BATCH_ITEMS} items, ${MAX_CONTAINERS} arrays and objects, ${MAX_VALUES} values, ${MAX_LINES} lines of NDJSON (blank lines included) ` +
    `and ${MAX_BATCH_BYTES} bytes, before and after inflation. Gzip may expand to ${MAX_INFLATION} times its size plus 64 KiB. ` +
    'One bad item never blocks the others: each is judged by itself. A 5xx means that all of it is to be sent again; what was ' +
    'stored meanwhile is then a duplicate.',
  security: [{ device: [] }, { gateway: [] }],
  parameters: [
    {
      name: 'Content-Encoding',
      in: 'header',
      description: 'How the body is packed.',
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
            description: 'What is otherwise is rejected alone.',
            anyOf: [schemaRef('DeviceItem'), schemaRef('GatewayItem')],
          },
        },
        examples: {
          buffer: {
            summary: "A device's buffer",
            value: [
              { ts: '2026-01-31T11:58:00Z', battery_pct: 83 },
              { ts: '2026-01-31T11:59:00Z', battery_pct: 82 },
            ],
          },
          gateway: {
            summary: "A gateway's, of which one device is not enrolled",
            value: [
              { device_id: 42, ts: '2026-01-31T11:57:00Z' },
              { device_id: 999999, ts: '2026-01-31T11:57:00Z' },
            ],
          },
        },
      },
      'application/x-ndjson': {
        schema: { type: 'string', description: 'An item a line; blank lines are none.' },
        examples: { lines: { summary: "A device's buffer with a wrong line", value: lines } },
      },
    },
  },
  responses: {
    200: answer('What became of each.', 'BatchResults', {
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
          { result: 'rejected', errors: [{ path: 'battery_pct', message: 'must be a whole number from 0 to 100' }] },
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
  description: `The device gets it at its next poll. At most ${MAX_BODY_BYTES} bytes.`,
  security: [{ admin: [] }],
  requestBody: jsonBody('NewCommand', {
    volume: { summary: 'With a payload', value: { device_id: 42, command: 'set_volume', payload: { percent: 30 } } },
  }),
  responses: {
    201: answer('It waits for the device.', 'CommandSent', { volume: { command_id: 7 } }, 'noStore'),
    ...problems(400, 401, 404, 413, 415, 422, 429, 500, 503),
  },
}

const take = {
  operationId: 'getCommands',
  tags: ['commands'],
  summary: "Fetch the device's commands",
  description: 'Oldest first. Each comes again until it is acknowledged or expired, so an agent remembers what it has done.',
  security: [{ device: [] }],
  responses: {
    200: answer(
      'Those that are not acknowledged.',
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
  description: 'Again is no error.',
  security: [{ device: [] }],
  parameters: [
    {
      name: 'id',
      in: 'path',
      required: true,
      description: 'Its command_id.',
      schema: { type: 'string', pattern: '^\\d{1,15}$' },
      example: '7',
    },
  ],
  responses: { 204: { description: 'It does not come again.' }, ...problems(401, 404, 429, 500, 503) },
}

/** What devices and gateways call, and how they are told something. */
export const agentPaths = {
  '/v1/heartbeat': { post: single },
  '/v1/heartbeats': { post: batch },
  '/admin/command': { post: send },
  '/v1/commands': { get: take },
  '/v1/commands/{id}/ack': { post: acknowledge },
}
