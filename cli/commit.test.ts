import { spawnSync } from 'node:child_process'
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { leftToCi, plainEnv } from '../local/config.ts'
import { built, repository } from '../lib/repository.ts'
import { withClone } from '../testing/database.ts'

t.test('a migration is committed and uncommitted without an existing database', { skip: leftToCi() }, async t => {
  const clone = await withClone(t)
  const run = (...args: string[]) =>
    spawnSync(process.execPath, [built('cli/commit.ts', clone), ...args], { cwd: clone, env: plainEnv(), encoding: 'utf8' })
  const committed = () => readdirSync(join(clone, 'migrations/committed'))
  const current = join(clone, 'migrations/current.sql')
  const before = committed()
  const statement = 'create table fleet.trial (one integer);'

  writeFileSync(current, `${statement}\n`)
  t.match(run('commit', 'Try it'), { status: 0 })
  t.match(
    committed().filter(name => !before.includes(name)),
    [/^\d{6}-try-it\.sql$/],
  )
  t.notMatch(readFileSync(current, 'utf8'), 'trial')

  t.match(run('uncommit'), { status: 0 })
  t.strictSame(committed(), before)
  t.match(readFileSync(current, 'utf8'), statement)

  writeFileSync(current, 'create table fleet.trial (one intege);\n')
  t.match(run('commit', 'Break it'), { status: 1, stderr: /type "intege" does not exist/ })
  t.strictSame(committed(), before, 'a migration that fails is not committed')

  t.match(run('commit'), { status: 2, stderr: /usage/ })
  t.match(run('commit', 'Seven words are too many for it'), { status: 2, stderr: /at most 6 words/ })
})

t.test('each migration is named in at most six words', async t => {
  const names = readdirSync(join(repository, 'migrations/committed'))
  t.match(names.sort()[0], '000001-initial.sql')
  t.same(
    names.filter(name => !/^\d{6}(-[a-z0-9_]+){1,6}\.sql$/.test(name)),
    [],
  )
})
