// npm run test:deep: what takes longer than anybody waits for, and needs root. Writes docs/deep-test.md.
import { execFileSync, spawn } from 'node:child_process'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { currentEnv, repository } from './config.ts'

interface Stage { what: string, command: string, args: string[], env?: Record<string, string> }

const fuzzed = 100_000
const stages: Stage[] = [
  {
    what: `every test at full size, ${fuzzed.toLocaleString('en')} fuzzed bodies`,
    command: 'npm', args: ['test'], env: { TEST_DEEP: '1', FUZZ_RUNS: String(fuzzed), CI: 'true' },
  },
  { what: 'a new Debian 12 with Node only: `npm start`, what it prints, `npm test`', command: 'local/fresh.sh', args: ['bookworm'] },
  {
    what: 'a new Debian 13, PostgreSQL 17 with pg_partman 5 and its own Node: the same, and `npm test` skips nothing',
    command: 'local/fresh.sh', args: ['trixie'], env: { CI: 'true' },
  },
]

const rows: string[] = []
for (const stage of stages) {
  process.stdout.write(`== ${stage.what}\n`)
  const { code, totals, minutes } = await run(stage)
  rows.push(`| ${stage.what} | ${totals} | ${minutes} min | ${code === 0 ? 'PASS' : `**FAIL** (${code})`} |`)
  if (code !== 0) process.exitCode = 1
}

const commit = execFileSync('git', ['rev-parse', '--short', 'HEAD'], { cwd: repository, encoding: 'utf8' }).trim()
const page = `# The deep test

\`npm run test:deep\`, as root, of commit ${commit} on ${new Date().toISOString().slice(0, 10)}:

| | assertions | took | |
|---|---|---|---|
${rows.join('\n')}
`
await writeFile(join(repository, 'docs/deep-test.md'), page)
process.stdout.write(`${page}\nwritten to docs/deep-test.md\n`)

/** Runs it, shows what it says, and keeps the totals of tap. */
function run({ command, args, env }: Stage) {
  const started = performance.now()
  return new Promise<{ code: number, totals: string, minutes: string }>((resolve, reject) => {
    const child = spawn(command, args, { cwd: repository, env: { ...currentEnv(), ...env }, stdio: ['ignore', 'pipe', 'inherit'] })
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
