import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { repository } from '../lib/repository.ts'

const directory = join(repository, 'docs/decisions')
const files = (await readdir(directory)).filter(name => name !== 'README.md').sort()

interface Decision {
  file: string
  number: string
  title: string
  date: string
  status: string
}

/** Reads a decision. It begins with its number and title, an empty line, its date and its status. */
async function readDecision(file: string): Promise<Decision> {
  const text = await readFile(join(directory, file), 'utf8')
  const head = /^# (\d{4}): (.+)\n\nDate: (.*)\nStatus: (.*)\n\n/.exec(text)
  if (!head) throw new Error(`${file} does not begin with "# 0000: Title", an empty line, "Date: …" and "Status: …"`)
  const [, number, title, date, status] = head
  return { file, number: number!, title: title!, date: date!, status: status! }
}

t.test('decisions are numbered without gaps', async t => {
  t.ok(files.length > 30, `${files.length} decisions`)
  for (const [index, file] of files.entries())
    t.match(file, new RegExp(`^${String(index + 1).padStart(4, '0')}-[a-z0-9-]+\\.md$`))
})

t.test('each decision has its number, a date and a status', async t => {
  const numbers = files.map(file => file.slice(0, 4))
  let newest = ''
  for (const file of files) {
    const { number, date, status } = await readDecision(file)
    t.equal(number, file.slice(0, 4), file)
    t.match(date, /^\d{4}-\d\d-\d\d$/, file)
    t.equal(new Date(date).toISOString().slice(0, 10), date, `${file} has a date that exists`)
    t.ok(date >= newest, `${file} is not older than the decision before it`)
    newest = date
    t.match(status, /^(accepted|(superseded|amended) by \d{4}(, \d{4})*)$/, file)
    for (const [other] of status.matchAll(/\d{4}/g)) t.ok(numbers.includes(other) && other > number, `${file}: ${status}`)
  }
})

t.test('docs/decisions/README.md lists each decision', async t => {
  const index = await readFile(join(directory, 'README.md'), 'utf8')
  const rows = index.split('\n').filter(line => line.startsWith('| ['))
  const wanted = []
  for (const file of files) {
    const { number, title, date, status } = await readDecision(file)
    wanted.push(`| [${number}](${file}) | ${title} | ${date} | ${status} |`)
  }
  t.same(rows, wanted)
})

t.test('links between decisions lead to files that exist', async t => {
  for (const file of [...files, 'README.md']) {
    const text = await readFile(join(directory, file), 'utf8')
    for (const [, link] of text.matchAll(/\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)/g)) {
      await t.resolves(readFile(join(directory, link!)), `${file}: ${link}`)
    }
  }
})
