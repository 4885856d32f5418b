/** What an API key or a session may do. The table fleet.api_credentials knows the same names. */
export const SCOPES = ['read', 'metrics', 'enroll', 'command', 'operate'] as const
export type Scope = (typeof SCOPES)[number]

/** For openapi.json and the docs. */
export const scopeDescriptions: Record<Scope, string> = {
  read: 'devices, their status and their changes, and the ops page',
  metrics: 'metrics, and how full the connection pool is',
  enroll: 'enroll, rename, move and revoke devices, and give them new tokens',
  command: 'send commands to devices',
  operate: 'run maintenance, and use the buttons of the ops page',
}
