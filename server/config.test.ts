import t from 'tap'
import { readConfig } from './config.ts'
import { SettingsError } from '../lib/errors.ts'

const DATABASE_URL = 'postgres://fleet_owner@127.0.0.1/fleet'
const ADMIN_KEY = 'sixteen-or-more-characters'

t.test('each database defaults to DATABASE_URL as role fleet_server', async t => {
  const config = readConfig({ DATABASE_URL, ADMIN_KEY, OPS_DATABASE_URL: 'postgres://ops@127.0.0.1/fleet' })
  t.same(config.hot, { url: DATABASE_URL, role: 'fleet_server' })
  t.same(config.ops, { url: 'postgres://ops@127.0.0.1/fleet' }, 'a login of its own keeps its own role')
  t.match(config, { port: 8080, host: '127.0.0.1', poolMax: 10, trustProxy: false, logLevel: 'info' })
})

t.test('an empty variable counts as unset', async t => {
  t.equal(readConfig({ DATABASE_URL, ADMIN_KEY, PORT: '' }).port, 8080)
})

t.test('a URL may set prepare=false, and a value that is not understood is refused', async t => {
  const through = 'postgres://fleet_server@127.0.0.1:6432/fleet?prepare='
  t.equal(readConfig({ DATABASE_URL, ADMIN_KEY, SERVER_DATABASE_URL: `${through}false` }).hot.url, `${through}false`)
  const error = t.throws(() => readConfig({ DATABASE_URL, ADMIN_KEY, SERVER_DATABASE_URL: `${through}0` })) as SettingsError
  t.match(error.problems, [/^SERVER_DATABASE_URL must have prepare=false/])
})

t.test(
  'a URL may name several hosts; one that postgres.js does not understand is refused by setting, without its password',
  async t => {
    const names = ['SERVER_DATABASE_URL', 'OPS_DATABASE_URL', 'READ_DATABASE_URL', 'DATABASE_URL']
    const good = [
      'postgres://u:p@a,b/fleet',
      'postgres://u@a,b/fleet?passfile=/etc/nexmdm/pgpass&prepare=false',
      'postgres://u:p@a:5432,b:5433,10.0.0.3/fleet?target_session_attrs=primary',
      'postgresql://a,b/fleet?prepare=false',
      'postgres://u:p%40,x@a:5432/fleet?target_session_attrs=prefer-standby',
      'postgres://u:p@[::1]:5432/fleet',
    ]
    const bad = {
      'postgres://u:secret@a,b/fleet?target_session_attrs=read-write': /target_session_attrs.*Use primary instead of read-write/,
      'postgres://u:secret@a/fleet?target_session_attrs=any': /target_session_attrs/,
      'postgres://u:secret@[::1]:5432,[::2]:5432/fleet': /host1:port,host2:port/,
      'postgres://u:secret@a,,b/fleet': /host1:port,host2:port/,
      'postgres://u:secret@a,b:x/fleet': /host1:port,host2:port/,
      'postgres://u:secret@a,b/fleet?prepare=0': /prepare=false/,
      'postgres://u:secret@a,b/fleet?passfile=pgpass': /passfile that begins with/,
    }
    for (const name of names) {
      for (const url of good) t.doesNotThrow(() => readConfig({ DATABASE_URL, ADMIN_KEY, [name]: url }), `${name}=${url}`)
      for (const [url, about] of Object.entries(bad)) {
        const { problems } = t.throws(() => readConfig({ DATABASE_URL, ADMIN_KEY, [name]: url })) as SettingsError
        t.match(problems, [about])
        t.ok(problems.length === 1 && problems[0]!.startsWith(`${name} `) && !problems[0]!.includes('secret'), `${name}=${url}`, {
          problems,
        })
      }
    }
  },
)

t.test('all problems are reported together, by variable', async t => {
  const env = {
    ADMIN_KEY: 'short',
    PORT: '70000',
    POOL_MAX: 'ten',
    WORKERS: '0',
    BACKPRESSURE_QUEUE: '20001',
    TRUST_PROXY: 'maybe',
    WRONG_TOKENS_PER_MINUTE: '0',
    DEVICE_REQUESTS_PER_MINUTE: '-1',
    LOG_LEVEL: 'loud',
    READ_FROM_LAST_STATUS: '101%',
    READ_MAX_LAG_S: '0',
    PERF_DIFF_ENABLED: 'yes',
    READ_DATABASE_URL: 'mysql://x',
  }
  const error = t.throws(() => readConfig(env), SettingsError) as SettingsError
  t.equal(error.problems.length, 15)
  for (const name of [
    'ADMIN_KEY',
    'PORT',
    'POOL_MAX',
    'WORKERS',
    'BACKPRESSURE_QUEUE',
    'TRUST_PROXY',
    'WRONG_TOKENS_PER_MINUTE',
    'DEVICE_REQUESTS_PER_MINUTE',
    'LOG_LEVEL',
    'SERVER_DATABASE_URL',
    'OPS_DATABASE_URL',
    'READ_FROM_LAST_STATUS',
    'READ_MAX_LAG_S',
    'PERF_DIFF_ENABLED',
    'READ_DATABASE_URL',
  ]) {
    t.ok(
      error.problems.some(problem => problem.startsWith(name)),
      name,
    )
  }
})

