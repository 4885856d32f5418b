import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { readFile, rm, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { built } from '../lib/repository.ts'
import { withClone } from '../testing/database.ts'
import { plainEnv } from './config.ts'

t.test('what changed is compiled, and what was removed goes', async t => {
  const clone = await withClone(t)
  const build = () => spawnSync(process.execPath, ['local/build.js'], { cwd: clone, env: plainEnv(), encoding: 'utf8' })
  const run = (script: string) => spawnSync(process.execPath, [built(script, clone)], { env: plainEnv(), encoding: 'utf8' })
  const source = (file: string) => join(clone, file)
  const timeOf = async (file: string) => (await stat(built(file, clone))).mtimeMs

  await writeFile(source('lib/one.ts'), "import { two } from './two.ts'\nconst said: string = two()\nconsole.log(said)\n")
  await writeFile(source('lib/two.ts'), "export function two(): string {\n  return 'first'\n}\n")
  t.match(build(), { status: 0, stdout: '', stderr: '' })
  t.equal(run('lib/one.ts').stdout, 'first\n')

  const before = [await timeOf('lib/one.ts'), await timeOf('lib/version.ts')]
  await writeFile(source('lib/two.ts'), "export function two(): string {\n  return 'second'\n}\n")
  t.match(build(), { status: 0 })
  t.equal(run('lib/one.ts').stdout, 'second\n')
  t.same([await timeOf('lib/one.ts'), await timeOf('lib/version.ts')], before, 'other files are not written again')

  await writeFile(source('lib/two.ts'), 'export function two(: string {}\n')
  const failed = build()
  t.equal(failed.status, 1)
  t.match(failed.stderr, /lib\/two\.ts:1:\d+: ERROR/)
  t.equal(run('lib/one.ts').stdout, 'second\n', 'after an error in a source everything stays as it was compiled')
  t.equal(build().status, 1, 'and the error is told again')

  await rm(source('lib/one.ts'))
  await rm(source('lib/two.ts'))
  t.match(build(), { status: 0 })
  t.notOk(existsSync(built('lib/one.ts', clone)))
  t.notOk(existsSync(`${built('lib/two.ts', clone)}.map`))
  t.ok((await readFile(built('lib/version.ts', clone), 'utf8')).includes('package.json'))
})
