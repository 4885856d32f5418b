import type { IncomingMessage } from 'node:http'
import { Problem } from '../problem.ts'

/** What is in the header Authorization: Bearer. */
export function bearer(incoming: IncomingMessage) {
  return /^bearer +(\S+) *$/i.exec(incoming.headers.authorization ?? '')?.[1]
}

/** A 401. @param challenge the header WWW-Authenticate */
export function unauthorized(detail: string, challenge: string) {
  return new Problem(401, detail, { headers: { 'www-authenticate': challenge } })
}
