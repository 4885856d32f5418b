import { randomBytes } from 'node:crypto'
import type { IncomingMessage } from 'node:http'
import t from 'tap'
import { waitFor } from '../../testing/database.ts'
import { WRONG_KEYS_PER_MINUTE } from '../app.ts'
import { RateLimit } from './rate-limit.ts'
import { Problem } from '../problem.ts'
import { ADMIN_KEY, enroll, gatewayToken, withServer, type Call } from '../../testing/server.ts'

function from(remoteAddress: string, forwarded?: string) {
  return {
    socket: { remoteAddress },
    headers: forwarded === undefined ? {} : { 'x-forwarded-for': forwarded },
  } as unknown as IncomingMessage
}

/** How many seconds the client has to wait, or 0. */
function wait(rateLimit: RateLimit, client: IncomingMessage) {
  try {
    rateLimit.check(client)
    return 0
  } catch (error) {
    return Number((error as Problem).headers['retry-after'])
  }
}

const unknownToken = () => `nxd_${randomBytes(32).toString('hex')}`

async function metric(call: Call, name: string) {
  const { body } = await call('GET /metrics', { admin: true })
  return Number(new RegExp(`^${name} (\\d+)`, 'm').exec(body as string)![1])
}

t.test('an address may send a limited number of wrong tokens a minute, and other addresses are not affected', async t => {
  const clock = { now: 1_000 }
  let refused = 0
  const rateLimit = new RateLimit(
    false,
    60,
    () => void refused++,
    () => clock.now,
  )
  const client = from('192.0.2.1')
  for (let n = 0; n < 60; n++) {
    t.equal(wait(rateLimit, client), 0)
    rateLimit.wrong(client)
  }
  t.equal(wait(rateLimit, client), 1)
  t.equal(wait(rateLimit, from('192.0.2.2')), 0)
  t.equal(refused, 1)
  clock.now += 1_000
  t.equal(wait(rateLimit, client), 0, 'one more each second')
  rateLimit.wrong(client)
  t.equal(wait(rateLimit, client), 1)
  clock.now += 60_000
  for (let n = 0; n < 60; n++) rateLimit.wrong(client)
  t.equal(wait(rateLimit, client), 1, 'after a minute the full number again')
  // Many at once: all were looked up before the first was found to be wrong.
  for (let n = 0; n < 10_000; n++) rateLimit.wrong(client)
  t.equal(wait(rateLimit, client), 301, 'all of them count, but the wait is limited')
  clock.now += 301_000
  t.equal(wait(rateLimit, client), 0)
})

t.test('behind a proxy the address that our proxy wrote counts, and an IPv6 network counts as one address', async t => {
  const rateLimit = new RateLimit(true, 1)
  rateLimit.wrong(from('10.0.0.1', '203.0.113.9'))
  t.ok(wait(rateLimit, from('10.0.0.1', 'forged, 203.0.113.9')) > 0, 'whatever the client wrote before it')
  t.equal(wait(rateLimit, from('10.0.0.1', '203.0.113.10')), 0)
  rateLimit.wrong(from('10.0.0.1', '2001:db8::1'))
  t.ok(wait(rateLimit, from('10.0.0.1', '2001:DB8:0:0:ffff::2')) > 0)
  t.equal(wait(rateLimit, from('10.0.0.1', '2001:db8:0:1::1')), 0)
  const direct = new RateLimit(false, 1)
  direct.wrong(from('192.0.2.1', '203.0.113.9'))
  t.ok(wait(direct, from('192.0.2.1', '203.0.113.10')) > 0, 'without a trusted proxy the header is ignored')
})

t.test('memory is bounded, however many addresses there are', async t => {
  const rateLimit = new RateLimit(
    false,
    1,
    () => {},
    () => 0,
    100,
  )
  for (let n = 0; n < 1_000; n++) {
    rateLimit.wrong(from('192.0.2.1'))
    rateLimit.wrong(from(`10.0.${n >> 8}.${n & 255}`))
  }
  t.equal(rateLimit.size, 100)
  t.ok(wait(rateLimit, from('192.0.2.1')) > 0, 'an address that keeps guessing is not forgotten')
})

