import { inspect } from 'node:util'
import { type LOG_FORMATS, type LOG_LEVELS, type SettingOf, settings } from '../lib/settings.ts'
import { type CertificateFiles, type Pair, readPair } from './certificate.ts'
import { databaseUrlProblem } from '../lib/database-url.ts'
import { SettingsError } from '../lib/errors.ts'

type Name = SettingOf<'server'>
/** Names of the settings whose entry in the table has this. */
type NameWith<T> = { [K in Name]: (typeof settings)[K] extends T ? K : never }[Name]

/** Where to connect, and which role to set if the login in the URL is not that role itself. */
export interface Login {
  url: string
  role?: string
}

export interface ServerConfig {
  /** Heartbeats, tokens and reads. May go through pgBouncer if it has a URL of its own. */
  hot: Login
  /** Long calls without the hot path's statement timeout: always direct. */
  ops: Login
  /** A streaming replica for device reads, if they do not go to `hot`. */
  read: Login | undefined
  /** How many seconds the replica may be behind. */
  readMaxLagS: number
  /** The share (0 to 1) of device reads that use last status. The others read the heartbeats themselves. */
  readFromLastStatus: number
  perfDiffEnabled: boolean
  port: number
  host: string
  /** The certificate with which the server speaks HTTPS, and its files. Without it, it speaks HTTP. */
  tls: { files: CertificateFiles; pair: Pair } | undefined
  adminKey: string
  /** Processes that share the port. With 1, it is this process alone. */
  workers: number
  /** Connections of each worker. */
  poolMax: number
  /** With more heartbeats than this in its queue, a worker sheds low-priority work. */
  backpressureQueue: number
  trustProxy: boolean
  /** How many unknown tokens of one address a worker looks up in a minute. */
  wrongTokensPerMinute: number
  /** How many requests of one device a worker accepts in a minute. 0: no limit. */
  deviceRequestsPerMinute: number
  logLevel: (typeof LOG_LEVELS)[number]
  logFormat: (typeof LOG_FORMATS)[number]
  /** Where to send spans. Tracing is off without it. OpenTelemetry reads its other settings (OTEL_*) itself. */
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

  function tls(): ServerConfig['tls'] {
    const cert = read('TLS_CERT')
    const key = read('TLS_KEY')
    if (cert === undefined && key === undefined) return undefined
    if (cert === undefined || key === undefined) {
      const [set, missing] = key === undefined ? ['TLS_CERT', 'TLS_KEY'] : ['TLS_KEY', 'TLS_CERT']
      problems.push(`${missing} is missing, but ${set} is set; set both, or neither.`)
      return undefined
    }
    try {
      return { files: { cert, key }, pair: readPair({ cert, key }) }
    } catch (error) {
      problems.push((error as Error).message)
      return undefined
    }
  }

  const adminKey = read('ADMIN_KEY') ?? ''
  if (adminKey === '') problems.push('ADMIN_KEY is missing; it has no default.')
  else if (adminKey.length < 16) problems.push(`ADMIN_KEY must have at least 16 characters, not ${adminKey.length}.`)
  // The key is compared with the value of a header, which can hold nothing else.
  else if (!/^[\x21-\x7e]+$/.test(adminKey)) problems.push('ADMIN_KEY must be printable ASCII without spaces.')

  const config: ServerConfig = {
    hot: login('SERVER_DATABASE_URL'),
    ops: login('OPS_DATABASE_URL'),
    read: read('READ_DATABASE_URL') === undefined ? undefined : login('READ_DATABASE_URL'),
    readMaxLagS: integer('READ_MAX_LAG_S'),
    readFromLastStatus: share('READ_FROM_LAST_STATUS'),
    perfDiffEnabled: choice('PERF_DIFF_ENABLED') === 'true',
    port: integer('PORT'),
    host: read('HOST') ?? settings.HOST.default,
    tls: tls(),
    adminKey,
    workers: integer('WORKERS'),
    poolMax: integer('POOL_MAX'),
    backpressureQueue: integer('BACKPRESSURE_QUEUE'),
    trustProxy: choice('TRUST_PROXY') === 'true',
    wrongTokensPerMinute: integer('WRONG_TOKENS_PER_MINUTE'),
    deviceRequestsPerMinute: integer('DEVICE_REQUESTS_PER_MINUTE'),
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
