import { randomBytes } from 'node:crypto'
import type { IncomingMessage } from 'node:http'
import t from 'tap'
import { waitFor } from '../../testing/database.ts'
import { WRONG_KEYS_PER_MINUTE } from '../server.ts'
import { DeviceLimit } from './device-limit.ts'
import { RateLimit } from './rate-limit.ts'
import { Tokens } from './tokens.ts'
import { Problem } from '../problem.ts'
import { ADMIN_KEY, ago, enroll, gatewayToken, withServer, type Call } from '../../testing/server.ts'

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

t.test(
  'a flood of wrong tokens is mostly refused without a query, and good devices go on, behind the same address and others',
  async t => {
    const { db, call } = await withServer(t, { wrongTokensPerMinute: 20, trustProxy: true })
    const [known, late, other] = [await enroll(db, 'known'), await enroll(db, 'late'), await enroll(db, 'other')]
    const gateway = await gatewayToken(db, 'hall')
    const from = (address: string) => ({ 'x-forwarded-for': address })
    let beats = 0
    const beat = (token: string, address: string) =>
      call('POST /v1/heartbeat', { token, body: { ts: ago(20 * ++beats) }, headers: from(address) })
    const batch = () =>
      call('POST /v1/heartbeats', {
        token: gateway,
        body: [{ device_id: known.device_id, ts: ago(20 * ++beats) }],
        headers: from('192.0.2.1'),
      })
    const targets = ['POST /v1/heartbeat', 'POST /v1/heartbeats', 'GET /v1/commands', 'POST /v1/commands/1/ack']
    const wrong = (n: number) => {
      const target = targets[n % targets.length]!
      const body = target === 'POST /v1/heartbeat' ? {} : [{}]
      return call(target, { token: unknownToken(), headers: from('192.0.2.1'), ...(target.includes('heartbeat') && { body }) })
    }

    t.equal((await wrong(0)).status, 401)
    t.equal((await beat(known.token, '192.0.2.1')).status, 201, 'found good while wrong ones came from its address')
    t.equal((await batch()).status, 200)
    for (let n = 1; n < 20; n++) t.equal((await wrong(n)).status, 401, 'below the limit')

    const before = await metric(call, 'db_pool_statements_total')
    const statuses: number[] = []
    const waits = new Set<string | null>()
    let flooding = true
    const flood = Promise.all(
      Array.from({ length: 16 }, async (_, client) => {
        for (let n = client; flooding; n++) {
          const { status, headers } = await wrong(n)
          statuses.push(status)
          if (status === 429) waits.add(headers.get('retry-after'))
        }
      }),
    )
    await waitFor(() => Promise.resolve(statuses.includes(429)))
    let good = 0
    for (let n = 0; n < 50; n++) {
      t.equal((await beat(known.token, '192.0.2.1')).status, 201)
      t.equal((await batch()).status, 200)
      t.equal((await beat(other.token, '192.0.2.2')).status, 201)
      good += 3
    }
    const first: number[] = []
    await waitFor(async () => {
      first.push((await beat(late.token, '192.0.2.1')).status)
      return first.at(-1) === 201
    })
    t.same(new Set(first.slice(0, -1)), first.length > 1 ? new Set([429]) : new Set(), 'a new one may have to come again')
    for (let n = 0; n < 20; n++) t.equal((await beat(late.token, '192.0.2.1')).status, 201, 'but is then held up no more')
    good += 22
    flooding = false
    await flood
    const looked = statuses.filter(status => status === 401).length
    t.same(new Set(statuses), new Set([401, 429]))
    t.ok([...waits].every(wait => /^[1-5]$/.test(wait ?? '')))
    t.ok(looked < statuses.length / 2, `${looked} of ${statuses.length} were looked up`)
    const statements = (await metric(call, 'db_pool_statements_total')) - before
    // /metrics asks the database, too.
    t.ok(statements <= looked + good + 5, `${statements} statements`)
    t.ok((await metric(call, 'auth_refused_total')) >= statuses.length - looked)

    await db.sql`select fleet.revoke_device(${known.device_id})`
    t.equal((await beat(known.token, '192.0.2.1')).status, 401, 'that it was good before authorizes nothing')
    const text = await call('POST /v1/heartbeat', { token: 'nothing like a token', body: {}, headers: from('192.0.2.1') })
    t.equal(text.status, 401, 'no lookup, so no limit')
    t.equal(
      (await call('GET /v1/devices', { admin: true, headers: from('192.0.2.1') })).status,
      200,
      'admin keys have their own limit',
    )
  },
)

t.test('memory is bounded, however many good tokens come from a network with wrong ones', t => {
  const rateLimit = new RateLimit(false, 1)
  const tokens = new Tokens(undefined as never, rateLimit, new DeviceLimit(0))
  const client = from('192.0.2.1')
  const token = (n: number) => ({ hash: String(n), isGateway: false, deviceId: null })
  tokens.judged(token(0), client, true)
  t.equal(tokens.remembered, 0, 'nothing is remembered as long as there are no wrong ones')
  for (let n = 0; n < 60_000; n++) {
    tokens.judged({ hash: `wrong ${n}`, isGateway: false, deviceId: null }, from(`10.0.${n >> 8}.${n & 255}`), false)
    tokens.judged(token(n), from(`10.0.${n >> 8}.${n & 255}`), true)
  }
  t.equal(tokens.remembered, 50_000)
  tokens.judged(token(59_999), client, false)
  t.equal(tokens.remembered, 49_999, 'a token that is no longer good is forgotten')
  t.end()
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
