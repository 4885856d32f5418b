import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { repository } from '../local/config.ts'

const page = await readFile(join(repository, 'docs/threats.md'), 'utf8')

t.test('each test that docs/threats.md names is there', async t => {
  let file = ''
  let titles = 0
  for (const [, path, title] of page.replaceAll('\n', ' ').matchAll(/`([\w/.-]+\.test\.ts)`|"([^"]{10,})"/g)) {
    if (path !== undefined) {
      file = path
      continue
    }
    const text = await readFile(join(repository, file), 'utf8')
    t.ok(text.includes(`t.test('${title!.replaceAll("'", "\\'")}'`), `${file}: ${title}`)
    titles++
  }
  t.ok(titles > 40, `${titles} tests`)
})

t.test('each file and setting that docs/threats.md names is there', async t => {
  for (const [, link] of page.matchAll(/\]\(([^)]+)\)/g)) t.ok(await readFile(join(repository, 'docs', link!)), link!)
  const settings = await readFile(join(repository, '.env.example'), 'utf8')
  for (const [, name] of page.matchAll(/`([A-Z][A-Z_]{4,})`/g)) t.match(settings, new RegExp(`^#${name}=`, 'm'), name!)
})
