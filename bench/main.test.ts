import t from 'tap'
import { leftToDeep } from '../local/config.ts'
import { spawnNode, testCluster } from '../testing/database.ts'
import { schedule } from './schedule.ts'
import { runScenario, startScenario } from '../testing/bench.ts'

// Each scenario makes its own durable cluster.
t.setTimeout(300_000)

t.test('a wrong command line is answered with the usage and code 2', async t => {
  for (const [args, said] of [
    [[], /scenarios: .*limits/],
    [['speed'], /scenarios: .*limits/],
    [['load', '--speed', '9'], /'--speed'[^]*--devices +devices that send/],
    [['load', '--preset', 'huge'], /--preset takes small, fleet.*got huge/],
    [['limits', '--rounds', 'x'], /--rounds needs a whole number of at least 1, got x[^]*--connections/],
    [['limits', '--batches', '100,2000'], /--batches takes at most 1000/],
    [['reads', '--sizes', '10,0'], /--sizes needs a whole number/],
    [['load-history', '--devices', '1'], /--devices 1 would each send/],
    [['archive', '--rows'], /--rows/],
    [['herd', '--only', 'flat'], /--only takes fixed or spread, got flat/],
    [['herd', '--jitter', '31'], /--jitter takes at most half of --interval, got 31/],
    [['herd', '--interval', '19'], /--interval needs a whole number of at least 20, got 19/],
    [['million', '--only', 'batches'], /--only takes mixed or single, got batches/],
    [['million', '--devices', '1000', '--rate', '76'], /1000 devices can send 75 heartbeats a second at most/],
    [['million', '--devices', '100'], /--devices must be at least twice --batch/],
    [['targets', '--only', 'database'], /--only takes server, without, parses, reads, got database/],
  ] as [string[], RegExp][]) {
    const bench = await spawnNode(t, 'bench/main.ts', { args })
    t.match(await bench.exited, { code: 2 }, args.join(' '))
    t.match(bench.output(), said, args.join(' '))
  }
})

t.test('load --dry-run shows what would be sent', async t => {
  const figures = await runScenario(t, 'load', [
    '--devices',
    '600',
    '--interval',
    '60',
    '--jitter',
    '0',
    '--duration',
    '120',
    '--retries',
    '0',
    '--dry-run',
  ])
  t.match(figures, [
    { name: 'heartbeats, including retries', measured: 1200 },
    { name: 'mean rate', measured: 10, unit: '/s' },
    { name: 'rate in the fullest second', unit: '/s' },
  ])
})

t.test('a device keeps its interval within the jitter, and repeats a heartbeat with the same ts', async t => {
  const { at, device, ts, retried } = schedule({ devices: 50, interval: 60, jitter: 15, duration: 600, retries: 10 })
  t.ok(retried > 0)
  t.same(
    [...at],
    [...at].sort((a, b) => a - b),
  )
  for (let number = 0; number < 50; number++) {
    const times = [...at].filter((_, index) => device[index] === number && ts[index] === at[index])
    t.ok(times[0]! < 60_000)
    t.ok(times.slice(1).every((time, index) => time - times[index]! >= 45_000 && time - times[index]! <= 75_000))
  }
  const again = [...at].filter((time, index) => ts[index] !== time)
  t.equal(again.length, retried)
})

t.test('load measures a small fleet', async t => {
  const figures = await runScenario(t, 'load', [
    '--devices',
    '100',
    '--interval',
    '10',
    '--jitter',
    '0',
    '--duration',
    '5',
    '--warmup',
    '1',
    '--retries',
    '20',
    '--workers',
    '1',
  ])
  const figure = (name: string) => figures.find(found => found.name === name)!.measured
  t.equal(figure('errors'), 0)
  t.ok(figure('answered') > 0)
  t.ok(
    figure('latency p50') > 0 && figure('latency p50') <= figure('latency p99') && figure('latency p99') <= figure('latency max'),
  )
  t.ok(figure('duplicates') > 0, 'heartbeats that were sent twice are found')
  t.ok(figure('pool efficiency: statements that found a free connection') > 0)
  t.ok(figure('memory of the server at the end') > 0)
})

t.test('load measures memory for each number of devices', { skip: leftToDeep() }, async t => {
  const figures = await runScenario(t, 'load', ['--preset', 'memory', '--sizes', '20,40', '--workers', '1', '--seconds', '1'])
  t.match(figures[1], { name: 'memory of the server, 40 devices', measured: Number, unit: 'MB' })
})

t.test('reads runs every query', { skip: leftToDeep() }, async t => {
  const figures = await runScenario(t, 'reads', ['--sizes', '200', '--rounds', '1', '--repeats', '2', '--beats', '3'])
  t.equal(figures.filter(({ name }) => name.endsWith(', p95')).length, 17)
  t.ok(figures.every(({ measured }) => measured > 0))
})

t.test('views queries each view', async t => {
  const figures = await runScenario(t, 'views', [
    '--devices',
    '200',
    '--cohorts',
    '3',
    '--days',
    '2',
    '--beats',
    '5',
    '--rounds',
    '1',
    '--repeats',
    '2',
  ])
  for (const view of ['fleet_silence', 'missed_beats', 'job_health', 'data_coverage, all of it']) {
    t.ok(
      figures.some(({ name, measured }) => name === `200: ${view}, p95` && measured > 0),
      view,
    )
  }
})

t.test('tracing measures the server with traces and without', { skip: leftToDeep() }, async t => {
  const figures = await runScenario(t, 'tracing', [
    '--rounds',
    '1',
    '--seconds',
    '1',
    '--warmup',
    '1',
    '--devices',
    '20',
    '--connections',
    '4',
  ])
  t.match(
    figures.map(({ name }) => name),
    ['CPU of a heartbeat, tracing off', 'CPU of a heartbeat, on', 'on / off'],
  )
  t.ok(figures.every(({ measured }) => measured > 0))
})

t.test('maintenance makes its nightly runs under load', { skip: leftToDeep() }, async t => {
  const figures = await runScenario(t, 'maintenance', [
    '--rounds',
    '1',
    '--seconds',
    '3',
    '--warmup',
    '1',
    '--devices',
    '300',
    '--rows',
    '1000',
  ])
  const figure = (name: string) => figures.find(found => found.name === name)!.measured
  t.ok(figure('nightly runs') >= 2 && figure('days that they detached') >= 1)
  t.equal(figure('errors'), 0)
})

t.test('load-history fills the days and last status', { skip: leftToDeep() }, async t => {
  const figures = await runScenario(t, 'load-history', ['--rows', '3000', '--days', '3', '--devices', '10'])
  t.match(figures[0], { name: 'rows loaded', measured: 3000 })
  t.match(figures.at(-1), { name: 'devices whose last status was filled', measured: 10 })
})

t.test('postgres-18 compares ways to read, to search and to number rows', { skip: leftToDeep() }, async t => {
  if (testCluster().postgres.major < 18) {
    const bench = await startScenario(t, 'postgres-18', [])
    t.match(await bench.exited, { code: 2 })
    t.match(bench.output(), /needs PostgreSQL 18 or newer, and the newest here is \d+/)
    return
  }
  const figures = await runScenario(t, 'postgres-18', ['--rows', '20000', '--rounds', '1'])
  for (const name of ['sync / worker, settled, in s', 'whole table / as planned', 'insert with uuidv7()'])
    t.ok(
      figures.some(figure => figure.name === name && figure.measured > 0),
      name,
    )
})
