import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Test } from 'tap'
import { spawnNode } from './database.ts'
import { testClusterFile } from '../local/config.ts'
import { isMet, line, type Figure } from '../bench/figure.ts'

/** Starts a scenario, with the cluster of the tests to make its stores from. */
export function startScenario(t: Test, scenario: string, args: string[]) {
  return spawnNode(t, 'bench/main.ts', { args: [scenario, ...args], env: { FLEET_TEST_CLUSTER: testClusterFile() } })
}

/**
 * Runs a scenario to its end. A busy machine may miss its targets. Returns the figures, and checks that they were printed too.
 */
export async function runScenario(t: Test, scenario: string, args: string[]) {
  const directory = await mkdtemp(join(tmpdir(), 'fleet-bench-test-'))
  t.teardown(() => rm(directory, { recursive: true, force: true }))
  const file = join(directory, 'figures.json')
  const bench = await startScenario(t, scenario, [...args, '--output', file])
  const { code } = await bench.exited
  const text = await readFile(file, 'utf8').catch(() => '')
  if (!text) throw new Error(`${scenario} ended with ${code} and wrote no figures:\n${bench.output()}`)
  const { figures } = JSON.parse(text) as { figures: Figure[] }
  for (const figure of figures) t.ok(bench.output().includes(line(figure)), `${figure.name} is on the screen`)
  t.equal(code, figures.every(isMet) ? 0 : 1, 'the exit code is 1 if a target is missed')
  return figures
}
