import t from 'tap'
import { render } from './metrics.ts'

t.test('database metrics become Prometheus text, one type line a family', async t => {
  const text = render([
    { metric: 'archive_backlog_partitions', labels: null, value: 2 },
    { metric: 'scheduler_last_run_age_seconds', labels: { job: 'a "quoted"\\\nname' }, value: 1.5 },
    { metric: 'scheduler_last_run_age_seconds', labels: { job: 'b' }, value: 3 },
    { metric: 'partitions_created_total', labels: {}, value: 105 },
  ])
  t.equal(text, [
    '# TYPE archive_backlog_partitions gauge',
    'archive_backlog_partitions 2',
    '# TYPE scheduler_last_run_age_seconds gauge',
    'scheduler_last_run_age_seconds{job="a \\"quoted\\"\\\\\\nname"} 1.5',
    'scheduler_last_run_age_seconds{job="b"} 3',
    '# TYPE partitions_created_total counter',
    'partitions_created_total 105',
    '',
  ].join('\n'))
})
