// Reads the environment of npm start, npm test, npm run migrate and npm run check. No other file of these commands does.
import { settings } from '../lib/settings.ts'
import { isUnambiguous } from './scram.ts'
import { SettingsError } from '../lib/errors.ts'

type Env = Record<string, string | undefined>

export interface StartConfig {
  /** If set, this database is used and no cluster is made. */
  databaseUrl: string | undefined
  host: string
  port: number
  /** Whether the user asked for this port, so that no other may be used. */
  portIsFixed: boolean
  adminKey: string | undefined
  archiveUrl: string | undefined
  /** The server's certificate, if it speaks HTTPS. */
  certFile: string | undefined
  /** The environment that the server and the archiver inherit. */
  env: Env
}

/**
 * Reads the settings of `npm start`.
 * @throws SettingsError
 */
export function startConfig(env: Env = currentEnv()): StartConfig {
  const problems: string[] = []
  const config: StartConfig = {
    databaseUrl: postgresUrl(env, 'DATABASE_URL', problems),
    host: env.HOST || settings.HOST.default,
    port: settings.PORT.default,
    portIsFixed: Boolean(env.PORT),
    adminKey: env.ADMIN_KEY || undefined,
    archiveUrl: env.ARCHIVE_URL || undefined,
    certFile: env.TLS_CERT || undefined,
    env,
  }
  if (env.PORT) {
    config.port = Number(env.PORT)
    if (!/^\d{1,5}$/.test(env.PORT) || config.port < 1 || config.port > 65535) {
      problems.push(`PORT: expected a number from 1 to 65535, got ${JSON.stringify(env.PORT)}`)
    }
  }
  if (config.archiveUrl && !/^(file:\/\/\/|s3:\/\/[^/])/.test(config.archiveUrl)) {
    problems.push(`ARCHIVE_URL: expected file:///directory or s3://bucket/prefix, got ${JSON.stringify(config.archiveUrl)}`)
  }
  if (problems.length) throw new SettingsError(problems)
  return config
}

/**
 * Reads DATABASE_URL, which the command needs.
 * @throws SettingsError
 */
export function databaseUrl(env: Env = currentEnv()) {
  const problems: string[] = []
  const url = postgresUrl(env, 'DATABASE_URL', problems)
  if (!url && !problems.length) {
    problems.push('DATABASE_URL: expected postgres://user:password@host:port/database, but it is not set')
  }
  if (!url) throw new SettingsError(problems)
  return url
}

/**
 * DATABASE_URL if it is set.
 * @throws SettingsError if it is not a URL
 */
export function optionalDatabaseUrl(env: Env = currentEnv()) {
  const problems: string[] = []
  const url = postgresUrl(env, 'DATABASE_URL', problems)
  if (problems.length) throw new SettingsError(problems)
  return url
}

/**
 * OWNER_DATABASE_URL if it is set: the URL with which fleet_owner itself logs in.
 * @throws SettingsError if it is not a URL
 */
export function ownerDatabaseUrl(env: Env = currentEnv()) {
  const problems: string[] = []
  const url = postgresUrl(env, 'OWNER_DATABASE_URL', problems)
  if (problems.length) throw new SettingsError(problems)
  return url
}

/**
 * The roles that have a password in FLEET_…_PASSWORD, each with its password.
 * @throws SettingsError if none has one
 */
export function rolePasswords(env: Env = currentEnv()) {
  const roles = ['server', 'archiver', 'reader', 'dba', 'verifier', 'notifier', 'owner']
  const given = roles.flatMap(name => {
    const password = env[`FLEET_${name.toUpperCase()}_PASSWORD`]
    return password ? [{ role: `fleet_${name}`, password }] : []
  })
  if (!given.length)
    throw new SettingsError([`none of ${roles.map(name => `FLEET_${name.toUpperCase()}_PASSWORD`).join(', ')} is set`])
  const ambiguous = given
    .filter(({ password }) => !isUnambiguous(password))
    .map(
      ({ role }) =>
        `${role.toUpperCase()}_PASSWORD: contains a character that clients encode in different ways, such as a ligature; choose another password`,
    )
  if (ambiguous.length) throw new SettingsError(ambiguous)
  return given
}

/** The address of the server that has these HOST, PORT, TLS_CERT and ADMIN_KEY; undefined without an ADMIN_KEY. */
export function serverAddress(env: Env = currentEnv()) {
  return env.ADMIN_KEY
    ? {
        url: `${env.TLS_CERT ? 'https' : 'http'}://${reachable(env.HOST || settings.HOST.default)}:${env.PORT || settings.PORT.default}`,
        certFile: env.TLS_CERT || undefined,
        adminKey: env.ADMIN_KEY,
      }
    : undefined
}

/** The address to which clients connect if the server listens on `host`. */
export function reachable(host: string) {
  if (host === '0.0.0.0' || host === '::') return '127.0.0.1'
  return host.includes(':') ? `[${host}]` : host
}

/** The file with the connections of the running test cluster. `npm test` tells each test file its name. */
export function testClusterFile(env: Env = currentEnv()) {
  const file = env.FLEET_TEST_CLUSTER
  if (!file) throw new SettingsError(['FLEET_TEST_CLUSTER is not set; run the tests with: npm test -- <files>'])
  return file
}

/** Whether this is a part of `npm test`, which makes a cluster for the tests. */
export function isInTests(env: Env = currentEnv()) {
  return Boolean(env.FLEET_TEST_CLUSTER)
}

/** The size of a test: `deep` in `npm run test:deep`, which sets TEST_DEEP, and `quick` when somebody waits for the result. */
export function size({ deep, quick }: { deep: number; quick: number }, env: Env = currentEnv()) {
  return env.TEST_DEEP ? deep : quick
}

