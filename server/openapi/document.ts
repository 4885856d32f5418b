import type { Handler } from 'hono'
import type { AppEnv } from '../context.ts'
import { version } from '../../lib/version.ts'
import { agentPaths } from './agents.ts'
import { problemResponses } from './answers.ts'
import { operationPaths } from './operations.ts'
import { componentSchemas } from './schemas.ts'

const description = `Heartbeats of a fleet of devices: taken in, never lost once acknowledged, and what they say of the fleet.

Errors are problem documents (RFC 9457). Where a call has a GET it has a HEAD; any other method is a 405 with \`Allow\`, any other path a 404.
Each problem has a \`request_id\`, that of the request's \`X-Request-Id\` or a new one.
Headers must arrive within 10 seconds and a whole request within 30, else it is a 408 and the connection is closed. Members may be added to
answers: ignore those that you do not know.`

/** The server in the words of OpenAPI 3.1. The schemas are those that the routes validate with. */
export function openapi() {
  return {
    openapi: '3.1.1',
    info: {
      title: 'NexMDM fleet heartbeats',
      version,
      description,
      license: { name: 'Apache-2.0', identifier: 'Apache-2.0' },
    },
    servers: [{ url: '/', description: 'Where this document came from.' }],
    tags: [
      { name: 'heartbeats', description: 'What devices say.' },
      { name: 'commands', description: 'What devices are told.' },
      { name: 'devices', description: 'Which devices there are, and how they are.' },
      { name: 'operations', description: 'Maintenance by hand.' },
      { name: 'probes', description: 'For balancers, monitoring and tools.' },
    ],
    paths: { ...agentPaths, ...operationPaths },
    components: {
      securitySchemes: {
        device: { type: 'http', scheme: 'bearer', description: "A device's token: nxd_ and 64 hex digits." },
        gateway: {
          type: 'http',
          scheme: 'bearer',
          description: "A gateway's token: nxg_ and 64 hex digits. It speaks for every device.",
        },
        admin: { type: 'apiKey', in: 'header', name: 'x-admin', description: "The server's ADMIN_KEY." },
        adminBearer: { type: 'http', scheme: 'bearer', description: 'The ADMIN_KEY as Prometheus sends it.' },
      },
      responses: problemResponses(),
      schemas: componentSchemas(),
    },
  }
}

/** Made when it is first asked for. */
export function getOpenapi(): Handler<AppEnv> {
  let text: string | undefined
  return c => {
    text ??= JSON.stringify(openapi())
    return c.body(text, 200, { 'content-type': 'application/json', 'cache-control': 'no-cache' })
  }
}
