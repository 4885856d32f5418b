import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { repository } from '../lib/repository.ts'

const page = await readFile(join(repository, 'docs/threats.md'), 'utf8')

/** The titles of the tests in a file, in either kind of quotes. */
function titlesOf(text: string) {
  const titles = text.matchAll(/\bt\.test\(\s*(?:'((?:\\.|[^'\\])*)'|"((?:\\.|[^"\\])*)")/g)
  return new Set([...titles].map(([, single, double]) => (single ?? double)!.replace(/\\(.)/g, '$1')))
}

t.test('each test that docs/threats.md names exists', async t => {
  let file = ''
  let titles = 0
  for (const [, path, title] of page.replaceAll('\n', ' ').matchAll(/`([\w/.-]+\.test\.ts)`|"([^"]{10,})"/g)) {
    if (path !== undefined) {
      file = path
      continue
    }
    const text = await readFile(join(repository, file), 'utf8')
    t.ok(titlesOf(text).has(title!), `${file}: ${title}`)
    titles++
  }
  t.ok(titles > 40, `${titles} tests`)
})

t.test('each file and setting that docs/threats.md names exists', async t => {
  for (const [, link] of page.matchAll(/\]\(([^)]+)\)/g))
    t.ok(await readFile(join(repository, 'docs', link!.split('#')[0]!)), link!)
  const settings = await readFile(join(repository, '.env.example'), 'utf8')
  for (const [, name] of page.matchAll(/`([A-Z][A-Z_]{4,})`/g)) t.match(settings, new RegExp(`^#${name}=`, 'm'), name!)
})
