import fc from 'fast-check'
import t from 'tap'
import { FIELDS } from './fields.ts'
import { Ignored } from './ignored.ts'
import { itemTail, readItem } from './item.ts'
import type { UnreadableFields } from './unreadable-fields.ts'

/** Reads one item, and returns what it became and what was left out. */
function read(value: unknown, tail = itemTail(null)) {
  const reported: unknown[] = []
  let unknown = 0
  const ignored = new Ignored({
    countUnknown: (fields: number) => void (unknown += fields),
    add: (...report: unknown[]) => void reported.push(report),
  } as unknown as UnreadableFields)
  const item = readItem(value, 7, tail, ignored)
  t.same([reported, unknown], [[], 0], 'nothing is counted before the sender is known')
  ignored.report(9)
  return { item: typeof item === 'string' ? (JSON.parse(item) as unknown) : item, names: ignored.names, reported, unknown }
}

t.test('what a typical agent sends is passed on as it is, with the address', async t => {
  const usual = {
    ts: '2026-01-31T12:00:00.123Z',
    battery_pct: 81,
    network_type: 'wifi',
    unity_running: true,
    signal_dbm: -61,
    agent_version: '3.1.0',
    extra: { store: 12 },
  }
  t.same(read(usual, itemTail('1.2.3.4')), {
    item: { device_id: 7, ...usual, ip: '1.2.3.4' },
    names: undefined,
    reported: [],
    unknown: 0,
  })
  t.same(read({}, itemTail('::1')).item, { device_id: 7, ip: '::1' })
  t.same(read({ ts: '2026-01-31t12:00:00z', device_id: 7 }), {
    item: { device_id: 7, ts: '2026-01-31T12:00:00Z' },
    names: undefined,
    reported: [],
    unknown: 0,
  })
})

t.test('null counts as absent', async t => {
  t.same(read({ ts: null, ...Object.fromEntries([...FIELDS.keys()].map(name => [name, null])) }), {
    item: { device_id: 7 },
    names: undefined,
    reported: [],
    unknown: 0,
  })
})

t.test('a value that means unknown is left out in silence', async t => {
  t.same(read({ battery_pct: -1, signal_dbm: 2147483647, network_type: '' }), {
    item: { device_id: 7 },
    names: undefined,
    reported: [],
    unknown: 0,
  })
})

t.test('a value that cannot be read costs only its field, which is named and reported', async t => {
  t.same(read({ battery_pct: 87.5, signal_dbm: -61, unity_running: 'yes' }), {
    item: { device_id: 7, signal_dbm: -61 },
    names: ['battery_pct', 'unity_running'],
    reported: [
      [7, 'battery_pct', '87.5'],
      [7, 'unity_running', '"yes"'],
    ],
    unknown: 0,
  })
})

t.test('unknown fields are named once and counted, whatever they are called', async t => {
  const many = Object.fromEntries(Array.from({ length: 100 }, (_, n) => [`field ${n}`, n]))
  t.equal(read(many).unknown, 100)
  t.equal(read(many).names?.length, 32)
  t.same(read({ batery_pct: 81, device_id: 8, ip: '1.2.3.4', status: null }).names, ['batery_pct', 'ip', 'status'])
  t.same(read({ ['x'.repeat(1000)]: 1 }).names, ['x'.repeat(64)])
  for (const name of ['__proto__', 'constructor', 'toString', '', 'hasOwnProperty'])
    t.same(read(JSON.parse(`{"${name}":{"battery_pct":5}}`)), { item: { device_id: 7 }, names: [name], reported: [], unknown: 1 })
})

t.test('an item without a device is that of the token, and what a gateway leaves open is counted for nobody', t => {
  const report = (own: number | null) => {
    const reported: unknown[] = []
    const ignored = new Ignored({ add: (...each: unknown[]) => void reported.push(each) } as unknown as UnreadableFields)
    const item = readItem({ battery_pct: [] }, null, itemTail(null), ignored)
    ignored.refused(5, { path: 'ts', message: '' }, { ts: 1 })
    ignored.report(own)
    return { item, reported }
  }
  t.same(report(9), {
    item: '{"device_id":null}',
    reported: [
      [9, 'battery_pct', '[…]'],
      [5, 'ts', '1'],
    ],
  })
  t.same(report(null).reported, [[5, 'ts', '1']])
  t.end()
})

t.test('only what is no object, or has a bad ts, is refused', async t => {
  for (const value of [null, undefined, [], 'x', 5, true])
    t.same(read(value).item, { path: '', message: 'must be a JSON object' })
  for (const ts of ['2026-02-30T00:00:00Z', 'now', '', 1767225600, {}, true]) t.match(read({ ts }).item, { path: 'ts' })
})

t.test('no optional field, whatever it holds, makes an item that is not JSON or has another ts, device or address', async t => {
  const ts = '2026-01-31T12:00:00Z'
  const names = fc.oneof(fc.constantFrom(...FIELDS.keys(), 'device_id', '__proto__', 'ip'), fc.string({ unit: 'binary' }))
  const values = fc.oneof(fc.jsonValue(), fc.string({ unit: 'binary' }), fc.double(), fc.integer())
  const property = fc.property(fc.array(fc.tuple(names, values), { maxLength: 12 }), pairs => {
    const sent = Object.fromEntries(pairs.filter(([name]) => name !== 'ts'))
    const { item } = read({ ...sent, ts }, itemTail('1.2.3.4')) as { item: Record<string, unknown> }
    const { device_id, ts: itemTs, ip, ...fields } = item
    if (device_id !== 7 || itemTs !== ts || ip !== '1.2.3.4') throw new Error(JSON.stringify(item))
    for (const name of Object.keys(fields)) if (!FIELDS.has(name)) throw new Error(`${name} is in the item`)
  })
  t.doesNotThrow(() => fc.assert(property, { numRuns: 5_000 }))
})
