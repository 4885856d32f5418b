import { z } from 'zod'
import { type Scope, SCOPES } from './scopes.ts'

/** What the members of a group may do. */
export interface GroupRule {
  group: string
  scopes: Scope[]
  cohorts: string[] | null
}

/** How people log in with OpenID Connect. */
export interface OidcConfig {
  issuer: string
  clientId: string
  /** Without one it is a public client. */
  clientSecret: string | undefined
  /** The first one to which a person belongs decides. */
  groups: GroupRule[]
  /** The claim with the groups. */
  groupsClaim: string
  /** What the provider is asked for. */
  scope: string
  /** Where browsers reach this server, without a path. */
  publicUrl: string
}

const rules = z.record(
  z.string().min(1),
  z
    .strictObject({
      scopes: z.array(z.enum(SCOPES, `must be one of ${SCOPES.join(', ')}`)).min(1, 'must name a scope'),
      cohorts: z
        .array(z.string().min(1).max(100))
        .min(1, 'must name a cohort, or be left out')
        .max(100, 'must name at most 100 cohorts')
        .optional(),
    })
    .refine(({ scopes, cohorts }) => cohorts === undefined || !scopes.some(scope => scope === 'metrics' || scope === 'operate'), {
      message: 'a group with cohorts cannot have the scopes metrics and operate, which are about the whole store',
    }),
)

/** Reads OIDC_GROUPS. @returns what is wrong with it, as the end of a sentence, if something is */
export function readGroups(text: string): GroupRule[] | string {
  let json: unknown
  try {
    json = JSON.parse(text)
  } catch (error) {
    return `must be JSON: ${(error as Error).message}.`
  }
  const read = rules.safeParse(json)
  if (!read.success) {
    const [issue] = read.error.issues
    return `is wrong${issue!.path.length > 0 ? ` at ${issue!.path.map(String).join('.')}` : ''}: ${issue!.message}.`
  }
  return Object.entries(read.data).map(([group, { scopes, cohorts }]) => ({
    group,
    scopes: SCOPES.filter(scope => scopes.includes(scope)),
    cohorts: cohorts ?? null,
  }))
}

/** Whether what is sent to this URL cannot be read on the way. */
export function isSafe(url: string) {
  if (!URL.canParse(url)) return false
  const { protocol, hostname } = new URL(url)
  return protocol === 'https:' || (protocol === 'http:' && ['127.0.0.1', 'localhost', '[::1]'].includes(hostname))
}
