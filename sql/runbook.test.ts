import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { withDatabase } from '../local/testing.ts'
import { asRole } from './testing.ts'

const root = join(import.meta.dirname, '..')

for (const page of ['README.md', 'RUNBOOK.md']) {
  t.test(`every SQL statement in ${page} runs, as fleet_dba`, async t => {
    const db = await withDatabase(t)
    const text = await readFile(join(root, page), 'utf8')
    const blocks = [...text.matchAll(/```sql\n([\s\S]*?)```/g)].map(match => match[1] ?? '')
    t.ok(blocks.length >= 2, `${blocks.length} blocks`)
    for (const statement of blocks.flatMap(block => block.split(/;\n/)).map(part => part.trim()).filter(Boolean)) {
      const dba = asRole(t, db, 'fleet_dba')
      const error = await dba.unsafe(statement).then(() => undefined, (caught: { code: string, message: string }) => caught)
      // The examples name devices and days that this database does not have: the store's own words say so.
      t.ok(!error || error.code.startsWith('FL'), `${statement}${error ? ` -- ${error.code} ${error.message}` : ''}`)
    }
  })
}

t.test('the runbook has a section for each of its links', async t => {
  const text = await readFile(join(root, 'RUNBOOK.md'), 'utf8')
  const anchors = [...text.matchAll(/^## (.*)$/gm)].map(match => (match[1] ?? '').toLowerCase().replaceAll(' ', '-'))
  for (const [, link = ''] of text.matchAll(/\]\(#(.*?)\)/g)) t.ok(anchors.includes(link), link)
})
