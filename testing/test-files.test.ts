import t from 'tap'
import { built } from '../lib/repository.ts'
import { compiledTests } from './test-files.ts'

t.test('a folder stands for the test files in it, and a test file for its compiled form', async t => {
  const files = await compiledTests(['sql/import/', 'server/auth', 'lib/log.test.ts', '--bail'])
  for (const file of ['sql/import/import.test.ts', 'server/auth/tokens.test.ts', 'lib/log.test.ts'])
    t.ok(files.includes(built(file)), file)
  t.ok(
    files.every(file => /\/build\/.*\.test\.js$/.test(file) || file === '--bail'),
    files.join(' '),
  )
})
