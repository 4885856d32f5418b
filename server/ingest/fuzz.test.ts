import { readFile } from 'node:fs/promises'
import { gzipSync } from 'node:zlib'
import fc from 'fast-check'
import t from 'tap'
import { fuzzRuns } from '../../local/config.ts'
import { withDatabase } from '../../testing/database.ts'
import { enroll, gatewayToken, living, NO_LIMIT, withProcess, type Answer } from '../../testing/server.ts'

/** How many bodies are sent at the same time. */
const TOGETHER = 50
const DEVICES = 10
/** For one worker. Measured over 100,000 bodies in 137 s: 191 MiB. */
const MAX_PEAK_MIB = 400

interface Request {
  target: string
  who: 'device' | 'gateway' | 'admin'
  device: number
  type: string
  encoding: string | undefined
  body: Uint8Array
}

const text = fc.oneof(
  fc.string({ unit: 'binary', maxLength: 80 }),
  fc.string({ maxLength: 80 }),
  fc.constantFrom(
    '',
    '\0',
    '\ud800',
    '\udfff\ud800',
    'x'.repeat(65),
    '😀'.repeat(33),
    '__proto__',
    '\\u0000',
    "'; drop schema fleet cascade; --",
    '$1',
    '{}',
    '\\N',
    '%s%I%L',
    'NaN',
    'Infinity',
    'null',
    '9'.repeat(400),
  ),
)
const number = fc.oneof(
  fc.integer(),
  fc.double(),
  fc.maxSafeInteger(),
  fc.constantFrom(0, -0, -1, 100, 101, -200, -201, 50, 51, 50.5, 2 ** 31, 2 ** 53, 2 ** 63, 1e300, 32_768, -32_769),
)
const wild = fc.oneof(text, number, fc.boolean(), fc.constant(null), fc.jsonValue({ maxDepth: 3 }))

/** Mostly times that are accepted, in every form that RFC 3339 allows. */
const ts = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.integer({ min: -6 * 86_400_000, max: 240_000 }).map(offset => new Date(Date.now() + offset).toISOString()),
  },
  {
    weight: 2,
    arbitrary: fc
      .tuple(fc.integer({ min: -6 * 86_400, max: 0 }), fc.integer({ min: -1439, max: 1439 }), fc.nat(999_999_999))
      .map(([seconds, minutes, fraction]) => {
        const zone = `${minutes < 0 ? '-' : '+'}${String(Math.floor(Math.abs(minutes) / 60)).padStart(2, '0')}:${String(Math.abs(minutes) % 60).padStart(2, '0')}`
        return new Date(Date.now() + seconds * 1_000 + minutes * 60_000)
          .toISOString()
          .replace(/\.\d+Z$/, `.${String(fraction).padStart(9, '0')}${zone}`)
      }),
  },
  { weight: 1, arbitrary: fc.date({ noInvalidDate: true }).map(date => date.toISOString()) },
  {
    weight: 1,
    arbitrary: fc.constantFrom(
      '0001-01-01T00:00:00+23:59',
      '9999-12-31T23:59:59.999999999Z',
      '2026-02-29T00:00:00Z',
      '0000-00-00T00:00:00Z',
      '2026-01-01T24:00:00Z',
      '2026-01-01T00:00:60Z',
      'now',
      'infinity',
      'epoch',
      '2026-01-01',
      '2026-01-01T00:00:00',
      '292277-01-01T00:00:00Z',
    ),
  },
)

/** A valid field, or anything. */
const maybe = (right: fc.Arbitrary<unknown>) => fc.oneof({ weight: 5, arbitrary: right }, { weight: 1, arbitrary: wild })

const beat = fc.record(
  {
    ts: maybe(ts),
    battery_pct: maybe(fc.integer({ min: 0, max: 100 })),
    network_type: maybe(fc.string({ unit: 'grapheme', maxLength: 16 })),
    unity_running: maybe(fc.boolean()),
    signal_dbm: maybe(fc.integer({ min: -200, max: 50 })),
    agent_version: maybe(text),
    device_id: maybe(fc.integer({ min: 1, max: DEVICES + 2 })),
    colour: wild,
  },
  { requiredKeys: [] },
)
const device = fc.record({ alias: maybe(text), cohort: maybe(text) }, { requiredKeys: [] })
const command = fc.record(
  { device_id: maybe(fc.integer({ min: 1, max: DEVICES })), command: maybe(text), payload: wild },
  { requiredKeys: [] },
)

