import t from 'tap'
import { leftToDeep } from '../local/config.ts'
import { runScenario, startScenario } from '../testing/bench.ts'
import { lyingServer, refusingServer } from '../testing/checkout.ts'

// Each scenario makes its own durable cluster.
t.setTimeout(600_000)

t.test('million sends both ways, restarts the server and finds every heartbeat', { skip: leftToDeep() }, async t => {
  const figures = await runScenario(t, 'million', [
    ...['--devices', '600', '--rate', '40', '--seconds', '12', '--batch', '10', '--most', '60000'],
    ...['--connections', '20', '--ceiling', '2000', '--workers', '1', '--step', '5'],
  ])
  const figure = (name: string) => figures.find(found => found.name === name)!.measured
  for (const mode of ['mixed', 'single']) {
    t.equal(figure(`${mode}: lost, of all`), 0)
    t.ok(figure(`${mode}: acknowledged`) > 300, 'every heartbeat of about 480')
    t.equal(figure(`${mode}: acknowledged`), Math.round(12 * figure(`${mode}: offered`)))
    t.equal(figure(`${mode}: acknowledged, but not in the database`), 0)
    t.ok(figure(`${mode}: requests sent again`) > 0, 'the restart was noticed')
    t.ok(figure(`${mode}: p50 before the restart`) <= figure(`${mode}: p99 before the restart`))
  }
})

t.test('million searches for a rate that the server carries', { skip: leftToDeep() }, async t => {
  const figures = await runScenario(t, 'million', [
    ...['--devices', '300', '--rate', '10', '--seconds', '10', '--only', 'single', '--step', '5', '--steps', '2', '--search'],
    ...['--most', '60000', '--batch', '10', '--connections', '20', '--ceiling', '2000', '--workers', '1'],
  ])
  const highest = figures.find(({ name }) => name === 'single: highest rate with a p99 below 60000 ms')!
  t.ok(highest.measured > 10, 'more than it began with')
})

t.test('million fails if what was acknowledged is not stored', { skip: leftToDeep() }, async t => {
  const bench = await startScenario(t, 'million', [
    ...['--server', await lyingServer(t), '--devices', '600', '--rate', '40', '--seconds', '10', '--only', 'single'],
    ...['--step', '5', '--batch', '10', '--connections', '20', '--ceiling', '2000', '--workers', '1'],
  ])
  t.match(await bench.exited, { code: 1 })
  t.match(bench.output(), /[1-9]\d* acknowledged heartbeats are not in the database/)
})

t.test('million reports what a server refuses', { skip: leftToDeep() }, async t => {
  const figures = await runScenario(t, 'million', [
    ...['--server', await refusingServer(t), '--devices', '300', '--rate', '20', '--seconds', '10', '--only', 'mixed'],
    ...['--most', '60000', '--batch', '10', '--connections', '20', '--ceiling', '2000', '--workers', '1'],
    ...['--step', '5', '--steps', '1'],
  ])
  const figure = (name: string) => figures.find(found => found.name === name)!.measured
  t.ok(figure('mixed: lost, of all') > 0)
  t.equal(figure('mixed: acknowledged'), 0)
})
