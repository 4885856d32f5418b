import { execFile } from 'node:child_process'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { ESLint, type Linter } from 'eslint'
import t from 'tap'
import tseslint from 'typescript-eslint'
import { plainEnv } from '../local/config.ts'
import { repository } from '../lib/repository.ts'

const run = promisify(execFile)

/** The rules that `npm run lint` finds broken by these lines. */
async function brokenRules(lines: string, file: string) {
  // Without types, as none of the rules tested here needs them: a program with types is made again for every text.
  eslint ??= new ESLint({
    cwd: repository,
    overrideConfig: tseslint.configs.disableTypeChecked as Linter.Config,
  })
  const [result] = await eslint.lintText(lines, { filePath: join(repository, file) })
  return result!.messages.map(({ ruleId }) => ruleId)
}

/** How many faults `npm run lint` finds in these lines with the rules against shells and unsafe comparisons. */
async function faultsOf(lines: string) {
  return (await brokenRules(lines, 'cli/check.ts')).filter(rule => rule?.startsWith('no-restricted')).length
}

let eslint: ESLint | undefined

t.test('no command goes through a shell that could interpret input as code', async t => {
  for (const lines of [
    "import { exec } from 'node:child_process'\nexec('id')",
    "import { execSync } from 'node:child_process'\nexecSync('id')",
    "import { spawn } from 'child_process'\nspawn('id')",
    "import * as processes from 'node:child_process'\nprocesses.exec('id')",
    "import processes from 'node:child_process'\nprocesses.exec('id')",
    "import { spawn } from 'node:child_process'\nspawn('id', [], { shell: true })",
    "import { spawn } from 'node:child_process'\nspawn('id', [], { shell: '/bin/sh' })",
    "import { spawn } from 'node:child_process'\nspawn('sh', ['-c', `ls ${import.meta.dirname}`])",
    "import { spawn } from 'node:child_process'\nspawn('bash', ['-euc', 'ls ' + import.meta.dirname])",
  ])
    t.equal(await faultsOf(lines), 1, lines)
  t.equal(
    await faultsOf("import { spawn } from 'node:child_process'\nspawn('sh', ['-c', 'ls \"$1\"', 'sh', import.meta.dirname])"),
    0,
  )
})

t.test('the admin key is compared only in constant time', async t => {
  for (const comparison of ['given === config.adminKey', 'config.adminKey !== given', 'given == adminKey']) {
    const lines = `export const isKey = (given: string, config: { adminKey: string }, adminKey: string) => [adminKey, config, ${comparison}]`
    t.equal(await faultsOf(lines), 1, comparison)
  }
})

t.test('a constant value has its name in capitals', async t => {
  for (const lines of [
    'const pauseMs = 60_000\nexport const it = [pauseMs]',
    'export const longestLog = 20 * 2 ** 20',
    "export const stores = ['file', 's3'] as const",
    "export const stores = new Set(['file', 's3'])",
    'export const date = /^\\d{4}-\\d\\d-\\d\\d$/',
  ])
    t.equal(await faultsOf(lines), 1, lines)
  for (const lines of [
    'export const PAUSE_MS = 60_000',
    'export const names = { of: 60_000 }',
    'export function it() {\n  const pauseMs = 60_000\n  return pauseMs\n}',
  ])
    t.equal(await faultsOf(lines), 0, lines)
})

t.test('databases are opened only in the few files that set the search path', async t => {
  for (const lines of [
    "import postgres from 'postgres'\nexport const sql = postgres('postgres://a@b/c')",
    "import open from 'postgres'\nexport const sql = open('postgres://a@b/c')",
    "import { default as open } from 'postgres'\nexport const sql = open('postgres://a@b/c')",
    "import * as driver from 'postgres'\nexport const sql = driver.default('postgres://a@b/c')",
    "import { Client } from 'pg'\nexport const client = new Client()",
  ])
    t.equal(await faultsOf(lines), 1, lines)
  t.equal(
    await faultsOf(
      "import postgres, { type Sql } from 'postgres'\nexport const isOurs = (error: unknown, sql: Sql) => [sql, error instanceof postgres.PostgresError]",
    ),
    0,
  )
})

