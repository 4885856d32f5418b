// npm test [-- --at 2028-02-29T12:00Z] [files…]: makes a throwaway cluster, runs the tests in it and removes it, no matter what
// happens. With --at all of this happens at that time. npm run test:citus adds --citus: the stores are distributed over two workers.
import { spawn, type ChildProcess } from 'node:child_process'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { alertmanager } from './alertmanager.ts'
import { debianChromium } from './browser.ts'
import { faketime, moveClock, shareClock } from './clock.ts'
import { currentEnv, movedClock, objectStoreConfig } from '../local/config.ts'
import { built, nodeArgs, repository } from '../lib/repository.ts'
import { dockerCompose, shellcheck, systemdAnalyze } from './linters.ts'
import { objectStore } from './object-store.ts'
import { installPlpgsqlCheck, MissingPostgres, requirePostgres } from '../local/packages.ts'
import { say, step } from '../lib/progress.ts'
import { prometheus } from './prometheus.ts'
import { makeTestCluster, PLAIN_DATABASE, TEMPLATE_DATABASE } from './database.ts'
import { makeDistributedCluster, testsOfDistributed } from './distributed.ts'
import { hasCitus, NO_CITUS } from './nodes.ts'
import { compiledTests } from './test-files.ts'
import { topology } from './topology.ts'
import { shellTools } from './shell-tools.ts'
import { wrk } from './wrk.ts'
import { reportFailure, UsageError } from '../lib/errors.ts'

let stopping: NodeJS.Signals | undefined
let running: ChildProcess | undefined
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  process.on(signal, () => {
    stopping ??= signal
    running?.kill('SIGTERM')
  })
}

try {
  await buildTap()
  // Installed here, before the test files that need them run in parallel. If a program cannot be installed, those tests say so.
  if (!objectStoreConfig().endpoint) await objectStore.install()
  for (const programs of [
    topology,
    debianChromium,
    prometheus,
    alertmanager,
    shellcheck,
    systemdAnalyze,
    dockerCompose,
    faketime,
    shellTools,
    wrk,
  ])
    await programs.install()
  await installPlpgsqlCheck(await requirePostgres())
  const { at, rest } = parseArguments(process.argv.slice(2))
  if (rest.includes('--citus') && !hasCitus(await requirePostgres())) throw new UsageError(NO_CITUS)
  process.exitCode = stopping ? 1 : at ? await runAt(at, rest) : await runHere(rest)
} catch (error) {
  process.exitCode = reportFailure(error)
  if (error instanceof Error && !(error instanceof MissingPostgres || error instanceof UsageError))
    process.stderr.write(`${error.stack}\n`)
}
if (stopping) process.exitCode = 1

/** Extracts --at from the arguments. The others are passed to tap. */
function parseArguments(args: string[]) {
  const place = args.indexOf('--at')
  if (place < 0) return { at: undefined, rest: args }
  const text = args[place + 1] ?? ''
  const at = new Date(text)
  // Date accepts 30 February as a day in March.
  const isReal =
    /^\d{4}-\d\d-\d\dT\d\d:\d\dZ$/.test(text) && !Number.isNaN(at.getTime()) && at.toISOString().startsWith(text.slice(0, -1))
  if (!isReal) throw new UsageError(`--at: expected a time in UTC, such as 2028-02-29T12:00Z, got ${JSON.stringify(text)}`)
  return { at, rest: args.toSpliced(place, 2) }
}

/** Repeats the run in a process with a moved clock. Missing programs were installed before, because apt needs the real time. */
async function runAt(at: Date, args: string[]) {
  const clock = await moveClock(at)
  const child = (running = spawn(process.execPath, [...nodeArgs('testing/run.ts'), ...args], {
    cwd: repository,
    env: { ...currentEnv(), ...clock.env },
    stdio: 'inherit',
  }))
  try {
    return await ended(child)
  } finally {
    await clock.end(child.pid ?? 0)
  }
}

/** Runs the tests here; returns the exit code. */
async function runHere(all: string[]) {
  if (movedClock().FAKETIME_SHARED) await shareClock()
  const isDistributed = all.includes('--citus')
  const files = all.filter(arg => arg !== '--citus')
  const args = isDistributed ? await testsOfDistributed(files, say) : files
  const { cluster, description, end } = isDistributed
    ? await step('Making a coordinator and two workers for the tests', () =>
        makeDistributedCluster(TEMPLATE_DATABASE, PLAIN_DATABASE),
      )
    : await step('Making a throwaway cluster for the tests', makeTestCluster)
  try {
    if (stopping) return 1
    const file = join(cluster.dir, 'test-cluster.json')
    await writeFile(file, JSON.stringify(description), { mode: 0o600 })
    return await runTap(await compiledTests(args), file)
  } finally {
    await end()
  }
}

/**
 * Compiles tap for the plugins in .taprc after an installation. Without this, the first run would compile them but still use the
 * old ones.
 */
async function buildTap() {
  const plugins = await readFile(join(repository, 'node_modules/@tapjs/test/test-built/dist/esm/index.js'), 'utf8')
  if (!/@tapjs\/(typescript|mock)/.test(plugins)) return
  const code = await step('Compiling the test runner for its plugins, once', () => runTap(['build']))
  if (code) throw new Error(`tap build ended with code ${code}`)
}

function runTap(args: string[], file?: string) {
  running = spawn(process.execPath, [join(repository, 'node_modules/tap/dist/esm/run.mjs'), ...args], {
    cwd: repository,
    env: {
      ...currentEnv(),
      FLEET_TEST_CLUSTER: file,
      NODE_OPTIONS: [currentEnv().NODE_OPTIONS, `--import=${pathToFileURL(built('testing/without-loaders.ts')).href}`].join(' '),
    },
    stdio: 'inherit',
  })
  return ended(running)
}

function ended(child: ChildProcess) {
  return new Promise<number>((resolve, reject) => {
    child.once('error', reject)
    child.once('exit', code => resolve(code ?? 1))
  })
}
