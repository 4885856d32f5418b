// npm test [-- files…]: a throwaway cluster, the tests in it, and its end, whatever happens.
import { spawn } from 'node:child_process'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { debianChromium } from './browser.ts'
import { faketime } from './clock.ts'
import { currentEnv, objectStoreConfig, repository } from './config.ts'
import { dockerCompose, shellcheck, systemdAnalyze } from './linters.ts'
import { objectStore } from './object-store.ts'
import { installPlpgsqlCheck, MissingPostgres, requirePostgres } from './packages.ts'
import { explain, step } from './progress.ts'
import { prometheus } from './prometheus.ts'
import { makeTestCluster } from './testing.ts'
import { topology } from './topology.ts'

let stopping: NodeJS.Signals | undefined
let tap: ReturnType<typeof spawn> | undefined
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  process.on(signal, () => {
    stopping ??= signal
    tap?.kill('SIGTERM')
  })
}

try {
  await buildTap()
  // Here, before the test files that need them run side by side. Where they are not to be had, those say so.
  if (!objectStoreConfig().endpoint) await objectStore.install()
  for (const programs of [topology, debianChromium, prometheus, shellcheck, systemdAnalyze, dockerCompose, faketime]) await programs.install()
  await installPlpgsqlCheck(await requirePostgres())
  const { cluster, description, end } = await step('Making a throwaway cluster for the tests', makeTestCluster)
  try {
    if (!stopping) {
      const file = join(cluster.dir, 'test-cluster.json')
      await writeFile(file, JSON.stringify(description), { mode: 0o600 })
      process.exitCode = await runTap(process.argv.slice(2), file)
    }
  } finally {
    await end()
  }
} catch (error) {
  process.stderr.write(`${explain(error)}\n`)
  process.exitCode = 1
  if (!(error instanceof MissingPostgres) && error instanceof Error) process.stderr.write(`${error.stack}\n`)
}
if (stopping) process.exitCode = 1

/** Compiles tap for the plugins of .taprc after an installation; left to the first run, that run would have the old ones. */
async function buildTap() {
  const built = await readFile(join(repository, 'node_modules/@tapjs/test/test-built/dist/esm/index.js'), 'utf8')
  if (!built.includes('@tapjs/typescript')) return
  const code = await step('Compiling the test runner for its plugins, once', () => runTap(['build']))
  if (code) throw new Error(`tap build ended with code ${code}`)
}

function runTap(args: string[], file?: string) {
  return new Promise<number>((resolve, reject) => {
    tap = spawn(process.execPath, [join(repository, 'node_modules/tap/dist/esm/run.mjs'), ...args], {
      cwd: repository, env: { ...currentEnv(), FLEET_TEST_CLUSTER: file }, stdio: 'inherit',
    })
    tap.once('error', reject)
    tap.once('exit', code => resolve(code ?? 1))
  })
}
