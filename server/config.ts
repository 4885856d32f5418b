import { inspect } from 'node:util'
import { type LOG_FORMATS, type LOG_LEVELS, type SettingOf, settings } from '../lib/settings.ts'
import { databaseUrlProblem } from '../lib/database-url.ts'
import { SettingsError } from '../lib/errors.ts'

type Name = SettingOf<'server'>
/** Names of the settings whose entry in the table has this. */
type NameWith<T> = { [K in Name]: (typeof settings)[K] extends T ? K : never }[Name]

/** Where to connect, and the role to start as when the URL's own login is not that role. */
export interface Login {
  url: string
  role?: string
}

export interface ServerConfig {
  /** Heartbeats, tokens and reads; may go through pgBouncer when it has its own URL. */
  hot: Login
  /** LISTEN: always direct. */
  listen: Login
  /** Long calls without the hot path's statement timeout: always direct. */
  ops: Login
  /** Reads of the fleet, when they do not go to `hot`: a streaming replica. */
  read: Login | undefined
  /** Seconds that the replica may be behind. */
  readMaxLagS: number
  /** Share of the fleet reads that are from last status, 0 to 1; the others are from the heartbeats themselves. */
  readFromLastStatus: number
  perfDiffEnabled: boolean
  port: number
  host: string
  adminKey: string
  /** Processes that share the port; 1 is this process alone. */
  workers: number
  /** Connections of each. */
  poolMax: number
  /** Queued heartbeats of a worker above which it sheds low-priority work. */
  backpressureQueue: number
  trustProxy: boolean
  /** Unknown tokens that a worker looks up for one address. */
  wrongTokensPerMinute: number
  logLevel: (typeof LOG_LEVELS)[number]
  logFormat: (typeof LOG_FORMATS)[number]
  /** Where spans go; tracing is off without it. OpenTelemetry reads all else (OTEL_*) itself. */
  otlpEndpoint: string | undefined
}

/**
 * Reads the server's settings once.
 * @throws SettingsError naming every variable that is missing or wrong.
 */
export function readConfig(env: Record<string, string | undefined> = process.env): ServerConfig {
  const problems: string[] = []
  // An empty variable is an unset one: `PORT= npm run server` means the default.
  const read = (name: Name) => env[name] || undefined

  function login(name: Name): Login {
    const own = read(name)
    const url = own ?? read('DATABASE_URL')
    const source = own === undefined ? 'DATABASE_URL' : name
    if (url === undefined) problems.push(`${name} is missing, and so is DATABASE_URL, its default.`)
    else {
      const problem = databaseUrlProblem(url)
      if (problem !== undefined) problems.push(`${source} ${problem}`)
    }
    return own === undefined ? { url: url ?? '', role: 'fleet_server' } : { url: own }
  }

  function integer(name: NameWith<{ min: number }>) {
    const { default: fallback, min, max } = settings[name]
    const text = read(name)
    if (text === undefined) return fallback
    const value = /^\d+$/.test(text) ? Number(text) : NaN
    if (!(value >= min && value <= max)) {
      problems.push(`${name} must be a whole number from ${min} to ${max}, not ${inspect(text)}.`)
    }
    return value
  }

  function choice<K extends NameWith<{ values: readonly string[] }>>(name: K): (typeof settings)[K]['values'][number] {
    const { default: fallback, values } = settings[name]
    const text = read(name)
    const found = values.find(value => value === (text ?? fallback))
    if (found === undefined) problems.push(`${name} must be one of ${values.join(', ')}, not ${inspect(text)}.`)
    return found ?? fallback
  }

  function share(name: 'READ_FROM_LAST_STATUS') {
    const text = read(name) ?? settings[name].default
    const percent = text === 'true' ? 100 : text === 'false' ? 0 : /^\d{1,3}%$/.test(text) ? Number(text.slice(0, -1)) : NaN
    if (!(percent <= 100)) problems.push(`${name} must be true, false or a share from 0% to 100%, not ${inspect(text)}.`)
    return percent / 100
  }

  const adminKey = read('ADMIN_KEY') ?? ''
  if (adminKey === '') problems.push('ADMIN_KEY is missing; it has no default.')
  else if (adminKey.length < 16) problems.push(`ADMIN_KEY must have at least 16 characters, not ${adminKey.length}.`)
  // It is compared with a header's value, which carries nothing else.
  else if (!/^[\x21-\x7e]+$/.test(adminKey)) problems.push('ADMIN_KEY must be printable ASCII without spaces.')

  const config: ServerConfig = {
    hot: login('SERVER_DATABASE_URL'),
    listen: login('LISTEN_DATABASE_URL'),
    ops: login('OPS_DATABASE_URL'),
    read: read('READ_DATABASE_URL') === undefined ? undefined : login('READ_DATABASE_URL'),
    readMaxLagS: integer('READ_MAX_LAG_S'),
    readFromLastStatus: share('READ_FROM_LAST_STATUS'),
    perfDiffEnabled: choice('PERF_DIFF_ENABLED') === 'true',
    port: integer('PORT'),
    host: read('HOST') ?? settings.HOST.default,
    adminKey,
    workers: integer('WORKERS'),
    poolMax: integer('POOL_MAX'),
    backpressureQueue: integer('BACKPRESSURE_QUEUE'),
    trustProxy: choice('TRUST_PROXY') === 'true',
    wrongTokensPerMinute: integer('WRONG_TOKENS_PER_MINUTE'),
    logLevel: choice('LOG_LEVEL'),
    logFormat: choice('LOG_FORMAT'),
    otlpEndpoint: read('OTEL_EXPORTER_OTLP_ENDPOINT'),
  }
  if (config.otlpEndpoint !== undefined && !/^https?:\/\//.test(config.otlpEndpoint)) {
    problems.push('OTEL_EXPORTER_OTLP_ENDPOINT must be a URL such as http://127.0.0.1:4318.')
  }
  if (problems.length > 0) throw new SettingsError([...new Set(problems)])
  return config
}
