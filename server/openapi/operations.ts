import { answer, jsonBody, problems } from './answers.ts'
import { queryParameters } from './schemas.ts'

const deviceId = {
  name: 'id',
  in: 'path',
  required: true,
  description: 'Its device_id.',
  schema: { type: 'string', pattern: '^\\d{1,15}$' },
  example: '42',
}
const ifNoneMatch = {
  name: 'If-None-Match',
  in: 'header',
  description: 'The ETag of an earlier answer.',
  schema: { type: 'string' },
}
const notModified = { description: 'It is as in the answer with this ETag, but for seconds_since.' }

const device = {
  device_id: 42,
  alias: 'lobby-tablet-7',
  cohort: 'lobby',
  status: 'online',
  last_ts: '2026-01-31T12:00:00Z',
  seconds_since: 12,
  battery_pct: 81,
  network_type: 'wifi',
  unity_running: true,
  signal_dbm: -61,
  agent_version: '3.1.0',
  ip: '127.0.0.1',
  last_received_at: '2026-01-31T12:00:00.130452Z',
  heartbeat_interval: '00:01:00',
  enrolled_at: '2026-01-31T10:00:00Z',
}

const page = answer('A page.', 'DevicePage', { page: { devices: [device], next_cursor: null } }, 'tagged')
const devicePage = {
  ...page,
  headers: {
    ...page.headers,
    Link: {
      description: 'Of CSV: the next page, with rel="next"; none on the last.',
      schema: { type: ['string', 'null'], pattern: '^<.+>; rel="next"$' },
    },
  },
  content: {
    ...page.content,
    'text/csv': {
      schema: {
        type: 'string',
        description: 'As RFC 4180 has it. Text that a spreadsheet would take for a formula has an apostrophe before it.',
      },
    },
  },
}

const listDevices = {
  operationId: 'listDevices',
  tags: ['devices'],
  summary: 'List devices',
  description:
    'Enrolled devices by id, a page at a time; a page holds while devices come and go. While heartbeats come faster than they are written, ' +
    'lists are refused with 503. With `Accept: text/csv` it is a table with a line of names.',
  security: [{ admin: [] }],
  parameters: [
    ...queryParameters('listDevices', {
      status: { description: 'Only those of this status.', example: 'online' },
      older_than: {
        description: 'Only those whose last heartbeat is older: a number and s, m, h or d, as in `12m`.',
        example: '1s',
      },
      limit: { description: 'How many at most; 100 if nothing is said.', example: 100 },
      cursor: { description: 'The `next_cursor` of the page before.', example: '0' },
      cohort: { description: 'Only those of this cohort.', example: 'lobby' },
      alias: { description: 'Only the one of this alias.', example: 'lobby-tablet-7' },
    }),
    ifNoneMatch,
  ],
  responses: {
    200: devicePage,
    304: notModified,
    ...problems(401, 422, 429, 500, 503),
  },
}

const getDevice = {
  operationId: 'getDevice',
  tags: ['devices'],
  summary: 'Look at a device',
  security: [{ admin: [] }],
  parameters: [deviceId, ifNoneMatch],
  responses: {
    200: answer('The device and what it last said.', 'Device', { device }, 'tagged'),
    304: notModified,
    ...problems(401, 404, 422, 429, 500, 503),
  },
}

const createDevice = {
  operationId: 'createDevice',
  tags: ['devices'],
  summary: 'Enroll a device',
  security: [{ admin: [] }],
  requestBody: jsonBody('NewDevice', { tablet: { summary: 'A tablet', value: { alias: 'lobby-tablet-8', cohort: 'lobby' } } }),
  responses: {
    201: answer(
      'Its id and its token.',
      'DeviceEnrolled',
      {
        tablet: { device_id: 43, token: `nxd_${'0123456789abcdef'.repeat(4)}` },
      },
      'noStore',
    ),
    ...problems(400, 401, 409, 413, 415, 422, 429, 500, 503),
  },
}

const changeDevice = {
  operationId: 'changeDevice',
  tags: ['devices'],
  summary: 'Rename a device, or move it to another cohort',
  description:
    'Both at once, or neither. Its token and its heartbeats stay. Again is no error; 409 when another device has the alias.',
  security: [{ admin: [] }],
  parameters: [deviceId],
  requestBody: jsonBody('DeviceChanges', { move: { summary: 'Another cohort', value: { cohort: 'lobby' } } }),
  responses: { 204: { description: 'It is so.' }, ...problems(400, 401, 404, 409, 413, 415, 422, 429, 500, 503) },
}

