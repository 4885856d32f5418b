import { readFileSync } from 'node:fs'
import { z } from 'zod'
import { type SettingOf, settings } from '../lib/settings.ts'
import { databaseUrlProblem } from '../lib/database-url.ts'
import { makeSigning, readPublicKeys, readSigner } from './archive/signature.ts'
import { archiveUrlProblem } from './store/archive-url.ts'
import type { OlderStore } from './store/store.ts'
import { describeError, SettingsError } from '../lib/errors.ts'

const databaseUrl = z.string().superRefine((value, issues) => {
  const problem = databaseUrlProblem(value)
  if (problem !== undefined) issues.addIssue({ code: 'custom', message: problem })
})

const archiveUrl = z
  .string()
  .superRefine((value, issues) => {
    const problem = archiveUrlProblem(value)
    if (problem) issues.addIssue({ code: 'custom', message: problem })
  })
  .transform(value => value.replace(/\/+$/, ''))

const olderStores = z.string().transform((value, issues) => {
  const stores = new Map<string, OlderStore>()
  for (const entry of value.split(/[\s,]+/).filter(Boolean)) {
    const [, bucket, url] = /^([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])=(https?:\/\/.+)$/.exec(entry) ?? []
    const at = bucket && URL.canParse(url!) ? new URL(url!) : undefined
    if (!bucket || !at || at.password) {
      issues.addIssue({
        code: 'custom',
        message: `expected bucket=https://[profile@]host[:port], got ${at?.password ? `${bucket}= with a password` : entry}`,
      })
      return z.NEVER
    }
    stores.set(bucket, { endpoint: at.origin, ...(at.username ? { profile: decodeURIComponent(at.username) } : {}) })
  }
  return stores
})

const keyId = z.string().regex(/^[\x21-\x7e]{1,2048}$/, 'expected the ARN, id or alias of a KMS key')

/** Reads a file that a setting names, when the settings are read, so that a wrong one is told at the start. */
function keyFile<T>(read: (pem: string) => T) {
  return z.string().transform((path, issues): T => {
    let text
    try {
      text = readFileSync(path, 'utf8')
    } catch (error) {
      issues.addIssue({ code: 'custom', message: `the file cannot be read: ${describeError(error)}` })
      return z.NEVER
    }
    try {
      return read(text)
    } catch (error) {
      issues.addIssue({ code: 'custom', message: `${path}: ${describeError(error)}` })
      return z.NEVER
    }
  })
}

const environment = z.object({
  ARCHIVER_DATABASE_URL: databaseUrl.optional(),
  VERIFIER_DATABASE_URL: databaseUrl.optional(),
  DATABASE_URL: databaseUrl.optional(),
  ARCHIVE_URL: archiveUrl,
  ARCHIVE_OLDER_STORES: olderStores.optional(),
  ARCHIVE_SSE: z.enum(settings.ARCHIVE_SSE.values).optional(),
  ARCHIVE_SSE_KMS_KEY_ID: keyId.optional(),
  ARCHIVE_CHECKSUM: z.enum(settings.ARCHIVE_CHECKSUM.values).optional(),
  ARCHIVE_SIGNING_KEY_FILE: keyFile(readSigner).optional(),
  ARCHIVE_TRUSTED_KEYS_FILE: keyFile(readPublicKeys).optional(),
  AWS_ENDPOINT_URL_S3: z.url().optional(),
  AWS_ENDPOINT_URL: z.url().optional(),
  LOG_LEVEL: z.enum(settings.LOG_LEVEL.values).default(settings.LOG_LEVEL.default),
  LOG_FORMAT: z.enum(settings.LOG_FORMAT.values).default(settings.LOG_FORMAT.default),
  OTEL_EXPORTER_OTLP_ENDPOINT: z.url({ protocol: /^https?$/ }).optional(),
} satisfies Record<SettingOf<'archiver'>, z.ZodType>)

