import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { repository } from '../lib/repository.ts'

t.test('docs/design.md says why each dependency is there', async t => {
  const { dependencies, devDependencies } = JSON.parse(await readFile(join(repository, 'package.json'), 'utf8')) as Record<
    string,
    Record<string, string>
  >
  const design = await readFile(join(repository, 'docs/design.md'), 'utf8')
  const rows = design.split('\n').filter(line => /^\| `/.test(line))
  const named = new Set(rows.flatMap(row => [...row.split('|')[1]!.matchAll(/`([^`]+)`/g)].map(([, name]) => name!)))
  const missing = Object.keys({ ...dependencies, ...devDependencies }).filter(
    name => !named.has(name) && !named.has(`${name.split('/')[0]}/*`),
  )
  t.same(missing, [])
  for (const version of Object.values({ ...dependencies, ...devDependencies }))
    t.match(version, /^\d[\w.-]*$/, 'every version is pinned')
})
