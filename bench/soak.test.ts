import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { leftToDeep } from '../local/config.ts'
import { runScenario } from '../testing/bench.ts'

// Each scenario makes its own durable cluster.
t.setTimeout(600_000)

async function plotFile(t: Test) {
  const directory = await mkdtemp(join(tmpdir(), 'fleet-plot-'))
  t.teardown(() => rm(directory, { recursive: true, force: true }))
  return join(directory, 'plot.svg')
}

t.test('soak includes a nightly run and an archive, and plots p99, memory and the disk', { skip: leftToDeep() }, async t => {
  const file = await plotFile(t)
  const figures = await runScenario(t, 'soak', [
    '--seconds',
    '10',
    '--devices',
    '600',
    '--rows',
    '1440',
    '--window',
    '1',
    '--plot',
    file,
  ])
  const figure = (name: string) => figures.find(found => found.name === name)!.measured
  t.equal(figure('errors'), 0)
  t.ok(figure('nightly run') > 0 && figure('archive') > 0 && figure('memory of the server, late') > 0)
  const svg = await readFile(file, 'utf8')
  t.match(svg, /^<svg [^]*>nightly run<[^]*>archive<[^]*(?:<polyline[^]*){4}<\/svg>\n$/)
  t.notMatch(svg, /NaN|Infinity/)
})

t.test('growth measures each size and plans with more partitions', { skip: leftToDeep() }, async t => {
  const file = await plotFile(t)
  const figures = await runScenario(t, 'growth', [
    '--sizes',
    '2000,8000',
    '--beats',
    '5',
    '--rounds',
    '1',
    '--seconds',
    '1',
    '--partitions',
    '105,110',
    '--plot',
    file,
  ])
  t.match(
    figures.find(({ name }) => name === 'archive: a row at 8,000 / at 2,000'),
    { target: { at: 'most', value: 1.1 } },
  )
  t.equal(figures.filter(({ name }) => name.startsWith('planning')).length, 6)
  t.ok(figures.every(({ name, measured }) => measured > 0 || name.includes('read from the disk')))
  const svg = await readFile(file, 'utf8')
  t.equal(svg.match(/<polyline/g)?.length, 6)
  t.notMatch(svg, /NaN|Infinity/)
})
