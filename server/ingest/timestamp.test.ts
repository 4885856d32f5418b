import t from 'tap'
import { normaliseTs } from './timestamp.ts'

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
  for (const ts of bad) t.equal(normaliseTs(ts), undefined, ts)
})

t.test('every day of a year is accepted', async t => {
  const noon = Date.parse('2025-01-01T12:00:00Z')
  const days = Array.from({ length: 365 }, (_, n) => new Date(noon + n * 86_400_000).toISOString())
  t.same(
    days.filter(day => normaliseTs(day) !== day),
    [],
  )
})