const IMPORTS = [
  (path: string) => `import * as found from '${path}'\nexport const it = found`,
  (path: string) => `import type * as Found from '${path}'\nexport type It = typeof Found`,
  (path: string) => `export * from '${path}'`,
  (path: string) => `export type * from '${path}'`,
  (path: string) => `export const it = await import('${path}')`,
  (path: string) => `export type It = typeof import('${path}')`,
]

t.test('an import that leads back to its own file is refused, a type import too', async t => {
  const rule = 'local/no-import-cycle'
  for (const [file, path] of [
    ['server/problem.ts', './context.ts'],
    ['archiver/store/store.ts', './open-store.ts'],
    ['lib/timeout.ts', './tracing.ts'],
    ['cli/migrate.ts', './commit.ts'],
    ['local/scram.ts', './start.ts'],
  ] as const)
    for (const lines of IMPORTS.map(write => write(path)))
      t.ok((await brokenRules(lines, file)).includes(rule), `${file}: ${lines}`)
  for (const lines of IMPORTS.map(write => write('../lib/log.ts')))
    t.notOk((await brokenRules(lines, 'server/problem.ts')).includes(rule), lines)
})

t.test('a directory imports only what it may', async t => {
  const rule = 'import-x/no-restricted-paths'
  for (const [file, path] of [
    ['server/main.ts', '../archiver/config.ts'],
    ['server/main.ts', '../testing/database.ts'],
    ['archiver/main.ts', '../server/problem.ts'],
    ['archiver/main.ts', '../local/scram.ts'],
    ['lib/log.ts', '../server/problem.ts'],
    ['cli/check.ts', '../testing/database.ts'],
    ['local/start.ts', '../testing/database.ts'],
    ['local/start.ts', '../server/server.ts'],
    ['docker/node/make-bucket.ts', '../../testing/s3.ts'],
  ] as const)
    for (const lines of IMPORTS.slice(0, 4).map(write => write(path)))
      t.ok((await brokenRules(lines, file)).includes(rule), `${file}: ${lines}`)
  for (const [file, path] of [
    ['server/main.ts', '../lib/log.ts'],
    ['server/main.test.ts', '../testing/database.ts'],
    ['local/start.ts', '../server/config.ts'],
    ['docker/node/make-bucket.ts', '../../archiver/config.ts'],
    ['archiver/main.ts', '@duckdb/node-api'],
  ] as const)
    for (const lines of IMPORTS.map(write => write(path)))
      t.notOk((await brokenRules(lines, file)).includes(rule), `${file}: ${lines}`)
})

t.test('each package in the lockfile comes from the registry, over https and with a checksum', async t => {
  const directory = await mkdtemp(join(tmpdir(), 'nexmdm-lockfile-'))
  t.teardown(() => rm(directory, { recursive: true }))
  const { scripts } = JSON.parse(await readFile(join(repository, 'package.json'), 'utf8')) as { scripts: { lint: string } }
  const args = scripts.lint.split('lockfile-lint ')[1]!.split(' ')
  const check = async (change: object) => {
    const lock = JSON.parse(await readFile(join(repository, 'package-lock.json'), 'utf8')) as { packages: Record<string, object> }
    Object.assign(lock.packages['node_modules/hono']!, change)
    const file = join(directory, 'package-lock.json')
    await writeFile(file, JSON.stringify(lock))
    const program = join(repository, 'node_modules/lockfile-lint/bin/lockfile-lint.js')
    return await run(process.execPath, [program, ...args.map(arg => (arg === 'package-lock.json' ? file : arg))], {
      env: plainEnv(),
    }).then(
      () => 'taken',
      () => 'refused',
    )
  }
  const resolved = 'https://registry.npmjs.org/hono/-/hono-4.13.19.tgz'
  t.equal(await check({}), 'taken')
  t.equal(await check({ resolved }), 'taken')
  t.equal(await check({ resolved: resolved.replace('registry.npmjs.org', 'registry.example.com') }), 'refused')
  t.equal(await check({ resolved: resolved.replace('https', 'http') }), 'refused')
  t.equal(await check({ resolved: 'git+ssh://git@github.com/honojs/hono.git#main' }), 'refused')
  t.equal(await check({ resolved, integrity: 'sha1-2jmj7l5rSw0yVb/vlWAYkK/YBwk=' }), 'refused')
})
