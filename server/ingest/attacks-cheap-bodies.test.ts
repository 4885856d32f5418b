// The smallest bodies that cause the most work, as a device with a token could send them.
import { gzipSync } from 'node:zlib'
import fc from 'fast-check'
import t from 'tap'
import {
  findExcess,
  MAX_BATCH_BYTES,
  MAX_BATCH_ITEMS,
  MAX_CONTAINERS,
  MAX_LINES,
  MAX_VALUES,
  readItems,
  type BatchType,
} from './batch.ts'
import { MAX_BODY_BYTES, MAX_INFLATION, MAX_PIECES } from '../body.ts'
import { answer, withVictim } from '../../testing/hostile-server.ts'
import { Problem } from '../problem.ts'
import { enroll, withServer } from '../../testing/server.ts'

const LINES = { 'content-type': 'application/x-ndjson' }
const GZIP = { 'content-encoding': 'gzip' }

/** Short parts that are repeated: those that compress best, and every kind of part that takes a parser time. */
const part = fc.oneof(
  fc.constantFrom(
    '\n',
    '\r\n',
    ' ',
    '\n ',
    '[',
    ']',
    '{',
    '}',
    '[],',
    '{},',
    '{"a":',
    '"',
    '""',
    '"",',
    '1,',
    '-0,',
    '0.1,',
    '1e999,',
    'x\n',
    '"\n',
    '\\\n',
    '\\',
    '[]\n',
    '{}\n',
    '1\n',
    'null,',
    '"a":1,',
    '{"ts":1,"battery_pct":"","network_type":1}\n',
    '\0',
    '\ufeff',
    'é',
    '😀',
  ),
  fc.string({ maxLength: 4, unit: 'binary' }),
)
const run = fc.tuple(part, fc.oneof(fc.nat(40), fc.nat(MAX_BATCH_BYTES))).map(([text, times]) => repeated(text, times))
/** Keys, strings or shapes that all differ cost the most, and still compress well. */
const distinct = fc
  .tuple(
    fc.constantFrom(
      (n: string) => `"${n}":0,`,
      (n: string) => `"${n}",`,
      (n: string) => `{"${n}":0},`,
      (n: string) => `{"${n}":0}\n`,
    ),
    fc.nat(120_000),
  )
  .map(([write, times]) =>
    Array.from({ length: times }, (_, n) => write(`${n.toString(36)}z`))
      .join('')
      .slice(0, MAX_BATCH_BYTES),
  )
const body = fc
  .tuple(
    fc.constantFrom('', '[', '[{', '{"junk":['),
    fc.array(fc.oneof({ weight: 4, arbitrary: run }, { weight: 1, arbitrary: distinct }), { minLength: 1, maxLength: 3 }),
    fc.constantFrom('', '1]', '"x":1}]', '1]}'),
  )
  .map(([open, parts, close]) => Buffer.from(open + parts.join('') + close).subarray(0, MAX_BATCH_BYTES))

function repeated(text: string, times: number) {
  return text === '' ? '' : text.repeat(Math.min(times, Math.floor(MAX_BATCH_BYTES / Buffer.byteLength(text))))
}

/** Counts everything that the parser created. */
function count(value: unknown): { containers: number; values: number } {
  const all = { containers: 0, values: 1 }
  const open = [value]
  while (open.length > 0) {
    const next = open.pop()
    if (typeof next !== 'object' || next === null) continue
    all.containers++
    for (const inner of Object.values(next)) {
      all.values++
      open.push(inner)
    }
  }
  return all
}

t.test('every body is either refused before parsing or costs no more than a batch may', t => {
  const parse = t.capture(JSON, 'parse', JSON.parse.bind(JSON))
  let refused = 0
  let parsed = 0
  fc.assert(
    fc.property(body, fc.constantFrom<BatchType>('application/json', 'application/x-ndjson'), (body, type) => {
      parse.args()
      let items
      try {
        items = readItems(body, type)
      } catch (error) {
        if (!(error instanceof Problem)) throw error
      }
      const calls = parse.args()
      if (calls.length === 0) {
        refused++
        return
      }
      parsed++
      if (calls.length > MAX_BATCH_ITEMS + 1) throw new Error(`${calls.length} calls of the parser`)
      // The text that the parser was given, whether or not it accepted it.
      const given = calls.map(([text]) => Buffer.from(String(text)))
      const isLines = type === 'application/x-ndjson'
      const whole = isLines ? Buffer.concat(given.flatMap(line => [line, Buffer.from('\n')])) : given[0]!
      if (findExcess(whole, isLines)) throw new Error('the parser got more than is allowed')
      if (items === undefined) return
      const { containers, values } = count(items)
      // With lines, our code makes the list, and the last value of each line has no comma after it.
      if (containers > MAX_CONTAINERS + 1) throw new Error(`${containers} arrays and objects`)
      if (values > MAX_VALUES + MAX_CONTAINERS + MAX_BATCH_ITEMS) throw new Error(`${values} values`)
    }),
    {
      numRuns: 300,
      examples: [
        [Buffer.alloc(MAX_BATCH_BYTES, '\n'), 'application/x-ndjson'],
        [
          Buffer.from(`[{${Array.from({ length: 100_000 }, (_, n) => `"${n.toString(36)}z":0,`).join('')}"x":1}]`),
          'application/json',
        ],
      ],
    },
  )
  t.ok(refused > 20 && parsed > 20, `${refused} were refused unparsed, ${parsed} parsed`)
  t.end()
})

