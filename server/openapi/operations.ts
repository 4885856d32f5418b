import { exampleFields } from '../ingest/fields.ts'
import { answer, jsonBody, needs, problems } from './answers.ts'
import { queryParameters } from './schemas.ts'

const deviceId = {
  name: 'id',
  in: 'path',
  required: true,
  description: 'The device_id of the device.',
  schema: { type: 'string', pattern: '^\\d{1,15}$' },
  example: '42',
}
const ifNoneMatch = {
  name: 'If-None-Match',
  in: 'header',
  description: 'The ETag of an earlier answer.',
  schema: { type: 'string' },
}
const notModified = { description: 'Nothing but seconds_since has changed since the answer with this ETag.' }

const device = {
  device_id: 42,
  alias: 'lobby-tablet-7',
  cohort: 'lobby',
  status: 'online',
  last_ts: '2026-01-31T12:00:00Z',
  seconds_since: 12,
  last_received_at: '2026-01-31T12:00:00.130452Z',
  heartbeat_interval: '00:01:00',
  enrolled_at: '2026-01-31T10:00:00Z',
  reason: null,
  ...exampleFields(),
  next_in_s: null,
  stopping: null,
  ip: '127.0.0.1',
}

const page = answer('A page of devices.', 'DevicePage', { page: { devices: [device], next_cursor: null } }, 'tagged')
const devicePage = {
  ...page,
  headers: {
    ...page.headers,
    Link: {
      description: 'Only with CSV: the next page, with rel="next". The last page has no Link.',
      schema: { type: ['string', 'null'], pattern: '^<.+>; rel="next"$' },
    },
  },
  content: {
    ...page.content,
    'text/csv': {
      schema: {
        type: 'string',
        description: 'CSV as in RFC 4180. Text that a spreadsheet would read as a formula has an apostrophe before it.',
      },
    },
  },
}

const listDevices = {
  operationId: 'listDevices',
  tags: ['devices'],
  summary: 'List devices',
  description:
    'Enrolled devices in the order of their ids, a page at a time. No device is skipped or repeated if others are ' +
    'enrolled or revoked between two pages. While heartbeats arrive faster than they are written, lists are refused with 503. ' +
    'With `Accept: text/csv` the answer is CSV with a header line.',
  security: needs('read'),
  parameters: [
    ...queryParameters('listDevices', {
      status: {
        description:
          'Only devices with this status; `unity_down`: heard from, and their Unity app is down; `revoked`: their token was revoked.',
        example: 'online',
      },
      older_than: {
        description: 'Only devices whose last heartbeat is older than this: a number and s, m, h or d, such as `12m`.',
        example: '1s',
      },
      limit: { description: 'The most devices on a page.', example: 100 },
      cursor: { description: 'The `next_cursor` of the previous page.', example: '0' },
      cohort: { description: 'Only devices of this cohort.', example: 'lobby' },
      alias: { description: 'Only the device with this alias.', example: 'lobby-tablet-7' },
    }),
    ifNoneMatch,
  ],
  responses: {
    200: devicePage,
    304: notModified,
    ...problems(401, 403, 422, 429, 500, 503),
  },
}

const getDevice = {
  operationId: 'getDevice',
  tags: ['devices'],
  summary: 'Get a device',
  security: needs('read'),
  parameters: [deviceId, ifNoneMatch],
  responses: {
    200: answer('The device and its last status.', 'Device', { device }, 'tagged'),
    304: notModified,
    ...problems(401, 403, 404, 422, 429, 500, 503),
  },
}

const transition = {
  transition_id: 1206,
  device_id: 42,
  cohort: 'lobby',
  at: '2026-01-31T12:11:00.4Z',
  since: '2026-01-31T12:10:07.1Z',
  event: 'offline',
  status: 'offline',
  previous_status: 'late',
  previous_for: '00:08:15',
  reason: 'battery',
  incident_id: null,
  battery_pct: 3,
  network_type: 'wifi',
  agent_version: '3.1.0',
}

