import t from 'tap'
import { fieldErrors } from '../valid.ts'
import { gatewayItemSchema, heartbeatSchema, normaliseTs } from './heartbeat.ts'

function paths(value: unknown) {
  const parsed = heartbeatSchema.safeParse(value)
  return parsed.success ? [] : fieldErrors(parsed.error).map(error => error.path)
}

t.test('ts is RFC 3339 with an offset', async t => {
  const good = [
    '2026-01-31T12:00:00Z',
    '2026-01-31T12:00:00.123456Z',
    '2026-01-31T12:00:00+05:30',
    '2026-01-31T12:00:00-00:00',
    '2024-02-29T00:00:00Z',
    '2000-02-29T00:00:00Z',
    '0001-01-01T00:00:00Z',
    '9999-12-31T23:59:59.999Z',
  ]
  for (const ts of good) t.equal(normaliseTs(ts), ts)
  t.equal(normaliseTs('2026-01-31t12:00:00z'), '2026-01-31T12:00:00Z', 'the RFC allows lower case')
  t.equal(normaliseTs('2026-01-31T12:00:00+23:59'), '2026-01-30T12:01:00.000Z', 'a larger offset than PostgreSQL accepts')
})

t.test('ts is on a real day', async t => {
  const bad = [
    '2026-02-30T00:00:00Z',
    '2026-02-29T00:00:00Z',
    '1900-02-29T00:00:00Z',
    '2026-04-31T00:00:00Z',
    '2026-00-10T00:00:00Z',
    '2026-13-01T00:00:00Z',
    '2026-01-00T00:00:00Z',
    '2026-01-01T24:00:00Z',
    '2026-01-01T00:60:00Z',
    '2026-01-01T00:00:60Z',
    '2026-01-01T00:00:00+24:00',
    '2026-01-01T00:00:00+00:60',
    '0000-01-01T00:00:00Z',
    '0001-01-01T00:00:00+01:00',
    '9999-12-31T23:59:59-01:00',
    '2026-01-01T00:00Z',
    '2026-01-01T00:00:00',
    '2026-01-01',
    '2026-01-01 00:00:00Z',
    '2026-01-01T00:00:00.Z',
    '2026-01-01T00:00:00.1234567890Z',
    '+002026-01-01T00:00:00Z',
    '',
    'now',
    '1767225600',
  ]
  for (const ts of bad) {
    t.equal(normaliseTs(ts), undefined, ts)
    t.same(paths({ ts }), ['ts'])
  }
})

t.test('each limit is inclusive, and a value beyond it names the field', async t => {
  const good = [
    { battery_pct: 0 },
    { battery_pct: 100 },
    { signal_dbm: -200 },
    { signal_dbm: 50 },
    { network_type: 'x'.repeat(32) },
    { network_type: '😀'.repeat(32) },
    { agent_version: 'x'.repeat(64) },
    { unity_running: false },
    { network_type: '' },
    {},
    { ts: null, battery_pct: null, signal_dbm: null, network_type: null, agent_version: null, unity_running: null },
  ]
  for (const value of good) t.same(paths(value), [], JSON.stringify(value))
  const bad = [
    { battery_pct: -1 },
    { battery_pct: 101 },
    { battery_pct: 50.5 },
    { battery_pct: '50' },
    { battery_pct: true },
    { signal_dbm: -201 },
    { signal_dbm: 51 },
    { signal_dbm: -60.5 },
    { signal_dbm: 1e300 },
    { network_type: 'x'.repeat(33) },
    { network_type: '😀'.repeat(33) },
    { network_type: 5 },
    { network_type: 'a\0b' },
    { network_type: 'a\ud800b' },
    { network_type: '\udc00' },
    { agent_version: 'x'.repeat(65) },
    { agent_version: '\0' },
    { agent_version: ['1'] },
    { unity_running: 1 },
    { unity_running: 'true' },
    { ts: 1767225600 },
    { ts: {} },
  ]
  for (const value of bad) t.same(paths(value), Object.keys(value), JSON.stringify(value))
})

t.test('every wrong field is named, and unknown ones are ignored', async t => {
  t.same(paths({ battery_pct: 101, signal_dbm: 51, unity_running: 0, colour: '\0' }), [
    'battery_pct',
    'unity_running',
    'signal_dbm',
  ])
  t.same(heartbeatSchema.parse({ battery_pct: 5, device_id: 7, ip: '1.2.3.4' }), { battery_pct: 5 })
})

t.test('an error about a value that is not an object has no path', async t => {
  for (const value of [null, [], 'x', 5]) t.same(paths(value), [''])
})

t.test('a gateway has to name a device', async t => {
  for (const device_id of [undefined, null, 0, -1, 1.5, '1', 2 ** 53]) {
    t.same(fieldErrors(gatewayItemSchema.safeParse({ device_id }).error!), [
      { path: 'device_id', message: 'must be a device id' },
    ])
  }
})