t.test('a body over a limit is refused with the limit, and a body at the limit is accepted', async t => {
  const { db, call } = await withServer(t)
  const { token } = await enroll(db, 'a')
  const send = async (body: string | Uint8Array, headers: Record<string, string> = {}) => {
    const { status, body: said } = await call('POST /v1/heartbeats', { token, body, headers })
    return [status, status === 200 ? (said as { results: unknown[] }).results.length : JSON.stringify(said)] as const
  }

  t.match(await send('\n'.repeat(MAX_LINES - 1), LINES), [200, 0])
  t.match(await send('\n'.repeat(MAX_LINES), LINES), [413, /2000 lines, blank ones included; nothing was written/])
  t.match(await send(' \r\n'.repeat(MAX_LINES), LINES), [413, /2000 lines/], 'a blank line may hold blanks')
  const cheapest = gzipSync(Buffer.alloc(MAX_BATCH_BYTES, '\n'), { level: 9 })
  t.ok(cheapest.length < 1_100, `${cheapest.length} bytes`)
  t.match(await send(cheapest, { ...LINES, ...GZIP }), [413, /the most that \d+ bytes of gzip may expand to/])
  t.match(await send(gzipSync('\n'.repeat(60_000)), { ...LINES, ...GZIP }), [413, /2000 lines/], 'what is inflated is counted')

  t.match(await send(`[{}${',1'.repeat(MAX_BATCH_ITEMS - 1)}]`), [200, MAX_BATCH_ITEMS])
  t.match(await send(`[{}${',1'.repeat(MAX_BATCH_ITEMS)}]`), [413, /1000 heartbeats/])
  const keys = (n: number) => `[{${Array.from({ length: n }, (_, key) => `"${key}":0`).join()}}]`
  t.match(await send(keys(MAX_VALUES + 1)), [200, 1])
  t.match(await send(keys(MAX_VALUES + 2)), [422, /more than 32768 values/])
  t.match(await send('{"a":[]}\n'.repeat(10) + keys(MAX_VALUES), LINES), [200, 11], 'of all lines together')
  t.match(await send(`${keys(MAX_VALUES / 2)}\n${keys(MAX_VALUES / 2 + 3)}`, LINES), [422, /more than 32768 values/])

  // As compressible as a gateway's batch can be: the text repeats, the device and the time do not.
  const beats = Array.from({ length: MAX_BATCH_ITEMS }, (_, n) =>
    JSON.stringify({
      ts: new Date(Date.now() - 60_000 * n).toISOString(),
      battery_pct: 100 - Math.floor(n / 10),
      note: 'the same text again and again, '.repeat(28),
    }),
  ).join('\n')
  const packed = gzipSync(beats, { level: 9 })
  t.ok(
    beats.length > 900_000 && packed.length * MAX_INFLATION + 64 * 1024 > beats.length,
    `${beats.length} bytes in ${packed.length}`,
  )
  t.match(await send(packed, { ...LINES, ...GZIP }), [200, MAX_BATCH_ITEMS])
})

t.test('a small body does not get a large answer', async t => {
  const { db, call } = await withServer(t)
  const { token } = await enroll(db, 'a')
  const wrong = `{"ts":1,"battery_pct":"x","network_type":[],"unity_running":5,"signal_dbm":"x","agent_version":1.5,"device_id":""}\n`
  const many = await call('POST /v1/heartbeats', {
    token,
    headers: { ...LINES, ...GZIP },
    body: gzipSync(wrong.repeat(MAX_BATCH_ITEMS)),
  })
  t.equal(many.status, 200, JSON.stringify(many.body))
  const { results } = many.body as { results: { errors: unknown[] }[] }
  t.strictSame(new Set(results.map(({ errors }) => errors.length)), new Set([1]), 'one error for each item')

  const named = Array.from({ length: 30 }, (_, n) => `"${'x'.repeat(900)}${n}":0`).join()
  const unknown = await call('POST /v1/heartbeats', {
    token,
    headers: { ...LINES, ...GZIP },
    body: gzipSync(Array.from({ length: 30 }, (_, n) => `{"y${n}":0,${named}}`).join('\n')),
  })
  t.equal(unknown.status, 200)
  const { ignored } = unknown.body as { ignored: string[] }
  t.ok(ignored.length <= 32 && ignored.every(name => name.length <= 64), 'few names, and cut')
})

t.test('a body in too many pieces is refused before its end', async t => {
  const { open, head, beat } = await withVictim(t)
  const pieces = async (path: string, count: number) => {
    const socket = await open()
    const ended = answer(socket)
    socket.write(
      head(path, 'Transfer-Encoding: chunked\r\nConnection: close\r\n') + '1\r\n \r\n'.repeat(count) + '2\r\n[]\r\n0\r\n\r\n',
    )
    return ended
  }
  t.match(await pieces('/v1/heartbeats', MAX_PIECES - 1), /^HTTP\/1\.1 200/)
  t.match(await pieces('/v1/heartbeats', MAX_PIECES), /^HTTP\/1\.1 413[^]*in more than 16384 pieces/)
  t.match(await pieces('/v1/heartbeat', MAX_BODY_BYTES), /^HTTP\/1\.1 413/)
  t.equal(await beat(), 201)
})
