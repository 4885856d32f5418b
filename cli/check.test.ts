import { spawnSync } from 'node:child_process'
import t from 'tap'
import { ADMIN_KEY, withServer } from '../testing/server.ts'
import { poolHealth, table } from './check.ts'
import { plainEnv } from '../local/config.ts'
import { nodeArgs } from '../lib/repository.ts'
import { withDatabase } from '../testing/database.ts'

t.test('the worst check comes first, with its remedy', async t => {
  t.equal(
    table([
      { check_name: 'scheduler', status: 'ok', detail: 'all jobs run', remedy: 'none needed' },
      { check_name: 'retention', status: 'fail', detail: '3 days overdue', remedy: '-- now\ncall fleet.nightly();' },
      { check_name: 'archiver', status: 'warn', detail: 'never seen', remedy: null },
    ]),
    [
      'fail  retention  3 days overdue',
      '                 -> -- now',
      '                    call fleet.nightly();',
      'warn  archiver   never seen',
      'ok    scheduler  all jobs run',
    ].join('\n'),
  )
})

t.test('npm run check exits with 1 if a check fails', async t => {
  const db = await withDatabase(t)
  const [worst] = await db.sql`select count(*) filter (where status = 'fail')::integer as failures from fleet.check()`
  const { status, stdout } = spawnSync(process.execPath, nodeArgs('cli/check.ts'), {
    env: { ...plainEnv(), DATABASE_URL: db.url('postgres') },
    encoding: 'utf8',
  })
  t.match(stdout, /partition_today/)
  t.match(stdout, /pool_health .*ADMIN_KEY is not set/)
  t.equal(status, worst?.failures ? 1 : 0)
})

t.test('a running server is asked for the health of its pools', async t => {
  const { url } = await withServer(t)
  t.match(await poolHealth({ url, adminKey: ADMIN_KEY, certFile: undefined }), {
    status: 'ok',
    detail: /^\d+ of \d+ connections in use/,
  })
  t.match(await poolHealth({ url, adminKey: 'another key', certFile: undefined }), { status: 'warn', detail: /answers 401/ })
  t.match(await poolHealth({ url: 'http://127.0.0.1:1', adminKey: ADMIN_KEY, certFile: undefined }), {
    status: 'warn',
    detail: /cannot be reached/,
  })
})
