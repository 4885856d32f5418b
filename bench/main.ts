// npm run bench -- <scenario> [options]: prints a table and writes JSON to .local/bench. The exit code is 1 if a target is
// missed.
import { mkdir, writeFile } from 'node:fs/promises'
import { availableParallelism } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { repository } from '../lib/repository.ts'
import { say } from '../lib/progress.ts'
import { isMet, line, type Figure } from './figure.ts'
import { runProgram } from './options.ts'
import { UsageError } from '../lib/errors.ts'

/** A scenario is loaded only when it is run, so that a wrong option is reported at once. */
const scenarios: Record<string, () => Promise<(args: string[]) => Promise<Figure[]>>> = {
  compare: async () => (await import('./compare.ts')).benchCompare,
  archive: async () => (await import('./archive.ts')).benchArchive,
  hostile: async () => (await import('./hostile.ts')).benchHostile,
  growth: async () => (await import('./growth.ts')).benchGrowth,
  'load-history': async () => (await import('./load-history.ts')).benchLoadHistory,
  targets: async () => (await import('./targets.ts')).benchTargets,
  herd: async () => (await import('./herd.ts')).benchHerd,
  million: async () => (await import('./million.ts')).benchMillion,
  limits: async () => (await import('./limits.ts')).benchLimits,
  statement: async () => (await import('./statement.ts')).benchStatement,
  maintenance: async () => (await import('./maintenance.ts')).benchMaintenance,
  reads: async () => (await import('./reads.ts')).benchReads,
  'scale-out': async () => (await import('./scale-out.ts')).benchScaleOut,
  settle: async () => (await import('./settle.ts')).benchSettle,
  transitions: async () => (await import('./transitions.ts')).benchTransitions,
  tell: async () => (await import('./tell.ts')).benchTell,
  soak: async () => (await import('./soak.ts')).benchSoak,
  views: async () => (await import('./views.ts')).benchViews,
  tracing: async () => (await import('./tracing.ts')).benchTracing,
  load: async () => (await import('./load.ts')).benchLoad,
  'postgres-18': async () => (await import('./postgres-18.ts')).benchPostgres18,
}

await runProgram(async ([scenario = '', ...args]) => {
  const load = scenarios[scenario]
  if (!load) {
    throw new UsageError(
      `usage: npm run bench -- <scenario> [options] [--output FILE]; scenarios: ${Object.keys(scenarios).join(', ')}`,
    )
  }
  const now = new Date().toISOString()
  const file = outputFile(args) ?? join(repository, '.local', 'bench', `${scenario}-${now.replaceAll(':', '')}.json`)
  const figures = await (await load())(args)
  for (const figure of figures) say(line(figure))
  await mkdir(dirname(file), { recursive: true })
  const about = { scenario, args, at: now, node: process.version, processors: availableParallelism() }
  await writeFile(file, `${JSON.stringify({ ...about, figures }, null, 2)}\n`)
  say(`written to ${file}`)
  return figures.every(isMet) ? 0 : 1
})

/** Extracts `--output FILE`, which every scenario accepts. */
function outputFile(args: string[]) {
  const at = args.indexOf('--output')
  if (at < 0) return undefined
  const [, file] = args.splice(at, 2)
  if (!file) throw new UsageError('--output needs the name of a file')
  return resolve(file)
}