/** Whether this runs in CI, where only what is left to `npm run test:deep` is skipped. */
export function isCI(env: Env = currentEnv()) {
  return env.CI !== undefined && !['', '0', 'false'].includes(env.CI)
}

/** Why a slow test is skipped while somebody waits for the result; false in CI and in `npm run test:deep`. */
export function leftToCi(env: Env = currentEnv()) {
  return isCI(env) || env.TEST_DEEP ? false : 'takes long: run with CI=true, as .ci/run does'
}

/** Why a test that takes minutes is skipped in CI, too; false in `npm run test:deep`, which skips none. */
export function leftToDeep(env: Env = currentEnv()) {
  return env.TEST_DEEP ? false : 'takes minutes: run with TEST_DEEP=1, as npm run test:deep does'
}

/**
 * How many hostile bodies the tests send: FUZZ_RUNS, or so few that nobody has to wait for them.
 * @throws SettingsError
 */
export function fuzzRuns(env: Env = currentEnv()) {
  const { default: fallback, min, max } = settings.FUZZ_RUNS
  const runs = Number(env.FUZZ_RUNS || fallback)
  if (!Number.isInteger(runs) || runs < min || runs > max) {
    throw new SettingsError([`FUZZ_RUNS: expected a whole number from ${min} to ${max}, got ${JSON.stringify(env.FUZZ_RUNS)}`])
  }
  return runs
}

/** The settings of the tests of the S3 store: which store they use, and with which credentials. */
export interface ObjectStoreConfig {
  /** If set, the tests use this store, with the credentials and region of AWS_*, and start none of their own. */
  endpoint: string | undefined
  /** A bucket to use there. Without it, each test makes one. */
  bucket: string | undefined
  /** The AWS_* variables, unchanged. */
  aws: Env
}

/**
 * Reads S3_TEST_ENDPOINT, S3_TEST_BUCKET and the AWS_* variables.
 * @throws SettingsError
 */
export function objectStoreConfig(env: Env = currentEnv()): ObjectStoreConfig {
  const endpoint = env.S3_TEST_ENDPOINT || undefined
  const problems: string[] = []
  if (endpoint) {
    if (!/^https?:\/\//.test(endpoint) || !URL.canParse(endpoint)) {
      problems.push(`S3_TEST_ENDPOINT: expected http://host:port or https://host, got ${JSON.stringify(endpoint)}`)
    }
    for (const name of ['AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY', 'AWS_REGION']) {
      if (!env[name]) problems.push(`${name}: not set, but S3_TEST_ENDPOINT needs it`)
    }
  }
  if (problems.length) throw new SettingsError(problems)
  const aws = Object.fromEntries(Object.entries(env).filter(([name]) => name.startsWith('AWS_')))
  return { endpoint, bucket: (endpoint && env.S3_TEST_BUCKET) || undefined, aws }
}

/**
 * The environment for programs that must not be misled by the user's settings, such as a PGHOST or PGOPTIONS meant for another
 * database, an npm_config_* or a NODE_OPTIONS.
 */
export function plainEnv(env: Env = currentEnv()): Env {
  const kept = ['PATH', 'HOME', 'USER', 'LOGNAME', 'SHELL', 'TMPDIR', 'XDG_RUNTIME_DIR', 'http_proxy', 'https_proxy', 'no_proxy']
  return { ...pick(env, kept), ...movedClock(env) }
}

/**
 * The environment variables with which a process shares the clock of this test run, if that clock is moved (`npm test -- --at
 * …`); otherwise none. testing/clock.ts makes the clock.
 */
export function movedClock(env: Env = currentEnv()): Env {
  if (env.FLEET_TEST_AT === undefined) return {}
  return pick(env, [
    'FLEET_TEST_AT',
    'LD_PRELOAD',
    'FAKETIME',
    'FAKETIME_DONT_FAKE_MONOTONIC',
    'DONT_FAKE_MONOTONIC',
    'FAKETIME_SHARED',
    'TZ',
  ])
}

/** plainEnv() for a program that cannot run with a moved clock. */
export function unmovedEnv(env: Env = currentEnv()) {
  const moved = movedClock(env)
  const kept = Object.entries(plainEnv(env)).flatMap(([name, value]) =>
    value === undefined || name in moved ? [] : [[name, value] as const],
  )
  return Object.fromEntries(kept)
}

/**
 * Why a test is skipped in a run with a moved clock (`npm test -- --at …`); false in any other run. `why` says what prevents it.
 */
export function needsRealClock(why: string, env: Env = currentEnv()) {
  return env.FLEET_TEST_AT === undefined ? false : `cannot run with a moved clock: ${why}`
}

function pick(env: Env, names: string[]): Env {
  return Object.fromEntries(names.filter(name => env[name] !== undefined).map(name => [name, env[name]]))
}

/** The whole environment, for children that should inherit all of it. */
export function currentEnv(): Env {
  return process.env
}

function postgresUrl(env: Env, name: string, problems: string[]) {
  const value = env[name]
  if (!value) return undefined
  if (/^postgres(ql)?:\/\//.test(value) && URL.canParse(value)) return value
  // node-postgres, with which graphile-migrate works, accepts only one host.
  const isList = /^postgres(ql)?:\/\/([^/?]*@)?[^/?]*,/.test(value)
  if (isList) {
    problems.push(
      `${name}: expected one host, the primary. Only the server and the archiver accept several, in their own settings (SERVER_DATABASE_URL, …)`,
    )
    return undefined
  }
  // The value may contain a password, so name the variable and do not show the value.
  problems.push(`${name}: expected postgres://user:password@host:port/database, got something else`)
  return undefined
}
