import t from 'tap'
import { toRfc3339 } from './database.ts'

t.test('a timestamp keeps its microseconds', async t => {
  t.equal(toRfc3339('2026-01-02 03:04:05.678901+00'), '2026-01-02T03:04:05.678901Z')
  t.equal(toRfc3339('2026-01-02 03:04:05+00'), '2026-01-02T03:04:05Z')
  t.equal(toRfc3339('2026-01-02 03:04:05-05'), '2026-01-02T03:04:05-05:00')
  t.equal(toRfc3339('2026-01-02 03:04:05+05:30'), '2026-01-02T03:04:05+05:30')
})