const renewToken = {
  operationId: 'renewToken',
  tags: ['devices'],
  summary: 'Give a device a new token',
  description: 'After a factory reset, or when its token was lost or revoked. The old token stops within a second.',
  security: [{ admin: [] }],
  parameters: [deviceId],
  responses: {
    201: answer(
      'Its id and its new token.',
      'DeviceEnrolled',
      {
        renewed: { device_id: 42, token: `nxd_${'0123456789abcdef'.repeat(4)}` },
      },
      'noStore',
    ),
    ...problems(401, 404, 422, 429, 500, 503),
  },
}

const revokeDevice = {
  operationId: 'revokeDevice',
  tags: ['devices'],
  summary: "Revoke a device's token",
  description: 'It stops within a second; what the device sent stays. Again is no error.',
  security: [{ admin: [] }],
  parameters: [deviceId],
  responses: { 204: { description: 'The token is revoked.' }, ...problems(401, 404, 422, 429, 500, 503) },
}

const nightly = {
  operationId: 'runNightly',
  tags: ['operations'],
  summary: "Run the night's maintenance now",
  description: 'pg_cron runs it by itself. Answers when it is over; 409 while another run holds the lock.',
  security: [{ admin: [] }],
  parameters: queryParameters('nightly', {
    dry_run: { description: 'Only say what would be done.', example: '1' },
    retention_days: { description: 'In place of the retention that is set, for this run.', example: 89 },
  }),
  responses: {
    200: answer('Its steps.', 'Steps', {
      plan: {
        steps: [{ step: 'retire', partition_name: 'device_heartbeats_p2025_11_02', detail: 'past the retention of 89 days' }],
      },
    }),
    ...problems(401, 409, 422, 429, 500, 503),
  },
}

const reconcile = {
  operationId: 'reconcile',
  tags: ['operations'],
  summary: 'Repair last status from the heartbeats of a day',
  description: 'pg_cron runs it every hour. 409 while another run holds the lock.',
  security: [{ admin: [] }],
  responses: {
    200: answer('What it looked at, and what it mended.', 'Reconciled', { done: { checked: 1, updated: 0, elapsed_ms: 14 } }),
    ...problems(401, 409, 422, 429, 500, 503),
  },
}

const poolHealth = {
  operationId: 'getPoolHealth',
  tags: ['operations'],
  summary: 'Whether connections to the database run out',
  description: "The hot path's, of all workers.",
  security: [{ admin: [] }],
  responses: {
    200: answer(
      'How full the pools are.',
      'PoolHealth',
      {
        quiet: { status: 'ok', pool: { in_use: 0, max: 10, utilization_pct: 0, waiting: 0 } },
      },
      'noStore',
    ),
    ...problems(401, 422, 429),
  },
}

const metrics = {
  operationId: 'getMetrics',
  tags: ['probes'],
  summary: 'Metrics for Prometheus',
  description: 'Of all workers, and totals that the database holds; without those while it is away.',
  security: [{ admin: [] }, { adminBearer: [] }],
  responses: {
    200: {
      description: "In Prometheus's text format.",
      content: { 'text/plain': { schema: { type: 'string' }, example: '# TYPE hb_writes_total counter\nhb_writes_total 6\n' } },
    },
    ...problems(401, 429),
  },
}

const health = {
  operationId: 'getHealth',
  tags: ['probes'],
  summary: 'Whether the process answers',
  security: [],
  responses: { 200: answer('It does, and this is its version.', 'Health', { alive: { status: 'ok', version: '0.2.0' } }) },
}

const readiness = {
  operationId: 'getReadiness',
  tags: ['probes'],
  summary: 'Whether requests should be sent here',
  description: '503 while the server stops, or its database is away or not migrated.',
  security: [],
  responses: { 200: answer('They should.', 'Readiness', { ready: { status: 'ready' } }), ...problems(500, 503) },
}

const thisDocument = {
  operationId: 'getOpenapi',
  tags: ['probes'],
  summary: 'This document',
  security: [],
  responses: {
    200: { description: 'OpenAPI 3.1.', content: { 'application/json': { schema: { type: 'object' } } } },
  },
}

/** What people, schedulers and monitoring call. */
export const operationPaths = {
  '/v1/devices': { get: listDevices },
  '/v1/devices/{id}': { get: getDevice },
  '/admin/devices': { post: createDevice },
  '/admin/devices/{id}': { patch: changeDevice, delete: revokeDevice },
  '/admin/devices/{id}/token': { post: renewToken },
  '/ops/nightly': { post: nightly },
  '/ops/reconcile': { post: reconcile },
  '/ops/pool_health': { get: poolHealth },
  '/metrics': { get: metrics },
  '/healthz': { get: health },
  '/readyz': { get: readiness },
  '/openapi.json': { get: thisDocument },
}
