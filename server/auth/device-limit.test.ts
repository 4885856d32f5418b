import { hash } from 'node:crypto'
import { Agent, request } from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { waitFor, withDatabase, type TestDatabase } from '../../testing/database.ts'
import { ago, client, enroll, gatewayToken, stored, withProcess, withServer, type Call } from '../../testing/server.ts'
import { Problem } from '../problem.ts'
import { DeviceLimit } from './device-limit.ts'

/** A hash with chosen first digits. */
function hashOf(prefix: string, n: number) {
  return prefix + hash('sha256', String(n)).slice(prefix.length)
}

/** Moves the time of the limit on. Its minutes do not begin with those of a device. */
function clocked(perMinute: number, max?: number) {
  const clock = { now: 1_000_000, minute: 1_020_000 }
  const refused: string[] = []
  const limit = new DeviceLimit(
    perMinute,
    hash => refused.push(hash),
    () => clock.now,
    max,
  )
  const at = (ms: number) => {
    clock.now = ms
    for (; clock.minute <= ms; clock.minute += 60_000) limit.nextMinute()
  }
  /** How many seconds the device has to wait, or 0. */
  const wait = (hash: string) => {
    try {
      limit.check(hash)
      return 0
    } catch (error) {
      return Number((error as Problem).headers['retry-after'])
    }
  }
  return { limit, clock, refused, at, wait, start: clock.now }
}

t.test('a device that sends as fast as it can is let through with a minute’s requests, and then at the pace of the limit', t => {
  const { refused, at, wait, start } = clocked(300)
  const one = hashOf('', 1)
  let accepted = 0
  // A hundred requests a second for ten minutes.
  for (let ms = 0; ms < 600_000; ms += 10) {
    at(start + ms)
    if (wait(one) === 0) accepted++
  }
  t.ok(accepted >= 300 * 10, `${accepted} were accepted: never less than the limit`)
  t.ok(accepted <= 300 * 12, `${accepted} were accepted: the limit, and twice the limit once`)
  t.equal(refused.length, 60_000 - accepted)
  t.same(new Set(refused), new Set([one]))
  at(start + 600_000 + 60_000)
  for (let n = 0; n < 300; n++) t.equal(wait(one), 0, 'after a quiet minute a minute’s requests at once')
  t.end()
})

t.test('Retry-After is when the next request is accepted', t => {
  const { at, wait, clock } = clocked(20)
  const one = hashOf('', 1)
  while (wait(one) === 0);
  for (let n = 0; n < 50; n++) {
    const seconds = wait(one)
    t.ok(seconds >= 1 && seconds <= 3, `${seconds} s`)
    at(clock.now + seconds * 1_000 - 1_001)
    t.ok(wait(one) > 0, 'a second earlier it is not accepted')
    at(clock.now + 1_001)
    t.equal(wait(one), 0, 'a refused request does not make the next one wait longer')
  }
  t.end()
})

t.test('a device that replays a day one by one, and obeys, finishes at the pace of the limit', t => {
  const { refused, at, wait, clock, start } = clocked(300)
  const one = hashOf('', 1)
  for (let n = 0; n < 1_440; n++) {
    at(clock.now + 5)
    for (let seconds = wait(one); seconds > 0; seconds = wait(one)) at(clock.now + seconds * 1_000)
  }
  const minutes = (clock.now - start) / 60_000
  t.ok(minutes < 1_440 / 300, `${minutes} minutes`)
  t.ok(refused.length > 0 && refused.length < 1_440 / 4, `${refused.length} were refused on the way`)
  t.end()
})

t.test('no device below the limit is refused, whatever the devices send whose hashes begin as its own', t => {
  for (const perMinute of [1, 2, 7, 300, 2_000]) {
    const { refused, at, wait, start } = clocked(perMinute)
    const [innocent, ...others] = Array.from({ length: 4 }, (_, n) => hashOf('abcd', n)) as [string, ...string[]]
    let accepted = 0
    // In the first and the third two minutes it sends evenly, and in the middle of the second all of a minute at once.
    for (let n = 0; n < 6 * perMinute; n++) {
      at(start + (n * 60_000) / perMinute)
      // Each of the others sends four times as much.
      for (let times = 0; times < 4; times++) for (const other of others) wait(other)
      const isBurst = n === 3 * perMinute
      const own = isBurst ? perMinute : n < 2 * perMinute || n >= 4 * perMinute ? 1 : 0
      for (let times = 0; times < own; times++) accepted += wait(innocent) === 0 ? 1 : 0
    }
    t.equal(accepted, 5 * perMinute, `${perMinute} a minute`)
    t.ok(refused.length > 10 * perMinute, `${refused.length} requests of the others were refused`)
  }
  t.end()
})

