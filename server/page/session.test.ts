import t from 'tap'
import { connectHot } from '../database.ts'
import { createLog } from '../../lib/log.ts'
import { Attempts } from './attempts.ts'
import { SESSION_S, Sessions } from './session.ts'

const config = { adminKey: 'a-key-of-some-length', trustProxy: false, tls: undefined }
// Connects only when it is used. Checking the cookie itself needs no database.
const pool = connectHot({ url: 'postgres://fleet_server@127.0.0.1:1/fleet' }, 1)
const sessionsOf = (given = config) => new Sessions(given, pool, createLog('server', 'silent'))

t.test('a session is known to every server with the same admin key, until it ends', t => {
  const now = Date.parse('2026-11-21T12:00Z')
  const cookie = sessionsOf().issue(now)
  const other = sessionsOf()
  t.equal(other.isValid(cookie, now), true)
  t.equal(other.isValid(cookie, now + (SESSION_S - 1) * 1_000), true)
  t.equal(other.isValid(cookie, now + SESSION_S * 1_000), false)
  t.equal(sessionsOf({ ...config, adminKey: 'another-key-of-length' }).isValid(cookie, now), false)
  t.notMatch(cookie, config.adminKey)
  t.not(sessionsOf().issue(now), cookie, 'no two are alike')
  t.end()
})

t.test('no part of a session can be changed', t => {
  const now = Date.now()
  const sessions = sessionsOf()
  const cookie = sessions.issue(now)
  for (let n = 0; n < cookie.length; n++) {
    const other = cookie[n] === 'A' ? 'B' : 'A'
    const forged = cookie.slice(0, n) + other + cookie.slice(n + 1)
    // The last of 43 characters of base64 holds four bits, the others six.
    if (n < cookie.length - 1) t.equal(sessions.isValid(forged, now), false, `character ${n}`)
  }
  const [, ...rest] = cookie.split('.')
  for (const forged of [
    undefined,
    '',
    '.',
    '..',
    cookie.slice(0, -1),
    `${cookie}A`,
    `${cookie}.`,
    `9${cookie}`,
    `999999999999.${rest.join('.')}`,
    `${cookie.slice(0, -43)}${'A'.repeat(43)}`,
    `${cookie}\n`,
    'x'.repeat(10_000),
  ])
    t.equal(sessions.isValid(forged, now), false, String(forged).slice(0, 80))
  t.end()
})

t.test('wrong keys make an address wait, longer each time, and are forgotten', t => {
  const attempts = new Attempts()
  const waits = []
  for (let n = 0; n < 14; n++) {
    attempts.failed('192.0.2.1', 0)
    waits.push(attempts.waitS('192.0.2.1', 0))
  }
  t.same(waits, [0, 0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300])
  t.equal(attempts.waitS('192.0.2.1', 299_001), 1)
  t.equal(attempts.waitS('192.0.2.1', 300_000), 0)
  t.equal(attempts.waitS('192.0.2.2', 0), 0, 'others do not wait')
  attempts.failed('192.0.2.1', 15 * 60_000)
  t.equal(attempts.waitS('192.0.2.1', 15 * 60_000), 0, 'after a quarter of an hour the count starts again')
  for (let n = 0; n < 5; n++) attempts.failed('192.0.2.3', 0)
  attempts.succeeded('192.0.2.3')
  t.equal(attempts.waitS('192.0.2.3', 0), 0)
  t.end()
})

t.test('an IPv6 network counts as one address, and memory is bounded', t => {
  const attempts = new Attempts(100)
  for (let n = 0; n < 4; n++) attempts.failed(`2001:db8::${n}`, 0)
  t.equal(attempts.waitS('2001:DB8:0:0:ffff::1', 0), 2)
  t.equal(attempts.waitS('2001:db8:0:1::1', 0), 0)
  for (let n = 0; n < 1_000; n++) attempts.failed(`10.0.${n >> 8}.${n & 255}`, 0)
  t.equal(attempts.size, 100)
  t.end()
})
