import type { HttpBindings } from '@hono/node-server'
import type { Principal } from './auth/principal.ts'

/** The environment of every Hono handler: node's own request and response, and who calls, on routes that ask. */
export interface AppEnv {
  Bindings: HttpBindings
  Variables: { principal: Principal }
}