t.test('devices that send what devices send are not even counted by themselves', t => {
  const { limit, at, wait, start } = clocked(300)
  for (let minute = 0; minute < 5; minute++) {
    at(start + minute * 60_000)
    for (let n = 0; n < 100_000; n++) if (wait(hashOf('', n)) > 0) t.fail('refused')
  }
  t.equal(limit.size, 0)
  // One that was fast is, until a minute was quiet.
  const fast = hashOf('1234', 0)
  for (let n = 0; n < 1_000; n++) wait(fast)
  t.equal(limit.size, 1)
  wait(hashOf('1234', 1))
  t.equal(limit.size, 2, 'and so are those that share its counter')
  at(start + 7 * 60_000)
  wait(hashOf('1234', 2))
  t.equal(limit.size, 2)
  t.end()
})

t.test('memory is bounded, however many devices send too much, and the busiest is not forgotten', t => {
  const { limit, wait } = clocked(4, 100)
  const fast = hashOf('', 0)
  while (wait(fast) === 0);
  let forgotten = 0
  for (let n = 1; n < 20_000; n++) {
    for (let times = 0; times < 4; times++) wait(hashOf('0000', n))
    if (wait(fast) === 0) forgotten++
  }
  t.equal(forgotten, 0)
  t.equal(limit.size, 100)
  t.end()
})

t.test('a counter that is full stays full', t => {
  const { at, wait, start, refused } = clocked(100_000)
  const one = hashOf('ffff', 1)
  for (let n = 0; n < 200_000; n++) wait(one)
  t.equal(refused.length, 200_000 - 150_000)
  at(start + 30_000)
  t.equal(wait(hashOf('ffff', 2)), 0)
  t.end()
})

t.test('without a limit nothing is refused', t => {
  const { wait } = clocked(0)
  for (let n = 0; n < 100_000; n++) if (wait(hashOf('', 1)) > 0) t.fail('refused')
  t.end()
})

t.test('a token that proves to be wrong is forgotten here', t => {
  const { limit, wait } = clocked(4)
  const wrong = hashOf('', 1)
  for (let n = 0; n < 1_000; n++) {
    t.equal(wait(wrong), 0)
    limit.forget(wrong)
  }
  t.end()
})

const CALLS = [
  ['POST /v1/heartbeat', (n: number) => ({ ts: ago(20 * n) })],
  ['POST /v1/heartbeats', (n: number) => [{ ts: ago(20 * n) }]],
  ['GET /v1/commands', () => undefined],
  ['POST /v1/commands/1/ack', () => undefined],
] as const

function send(call: Call, token: string, n: number) {
  const [target, body] = CALLS[n % CALLS.length]!
  return call(target, { token, body: body(n) })
}

/** Sends until a request is refused. */
async function exhaust(call: Call, token: string) {
  for (let n = 1; ; n++) {
    const answer = await send(call, token, n)
    if (answer.status === 429) return answer
  }
}

async function metric(call: Call, name: string) {
  const { body } = await call('GET /metrics', { admin: true })
  return Number(new RegExp(`^${name} (\\d+)`, 'm').exec(body as string)![1])
}

function checked({ sql }: TestDatabase) {
  return sql`select status, detail, remedy from fleet.check() where check_name = 'slowed_devices'`
}

t.test('a device that sends too much is refused, in every call, and a good one behind the same address goes on', async t => {
  const { db, call, slowed } = await withServer(t, { deviceRequestsPerMinute: 20 })
  const [fast, good] = [await enroll(db, 'fast'), await enroll(db, 'good')]
  const gateway = await gatewayToken(db, 'hall')
  t.match(await checked(db), [{ status: 'ok', remedy: null }])
  const refused = await exhaust(call, fast.token)
  t.match(refused, {
    status: 429,
    body: {
      title: 'Too Many Requests',
      detail: /^This device has sent more than 20 requests in a minute\. .* nothing was acknowledged\.$/,
      hint: /as one batch/,
    },
  })
  t.match(refused.headers.get('retry-after'), /^[123]$/)

  const before = await metric(call, 'db_pool_statements_total')
  // The statements of /metrics itself.
  const own = (await metric(call, 'db_pool_statements_total')) - before
  const statuses = new Map<string, Set<number>>(CALLS.map(([target]) => [target, new Set()]))
  let accepted = 0
  for (let n = 0; n < 200; n++) {
    const { status } = await send(call, fast.token, n)
    statuses.get(CALLS[n % CALLS.length]![0])!.add(status)
    if (status !== 429) accepted++
  }
  for (const [target, seen] of statuses) t.ok(seen.has(429), target)
  t.ok(accepted < 100, `${accepted} of 200 were accepted`)
  const statements = (await metric(call, 'db_pool_statements_total')) - before - 2 * own
  t.ok(statements <= accepted, `no statement for a refused request: ${statements} statements, ${accepted} accepted`)

  t.equal((await call('POST /v1/heartbeat', { token: good.token, body: { ts: ago(20) } })).status, 201)
  for (let n = 0; n < 200; n++) {
    const body = [{ device_id: fast.device_id, ts: ago(20 * n) }]
    t.equal((await call('POST /v1/heartbeats', { token: gateway, body })).status, 200, 'a gateway sends for many')
  }
  const answer = await exhaust(call, fast.token)
  await sleep(1_000 * Number(answer.headers.get('retry-after')))
  t.equal((await call('GET /v1/commands', { token: fast.token })).status, 200, 'after Retry-After it is accepted')

  await slowed.tell()
  const times = await metric(call, 'hb_slowed_total')
  t.ok(times >= 200 - accepted)
  const rows = await db.sql`
    select device_id::int, alias, cohort, sum(times)::int as times, min(first_at) <= max(last_at) as is_ordered
    from fleet.slowed_devices group by 1, 2, 3`
  t.same([...rows], [{ device_id: fast.device_id, alias: 'fast', cohort: 'default', times, is_ordered: true }])
  t.match(await checked(db), [
    {
      status: 'warn',
      detail: new RegExp(
        `^1 devices sent .* Refused \\(429\\) were ${times} requests: device ${fast.device_id} \\(fast\\): ${times} since \\d\\d:\\d\\d UTC$`,
      ),
      remedy: /fleet\.slowed_devices/,
    },
  ])
})

