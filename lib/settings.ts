// Every environment variable that a program of this repository reads. The programs read by this table; `npm run docs` makes
// docs/settings.md and .env.example from it.
import { availableParallelism } from 'node:os'

export const LOG_LEVELS = ['fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent'] as const
export const LOG_FORMATS = ['auto', 'json', 'pretty'] as const
export const ENCRYPTIONS = ['AES256', 'aws:kms', 'aws:kms:dsse'] as const
export const CHECKSUMS = ['sha256', 'md5', 'none'] as const
const SWITCH = ['true', 'false'] as const

/** In the order of docs/settings.md and .env.example. */
export const GROUPS = [
  'Databases',
  'Passwords of the roles',
  'Server',
  'Archive',
  'Webhooks',
  'Logs and traces',
  'Tests',
] as const

/** What reads a setting: the server, the archiver, the notifier, an npm command, or the tests. */
export type Program = 'server' | 'archiver' | 'notifier' | 'start' | 'migrate' | 'logins' | 'check' | 'tests'

export interface Setting {
  group: (typeof GROUPS)[number]
  readBy: readonly Program[]
  /** The library that reads it, where our code does not. */
  library?: string
  /** What it does, for people. */
  about: string
  /** As it is written in the environment; a number for whole numbers. Without one the setting is off, or has to be set. */
  default?: string | number
  /** The default in words, where it is not the same everywhere. */
  defaultAbout?: string
  /** Limits of a whole number. */
  min?: number
  max?: number
  unit?: string
  /** All that it may be. */
  values?: readonly string[]
  example?: string
}

const postgresExample = (role: string, host = '127.0.0.1') => `postgres://${role}:password@${host}:5432/fleet`
const password = (role: string) =>
  ({
    group: 'Passwords of the roles',
    readBy: ['logins'],
    about: `The password that \`npm run logins\` gives to ${role}.`,
  }) as const

