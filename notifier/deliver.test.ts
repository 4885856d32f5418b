// One message to one receiver: what is sent, what counts as accepted, and where nothing is sent.
import dns from 'node:dns'
import { syncBuiltinESMExports } from 'node:module'
import { createServer, type AddressInfo } from 'node:net'
import t, { type Test } from 'tap'
import { Webhook } from 'standardwebhooks'
import { withReceiver, type Answer } from '../testing/webhooks.ts'
import { readAllowed } from './addresses.ts'
import { deliver, type Message } from './deliver.ts'

type Address = { address: string; family: number }

/** Answers lookups of names in place of Node until the test ends. */
function answerLookups(t: Test, addresses: () => Address[]) {
  const { lookup } = dns
  const replace = (by: unknown) => {
    Object.assign(dns, { lookup: by })
    syncBuiltinESMExports()
  }
  replace((_host: string, _options: unknown, callback: (error: null, found: Address[]) => void) => callback(null, addresses()))
  t.teardown(() => replace(lookup))
}

const SECRETS = ['whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw', 'whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD']
const here = readAllowed('127.0.0.1')
const nowhere = readAllowed('')

function messageTo(url: string, more: Partial<Message> = {}): Message {
  return {
    delivery_id: '1',
    message_id: 'msg_0123456789abcdef',
    webhook_name: 'hook',
    url,
    format: 'json',
    secrets: SECRETS,
    event: 'offline',
    kind: 'first',
    first_id: null,
    attempts: 1,
    body: {
      type: 'device.offline',
      version: 1,
      timestamp: '2026-11-29T18:00:00+00:00',
      data: { kind: 'first', event: 'offline', device: { id: 7, alias: 'tablet "ü" 7', cohort: 'lobby' } },
    },
    ...more,
  }
}

t.test('a message is signed as in the Standard Webhooks specification, with each secret', async t => {
  const receiver = await withReceiver(t)
  t.same(await deliver(messageTo(`${receiver.url}/a/b?c=d`), here), { isAccepted: true, status: 204 })
  const [received] = receiver.received
  t.equal(received!.path, '/a/b?c=d')
  t.match(received!.headers, {
    'webhook-id': 'msg_0123456789abcdef',
    'content-type': 'application/json',
    'user-agent': /^NexMDM\//,
  })
  for (const secret of SECRETS)
    t.same(new Webhook(secret).verify(received!.text, received!.headers), messageTo('').body, 'the body arrives as it was signed')
  t.throws(() => new Webhook('whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA').verify(received!.text, received!.headers))
  t.throws(() => new Webhook(SECRETS[0]!).verify(`${received!.text} `, received!.headers))
})

t.test('the user of a URL becomes a header', async t => {
  const receiver = await withReceiver(t)
  await deliver(messageTo(receiver.url.replace('//', '//me:p%40ss@')), here)
  t.equal(receiver.received[0]!.headers.authorization, `Basic ${Buffer.from('me:p@ss').toString('base64')}`)
})

t.test('what is not 2xx, in time and to its end, is a failure, and says whether others would fail, too', async t => {
  const receiver = await withReceiver(t)
  const outcome = async (answer: Answer, timeoutMs?: number) => {
    receiver.answer = answer
    return await deliver(messageTo(`${receiver.url}/secret-path`), here, timeoutMs)
  }
  t.match(await outcome(500), { isAccepted: false, status: 500, error: 'it answered 500', isDown: true })
  t.match(await outcome(410), { status: 410, isDown: true })
  for (const status of [400, 413, 422]) t.match(await outcome(status), { status, isDown: false })
  t.match(await outcome(response => response.writeHead(429, { 'retry-after': '120' }).end()), { isDown: true, retryAfterS: 120 })
  const later = new Date(Date.now() + 600_000).toUTCString()
  const dated = await outcome(response => response.writeHead(503, { 'retry-after': later }).end())
  t.ok('retryAfterS' in dated && Math.abs(dated.retryAfterS! - 600) < 60)
  for (const nonsense of ['soon', '-5', '1e9', ''])
    t.match(
      await outcome(response => response.writeHead(503, { 'retry-after': nonsense }).end()),
      { retryAfterS: undefined },
      nonsense,
    )
  t.match(await outcome(() => {}, 200), { status: undefined, error: 'it did not answer within 0.2 s', isDown: true })
  t.match(
    await outcome(response => response.writeHead(200).write('begun'), 200),
    { isAccepted: false, error: 'it did not answer within 0.2 s' },
    'it stops in the middle of its answer',
  )
  t.match(await outcome(response => response.destroy()), { isAccepted: false, error: /socket hang up|ECONNRESET/ })
  t.match(
    await outcome(response => {
      response.writeHead(200, { 'content-length': '100' }).write('half')
      setTimeout(() => response.destroy(), 20)
    }),
    { isAccepted: false, error: 'it closed the connection before the end of its answer' },
  )
  t.match(
    await outcome(response => response.end('x'.repeat(1_000_000))),
    { isAccepted: true },
    'a long answer is not read to its end',
  )
  let sent = 0
  t.match(
    await outcome(response => {
      const more = () => {
        if (response.destroyed) return
        sent += 65_536
        response.write('x'.repeat(65_536), () => setImmediate(more))
      }
      more()
    }),
    { isAccepted: true },
    'and an endless one ends',
  )
  t.ok(sent > 0)
  const gone = await withReceiver(t)
  const { port } = gone
  t.match(await deliver(messageTo(`http://127.0.0.1:${port === 1 ? 2 : 1}/secret-path`), here), {
    error: /ECONNREFUSED/,
    isDown: true,
  })
})

