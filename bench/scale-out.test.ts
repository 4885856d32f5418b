import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { runScenario } from '../testing/bench.ts'
import { withoutCitus } from '../testing/citus.ts'

t.test('scale-out measures each way on each number of workers', { skip: withoutCitus, timeout: 600_000 }, async t => {
  const directory = await mkdtemp(join(tmpdir(), 'fleet-plot-'))
  t.teardown(() => rm(directory, { recursive: true, force: true }))
  const file = join(directory, 'plot.svg')
  const small = ['--workers', '1,2', '--rounds', '1', '--seconds', '2', '--shards', '4', '--devices', '400', '--batch', '50']
  const figures = await runScenario(t, 'scale-out', [...small, '--plot', file])
  for (const way of ['plain', '(a) coordinator, 1 worker', '(c) its worker, 2 workers', 'routed singles, 2 workers']) {
    const figure = figures.find(({ name }) => name === `${way}: Postgres's CPU a heartbeat`)
    t.ok(figure!.measured > 1, `${way}: ${figure!.measured}`)
  }
  const share = (way: string) => figures.find(({ name }) => name === `${way}: of that the coordinator`)!.measured
  t.ok(share('(a) coordinator, 2 workers') > 1, 'a batch of any devices costs the coordinator something')
  t.ok(share('(c) its worker, 2 workers') < share('(a) coordinator, 2 workers') / 2, 'and nothing if it is not asked')
  t.match(await readFile(file, 'utf8'), /connections of servers to a node/)
})
