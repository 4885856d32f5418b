import t from 'tap'
import { gatewayItemSchema } from './heartbeat.ts'
import { itemTail, itemText, plainItemText } from './item.ts'

const usual = {
  device_id: 7,
  ts: '2026-01-31T12:00:00.123Z',
  battery_pct: 81,
  network_type: 'wifi',
  unity_running: true,
  signal_dbm: -61,
  agent_version: '3.1.0',
}

/** The values to try for each field: right, wrong, and at the limits of what the fast path accepts. */
const values: Record<string, unknown[]> = {
  device_id: [1, 2 ** 53 - 1, 2 ** 53, 0, -1, 1.5, '7', null, undefined, {}],
  ts: [
    '2026-01-31T12:00:00Z',
    '2024-02-29T00:00:00Z',
    '2026-02-29T00:00:00Z',
    '2026-02-30T00:00:00Z',
    '2026-04-31T00:00:00Z',
    '2026-12-31T23:59:59.999999999Z',
    '2026-12-31T23:59:60Z',
    '2026-12-31T24:00:00Z',
    '2026-00-10T00:00:00Z',
    '2026-10-00T00:00:00Z',
    '2026-13-10T00:00:00Z',
    '0000-01-01T00:00:00Z',
    '9999-12-31T23:59:59Z',
    '2026-01-31t12:00:00z',
    '2026-01-31T12:00:00+02:00',
    '2026-01-31T12:00:00',
    '2026-01-31T12:00:00Z\n',
    '',
    null,
    undefined,
    5,
  ],
  battery_pct: [0, -0, 100, 101, -1, 50.5, NaN, Infinity, '50', true, null, undefined],
  signal_dbm: [-200, 50, -201, 51, 1e300, null, undefined],
  unity_running: [true, false, 0, 'true', null, undefined],
  network_type: [
    '',
    'LTE (4G)',
    'x'.repeat(32),
    'x'.repeat(33),
    '😀'.repeat(32),
    'a"b',
    'a\\b',
    'a\nb',
    'a\0b',
    '\ud800',
    'ä',
    5,
    [],
    null,
    undefined,
  ],
  agent_version: ['1.0+build.7', 'x'.repeat(64), 'x'.repeat(65), '"', null, undefined],
}

t.test('the fast path gives what the schema gives, or nothing', async t => {
  let short = 0
  for (const [field, tries] of Object.entries(values)) {
    for (const value of tries) {
      const item = { ...usual, [field]: value }
      const plain = plainItemText(item, item.device_id, itemTail('1.2.3.4'))
      if (plain === undefined) continue
      short++
      const parsed = gatewayItemSchema.safeParse(item)
      t.ok(parsed.success, `${field}: ${String(value)}`)
      // Null is absent; -0 is written as 0.
      const expected = Object.fromEntries(
        Object.entries({ ...parsed.data, ip: '1.2.3.4' }).filter(([, kept]) => kept !== null && kept !== undefined),
      )
      t.same(JSON.parse(plain), JSON.parse(JSON.stringify(expected)), `${field}: ${String(value)}`)
    }
  }
  t.ok(short > 25, `${short} took the fast path`)
})

t.test('what a typical agent sends takes the fast path', async t => {
  t.type(plainItemText(usual, usual.device_id, itemTail(null)), 'string')
  for (let day = new Date('2025-01-01T00:00:00Z'); day.getUTCFullYear() === 2025; day = new Date(day.getTime() + 86_400_000)) {
    t.type(plainItemText({ ts: day.toISOString() }, 7, itemTail(null)), 'string', day.toISOString())
  }
  for (const value of [null, undefined, 5, 'x', [], [usual]]) t.equal(plainItemText(value, 7, itemTail(null)), undefined)
})

t.test('an item as text has the fields that were sent, and the address', async t => {
  t.same(JSON.parse(itemText({}, 7, itemTail(null))), { device_id: 7 })
  t.same(JSON.parse(itemText({ network_type: 'a"b\n', battery_pct: null }, 7, itemTail('::1'))), {
    device_id: 7,
    network_type: 'a"b\n',
    battery_pct: null,
    ip: '::1',
  })
  t.same(JSON.parse(plainItemText({}, 7, itemTail('::1'))!), { device_id: 7, ip: '::1' })
})
