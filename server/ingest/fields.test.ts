import t from 'tap'
import { FIELDS } from './fields.ts'

/** For each field, what is sent and what is read from it. Undefined: it cannot be read. */
const cases: Record<string, [sent: unknown, read: unknown][]> = {
  battery_pct: [
    [0, 0],
    [100, 100],
    [-0, 0],
    ['87', 87],
    [' 87 ', 87],
    ['87.0', 87],
    ['+5', 5],
    [-1, null],
    ['-1', null],
    [2147483647, null],
    [-2147483648, null],
    ['-2147483648', null],
    [-9223372036854775808, null],
    ['', null],
    ['unknown', null],
    ['N/A', null],
    ['null', null],
    [101, undefined],
    [-2, undefined],
    [87.5, undefined],
    ['87.5', undefined],
    ['87 %', undefined],
    ['1e1', undefined],
    ['0x10', undefined],
    ['9'.repeat(400), undefined],
    [1e300, undefined],
    [Infinity, undefined],
    [true, undefined],
    [[87], undefined],
    [{}, undefined],
  ],
  signal_dbm: [
    [-200, -200],
    [50, 50],
    ['-61', -61],
    // WifiInfo.INVALID_RSSI, but a real level of LTE.
    [-127, -127],
    [-1, -1],
    [2147483647, null],
    ['2147483647', null],
    [99, null],
    [255, null],
    [-201, undefined],
    [51, undefined],
    [-60.5, undefined],
    ['-60 dBm', undefined],
  ],
  unity_running: [
    [true, true],
    [false, false],
    [1, true],
    [0, false],
    ['true', true],
    ['FALSE', false],
    ['1', true],
    [' 0 ', false],
    ['', null],
    ['Unknown', null],
    [2, undefined],
    [-1, undefined],
    ['yes', undefined],
    [[], undefined],
  ],
  network_type: [
    ['wifi', 'wifi'],
    ['LTE (4G)', 'LTE (4G)'],
    ['none', 'none'],
    ['nr', 'nr'],
    ['umts', 'umts'],
    ['a"b\\\n', 'a"b\\\n'],
    ['ä', 'ä'],
    ['x'.repeat(32), 'x'.repeat(32)],
    ['😀'.repeat(32), '😀'.repeat(32)],
    // TelephonyManager.NETWORK_TYPE_LTE
    [13, '13'],
    ['', null],
    ['  ', null],
    ['UNKNOWN', null],
    ['unknown', null],
    ['unknown carrier', 'unknown carrier'],
    ['x'.repeat(33), undefined],
    ['😀'.repeat(33), undefined],
    ['a\0b', undefined],
    ['a\ud800b', undefined],
    ['\udc00', undefined],
    [1.5, undefined],
    [true, undefined],
    [['wifi'], undefined],
  ],
  agent_version: [
    ['1.0+build.7', '1.0+build.7'],
    ['x'.repeat(64), 'x'.repeat(64)],
    [301, '301'],
    ['x'.repeat(65), undefined],
    ['\0', undefined],
    [3.1, undefined],
  ],
  extra: [
    [{}, {}],
    [{ a: { b: { c: { d: 1 } } } }, { a: { b: { c: { d: 1 } } } }],
    [{ a: [[['x', null, true, 1.5, -0]]] }, { a: [[['x', null, true, 1.5, 0]]] }],
    [{ a: 'x'.repeat(2040) }, { a: 'x'.repeat(2040) }],
    [{ 'ä"\n': '😀' }, { 'ä"\n': '😀' }],
    [{ a: 'x'.repeat(2041) }, undefined],
    [{ a: 'ä'.repeat(1021) }, undefined],
    [{ a: { b: { c: { d: {} } } } }, undefined],
    [{ a: [[[[]]]] }, undefined],
    [{ a: 'b\0' }, undefined],
    [{ 'a\0': 1 }, undefined],
    [{ a: ['\ud800'] }, undefined],
    [{ '\udfff': 1 }, undefined],
    [
      { a: 9007199254740991, b: -9007199254740991, c: 0.1, d: 1e-7 },
      { a: 9007199254740991, b: -9007199254740991, c: 0.1, d: 1e-7 },
    ],
    [{ a: 9007199254740992 }, undefined],
    [JSON.parse('{"a":[-9007199254740993]}'), undefined],
    [{ a: 1e300 }, undefined],
    [{ a: JSON.parse('1e400') as number }, undefined],
    [{ a: Array<number>(6).fill(1e-300) }, { a: Array<number>(6).fill(1e-300) }],
    [{ a: Array<number>(7).fill(1e-300) }, undefined],
    [{ 'e-9"e-99\\': 'e-999 \\"e-9999' }, { 'e-9"e-99\\': 'e-999 \\"e-9999' }],
    [JSON.parse('{"a":1,"a":{"b":2}}'), { a: { b: 2 } }],
    [JSON.parse('{"__proto__":{"a":1}}'), JSON.parse('{"__proto__":{"a":1}}')],
    [[], undefined],
    ['{}', undefined],
    [5, undefined],
    [true, undefined],
  ],
}

