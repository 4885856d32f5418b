import type { Handler } from 'hono'
import type { AppEnv } from '../env.ts'
import { SCOPES, scopeDescriptions } from '../auth/scopes.ts'
import { version } from '../../lib/version.ts'
import { agentPaths } from './agents.ts'
import { problemResponses } from './answers.ts'
import { operationPaths } from './operations.ts'
import { componentSchemas } from './schemas.ts'

const DESCRIPTION = `The server stores the heartbeats of a fleet of devices, never loses one that it acknowledged, and answers what is
known of the fleet.

Errors are problem documents (RFC 9457). Each has a \`request_id\`: the one of the request's \`X-Request-Id\`, or a new one.
A path that has a GET also has a HEAD. Any other method is answered with 405 and \`Allow\`, any other path with 404.
The headers must arrive within 10 seconds and the whole request within 30; otherwise the server answers 408 and closes the
connection. Answers may get more members later: ignore those that you do not know.`

/** The API as an OpenAPI 3.1 document. The schemas are those that the routes validate with. */
export function openapi() {
  return {
    openapi: '3.1.1',
    info: {
      title: 'NexMDM fleet heartbeats',
      version,
      description: DESCRIPTION,
      license: { name: 'Apache-2.0', identifier: 'Apache-2.0' },
    },
    servers: [{ url: '/', description: 'The server that sent this document.' }],
    tags: [
      { name: 'heartbeats', description: 'What devices report.' },
      { name: 'commands', description: 'Commands for devices.' },
      { name: 'devices', description: 'The roster of devices and their status.' },
      { name: 'operations', description: 'Maintenance by hand.' },
      { name: 'probes', description: 'For load balancers, monitoring and tools.' },
    ],
    paths: { ...agentPaths, ...operationPaths },
    components: {
      securitySchemes: {
        device: {
          type: 'http',
          scheme: 'bearer',
          description: 'The token of a device: nxd_, its id, an underscore and 64 hex digits; older ones have no id.',
        },
        gateway: {
          type: 'http',
          scheme: 'bearer',
          description: 'The token of a gateway: nxg_ and 64 hex digits. It may send heartbeats of every device.',
        },
        key: {
          type: 'http',
          scheme: 'bearer',
          description:
            'An API key: nxk_ and 64 hex digits, made with fleet.create_api_key(). It may also come in the header x-admin. It has ' +
            `scopes: ${SCOPES.map(scope => `${scope} (${scopeDescriptions[scope]})`).join('; ')}. A key that is bound to cohorts ` +
            'knows only their devices.',
        },
        admin: { type: 'apiKey', in: 'header', name: 'x-admin', description: "The server's ADMIN_KEY." },
        adminBearer: { type: 'http', scheme: 'bearer', description: "The server's ADMIN_KEY, as Prometheus can send it." },
      },
      responses: problemResponses(),
      schemas: componentSchemas(),
    },
  }
}

/** The document is made at the first request. */
export function getOpenapi(): Handler<AppEnv> {
  let text: string | undefined
  return c => {
    text ??= JSON.stringify(openapi())
    return c.body(text, 200, { 'content-type': 'application/json', 'cache-control': 'no-cache' })
  }
}