const shapes = fc.oneof(
  { weight: 6, arbitrary: fc.array(fc.oneof({ weight: 9, arbitrary: beat }, { weight: 1, arbitrary: wild }), { maxLength: 20 }) },
  { weight: 3, arbitrary: beat },
  { weight: 1, arbitrary: device },
  { weight: 1, arbitrary: command },
  { weight: 1, arbitrary: wild },
)

const written = fc.oneof(
  { weight: 8, arbitrary: shapes.map(value => JSON.stringify(value)) },
  {
    weight: 4,
    arbitrary: fc
      .array(
        fc.oneof(beat, wild).map(value => JSON.stringify(value)),
        { maxLength: 20 },
      )
      .map(lines => lines.join('\n')),
  },
  { weight: 1, arbitrary: fc.json() },
  // Repeated keys, and keys that every object has.
  {
    weight: 1,
    arbitrary: fc
      .array(fc.tuple(fc.constantFrom('ts', 'device_id', '__proto__', 'constructor', 'toString', 'battery_pct'), wild), {
        maxLength: 8,
      })
      .map(pairs => `{${pairs.map(([key, value]) => `${JSON.stringify(key)}:${JSON.stringify(value)}`).join()}}`),
  },
  {
    weight: 1,
    arbitrary: fc
      .tuple(fc.constantFrom('[', '{"a":', '[{"junk":[', '"', '-', '\\u'), fc.nat(3_000))
      .map(([part, times]) => part.repeat(times)),
  },
)

/** Well-formed bytes, and what may happen to them on the way. */
const bytes = fc.oneof(
  { weight: 10, arbitrary: written.map(value => Buffer.from(value)) },
  {
    weight: 2,
    arbitrary: fc.tuple(written, fc.nat()).map(([value, at]) => {
      const whole = Buffer.from(value)
      return whole.subarray(0, whole.length === 0 ? 0 : at % whole.length)
    }),
  },
  {
    weight: 2,
    arbitrary: fc
      .tuple(written, fc.array(fc.tuple(fc.nat(), fc.nat(255)), { minLength: 1, maxLength: 4 }))
      .map(([value, changes]) => {
        const changed = Buffer.from(value)
        for (const [at, byte] of changes) if (changed.length > 0) changed[at % changed.length] = byte
        return changed
      }),
  },
  { weight: 1, arbitrary: fc.uint8Array({ maxLength: 200 }) },
)

/** What the call expects more often than not, otherwise anything. */
const sent = (shape: fc.Arbitrary<unknown>) =>
  fc.oneof({ weight: 3, arbitrary: shape.map(value => Buffer.from(JSON.stringify(value))) }, { weight: 2, arbitrary: bytes })
const calls = fc.oneof(
  { weight: 5, arbitrary: fc.record({ target: fc.constant('/v1/heartbeat'), bytes: sent(beat) }) },
  { weight: 10, arbitrary: fc.record({ target: fc.constant('/v1/heartbeats'), bytes: sent(fc.array(beat, { maxLength: 20 })) }) },
  { weight: 1, arbitrary: fc.record({ target: fc.constant('/admin/devices'), bytes: sent(device) }) },
  { weight: 1, arbitrary: fc.record({ target: fc.constant('/admin/command'), bytes: sent(command) }) },
  { weight: 1, arbitrary: fc.record({ target: fc.constantFrom('/v1/commands/1/ack', '/login'), bytes }) },
)

const request: fc.Arbitrary<Request> = fc
  .record({
    call: calls,
    isGateway: fc.boolean(),
    device: fc.nat(DEVICES - 1),
    type: fc.oneof(
      { weight: 12, arbitrary: fc.constant('application/json') },
      { weight: 3, arbitrary: fc.constant('application/x-ndjson') },
      {
        weight: 1,
        arbitrary: fc.constantFrom(
          'application/json; charset=utf-16',
          'text/plain',
          'application/x-www-form-urlencoded',
          ';',
          'multipart/form-data; boundary=x',
        ),
      },
    ),
    packing: fc.oneof(
      { weight: 9, arbitrary: fc.constant('none') },
      { weight: 1, arbitrary: fc.constantFrom('gzip', 'gzip', 'cut', 'lie', 'br') },
    ),
  })
  .map(({ call: { target, bytes }, isGateway, device, type, packing }) => {
    const isPacked = packing === 'gzip' || packing === 'cut'
    const packed = isPacked ? gzipSync(bytes) : bytes
    return {
      target,
      device,
      type,
      who: target.startsWith('/admin') ? 'admin' : target === '/v1/heartbeats' && isGateway ? 'gateway' : 'device',
      encoding: packing === 'none' ? undefined : packing === 'br' ? 'br' : 'gzip',
      body: packing === 'cut' ? packed.subarray(0, packed.length >> 1) : packed,
    }
  })

