// npm run bench -- <scenario> [options]: measures two things side by side; a table on the screen, JSON in .local/bench.
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { repository } from '../local/config.ts'
import { explain, say } from '../local/progress.ts'
import { benchArchive } from './archive.ts'

/** One figure of a scenario. A target is a bound on a ratio, so that it holds on any machine. */
export interface Figure {
  name: string
  measured: number
  unit: string
  target?: { at: 'least' | 'most', value: number }
}

const scenarios: Record<string, (args: string[]) => Promise<Figure[]>> = { archive: benchArchive }

const [scenario = '', ...args] = process.argv.slice(2)
const run = scenarios[scenario]
if (!run) {
  process.stderr.write(`usage: npm run bench -- <scenario> [options]; scenarios: ${Object.keys(scenarios).join(', ')}\n`)
  process.exit(2)
}
try {
  const figures = await run(args)
  for (const figure of figures) say(line(figure))
  const directory = join(repository, '.local', 'bench')
  await mkdir(directory, { recursive: true })
  const file = join(directory, `${scenario}-${new Date().toISOString().replaceAll(':', '')}.json`)
  await writeFile(file, `${JSON.stringify({ scenario, args, node: process.version, figures }, null, 2)}\n`)
  say(`written to ${file}`)
  process.exitCode = figures.every(isMet) ? 0 : 1
} catch (error) {
  process.stderr.write(`${explain(error)}\n`)
  process.exitCode = 1
}

function isMet({ measured, target }: Figure) {
  return !target || (target.at === 'least' ? measured >= target.value : measured <= target.value)
}

function line(figure: Figure) {
  const { name, measured, unit, target } = figure
  const value = `${measured >= 100 ? Math.round(measured).toLocaleString('en') : measured.toFixed(2)} ${unit}`.trim()
  const verdict = target ? `  ${isMet(figure) ? 'PASS' : 'FAIL'} (at ${target.at} ${target.value})` : ''
  return `${name.padEnd(58)} ${value.padStart(18)}${verdict}`
}
