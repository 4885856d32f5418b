import { access, readdir, readFile } from 'node:fs/promises'
import { dirname, join, relative } from 'node:path'
import t from 'tap'
import { repository } from '../lib/repository.ts'

const LEFT_OUT = ['node_modules', 'build', '.git', '.local', '.tap']

async function pagesIn(directory: string): Promise<string[]> {
  const pages: string[] = []
  for (const entry of await readdir(directory, { withFileTypes: true })) {
    const path = join(directory, entry.name)
    if (entry.isDirectory() && !LEFT_OUT.includes(entry.name)) pages.push(...(await pagesIn(path)))
    else if (entry.name.endsWith('.md')) pages.push(path)
  }
  return pages
}

/** A page without its code, where a bracket is not a link and a hash is not a heading. */
function prose(text: string) {
  return text.replaceAll(/^( *)```[^]*?^\1```$/gm, '').replaceAll(/`[^`\n]*`/g, code => '`'.repeat(code.length))
}

/** The anchors that GitHub makes from a page's headings. */
function anchorsOf(text: string) {
  const seen = new Map<string, number>()
  return [...text.replaceAll(/^( *)```[^]*?^\1```$/gm, '').matchAll(/^#{1,6} (.*)$/gm)].map(([, title = '']) => {
    const anchor = title
      .toLowerCase()
      .replaceAll(/[^\p{L}\p{N}_ -]/gu, '')
      .replaceAll(' ', '-')
    const before = seen.get(anchor) ?? 0
    seen.set(anchor, before + 1)
    return before === 0 ? anchor : `${anchor}-${before}`
  })
}

t.test('every link between pages leads to a file, and to a heading in it', async t => {
  const pages = (await pagesIn(repository)).sort()
  t.ok(pages.length > 40, `${pages.length} pages`)
  const anchors = new Map<string, string[]>()
  for (const page of pages) anchors.set(page, anchorsOf(await readFile(page, 'utf8')))
  const broken: string[] = []
  let links = 0
  for (const page of pages) {
    for (const [, target = ''] of prose(await readFile(page, 'utf8')).matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^[a-z]+:/.test(target)) continue
      links++
      const [path = '', anchor] = target.split('#')
      const file = path === '' ? page : join(dirname(page), decodeURIComponent(path))
      const exists = await access(file).then(
        () => true,
        () => false,
      )
      if (!exists || (anchor !== undefined && !anchors.get(file)?.includes(anchor)))
        broken.push(`${relative(repository, page)}: ${target}`)
    }
  }
  t.ok(links > 200, `${links} links`)
  t.same(broken, [])
})

t.test("docs/README.md lists every page of docs/, and every page of the repository's root", async t => {
  const index = await readFile(join(repository, 'docs/README.md'), 'utf8')
  const pages = (await readdir(join(repository, 'docs'))).filter(name => name.endsWith('.md') && name !== 'README.md')
  for (const name of pages) t.ok(index.includes(`](${name})`), name)
  const roots = (await readdir(repository)).filter(name => name.endsWith('.md'))
  for (const name of roots) t.ok(index.includes(`](../${name})`), name)
})

t.test('anchors are the same as on GitHub', async t => {
  t.same(anchorsOf('# A `b_c`: what, why?\n## From 0.1.0 to 0.2.0\n```\n# not this\n```\n## A `b_c`: what, why?\n'), [
    'a-b_c-what-why',
    'from-010-to-020',
    'a-b_c-what-why-1',
  ])
})