t.test('a redirect is a failure, and its target gets nothing', async t => {
  const target = await withReceiver(t)
  for (const status of [301, 302, 303, 307, 308]) {
    const receiver = await withReceiver(t, response => response.writeHead(status, { location: `${target.url}/x?y` }).end())
    t.match(await deliver(messageTo(receiver.url), here), {
      isAccepted: false,
      status,
      error: `it answered ${status}, a redirect to ${target.url}, which is not followed`,
    })
  }
  t.same(target.received, [])
})

t.test('nothing is sent to an address that is not public, in whatever way it is written', async t => {
  const receiver = await withReceiver(t)
  const { port } = receiver
  for (const host of [
    '127.0.0.1',
    'localhost',
    '127.1',
    '2130706433',
    '0x7f.0.0.1',
    '0177.0.0.1',
    '0',
    '0.0.0.0',
    '[::1]',
    '[::]',
    '[::ffff:127.0.0.1]',
    '[::ffff:7f00:1]',
    'user@127.0.0.1',
    '１２７.0.0.1',
    '127.0.0.1.',
  ]) {
    for (const scheme of ['http', 'https'])
      t.match(
        await deliver(messageTo(`${scheme}://${host}:${port}/`), nowhere),
        { isAccepted: false, error: /not a public address|ENOTFOUND/ },
        host,
      )
  }
  t.match(await deliver(messageTo('http://169.254.169.254/latest/meta-data/'), nowhere), {
    error: /^169.254.169.254 is not a public address/,
  })
  t.same(receiver.received, [])
  t.match(
    await deliver(messageTo(`http://localhost:${port}/`), readAllowed('localhost')),
    { isAccepted: true },
    'a host that is named',
  )
})

t.test('a name is looked up once for each message, and the address that is judged is the one that is used', async t => {
  const receiver = await withReceiver(t)
  let asked = 0
  // Rebinding: a lookup that judges the first answer and connects to the second one would be misled.
  answerLookups(t, () => [{ address: ++asked % 2 === 1 ? '127.0.0.1' : '127.0.0.2', family: 4 }])
  const url = `http://rebinding.example:${receiver.port}/`
  t.match(await deliver(messageTo(url), here), { isAccepted: true })
  t.equal(asked, 1)
  t.match(await deliver(messageTo(url), here), {
    isAccepted: false,
    error: /^rebinding.example is not a public address[^0-9]*$/,
  })
  t.equal(asked, 2, 'the next message is judged by the address that the name has now')
  t.equal(receiver.received.length, 1)
})

t.test('of several addresses only those that are allowed are used', async t => {
  const receiver = await withReceiver(t)
  answerLookups(t, () => [
    { address: '::1', family: 6 },
    { address: '127.0.0.2', family: 4 },
    { address: '127.0.0.1', family: 4 },
  ])
  const url = `http://mixed.example:${receiver.port}/`
  t.match(await deliver(messageTo(url), here), { isAccepted: true })
  t.equal(receiver.received.length, 1)
})

t.test('the address is judged again when it is connected, before anything is sent', async t => {
  let bytes = 0
  const server = createServer(socket => {
    socket.on('error', () => {})
    socket.on('data', chunk => (bytes += chunk.length))
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  t.teardown(() => server.close())
  const { port } = server.address() as AddressInfo
  // Allowed the first time only, as if the lookup had been circumvented.
  let calls = 0
  const once = { ...nowhere, hosts: Object.assign(new Set<string>(), { has: () => ++calls === 1 }) }
  for (const scheme of ['http', 'https']) {
    calls = 0
    t.match(await deliver(messageTo(`${scheme}://127.0.0.1:${port}/`), once, 1000), {
      isAccepted: false,
      error: /^127.0.0.1 is not a public address/,
    })
    t.equal(calls, 2)
  }
  t.equal(bytes, 0)
})

t.test('no secret and no path is in what is recorded', async t => {
  const receiver = await withReceiver(t)
  const outcomes = []
  for (const answer of [500, 302, (response: { destroy: () => void }) => response.destroy()]) {
    receiver.answer = answer
    outcomes.push(await deliver(messageTo(`http://user:hunter2@127.0.0.1:${receiver.port}/T0/B0/secret?token=x`), here, 500))
  }
  outcomes.push(await deliver(messageTo('http://user:hunter2@127.0.0.1:1/T0/B0/secret?token=x'), here, 500))
  outcomes.push(await deliver(messageTo('http://user:hunter2@127.0.0.1:1/T0/B0/secret?token=x'), nowhere, 500))
  t.equal(outcomes.filter(({ isAccepted }) => !isAccepted).length, 5)
  t.notMatch(JSON.stringify(outcomes), /hunter2|secret|token|T0|whsec/)
})
