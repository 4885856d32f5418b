import { STATUS_CODES } from 'node:http'
import type { SchemaName } from './schemas.ts'

type Examples = Record<string, { summary: string; value: unknown }>

export function schemaRef(name: SchemaName) {
  return { $ref: `#/components/schemas/${name}` }
}

export function jsonBody(schema: SchemaName, examples: Examples) {
  return { required: true, content: { 'application/json': { schema: schemaRef(schema), examples } } }
}

const headers = {
  noStore: { 'Cache-Control': { description: 'no-store', schema: { type: 'string', const: 'no-store' } } },
  tagged: {
    ETag: { description: 'Weak; over all but seconds_since.', schema: { type: 'string', pattern: '^W/".+"$' } },
    'Cache-Control': {
      description: 'Ask again each time, with If-None-Match.',
      schema: { type: 'string', const: 'private, no-cache' },
    },
  },
}

/** An answer with a body; the examples are named as those of the request that they answer. */
export function answer(description: string, schema: SchemaName, examples: Record<string, unknown>, kind?: keyof typeof headers) {
  return {
    description,
    ...(kind && { headers: headers[kind] }),
    content: {
      'application/json': {
        schema: schemaRef(schema),
        examples: Object.fromEntries(Object.entries(examples).map(([name, value]) => [name, { value }])),
      },
    },
  }
}

const PROBLEMS = {
  400: 'The body is not JSON in UTF-8, or was cut. A byte order mark before the JSON is skipped.',
  401: 'The token or the key is missing, unknown or revoked.',
  404: 'There is no such thing.',
  409: 'What is there already stands in the way.',
  413: 'The body is larger than the limit; the connection is closed.',
  415: 'The body is of a type, or in an encoding, that is not taken.',
  422: 'The request is understood and not valid; `errors` names each field. Nothing was done.',
  429:
    'Too many wrong tokens or keys came from this address: Retry-After says for how long. Or the device has too many heartbeats in quarantine, ' +
    'and this one was not kept.',
  500: 'A fault of the server; it was logged.',
  503: 'The server or its database cannot do it now. Nothing was acknowledged: send it again after Retry-After.',
}

const requestIdHeader = {
  'X-Request-Id': { description: 'The one that was sent, if it can be used, else a new one.', schema: { type: 'string' } },
}

const PROBLEM_HEADERS: Partial<Record<number, Record<string, object>>> = {
  401: { 'WWW-Authenticate': { description: 'What is asked for.', schema: { type: 'string' } } },
  503: {
    'Retry-After': {
      description: 'Seconds to wait, jittered so that devices that were refused together do not come back together.',
      schema: { type: 'string', pattern: '^\\d+$' },
    },
  },
}

type ProblemStatus = keyof typeof PROBLEMS

/** References to the answers of components.responses. */
export function problems(...statuses: ProblemStatus[]) {
  return Object.fromEntries(statuses.map(status => [status, { $ref: `#/components/responses/${status}` }]))
}

/** For components.responses. */
export function problemResponses() {
  return Object.fromEntries(
    Object.entries(PROBLEMS).map(([status, description]) => [
      status,
      {
        description,
        headers: { ...headers.noStore, ...requestIdHeader, ...PROBLEM_HEADERS[Number(status)] },
        content: {
          'application/problem+json': {
            schema: schemaRef('Problem'),
            example: {
              type: 'about:blank',
              title: STATUS_CODES[status],
              status: Number(status),
              detail: description,
              request_id: '7f3d2c6e-2f0a-4b0e-9a53-0d7c8f1f6f11',
              ...(status === '422' && { errors: [{ path: 'battery_pct', message: 'must be a whole number from 0 to 100' }] }),
            },
          },
        },
      },
    ]),
  )
}
