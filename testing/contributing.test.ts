import { access, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { repository } from '../lib/repository.ts'

t.test('CONTRIBUTING.md names only commands and files that exist', async t => {
  const page = await readFile(join(repository, 'CONTRIBUTING.md'), 'utf8')
  const { scripts } = JSON.parse(await readFile(join(repository, 'package.json'), 'utf8')) as { scripts: Record<string, string> }
  const commands = [...page.matchAll(/npm (?:run )?([a-z:]+)/g)].map(([, name]) => name!)
  for (const name of commands) t.ok(scripts[name], `npm run ${name}`)
  t.ok(commands.length > 5)
  const paths = [
    ...page.matchAll(/(?:^|[`( ])((?:\.ci|sql|server|archiver|lib|cli|local|testing|migrations|docs)\/[\w./-]+)/gm),
  ].map(([, path]) => path!)
  for (const path of [...paths, '.env.example', 'CHANGELOG.md', 'README.md'])
    await t.resolves(access(join(repository, path)), path)
  t.ok(paths.length > 10)
})

t.test('CHANGELOG.md says what to do at an upgrade', async t => {
  t.match(await readFile(join(repository, 'CHANGELOG.md'), 'utf8'), /^### Upgrading$/m)
})
