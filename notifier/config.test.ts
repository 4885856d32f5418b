import t from 'tap'
import { readConfig } from './config.ts'

t.test('without its own URL it uses DATABASE_URL, with the role fleet_notifier', async t => {
  t.match(readConfig({ DATABASE_URL: 'postgres://owner@db/fleet' }), {
    database: { url: 'postgres://owner@db/fleet', role: 'fleet_notifier' },
    logLevel: 'info',
  })
  t.same(readConfig({ DATABASE_URL: 'postgres://o@db/f', NOTIFIER_DATABASE_URL: 'postgres://n@db1,db2/f' }).database, {
    url: 'postgres://n@db1,db2/f',
  })
  t.ok(
    readConfig({ DATABASE_URL: 'postgres://o@db/f', WEBHOOK_ALLOW: 'am.internal, 10.0.0.0/8' }).allowed.hosts.has('am.internal'),
  )
})

t.test('all problems are told together, without the password', async t => {
  const wrong = { NOTIFIER_DATABASE_URL: 'mysql://user:hunter2@db', WEBHOOK_ALLOW: '10.0.0.0/99,x y/z', LOG_LEVEL: 'loud' }
  try {
    readConfig(wrong)
    t.fail('expected an error')
  } catch (error) {
    const { message } = error as Error
    for (const name of ['NOTIFIER_DATABASE_URL', 'WEBHOOK_ALLOW', 'LOG_LEVEL']) t.match(message, `${name}: `)
    t.match(message, '"10.0.0.0/99"')
    t.match(message, '"y/z"')
    t.notMatch(message, 'hunter2')
  }
  t.throws(() => readConfig({}), { message: /NOTIFIER_DATABASE_URL: is not set, and neither is DATABASE_URL/ })
})
