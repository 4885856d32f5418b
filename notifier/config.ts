import { z } from 'zod'
import { databaseUrlProblem } from '../lib/database-url.ts'
import { SettingsError } from '../lib/errors.ts'
import { type SettingOf, settings } from '../lib/settings.ts'
import { readAllowed } from './addresses.ts'

const databaseUrl = z.string().superRefine((value, issues) => {
  const problem = databaseUrlProblem(value)
  if (problem !== undefined) issues.addIssue({ code: 'custom', message: problem })
})

const allowed = z.string().transform((value, issues) => {
  const { problems, ...read } = readAllowed(value)
  for (const message of problems) issues.addIssue({ code: 'custom', message })
  return problems.length > 0 ? z.NEVER : read
})

const environment = z.object({
  NOTIFIER_DATABASE_URL: databaseUrl.optional(),
  DATABASE_URL: databaseUrl.optional(),
  WEBHOOK_ALLOW: allowed.prefault(''),
  LOG_LEVEL: z.enum(settings.LOG_LEVEL.values).default(settings.LOG_LEVEL.default),
  LOG_FORMAT: z.enum(settings.LOG_FORMAT.values).default(settings.LOG_FORMAT.default),
} satisfies Record<SettingOf<'notifier'>, z.ZodType>)

export type NotifierConfig = ReturnType<typeof readConfig>

/**
 * Reads the notifier's settings. Without its own URL it uses DATABASE_URL and takes the role fleet_notifier at startup.
 * @throws {SettingsError} naming every problem at once
 */
export function readConfig(env: Record<string, string | undefined> = process.env) {
  // Compose files and CI may set variables to an empty text. These count as not set.
  const set = Object.fromEntries(Object.entries(env).filter(([, value]) => value !== ''))
  const parsed = environment.safeParse(set)
  const problems = parsed.success ? [] : parsed.error.issues.map(issue => `${String(issue.path[0])}: ${issue.message}`)
  if (set.NOTIFIER_DATABASE_URL === undefined && set.DATABASE_URL === undefined) {
    problems.push('NOTIFIER_DATABASE_URL: is not set, and neither is DATABASE_URL')
  }
  if (!parsed.success || problems.length > 0) throw new SettingsError(problems)
  const { NOTIFIER_DATABASE_URL, DATABASE_URL, WEBHOOK_ALLOW, LOG_LEVEL, LOG_FORMAT } = parsed.data
  return {
    database: NOTIFIER_DATABASE_URL ? { url: NOTIFIER_DATABASE_URL } : { url: DATABASE_URL ?? '', role: 'fleet_notifier' },
    allowed: WEBHOOK_ALLOW,
    logLevel: LOG_LEVEL,
    logFormat: LOG_FORMAT,
  }
}