const deviceTransitions = {
  operationId: 'listDeviceTransitions',
  tags: ['devices'],
  summary: "List a device's transitions",
  description: 'Each change of its status, newest first: when it was seen, since when it holds, what was before, and why.',
  security: needs('read'),
  parameters: [
    deviceId,
    ...queryParameters('listDeviceTransitions', {
      limit: { description: 'The most transitions on a page.', example: 1 },
      cursor: { description: 'The `next_cursor` of the previous page.', example: '1207' },
    }),
  ],
  responses: {
    200: answer(
      'A page of transitions.',
      'TransitionPage',
      { page: { transitions: [{ ...transition, previous_since: '2026-01-31T12:01:52.1Z' }], next_cursor: '1206' } },
      'noStore',
    ),
    ...problems(401, 403, 404, 422, 429, 500, 503),
  },
}

const transitions = {
  operationId: 'listTransitions',
  tags: ['devices'],
  summary: 'Follow the transitions of all devices',
  description:
    'A feed: the transitions that became visible after those of an earlier answer, oldest first. None is skipped and none ' +
    'comes twice. Ask again with `after` = `next_after`; an answer with fewer transitions than `limit` has all that there are. ' +
    'A transaction of Postgres that takes long delays the feed until it ends.',
  security: needs('read'),
  parameters: queryParameters('listTransitions', {
    after: { description: 'The `next_after` of an earlier answer. Left out: from the oldest transition on.', example: '0-0' },
    limit: { description: 'The most transitions in the answer.', example: 1 },
    cohort: { description: 'Only devices of this cohort.', example: 'lobby' },
  }),
  responses: {
    200: answer(
      'The next transitions.',
      'TransitionFeed',
      { next: { transitions: [{ ...transition, alias: 'lobby-tablet-7' }], next_after: '1-1206' } },
      'noStore',
    ),
    ...problems(401, 403, 422, 429, 500, 503),
  },
}

const createDevice = {
  operationId: 'createDevice',
  tags: ['devices'],
  summary: 'Enroll a device',
  security: needs('enroll'),
  requestBody: jsonBody('NewDevice', { tablet: { summary: 'A tablet', value: { alias: 'lobby-tablet-8', cohort: 'lobby' } } }),
  responses: {
    201: answer(
      'The id and the token of the device.',
      'DeviceEnrolled',
      {
        tablet: { device_id: 43, token: `nxd_43_${'0123456789abcdef'.repeat(4)}` },
      },
      'noStore',
    ),
    ...problems(400, 401, 403, 409, 413, 415, 422, 429, 500, 503),
  },
}

const changeDevice = {
  operationId: 'changeDevice',
  tags: ['devices'],
  summary: 'Rename a device or move it to another cohort',
  description:
    'Both changes are made, or neither. The device keeps its token and its heartbeats. The same change again is not ' +
    'an error. 409 means that another device has the alias.',
  security: needs('enroll'),
  parameters: [deviceId],
  requestBody: jsonBody('DeviceChanges', { move: { summary: 'Another cohort', value: { cohort: 'lobby' } } }),
  responses: {
    204: { description: 'The device has this alias and cohort.' },
    ...problems(400, 401, 403, 404, 409, 413, 415, 422, 429, 500, 503),
  },
}

const renewToken = {
  operationId: 'renewToken',
  tags: ['devices'],
  summary: 'Give a device a new token',
  description: 'Use it after a factory reset, or if the token was lost or revoked. The old token stops working at once.',
  security: needs('enroll'),
  parameters: [deviceId],
  responses: {
    201: answer(
      'The id and the new token of the device.',
      'DeviceEnrolled',
      {
        renewed: { device_id: 42, token: `nxd_42_${'0123456789abcdef'.repeat(4)}` },
      },
      'noStore',
    ),
    ...problems(401, 403, 404, 422, 429, 500, 503),
  },
}

const revokeDevice = {
  operationId: 'revokeDevice',
  tags: ['devices'],
  summary: "Revoke a device's token",
  description: 'The token stops working at once. The heartbeats of the device stay. Revoking it again is not an error.',
  security: needs('enroll'),
  parameters: [deviceId],
  responses: { 204: { description: 'The token is revoked.' }, ...problems(401, 403, 404, 422, 429, 500, 503) },
}

