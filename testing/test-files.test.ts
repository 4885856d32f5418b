import t from 'tap'
import { expandFolders } from './test-files.ts'

t.test('a folder stands for the test files in it', async t => {
  const files = await expandFolders(['sql/import/', 'server/auth', 'lib/log.test.ts', '--bail'])
  for (const file of ['sql/import/import.test.ts', 'server/auth/tokens.test.ts', 'lib/log.test.ts', '--bail']) {
    t.ok(files.includes(file), file)
  }
  t.ok(
    files.every(file => /\.test\.tsx?$|^--/.test(file)),
    files.join(' '),
  )
})
