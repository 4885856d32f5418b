import crypto from 'node:crypto'
import { syncBuiltinESMExports } from 'node:module'
import t from 'tap'
import { keyCheck } from './access.ts'
import { ADMIN_KEY, withServer } from '../../testing/server.ts'

/** The lengths that crypto.timingSafeEqual compared while `run` ran. */
async function compared(run: () => unknown) {
  const { timingSafeEqual } = crypto
  const lengths: [number, number][] = []
  crypto.timingSafeEqual = (a, b) => {
    lengths.push([a.byteLength, b.byteLength])
    return timingSafeEqual(a, b)
  }
  syncBuiltinESMExports()
  try {
    await run()
  } finally {
    crypto.timingSafeEqual = timingSafeEqual
    syncBuiltinESMExports()
  }
  return lengths
}

const WRONG_KEYS = ['x', ADMIN_KEY.slice(0, -1), `${ADMIN_KEY}x`, `${ADMIN_KEY.slice(0, -1)}X`, 'x'.repeat(10_000), 'ä']

t.test('a key is compared in full and in constant time, however much of it is right', async t => {
  const isKey = keyCheck(ADMIN_KEY)
  for (const key of [...WRONG_KEYS, ADMIN_KEY, '']) {
    const lengths = await compared(() => t.equal(isKey(key), key === ADMIN_KEY))
    t.same(lengths, [[32, 32]], 'digests of equal length')
  }
  for (const key of [undefined, null, 5, [ADMIN_KEY], { toString: () => ADMIN_KEY }]) t.equal(isKey(key), false)
})

t.test('every endpoint that accepts the admin key compares it this way', async t => {
  const { call } = await withServer(t)
  const doors = {
    'GET /v1/devices': (key: string) => ({ headers: { 'x-admin': key } }),
    'GET /metrics': (key: string) => ({ headers: { authorization: `Bearer ${key}` } }),
    'POST /login': (key: string) => ({
      body: new URLSearchParams({ key }).toString(),
      headers: { 'content-type': 'application/x-www-form-urlencoded', 'sec-fetch-site': 'same-origin' },
    }),
  }
  for (const [target, request] of Object.entries(doors)) {
    for (const key of WRONG_KEYS.slice(0, 3)) {
      const lengths = await compared(async () =>
        t.match((await call(target, request(key))).status, target === 'POST /login' ? 403 : 401),
      )
      t.same(lengths, [[32, 32]], target)
    }
  }
})
