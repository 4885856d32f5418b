import t from 'tap'
import {
  databaseUrl,
  fuzzRuns,
  leftToCi,
  leftToDeep,
  movedClock,
  objectStoreConfig,
  optionalDatabaseUrl,
  ownerDatabaseUrl,
  rolePasswords,
  serverAddress,
  startConfig,
  testClusterFile,
} from '../local/config.ts'
import { readConfig } from '../server/config.ts'
import { type Program, type Setting, settings } from './settings.ts'

type Env = Record<string, string | undefined>

/** What the work reads of an environment. */
function namesRead(env: Env, work: (env: Env) => unknown) {
  const names = new Set<string>()
  work(
    new Proxy(env, {
      get(target, name: string) {
        names.add(name)
        return target[name]
      },
    }),
  )
  return [...names].sort()
}

/** The settings that our code reads in this program. The archiver's are checked by the types in archiver/config.ts. */
function settingsOf(program: Program) {
  const all: [string, Setting][] = Object.entries(settings)
  return all
    .filter(([, { readBy, library }]) => library === undefined && readBy.includes(program))
    .map(([name]) => name)
    .sort()
}

const env = { DATABASE_URL: 'postgres://a@b/c', ADMIN_KEY: 'sixteen-or-more-characters' }

t.test('each program reads the settings that the table gives to it, and no other', async t => {
  t.same(namesRead(env, readConfig), settingsOf('server'))
  t.same(namesRead(env, startConfig), settingsOf('start'))
  t.same(
    namesRead(env, env => [databaseUrl(env), ownerDatabaseUrl(env)]),
    settingsOf('migrate'),
  )
  t.same(
    namesRead({ ...env, FLEET_DBA_PASSWORD: 'x' }, env => [databaseUrl(env), rolePasswords(env)]),
    settingsOf('logins'),
  )
  t.same(
    namesRead(env, env => [optionalDatabaseUrl(env), serverAddress(env)]),
    settingsOf('check'),
  )
  const store = { S3_TEST_ENDPOINT: 'http://a', AWS_ACCESS_KEY_ID: 'a', AWS_SECRET_ACCESS_KEY: 'b', AWS_REGION: 'c' }
  const read = namesRead({ ...store, FLEET_TEST_CLUSTER: 'x' }, env => [
    testClusterFile(env),
    leftToCi(env),
    leftToDeep(env),
    fuzzRuns(env),
    objectStoreConfig(env),
    movedClock(env),
  ])
  t.same(
    read.filter(name => !name.startsWith('AWS_')),
    settingsOf('tests'),
  )
})

t.test('a default is one of the values of its setting, and within its limits', async t => {
  for (const [name, { default: fallback, values, min, max }] of Object.entries<Setting>(settings)) {
    if (values !== undefined && fallback !== undefined)
      t.ok(
        values.some(value => value === fallback),
        name,
      )
    if (min !== undefined) t.ok(typeof fallback === 'number' && fallback >= min && fallback <= max!, name)
  }
})
