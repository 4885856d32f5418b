import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Test } from 'tap'
import { spawnNode } from './database.ts'
import { isMet, line, type Figure } from '../bench/figure.ts'

/** Runs a scenario to its end, whatever its targets say of a busy machine; its figures, which it printed too. */
export async function runScenario(t: Test, scenario: string, args: string[]) {
  const directory = await mkdtemp(join(tmpdir(), 'fleet-bench-test-'))
  t.teardown(() => rm(directory, { recursive: true, force: true }))
  const file = join(directory, 'figures.json')
  const bench = await spawnNode(t, 'bench/main.ts', { args: [scenario, ...args, '--output', file] })
  const { code } = await bench.exited
  const text = await readFile(file, 'utf8').catch(() => '')
  if (!text) throw new Error(`${scenario} ended with ${code} and left no figures:\n${bench.output()}`)
  const { figures } = JSON.parse(text) as { figures: Figure[] }
  for (const figure of figures) t.ok(bench.output().includes(line(figure)), `${figure.name} is on the screen`)
  t.equal(code, figures.every(isMet) ? 0 : 1, 'the exit code tells of a missed target')
  return figures
}