t.test('an admin key that no header can carry is refused, and never shown', async t => {
  const error = t.throws(() => readConfig({ DATABASE_URL, ADMIN_KEY: 'sixteen characters' })) as SettingsError
  t.match(error.message, /ADMIN_KEY/)
  t.notMatch(error.message, /sixteen/)
})

t.test('device reads use last status, all or a share of them, and a replica only if one is set', async t => {
  const shares = { true: 1, false: 0, '10%': 0.1, '0%': 0, '100%': 1, '': 1 }
  for (const [text, share] of Object.entries(shares)) {
    t.equal(readConfig({ DATABASE_URL, ADMIN_KEY, READ_FROM_LAST_STATUS: text }).readFromLastStatus, share, text)
  }
  t.equal(readConfig({ DATABASE_URL, ADMIN_KEY }).read, undefined)
  t.same(readConfig({ DATABASE_URL, ADMIN_KEY, READ_DATABASE_URL: DATABASE_URL }).read, { url: DATABASE_URL })
})

t.test('ADMIN_KEY may be left unset, because API keys may be enough', async t => {
  t.equal(readConfig({ DATABASE_URL }).adminKey, undefined)
})

const OIDC = {
  TRUST_PROXY: 'true',
  PUBLIC_URL: 'https://fleet.example.com',
  OIDC_ISSUER: 'https://id.example.com/realms/fleet',
  OIDC_CLIENT_ID: 'fleet',
  OIDC_GROUPS: '{"ops":{"scopes":["operate","read"]},"lobby":{"scopes":["read"],"cohorts":["lobby"]}}',
}

t.test('OpenID Connect is on with an issuer, and its groups keep their order', async t => {
  t.equal(readConfig({ DATABASE_URL, PUBLIC_URL: OIDC.PUBLIC_URL }).oidc, undefined)
  t.same(readConfig({ DATABASE_URL, ...OIDC }).oidc, {
    issuer: OIDC.OIDC_ISSUER,
    clientId: 'fleet',
    clientSecret: undefined,
    groups: [
      { group: 'ops', scopes: ['read', 'operate'], cohorts: null },
      { group: 'lobby', scopes: ['read'], cohorts: ['lobby'] },
    ],
    groupsClaim: 'groups',
    scope: 'openid email profile',
    publicUrl: OIDC.PUBLIC_URL,
  })
  t.ok(readConfig({ DATABASE_URL, ...OIDC, OIDC_ISSUER: 'http://127.0.0.1:9000' }).oidc)
})

t.test('what is wrong with the settings of OpenID Connect is told by setting, without the secret', async t => {
  const wrong: [Record<string, string>, RegExp][] = [
    [{ ...OIDC, PUBLIC_URL: '' }, /^PUBLIC_URL is missing; OIDC_ISSUER needs it/],
    [{ ...OIDC, TRUST_PROXY: '' }, /^TRUST_PROXY must be true, because PUBLIC_URL is https/],
    [{ ...OIDC, OIDC_CLIENT_ID: '' }, /^OIDC_CLIENT_ID is missing/],
    [{ ...OIDC, OIDC_GROUPS: '' }, /^OIDC_GROUPS is missing/],
    [{ ...OIDC, OIDC_ISSUER: '' }, /^OIDC_CLIENT_ID is set, but OIDC_ISSUER is not/],
    [{ ...OIDC, PUBLIC_URL: 'https://fleet.example.com/page' }, /^PUBLIC_URL must be an address/],
    [{ ...OIDC, OIDC_ISSUER: 'http://id.example.com' }, /^OIDC_ISSUER must be an https:/],
    [{ ...OIDC, OIDC_ISSUER: 'id' }, /^OIDC_ISSUER must be an https:/],
    [{ ...OIDC, OIDC_GROUPS: '{' }, /^OIDC_GROUPS must be JSON/],
    [{ ...OIDC, OIDC_GROUPS: '[]' }, /^OIDC_GROUPS is wrong/],
    [{ ...OIDC, OIDC_GROUPS: '{"ops":["read"]}' }, /^OIDC_GROUPS is wrong at ops/],
    [{ ...OIDC, OIDC_GROUPS: '{"ops":{"scopes":[]}}' }, /^OIDC_GROUPS is wrong at ops\.scopes: must name a scope/],
    [{ ...OIDC, OIDC_GROUPS: '{"ops":{"scopes":["write"]}}' }, /at ops\.scopes\.0: must be one of read, metrics/],
    [{ ...OIDC, OIDC_GROUPS: '{"ops":{"scopes":["read"],"cohort":"a"}}' }, /^OIDC_GROUPS is wrong at ops/],
    [{ ...OIDC, OIDC_GROUPS: '{"ops":{"scopes":["operate"],"cohorts":["a"]}}' }, /about the whole store/],
  ]
  for (const [env, about] of wrong) {
    const { problems } = t.throws(() =>
      readConfig({ DATABASE_URL, ...env, OIDC_CLIENT_SECRET: 'a-secret-value' }),
    ) as SettingsError
    t.ok(
      problems.some(problem => about.test(problem)),
      String(about),
      { problems },
    )
    t.notMatch(problems.join(), /a-secret-value/)
  }
})
