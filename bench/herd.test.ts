import t from 'tap'
import { leftToDeep } from '../local/config.ts'
import { runScenario } from '../testing/bench.ts'

// It makes its own durable cluster, and each of the two phases lasts for a minute.
t.setTimeout(600_000)

t.test('herd spreads devices that come back all at once', { skip: leftToDeep() }, async t => {
  const figures = await runScenario(t, 'herd', [
    ...['--devices', '400', '--interval', '20', '--intervals', '1', '--outage', '60', '--connections', '50', '--workers', '1'],
  ])
  const figure = (name: string) => figures.find(found => found.name === name)!.measured
  for (const mode of ['fixed', 'spread']) t.ok(figure(`${mode}: until each device had its first answer`) > 0)
  t.equal(figure('fixed: shortest wait'), 20)
  t.equal(figure('fixed: longest wait'), 20)
  t.ok(figure('spread: shortest wait') >= 10)
  t.ok(figure('spread: longest wait') <= 30)
  t.ok(figure('spread: longest wait') > figure('spread: shortest wait'))
  t.ok(figure('fixed: peak / mean') > 2 * figure('spread: peak / mean'))
})
