import t from 'tap'
import { createLog } from '../lib/log.ts'
import { describeCopy, followCopy } from './progress.ts'

t.test('a copy is described by rows, MB, rate and the time left', async t => {
  const copy = { rows: 1_200_000, bytes: 108_000_000, total_rows: 2_880_000, rows_per_second: 812_000, seconds_left: 2 }
  t.equal(describeCopy(copy), '1,200,000 of 2,880,000 rows, 108 MB, 812,000 rows/s, 2 s left')
  t.equal(describeCopy({ ...copy, seconds_left: 600 }), '1,200,000 of 2,880,000 rows, 108 MB, 812,000 rows/s, 10 min left')
  t.equal(describeCopy({ ...copy, total_rows: undefined, seconds_left: undefined }), '1,200,000 rows, 108 MB, 812,000 rows/s')
})

t.test('a display is updated often, the log rarely', async t => {
  const lines: string[] = []
  const shown: string[] = []
  const log = createLog('archiver', 'info', { write: line => void lines.push(line) })
  const onRows = followCopy(
    { log, display: { everyMs: 0, show: text => shown.push(text) } },
    'partition.restore.progress',
    'p1',
    100,
  )
  onRows(10, 1000)
  onRows(20, 2000)
  t.equal(shown.length, 2)
  t.match(shown[1], /^p1: 20 of 100 rows, 0 MB, [\d,]+ rows\/s, \d+ s left$/)
  followCopy({ log }, 'partition.restore.progress', 'p1', 100)(10, 1000)
  t.same(lines, [], 'not at once')
})
