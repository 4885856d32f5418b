import t from 'tap'
import { leftToDeep } from '../local/config.ts'
import { runScenario } from '../testing/bench.ts'

// Each scenario makes its own durable cluster.
t.setTimeout(600_000)

t.test('limits measures each variant in turn', { skip: leftToDeep() }, async t => {
  const limits = await runScenario(t, 'limits', [
    '--rounds',
    '1',
    '--seconds',
    '1',
    '--warmup',
    '0',
    '--devices',
    '200',
    '--connections',
    '8',
    '--batches',
    '100',
    '--flight',
    '200',
    '--workers',
    '1',
  ])
  t.match(limits, [
    { name: 'single heartbeats, 8 connections', measured: Number, unit: 'rows/s' },
    { name: 'one INSERT per request, 8', unit: 'rows/s' },
    { name: 'single / one INSERT per request, 8', target: { at: 'least', value: 5 } },
    { name: 'batches of 100' },
    { name: 'pgbench, batches of 100' },
    { name: 'batches of 100 / pgbench', target: { at: 'least', value: 0.8 } },
    { name: 'CPU of the sender, of all processors, highest' },
  ])
  t.ok(
    limits.every(({ measured }) => measured > 0),
    'everything ran',
  )
})

t.test('archive --ingest measures how an archive affects heartbeats', { skip: leftToDeep() }, async t => {
  const figures = await runScenario(t, 'archive', [
    '--ingest',
    '--rows',
    '1440',
    '--rounds',
    '1',
    '--quiet',
    '1',
    '--devices',
    '600',
  ])
  t.match(
    figures.find(({ name }) => name === 'ingest p99 during archive'),
    { measured: Number, unit: 'ms' },
  )
  t.match(
    figures.find(({ name }) => name === 'errors'),
    { measured: 0 },
  )
})