export const settings = {
  DATABASE_URL: {
    group: 'Databases',
    readBy: ['server', 'archiver', 'notifier', 'start', 'migrate', 'logins', 'check'],
    about:
      'A login of the owner or of an administrator, connected directly (not through pgBouncer), for migrations. It is also ' +
      'the default of the other database URLs, each with its role. If it is set, `npm start` uses this database and makes no ' +
      'cluster. The commands take one host.',
    example: postgresExample('fleet_owner'),
  },
  OWNER_DATABASE_URL: {
    group: 'Databases',
    readBy: ['migrate'],
    about:
      'A login of fleet_owner. If it is set, `npm run migrate` runs the migrations with it, and uses DATABASE_URL, as a ' +
      "superuser, only for the setup. The owner's code then never runs in a superuser's session.",
    example: postgresExample('fleet_owner'),
  },
  SERVER_DATABASE_URL: {
    group: 'Databases',
    readBy: ['server'],
    about:
      "The server's heartbeats and reads, as fleet_server. It may go through pgBouncer in transaction mode; add " +
      '`?prepare=false` if that keeps no prepared statements (before 1.21, or max_prepared_statements = 0). This URL and ' +
      'those of the server, the archiver and the notifier below may name several hosts: ' +
      '`postgres://…@db1:5432,db2:5432/fleet?target_session_attrs=primary`. With `?passfile=/path` in place of a password they ' +
      'read it at each connect from a file of the form of ~/.pgpass, so that a new password needs no restart.',
    defaultAbout: '`DATABASE_URL`',
    example: postgresExample('fleet_server'),
  },
  OPS_DATABASE_URL: {
    group: 'Databases',
    readBy: ['server'],
    about:
      "The server's long calls (/ops/…) and its reports, as fleet_server, connected directly and without the timeouts of the hot path.",
    defaultAbout: '`DATABASE_URL`',
    example: postgresExample('fleet_server'),
  },
  READ_DATABASE_URL: {
    group: 'Databases',
    readBy: ['server'],
    about: 'A streaming replica for GET /v1/devices, as fleet_server. While it is down or too far behind, the primary answers.',
    example: postgresExample('fleet_server', 'replica'),
  },
  READ_MAX_LAG_S: {
    group: 'Databases',
    readBy: ['server'],
    default: 10,
    min: 1,
    max: 3600,
    unit: 'seconds',
    about: 'How many seconds the replica may be behind.',
  },
  ARCHIVER_DATABASE_URL: {
    group: 'Databases',
    readBy: ['archiver'],
    about: 'The archiver, as fleet_archiver, connected directly.',
    defaultAbout: '`DATABASE_URL`',
    example: postgresExample('fleet_archiver'),
  },
  NOTIFIER_DATABASE_URL: {
    group: 'Databases',
    readBy: ['notifier'],
    about: 'The notifier, as fleet_notifier, connected directly.',
    defaultAbout: '`DATABASE_URL`',
    example: postgresExample('fleet_notifier'),
  },
  VERIFIER_DATABASE_URL: {
    group: 'Databases',
    readBy: ['archiver'],
    about:
      'A login of fleet_verifier, connected directly, for `npm run archive -- confirm`. It is needed if ' +
      'settings.proofs_needed is 2.',
    example: postgresExample('fleet_verifier'),
  },
  PGPASSWORD: {
    group: 'Databases',
    readBy: ['server', 'archiver', 'notifier', 'start', 'migrate', 'logins', 'check'],
    library: 'the clients of PostgreSQL',
    about: 'The password of those database URLs that have none.',
  },

  FLEET_SERVER_PASSWORD: password('fleet_server'),
  FLEET_ARCHIVER_PASSWORD: password('fleet_archiver'),
  FLEET_READER_PASSWORD: password('fleet_reader'),
  FLEET_DBA_PASSWORD: password('fleet_dba'),
  FLEET_VERIFIER_PASSWORD: password('fleet_verifier'),
  FLEET_NOTIFIER_PASSWORD: password('fleet_notifier'),
  FLEET_OWNER_PASSWORD: password('fleet_owner'),

  PORT: {
    group: 'Server',
    readBy: ['server', 'start', 'check'],
    default: 8080,
    min: 0,
    max: 65535,
    about:
      'The port that the server listens on; 0 takes any free port. `npm start` takes another port if 8080 is in use and ' +
      'PORT is not set.',
  },
  HOST: {
    group: 'Server',
    readBy: ['server', 'start', 'check'],
    default: '127.0.0.1',
    about: 'The address that the server listens on. 0.0.0.0 or :: is every address of the machine.',
  },
  TLS_CERT: {
    group: 'Server',
    readBy: ['server', 'start', 'check'],
    about:
      'A PEM file with the certificate of the server and its chain. If it is set, with TLS_KEY, the server speaks HTTPS on its port. ' +
      'It reads a renewed certificate within a minute. Without it the server speaks HTTP, and TLS ends at a proxy.',
    example: '/etc/nexmdm/tls/fullchain.pem',
  },
  TLS_KEY: {
    group: 'Server',
    readBy: ['server'],
    about: 'A PEM file with the private key of TLS_CERT, without a passphrase. Only the server may read it.',
    example: '/etc/nexmdm/tls/privkey.pem',
  },
  ADMIN_KEY: {
    group: 'Server',
    readBy: ['server', 'start', 'check'],
    about:
      "The server's own key, which opens everything except the calls of devices, also while the database is unreachable: at least " +
      '16 characters of printable ASCII without spaces. `npm start` makes one. It may be left unset once there are API keys ' +
      '(`fleet.create_api_key()`).',
  },
  PUBLIC_URL: {
    group: 'Server',
    readBy: ['server'],
    about: 'The address at which browsers reach the ops page, without a path. OpenID Connect needs it.',
    example: 'https://fleet.example.com',
  },
  OIDC_ISSUER: {
    group: 'Server',
    readBy: ['server'],
    about:
      'The identity provider with which people log in to the ops page, as its issuer URL (OpenID Connect with discovery). Its ' +
      'redirect URI for this client is `PUBLIC_URL` + `/login/oidc/callback`. With it, PUBLIC_URL, OIDC_CLIENT_ID and OIDC_GROUPS ' +
      'are needed, too.',
    example: 'https://id.example.com/realms/fleet',
  },
  OIDC_CLIENT_ID: {
    group: 'Server',
    readBy: ['server'],
    about: 'The name of this client at the identity provider.',
    example: 'fleet',
  },
  OIDC_CLIENT_SECRET: {
    group: 'Server',
    readBy: ['server'],
    about: 'Its secret. Without one it is a public client, which PKCE protects.',
  },
  OIDC_GROUPS: {
    group: 'Server',
    readBy: ['server'],
    about:
      'What the groups of the identity provider may do, as JSON: an object from each group to its `scopes` and, if it is bound to ' +
      'some, its `cohorts`. The first group in this object to which a person belongs decides. Nobody else gets in.',
    example:
      '{"fleet-ops":{"scopes":["read","metrics","enroll","command","operate"]},"lobby":{"scopes":["read"],"cohorts":["lobby"]}}',
  },
  OIDC_GROUPS_CLAIM: {
    group: 'Server',
    readBy: ['server'],
    default: 'groups',
    about: 'The claim that names the groups, in the ID token or else in the answer of the userinfo endpoint.',
  },
  OIDC_SCOPE: {
    group: 'Server',
    readBy: ['server'],
    default: 'openid email profile',
    about: 'The scopes that the identity provider is asked for. Some providers need another one for the groups.',
  },
  WORKERS: {
    group: 'Server',
    readBy: ['server'],
    default: Math.min(availableParallelism(), 8),
    defaultAbout: 'one for each CPU, at most 8',
    min: 1,
    max: 64,
    unit: 'processes',
    about: 'Processes that share the port; 1 is a single process.',
    example: '8',
  },
  POOL_MAX: {
    group: 'Server',
    readBy: ['server'],
    default: 10,
    min: 1,
    max: 1000,
    unit: 'connections',
    about: 'Connections of the hot path to the database, for each worker.',
  },
  BACKPRESSURE_QUEUE: {
    group: 'Server',
    readBy: ['server'],
    default: 10_000,
    min: 1,
    max: 20_000,
    unit: 'heartbeats',
    about:
      'A worker with more heartbeats than this in its queue sheds low-priority work; see RUNBOOK.md. It refuses heartbeats ' +
      'above 20,000.',
  },
  TRUST_PROXY: {
    group: 'Server',
    readBy: ['server'],
    default: 'false',
    values: SWITCH,
    about: "Take the client's address from X-Forwarded-For, with or without a port. Only behind a proxy that sets this header.",
  },
  WRONG_TOKENS_PER_MINUTE: {
    group: 'Server',
    readBy: ['server'],
    default: 600,
    min: 1,
    max: 1_000_000,
    unit: 'tokens a minute',
    about:
      'How many unknown or revoked tokens of one address (IPv6: of one /64) a worker looks up in a minute. After that it ' +
      'looks up two of its tokens at a time and answers 429 to the others. Behind a proxy without TRUST_PROXY, all devices ' +
      'have the same address.',
  },
  DEVICE_REQUESTS_PER_MINUTE: {
    group: 'Server',
    readBy: ['server'],
    default: 300,
    min: 0,
    max: 100_000,
    unit: 'requests a minute',
    about:
      'How many requests of one device a worker accepts in a minute. A device that sends more is answered 429, and ' +
      '`fleet.check()` names it. 0 is no limit. Gateways have none.',
  },
  READ_FROM_LAST_STATUS: {
    group: 'Server',
    readBy: ['server'],
    default: 'true',
    about:
      'true, false, or the share of requests, such as 10%, that read devices from last status. The others read from the ' +
      'heartbeats themselves, which is slow, and wait at night while a past day is settled.',
  },
  PERF_DIFF_ENABLED: {
    group: 'Server',
    readBy: ['server'],
    default: 'false',
    values: SWITCH,
    about:
      'Read devices both ways and log whether the answers agree (event perf_diff.query_comparison). The second way waits at ' +
      'night while a past day is settled.',
  },

  ARCHIVE_URL: {
    group: 'Archive',
    readBy: ['archiver', 'start'],
    about:
      'Where archives are written: file:///absolute/directory or s3://bucket/prefix. The archiver needs it; `npm start` ' +
      'uses .local/archive without it.',
    example: 'file:///var/lib/nexmdm/archive',
  },
  AWS_REGION: {
    group: 'Archive',
    readBy: ['archiver'],
    library: 'the AWS SDK',
    about: 'The region of the S3 store.',
    example: 'eu-central-1',
  },
  AWS_ACCESS_KEY_ID: {
    group: 'Archive',
    readBy: ['archiver'],
    library: 'the AWS SDK',
    about:
      'The credentials of the S3 store. The SDK also finds them in its other places, such as ~/.aws/credentials or the ' +
      'role of a machine.',
  },
  AWS_SECRET_ACCESS_KEY: {
    group: 'Archive',
    readBy: ['archiver'],
    library: 'the AWS SDK',
    about: 'The secret that belongs to AWS_ACCESS_KEY_ID.',
  },
  AWS_SESSION_TOKEN: {
    group: 'Archive',
    readBy: ['archiver'],
    library: 'the AWS SDK',
    about: 'The session token of temporary credentials.',
  },
  AWS_ENDPOINT_URL_S3: {
    group: 'Archive',
    readBy: ['archiver'],
    about: 'The URL of an S3 store other than AWS.',
    example: 'https://s3.example.com',
  },
  AWS_ENDPOINT_URL: {
    group: 'Archive',
    readBy: ['archiver'],
    about: 'The same for all services of AWS; used if AWS_ENDPOINT_URL_S3 is not set.',
    example: 'https://s3.example.com',
  },
  ARCHIVE_OLDER_STORES: {
    group: 'Archive',
    readBy: ['archiver'],
    about:
      'Where archives are that were written to other stores before ARCHIVE_URL was changed: ' +
      '`bucket=https://[profile@]host[:port]`, separated by commas. The profile is one of ~/.aws/credentials; without it, the ' +
      'credentials above are used. Directories, and other buckets of the same store, need no entry.',
    example: 'fleet-archive=https://ceph@s3.internal:7480',
  },
  ARCHIVE_SSE: {
    group: 'Archive',
    readBy: ['archiver'],
    values: ENCRYPTIONS,
    about:
      'The server-side encryption that each object written to s3:// asks for (x-amz-server-side-encryption). A bucket whose ' +
      "policy demands one needs it; otherwise the bucket's default applies.",
    example: 'aws:kms',
  },
  ARCHIVE_SSE_KMS_KEY_ID: {
    group: 'Archive',
    readBy: ['archiver'],
    about:
      "The KMS key of ARCHIVE_SSE=aws:kms or aws:kms:dsse: its ARN, id or alias. Without it, AWS uses the account's own key for " +
      'S3; other stores may demand one.',
    example: 'arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab',
  },
  ARCHIVE_CHECKSUM: {
    group: 'Archive',
    readBy: ['archiver'],
    values: CHECKSUMS,
    defaultAbout: 'sha256 for AWS, none for other stores',
    about:
      'The checksum that each object and part written to s3:// carries: sha256 (x-amz-checksum-sha256), or md5 (Content-MD5), ' +
      'which older stores know too. A bucket with Object Lock and a default retention demands one of them.',
    example: 'md5',
  },
  ARCHIVE_SIGNING_KEY_FILE: {
    group: 'Archive',
    readBy: ['archiver'],
    about:
      'A PEM file with the Ed25519 private key (PKCS#8) that manifests are signed with, as `openssl genpkey -algorithm ed25519` ' +
      'writes it. Only the archiver may read it. Without it, manifests are not signed.',
    example: '/etc/nexmdm/archive-key.pem',
  },
  ARCHIVE_TRUSTED_KEYS_FILE: {
    group: 'Archive',
    readBy: ['archiver'],
    about:
      'A PEM file with the public keys of earlier signers, oldest first, as `npm run archive -- key` prints them. The key of ' +
      'ARCHIVE_SIGNING_KEY_FILE is always trusted. If a key is trusted, other signatures are refused.',
    example: '/etc/nexmdm/trusted-keys.pem',
  },
  TMPDIR: {
    group: 'Archive',
    readBy: ['archiver'],
    library: 'Node',
    default: '/tmp',
    about:
      'Where the archiver keeps the Parquet file of a partition while it writes it and reads it back. It needs room for ' +
      'one; a /tmp in memory is too small.',
    example: '/var/tmp',
  },

  WEBHOOK_ALLOW: {
    group: 'Webhooks',
    readBy: ['notifier'],
    about:
      'Receivers of webhooks in your own network: names of hosts, addresses and networks such as 10.0.0.0/8, separated by commas. ' +
      'Without it, messages are sent to public addresses only, so that nobody who may create a webhook reaches what is behind ' +
      'your firewall.',
    example: 'alertmanager.internal,10.20.0.0/16',
  },

  LOG_LEVEL: {
    group: 'Logs and traces',
    readBy: ['server', 'archiver', 'notifier'],
    default: 'info',
    values: LOG_LEVELS,
    about: 'The least severe level that is logged.',
  },
  LOG_FORMAT: {
    group: 'Logs and traces',
    readBy: ['server', 'archiver', 'notifier'],
    default: 'auto',
    values: LOG_FORMATS,
    about: 'json (one object a line), pretty (for people), or auto: pretty if stdout is a terminal, otherwise json.',
  },
  OTEL_EXPORTER_OTLP_ENDPOINT: {
    group: 'Logs and traces',
    readBy: ['server', 'archiver'],
    about:
      'Where traces are sent, by OTLP over HTTP. Without it there are no traces. OpenTelemetry reads its other OTEL_* ' +
      'variables itself.',
    example: 'http://127.0.0.1:4318',
  },

  CI: {
    group: 'Tests',
    readBy: ['tests'],
    about: 'The tests skip nothing: a program that is missing is a failure. Empty, 0 and false mean off.',
  },
  TEST_DEEP: {
    group: 'Tests',
    readBy: ['tests'],
    about: 'Runs the tests at their full size, and those that take minutes. `npm run test:deep` sets it.',
  },
  FUZZ_RUNS: {
    group: 'Tests',
    readBy: ['tests'],
    default: 2_000,
    min: 1,
    max: 10_000_000,
    unit: 'bodies',
    about: 'How many hostile bodies the fuzz test sends.',
  },
  S3_TEST_ENDPOINT: {
    group: 'Tests',
    readBy: ['tests'],
    about: 'An S3 store that the tests use, with the credentials and region of AWS_*. Without it they start their own.',
  },
  S3_TEST_BUCKET: {
    group: 'Tests',
    readBy: ['tests'],
    about: 'The bucket to use in S3_TEST_ENDPOINT. Without it, each test makes one.',
  },
  FLEET_TEST_CLUSTER: {
    group: 'Tests',
    readBy: ['tests'],
    about: 'The file with the connections of the test cluster. `npm test` sets it for the test files.',
  },
  FLEET_TEST_AT: {
    group: 'Tests',
    readBy: ['tests'],
    about: 'The time that a run with a moved clock begins at. `npm test -- --at …` sets it.',
  },
} as const satisfies Record<string, Setting>

export type SettingName = keyof typeof settings

/** The settings of a program that our code reads. */
export type SettingOf<P extends Program> = {
  [K in SettingName]: (typeof settings)[K] extends { library: string }
    ? never
    : P extends (typeof settings)[K]['readBy'][number]
      ? K
      : never
}[SettingName]