const runs = Math.ceil(fuzzRuns() / TOGETHER)

t.test(
  'none of many hostile bodies leads to a 500, ends a worker or loses what was acknowledged',
  { timeout: 3_600_000 },
  async t => {
    const db = await withDatabase(t)
    const devices: { token: string }[] = []
    for (let n = 0; n < DEVICES; n++) devices.push(await enroll(db, `device ${n}`))
    const gateway = await gatewayToken(db, 'gateway')
    const { server, call } = await withProcess(t, db, { WORKERS: '2', LOG_LEVEL: 'info', ...NO_LIMIT })
    const workers = living(server)
    const statuses = new Map<number, number>()
    /** How often each time was acknowledged as stored. */
    const acknowledged = new Map<string, number>()
    let isAllAnswered = true

    async function send({ target, who, device, type, encoding, body }: Request) {
      const answer = await call(`POST ${target}`, {
        body,
        ...(who === 'admin' ? { admin: true } : { token: who === 'gateway' ? gateway : devices[device]!.token }),
        headers: {
          'content-type': type,
          ...(encoding !== undefined && { 'content-encoding': encoding }),
          ...(target === '/login' && { 'sec-fetch-site': 'same-origin' }),
        },
      })
      const { status } = answer
      statuses.set(status, (statuses.get(status) ?? 0) + 1)
      // The machine was too slow: this is not acknowledged, but it may be stored.
      if (status === 503) isAllAnswered = false
      else if (status >= 500)
        throw new Error(`${status} of ${target} to ${type} ${encoding ?? ''} ${Buffer.from(body).toString('base64')}`)
      for (const ts of storedOf(answer)) acknowledged.set(ts, (acknowledged.get(ts) ?? 0) + 1)
    }

    await fc.assert(
      fc.asyncProperty(
        fc.array(request, { minLength: TOGETHER, maxLength: TOGETHER }),
        async requests => void (await Promise.all(requests.map(send))),
      ),
      { numRuns: runs, endOnFailure: true },
    )

    t.comment(
      `${runs * TOGETHER} bodies: ${[...statuses]
        .sort()
        .map(([status, count]) => `${count} × ${status}`)
        .join(', ')}`,
    )
    for (const status of [200, 201, 400, 415, 422]) t.ok(statuses.has(status), `${status} is among the answers`)
    t.match(living(server), workers, 'the same workers')
    t.notMatch(server.output(), 'worker.exited')
    for (const pid of workers) {
      const peak = Number(/VmHWM:\s+(\d+) kB/.exec(await readFile(`/proc/${pid}/status`, 'utf8'))![1]) / 1024
      t.comment(`a worker's memory was at most ${Math.round(peak)} MiB`)
      t.ok(peak < MAX_PEAK_MIB, `${Math.round(peak)} MiB`)
    }

    const kept = new Map<string, number>()
    for (const { ts } of await db.sql<{ ts: string }[]>`
    select to_char(ts at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US') as ts from fleet.device_heartbeats
  `)
      kept.set(ts, (kept.get(ts) ?? 0) + 1)
    const lost = [...acknowledged].filter(([ts, count]) => (kept.get(ts) ?? 0) < count)
    t.same(lost.slice(0, 5), [], `none of the ${acknowledged.size} acknowledged heartbeats is lost`)
    t.ok(acknowledged.size > runs, 'and there are many of them')
    if (isAllAnswered) t.equal(kept.size, acknowledged.size, 'and nothing else is stored')
  },
)

/** The times that this answer reports as stored, with microseconds and without a zone. */
function storedOf({ status, body }: Answer) {
  const results = status === 201 ? [body] : status === 200 ? ((body as { results?: unknown[] }).results ?? []) : []
  return (results as { result?: string; ts?: string }[])
    .filter(({ result, ts }) => result === 'stored' && ts !== undefined)
    .map(({ ts }) => {
      const [, seconds, fraction = ''] = /^(.{19})(?:\.(\d+))?Z$/.exec(ts!)!
      return `${seconds}.${fraction.padEnd(6, '0')}`
    })
}