const nightly = {
  operationId: 'runNightly',
  tags: ['operations'],
  summary: 'Run the nightly maintenance now',
  description: 'pg_cron runs it every night. The answer comes at the end of the run. 409 means that another run holds the lock.',
  security: needs('operate'),
  parameters: queryParameters('nightly', {
    dry_run: { description: '1 or true: only list what would be done.', example: '1' },
    retention_days: { description: 'Retention for this run only, in days, instead of settings.retention.', example: 89 },
  }),
  responses: {
    200: answer('The steps of the run.', 'Steps', {
      plan: {
        steps: [{ step: 'retire', partition_name: 'device_heartbeats_p2025_11_02', detail: 'past the retention of 89 days' }],
      },
    }),
    ...problems(401, 403, 409, 422, 429, 500, 503),
  },
}

const reconcile = {
  operationId: 'reconcile',
  tags: ['operations'],
  summary: 'Repair last status from the heartbeats of the last 24 hours',
  description: 'pg_cron runs it every hour. 409 means that another run holds the lock.',
  security: needs('operate'),
  responses: {
    200: answer('How many devices were compared and repaired.', 'Reconciled', {
      done: { checked: 1, updated: 0, elapsed_ms: 14 },
    }),
    ...problems(401, 403, 409, 422, 429, 500, 503),
  },
}

const poolHealth = {
  operationId: 'getPoolHealth',
  tags: ['operations'],
  summary: 'Show how many database connections are in use',
  description:
    'Connections of the hot path, summed over all workers. The worker that answers also opens a new connection; if that fails, ' +
    'the status is critical and `reason` says why. In a distributed store it tries each node; `pool` is about the node of ' +
    'SERVER_DATABASE_URL.',
  security: needs('metrics'),
  responses: {
    200: answer(
      'The use of the connection pools.',
      'PoolHealth',
      {
        quiet: { status: 'ok', pool: { in_use: 0, max: 10, utilization_pct: 0, waiting: 0 } },
      },
      'noStore',
    ),
    ...problems(401, 403, 422, 429, 500, 503),
  },
}

const metrics = {
  operationId: 'getMetrics',
  tags: ['probes'],
  summary: 'Get metrics for Prometheus',
  description:
    'Metrics of all workers, and those that the database keeps. The latter are left out while the database does not ' +
    'answer. See docs/metrics.md.',
  security: [...needs('metrics'), { adminBearer: [] }],
  responses: {
    200: {
      description: 'Metrics in the text format of Prometheus.',
      content: { 'text/plain': { schema: { type: 'string' }, example: '# TYPE hb_writes_total counter\nhb_writes_total 6\n' } },
    },
    ...problems(401, 403, 429, 500, 503),
  },
}

const health = {
  operationId: 'getHealth',
  tags: ['probes'],
  summary: 'Check that the process answers',
  security: [],
  responses: { 200: answer('The process answers.', 'Health', { alive: { status: 'ok', version: '0.2.0' } }) },
}

const readiness = {
  operationId: 'getReadiness',
  tags: ['probes'],
  summary: 'Check that the server can take requests',
  description:
    'The answer is 503 while the server stops, or while its database cannot be reached or is not migrated. One node of a ' +
    'distributed store is enough; `away` names the others.',
  security: [],
  responses: { 200: answer('The server can take requests.', 'Readiness', { ready: { status: 'ready' } }), ...problems(500, 503) },
}

const thisDocument = {
  operationId: 'getOpenapi',
  tags: ['probes'],
  summary: 'Get the OpenAPI document',
  security: [],
  responses: {
    200: { description: 'This API as OpenAPI 3.1.', content: { 'application/json': { schema: { type: 'object' } } } },
  },
}

/** What people, schedulers and monitoring call. */
export const operationPaths = {
  '/v1/devices': { get: listDevices },
  '/v1/devices/{id}': { get: getDevice },
  '/v1/devices/{id}/transitions': { get: deviceTransitions },
  '/v1/transitions': { get: transitions },
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
