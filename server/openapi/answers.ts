import { STATUS_CODES } from 'node:http'
import type { Scope } from '../auth/scopes.ts'
import type { SchemaName } from './schemas.ts'

type Examples = Record<string, { summary: string; value: unknown }>

/** What opens a call: an API key with this scope, or the admin key. The routes in server/app.ts ask for the same. */
export const needs = (scope: Scope) => [{ key: [scope] }, { admin: [] }]

export function schemaRef(name: SchemaName) {
  return { $ref: `#/components/schemas/${name}` }
}

export function jsonBody(schema: SchemaName, examples: Examples) {
  return { required: true, content: { 'application/json': { schema: schemaRef(schema), examples } } }
}

const headers = {
  noStore: { 'Cache-Control': { description: 'no-store', schema: { type: 'string', const: 'no-store' } } },
  tagged: {
    ETag: { description: 'A weak tag over everything except seconds_since.', schema: { type: 'string', pattern: '^W/".+"$' } },
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
  400: 'The body is not JSON in UTF-8, or is incomplete. A byte order mark before the JSON is skipped.',
  401: 'The token or the key is missing, unknown or revoked.',
  403: 'The key does not have the scope that this call needs, or is bound to other cohorts.',
  404: 'It does not exist, or the key is bound to other cohorts.',
  409: 'It conflicts with something that exists or runs already.',
  413: 'The body is larger than the limit. The connection is closed.',
  415: 'The type or the encoding of the body is not supported.',
  422: 'The request was read but is not valid; `errors` names each field. Nothing was done.',
  429:
    'Too many wrong tokens or keys came from this address, or this device sent too many requests. Nothing was acknowledged: send ' +
    'it again after Retry-After.',
  500: 'The server failed; the error is in its log.',
  503: 'The server or its database cannot do this now. Nothing was acknowledged: send it again after Retry-After.',
}

const requestIdHeader = {
  'X-Request-Id': {
    description: 'The id that the request had, if it can be used, otherwise a new one.',
    schema: { type: 'string' },
  },
}

const PROBLEM_HEADERS: Partial<Record<number, Record<string, object>>> = {
  401: { 'WWW-Authenticate': { description: 'Which kind of token or key is needed.', schema: { type: 'string' } } },
  403: { 'WWW-Authenticate': { description: 'The scope that is missing, if one is.', schema: { type: ['string', 'null'] } } },
  429: {
    'Retry-After': {
      description: 'Seconds until the next request is accepted.',
      schema: { type: 'string', pattern: '^\\d+$' },
    },
  },
  503: {
    'Retry-After': {
      description: 'Seconds to wait, with jitter, so that devices that were refused together do not return together.',
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