type Schema = Record<string, number>

/** For each kind of field, what any field of the kind reads and what it does not, and what means unknown. */
const typical: Record<string, (schema: Schema) => [sent: unknown, read: unknown][]> = {
  enum: schema => [
    ...(schema.enum as unknown as string[]).flatMap((word): [string, string][] => [
      [word, word],
      [` ${word.toUpperCase()} `, word],
    ]),
    ['', null],
    ['Unknown', null],
    ['n/a', null],
    ['constructor', undefined],
    [(schema.enum as unknown as string[]).join(' '), undefined],
    [true, undefined],
    [0, undefined],
    [[...(schema.enum as unknown as string[])].slice(0, 1), undefined],
  ],
  integer: ({ minimum, maximum }) => [
    [minimum, minimum],
    [maximum, maximum],
    [`${maximum}`, maximum],
    [minimum! - 1000, undefined],
    [maximum! + 1000, undefined],
    [maximum! - 0.5, undefined],
    [true, undefined],
    [{}, undefined],
    ['n/a', null],
  ],
  boolean: () => [
    [true, true],
    [0, false],
    [2, undefined],
    [[], undefined],
    ['n/a', null],
  ],
  string: ({ maxLength = 0 }) => [
    ['x'.repeat(maxLength), 'x'.repeat(maxLength)],
    ['x'.repeat(maxLength + 1), undefined],
    ['\0', undefined],
    [{}, undefined],
    ['n/a', null],
  ],
}

t.test('every field reads what its type says, or has cases of its own', async t => {
  for (const [name, { read, schema, example }] of FIELDS) {
    const kind = 'enum' in schema ? 'enum' : (schema.type as string)
    const pairs = typical[kind]?.(schema as Schema) ?? cases[name] ?? []
    t.ok(pairs.length > 0, `${name} has cases`)
    for (const [sent, expected] of [...pairs, [example, example]]) {
      const json = read(sent)
      t.strictSame(typeof json === 'string' ? JSON.parse(json) : json, expected, `${name}: ${JSON.stringify(sent)}`)
    }
  }
})

for (const [name, pairs] of Object.entries(cases)) {
  t.test(`${name}: what is read, what means unknown, and what cannot be read`, async t => {
    const { read, example, schema } = FIELDS.get(name)!
    for (const [sent, expected] of pairs) {
      const json = read(sent)
      t.strictSame(typeof json === 'string' ? JSON.parse(json) : json, expected, JSON.stringify(sent)?.slice(0, 60))
    }
    t.strictSame(JSON.parse(read(example)!), example, 'the example is read as it is')
    t.ok(schema.type)
  })
}

t.test('an object that is far too deep is left out without recursion', async t => {
  const deep = JSON.parse(`${'{"a":'.repeat(100_000)}1${'}'.repeat(100_000)}`) as unknown
  t.equal(FIELDS.get('extra')!.read(deep), undefined)
})

t.test('a text that is far too long is not split into characters', t => {
  let taken = 0
  const iterate = String.prototype[Symbol.iterator]
  t.teardown(() =>
    Object.defineProperty(String.prototype, Symbol.iterator, { value: iterate, configurable: true, writable: true }),
  )
  Object.defineProperty(String.prototype, Symbol.iterator, {
    configurable: true,
    writable: true,
    value: function (this: string) {
      taken += this.length
      return iterate.call(this)
    },
  })
  const { read } = FIELDS.get('agent_version')!
  t.equal(read('a'.repeat(2 ** 20)), undefined)
  t.ok(taken <= 128, `${taken} characters`)
  t.type(read('😀'.repeat(64)), 'string', 'characters are counted, not their code units')
  t.equal(read('😀'.repeat(65)), undefined)
  t.ok(taken > 0)
  t.end()
})
