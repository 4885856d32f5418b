import { type Scope, SCOPES } from './scopes.ts'

/** Who calls, and what they may do. */
export interface Principal {
  /** `key`: with a key in a header. `session`: logged in to the ops page. */
  how: 'key' | 'session'
  /** The name of an API key, a person, or ADMIN_KEY. */
  actor: string
  scopes: readonly Scope[]
  /** The cohorts whose devices they know; null: all. */
  cohorts: readonly string[] | null
  /** The SHA-256, in hex, by which Postgres finds the key or session. Undefined for ADMIN_KEY, which only the server knows. */
  credential: string | undefined
}

/** The caller with the server's own key. */
export function adminPrincipal(how: Principal['how']): Principal {
  return { how, actor: 'ADMIN_KEY', scopes: SCOPES, cohorts: null, credential: undefined }
}

/** The cohorts of a caller as a text of Postgres's array type, because the driver would ask the catalog about an array. */
export function cohortsOf({ cohorts }: Principal) {
  return cohorts === null ? null : `{${cohorts.map(cohort => `"${cohort.replace(/["\\]/g, '\\$&')}"`).join(',')}}`
}
