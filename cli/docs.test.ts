import t from 'tap'
import { withDatabase } from '../testing/database.ts'
import { makePages } from './docs.ts'

t.test('the generated pages are up to date', async t => {
  const { admin } = await withDatabase(t)
  for (const { path, made, found } of await makePages(admin))
    t.equal(found, made, `if the change of ${path} is intended, run: npm run docs`)
})