t.test('wrong tokens are not counted here, and no report of them is kept', async t => {
  const { db, call, slowed } = await withServer(t, { deviceRequestsPerMinute: 4 })
  const { device_id, token } = await enroll(db, 'a')
  for (const wrong of [`nxd_${'0'.repeat(64)}`, `nxd_${device_id}_${'0'.repeat(64)}`])
    for (let n = 0; n < 50; n++) t.equal((await send(call, wrong, n)).status, 401)
  t.equal(await metric(call, 'hb_slowed_total'), 0)
  await exhaust(call, token)
  await db.sql`select fleet.renew_token(${device_id})`
  await slowed.tell()
  t.ok((await metric(call, 'hb_slowed_total')) > 0)
  t.same([...(await db.sql`select from fleet.slowed_devices`)], [], 'the token is not of any device now')
})

t.test('counts that the database did not take are reported later', async t => {
  const { db, call, slowed } = await withServer(t, { deviceRequestsPerMinute: 4 })
  const { token } = await enroll(db, 'a')
  await db.sql`alter table fleet.device_slowdowns rename to away`
  await exhaust(call, token)
  await slowed.tell()
  await exhaust(call, token)
  await db.sql`alter table fleet.away rename to device_slowdowns`
  await slowed.tell()
  const [row] = await db.sql`select sum(times)::int as times from fleet.slowed_devices`
  t.same(row, { times: await metric(call, 'hb_slowed_total') })
})

t.test('a device that replays its buffer one by one loses nothing', async t => {
  const { db, call } = await withServer(t, { deviceRequestsPerMinute: 120 })
  const { device_id, token } = await enroll(db, 'a')
  let refused = 0
  for (let n = 1; n <= 200; n++) {
    const body = { ts: ago(20 * n) }
    for (;;) {
      const { status, headers } = await call('POST /v1/heartbeat', { token, body })
      if (status === 201) break
      t.equal(status, 429)
      refused++
      await sleep(1_000 * Number(headers.get('retry-after')))
    }
  }
  // A machine that is busy enough sends no faster than the limit.
  t.comment(`${refused} were refused on the way`)
  t.equal((await stored(db, device_id)).length, 200)
})

/** A client with one connection, which one worker answers. */
function connected(t: Test, url: string): Call {
  const agent = new Agent({ keepAlive: true, maxSockets: 1 })
  t.teardown(() => agent.destroy())
  return (call, { token, body } = {}) =>
    new Promise((resolve, reject) => {
      const [method, path] = call.split(' ') as [string, string]
      const headers = { authorization: `Bearer ${token}`, 'content-type': 'application/json' }
      request(url + path, { method, agent, headers }, response => {
        response.resume().on('end', () => resolve({ status: response.statusCode!, headers: new Headers(), body: '' }))
      })
        .on('error', reject)
        .end(body === undefined ? undefined : JSON.stringify(body))
    })
}

t.test('each worker counts for itself, and /metrics has the sum', async t => {
  const db = await withDatabase(t)
  const { token } = await enroll(db, 'a')
  const { server, url } = await withProcess(t, db, { WORKERS: '2', DEVICE_REQUESTS_PER_MINUTE: '20' })
  await waitFor(async () => server.output().split('"worker.started"').length === 3)
  // Connections are handed to the workers in turn.
  const connections = Array.from({ length: 4 }, () => connected(t, url))
  for (const connection of connections) t.not((await send(connection, token, 3)).status, 429)
  await exhaust(connections[0]!, token)
  const statuses = []
  for (const connection of connections) statuses.push((await send(connection, token, 3)).status)
  t.same(new Set(statuses), new Set([404, 429]), 'one worker refuses the device, and the other accepts it')
  let times = 0
  for (const connection of connections) times += (await exhaust(connection, token)).status === 429 ? 1 : 0
  t.ok((await metric(client(url), 'hb_slowed_total')) >= times)
})