export type ArchiverConfig = ReturnType<typeof readConfig>

/**
 * Reads the archiver's settings. The AWS SDK reads credentials and region (AWS_*) itself.
 * Without its own URL, the archiver uses DATABASE_URL and takes the role fleet_archiver at startup.
 * @throws {SettingsError} naming every problem at once
 */
export function readConfig(env = currentEnv()) {
  // Compose files and CI may set variables to an empty text. These count as not set.
  const set = Object.fromEntries(Object.entries(env).filter(([, value]) => value !== ''))
  const problems: string[] = []
  const parsed = environment.safeParse(set)
  if (!parsed.success) {
    for (const issue of parsed.error.issues) {
      const name = String(issue.path[0])
      problems.push(set[name] === undefined ? `${name}: is not set` : `${name}: ${issue.message}`)
    }
  }
  if (set.ARCHIVER_DATABASE_URL === undefined && set.DATABASE_URL === undefined) {
    problems.push('ARCHIVER_DATABASE_URL: is not set, and neither is DATABASE_URL')
  }
  const bucket = parsed.data?.ARCHIVE_URL.split('/')[2]
  if (bucket && parsed.data?.ARCHIVE_OLDER_STORES?.has(bucket)) {
    problems.push(`ARCHIVE_OLDER_STORES: ${bucket} is the bucket of ARCHIVE_URL, and a bucket can have only one address`)
  }
  if (set.ARCHIVE_URL?.startsWith('file:')) {
    for (const name of ['ARCHIVE_SSE', 'ARCHIVE_SSE_KMS_KEY_ID', 'ARCHIVE_CHECKSUM'] as const) {
      if (set[name] !== undefined) problems.push(`${name}: is only for an ARCHIVE_URL with s3://, and that is a directory`)
    }
  } else if (set.ARCHIVE_SSE_KMS_KEY_ID !== undefined && !set.ARCHIVE_SSE?.startsWith('aws:kms')) {
    problems.push(`ARCHIVE_SSE_KMS_KEY_ID: needs ARCHIVE_SSE=aws:kms or aws:kms:dsse, which is ${set.ARCHIVE_SSE ?? 'not set'}`)
  }
  if (!parsed.success || problems.length > 0) {
    throw new SettingsError(problems)
  }
  const { ARCHIVER_DATABASE_URL, VERIFIER_DATABASE_URL, DATABASE_URL, ARCHIVE_URL, LOG_LEVEL, LOG_FORMAT } = parsed.data
  return {
    database: ARCHIVER_DATABASE_URL ? { url: ARCHIVER_DATABASE_URL } : { url: DATABASE_URL ?? '', role: 'fleet_archiver' },
    /** The login that gives the second proof; undefined if none is set. */
    verifierDatabase: VERIFIER_DATABASE_URL === undefined ? undefined : { url: VERIFIER_DATABASE_URL },
    archiveUrl: ARCHIVE_URL,
    olderStores: parsed.data.ARCHIVE_OLDER_STORES,
    bucketRules: {
      encryption: parsed.data.ARCHIVE_SSE,
      kmsKey: parsed.data.ARCHIVE_SSE_KMS_KEY_ID,
      checksum: parsed.data.ARCHIVE_CHECKSUM,
    },
    signing: makeSigning(parsed.data.ARCHIVE_SIGNING_KEY_FILE, parsed.data.ARCHIVE_TRUSTED_KEYS_FILE),
    s3Endpoint: parsed.data.AWS_ENDPOINT_URL_S3 ?? parsed.data.AWS_ENDPOINT_URL,
    logLevel: LOG_LEVEL,
    logFormat: LOG_FORMAT,
    otlpEndpoint: parsed.data.OTEL_EXPORTER_OTLP_ENDPOINT,
  }
}

/** The environment of this process. */
export function currentEnv(): Record<string, string | undefined> {
  return process.env
}
