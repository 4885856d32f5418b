// Helpers for the tests of the scripts in docker/.
import { spawn } from 'node:child_process'
import { chmod, mkdtemp, realpath, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Test } from 'tap'
import { plainEnv } from '../local/config.ts'
import { repository } from '../lib/repository.ts'
import { find } from './optional-programs.ts'

/** Runs a program until it ends. */
export function run(
  program: string,
  args: string[],
  options: { env?: Record<string, string | undefined>; cwd?: string; input?: string } = {},
) {
  return new Promise<{ code: number | null; output: string }>((resolve, reject) => {
    const child = spawn(find(program), args, {
      cwd: options.cwd ?? repository,
      env: { ...plainEnv(), ...options.env },
      stdio: 'pipe',
    })
    let output = ''
    for (const stream of [child.stdout, child.stderr])
      stream.on('data', (chunk: Buffer) => {
        output += chunk.toString()
      })
    child.stdin.on('error', () => {}) // the exit code tells more
    child.stdin.end(options.input ?? '')
    child.once('error', reject)
    child.once('close', code => resolve({ code, output }))
  })
}

/** Makes a temporary directory that other users may enter. */
export async function withDirectory(t: Test) {
  const directory = await mkdtemp(join(await realpath(tmpdir()), 'nexmdm-docker-'))
  await chmod(directory, 0o755)
  t.teardown(() => rm(directory, { recursive: true, force: true }))
  return directory
}

/** Runs docker/secrets/make.sh and returns its directory. */
export async function withSecrets(t: Test) {
  const directory = await withDirectory(t)
  const { code, output } = await run('sh', ['docker/secrets/make.sh', directory])
  if (code !== 0) throw new Error(output)
  return directory
}
