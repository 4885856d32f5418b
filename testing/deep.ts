// npm run test:deep [-- full|dates|citus|bookworm|trixie|forky|node22|node24|node26 …]: runs the tests that take hours and need
// root. It writes docs/deep-test.md. A stage that is not run again keeps its line there and the commit on which it ran.
import { execFileSync, spawn } from 'node:child_process'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { reportFailure, UsageError } from '../lib/errors.ts'
import { currentEnv } from '../local/config.ts'
import { repository } from '../lib/repository.ts'

interface Stage {
  name: string
  what: string
  command: string
  args: string[]
  env?: Record<string, string>
}

const FUZZ_RUNS = 100_000
const stages: Stage[] = [
  {
    name: 'full',
    what: `every test at full size, with ${FUZZ_RUNS.toLocaleString('en')} fuzzed bodies`,
    command: 'npm',
    args: ['test'],
    env: { TEST_DEEP: '1', FUZZ_RUNS: String(FUZZ_RUNS), CI: 'true' },
  },
  {
    name: 'dates',
    what: 'every test with its clocks moved: to a leap day, the ends of months and of a year, changes of summer time, and three years ahead',
    command: 'npm',
    args: ['run', 'test:dates'],
    env: { CI: 'true' },
  },
  {
    name: 'citus',
    what: 'the tests of the store on a coordinator and two workers, with Citus',
    command: 'npm',
    args: ['run', 'test:citus'],
    env: { CI: 'true' },
  },
  {
    name: 'bookworm',
    what: 'a fresh Debian 12 with only Node: `npm start`, the commands that it prints, `npm test`',
    command: 'testing/fresh.sh',
    args: ['bookworm'],
  },
  {
    name: 'trixie',
    what: 'the same on a fresh Debian 13, with PostgreSQL 17, pg_partman 5 and its own Node',
    command: 'testing/fresh.sh',
    args: ['trixie'],
  },
  {
    name: 'forky',
    what: 'the same on Debian testing, with PostgreSQL 18, pg_partman 5.5 and its own Node 24',
    command: 'testing/fresh.sh',
    args: ['forky'],
  },
  ...[22, 24, 26].map(version => ({
    name: `node${version}`,
    what: `the same on a fresh Debian 12 with Node ${version}`,
    command: 'testing/fresh.sh',
    args: [`node${version}`],
  })),
]

const wanted = process.argv.slice(2)
const unknown = wanted.find(name => !stages.some(stage => stage.name === name))
if (unknown !== undefined) {
  process.exit(reportFailure(new UsageError(`${unknown}: expected ${stages.map(({ name }) => name).join(', ')}`)))
}
const commit = execFileSync('git', ['rev-parse', '--short', 'HEAD'], { cwd: repository, encoding: 'utf8' }).trim()
const file = join(repository, 'docs/deep-test.md')
const before = await readFile(file, 'utf8').catch(() => '')

const rows: string[] = []
for (const stage of stages) {
  if (wanted.length > 0 && !wanted.includes(stage.name)) {
    const kept = before.split('\n').find(line => line.startsWith(`| ${stage.what} |`))
    if (kept !== undefined) rows.push(kept)
    continue
  }
  process.stdout.write(`== ${stage.what}\n`)
  const { code, totals, minutes } = await run(stage)
  const day = new Date().toISOString().slice(0, 10)
  rows.push(`| ${stage.what} | ${commit}, ${day} | ${totals} | ${minutes} min | ${code === 0 ? 'PASS' : `**FAIL** (${code})`} |`)
  if (code !== 0) process.exitCode = 1
}

const page = `# The deep test

\`npm run test:deep\`, as root, runs these stages. A stage that was not run again keeps its line and its commit.

| | commit | assertions | took | |
|---|---|---|---|---|
${rows.join('\n')}
`
await writeFile(file, page)
process.stdout.write(`${page}\nwritten to docs/deep-test.md\n`)

/** Runs a stage, shows its output, and extracts tap's totals. */
function run({ command, args, env }: Stage) {
  const started = performance.now()
  return new Promise<{ code: number; totals: string; minutes: string }>((resolve, reject) => {
    const child = spawn(command, args, {
      cwd: repository,
      env: { ...currentEnv(), ...env },
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    let tail = ''
    child.stdout.on('data', (chunk: Buffer) => {
      process.stdout.write(chunk)
      tail = (tail + chunk.toString()).slice(-10_000)
    })
    child.once('error', reject)
    child.once('close', (code, signal) => {
      const totals = /# \{ total: (\d+), pass: (\d+)(?:, fail: (\d+))?(?:, skip: (\d+))?/.exec(tail)
      resolve({
        code: code ?? (signal ? 1 : 0),
        totals: totals ? `${totals[2]} of ${totals[1]}${totals[4] ? `, ${totals[4]} skipped` : ''}` : 'none',
        minutes: ((performance.now() - started) / 60_000).toFixed(1),
      })
    })
  })
}