t.test('an address that tries tokens is refused without a lookup, and devices behind the same address keep working', async t => {
  const { db, call } = await withServer(t, { wrongTokensPerMinute: 20 })
  const [device, gateway] = [await enroll(db, 'a'), await gatewayToken(db, 'hall')]
  await waitFor(async () => (await call('POST /v1/heartbeat', { token: device.token, body: {} })).status < 300)
  t.equal((await call('POST /v1/heartbeats', { token: gateway, body: [{ device_id: device.device_id }] })).status, 200)
  const before = await metric(call, 'device_cache_misses_total')

  const statuses: number[] = []
  for (let n = 0; n < 300; n++) {
    const target = ['POST /v1/heartbeat', 'POST /v1/heartbeats', 'GET /v1/commands', 'POST /v1/commands/1/ack'][n % 4]!
    const { status, headers } = await call(target, { token: unknownToken(), ...(target.includes('heartbeat') && { body: {} }) })
    statuses.push(status)
    if (status === 429) t.match(headers.get('retry-after'), /^\d{1,3}$/)
  }
  const lookups = (await metric(call, 'device_cache_misses_total')) - before
  t.same(new Set(statuses), new Set([401, 429]))
  t.equal(statuses.filter(status => status === 401).length, lookups)
  t.equal(
    statuses.slice(0, 20).every(status => status === 401),
    true,
  )
  t.ok(statuses.filter(status => status === 429).length > 200, `${lookups} of 300 were looked up`)
  t.ok((await metric(call, 'auth_refused_total')) > 200)
  t.equal((await call('POST /v1/heartbeat', { token: 'nothing like a token', body: {} })).status, 401, 'no lookup, so no limit')

  t.equal((await call('POST /v1/heartbeat', { token: device.token, body: {} })).status < 300, true)
  t.equal((await call('POST /v1/heartbeats', { token: gateway, body: [{ device_id: device.device_id }] })).status, 200)
  t.equal((await call('GET /v1/devices', { admin: true })).status, 200, 'the admin key has a limit of its own')
})

t.test('a token that was known is looked up again, whatever else comes from its address', async t => {
  const { db, call } = await withServer(t, { wrongTokensPerMinute: 1 })
  const a = await enroll(db, 'a')
  await waitFor(async () => (await call('POST /v1/heartbeat', { token: a.token, body: {} })).status < 300)
  for (let n = 0; n < 3; n++) await call('POST /v1/heartbeat', { token: unknownToken(), body: {} })
  const b = await enroll(db, 'b')
  t.equal((await call('POST /v1/heartbeat', { token: b.token, body: {} })).status, 429, 'a new token waits')
  t.equal((await call('POST /v1/heartbeat', { token: a.token, body: {} })).status < 300, true)
})

t.test(
  "an address that tries admin keys is refused after a minute's worth, even with the right key, and a missing key does not count",
  async t => {
    const { call } = await withServer(t)
    for (let n = 0; n < WRONG_KEYS_PER_MINUTE + 20; n++) t.equal((await call('GET /metrics')).status, 401)
    t.equal((await call('GET /metrics', { admin: true })).status, 200)
    let refused = 0
    for (let n = 0; n < WRONG_KEYS_PER_MINUTE + 20; n++) {
      const wrong = { 'x-admin': `${ADMIN_KEY.slice(0, -1)}${n}` }
      const bearer = { authorization: `Bearer ${ADMIN_KEY}${n}` }
      const { status } = await call(n % 2 === 0 ? 'GET /v1/devices' : 'GET /metrics', { headers: n % 2 === 0 ? wrong : bearer })
      if (status === 429) refused++
      else t.equal(status, 401)
    }
    t.ok(refused > 0)
    // The loop may have been slower than one key a second. Then it takes some more.
    let answer = await call('GET /v1/devices', { headers: { 'x-admin': 'x' } })
    while (answer.status === 401) answer = await call('GET /v1/devices', { headers: { 'x-admin': 'x' } })
    t.match(await call('GET /v1/devices', { admin: true }), { status: 429, body: { detail: /Too many wrong tokens or keys/ } })
  },
)
