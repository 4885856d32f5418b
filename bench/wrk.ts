// Runs wrk, which sends with little CPU of its own.
import { execFile } from 'node:child_process'
import { rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { plainEnv } from '../local/config.ts'
import { endedCpuSeconds } from './processes.ts'

const run = promisify(execFile)

/** At the end of each script: the results, as runWrk() reads them. */
const DONE = `
function done(summary, latency, requests)
  io.write(string.format("RESULT %d %d %d %d\\n", summary.requests, summary.duration,
    summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.timeout, latency:percentile(99)))
end
`

/**
 * Writes a script that runWrk() can run.
 * @param lua defines request(). Its first number is in the environment variable FIRST.
 * @returns the file and a function that removes it
 */
export async function wrkScript(name: string, lua: string) {
  const file = join(tmpdir(), `fleet-wrk-${process.pid}-${name}.lua`)
  await writeFile(file, lua + DONE)
  return { file, remove: () => rm(file, { force: true }) }
}

/**
 * Sends over keep-alive connections, each of which sends again as soon as it has an answer.
 * @param first the number of the first request. Up to `connections` more requests are sent than are answered
 * @returns times in seconds, the latency in ms, and the CPU seconds of wrk
 * @throws Error if wrk is missing or any request failed
 */
export async function runWrk(url: string, script: string, { connections = 1, seconds = 1, first = 0 }) {
  const before = await endedCpuSeconds()
  const { stdout } = await run('wrk', ['-t1', `-c${connections}`, `-d${seconds}s`, '--timeout', '10s', '-s', script, url], {
    env: { ...plainEnv(), FIRST: String(first) },
  }).catch((error: unknown) => {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
    throw new Error('This needs wrk, which sends the heartbeats. On Debian: apt-get install wrk', { cause: error })
  })
  const found = /RESULT (\d+) (\d+) (\d+) (\d+)/.exec(stdout)?.slice(1).map(Number)
  if (!found) throw new Error(`wrk reported no result:\n${stdout}`)
  const [requests, micros, errors, p99] = found as [number, number, number, number]
  if (errors > 0) throw new Error(`${errors} errors, ${requests} requests at ${url}:\n${stdout}`)
  return { requests, seconds: micros / 1e6, p99: p99 / 1000, cpuSeconds: (await endedCpuSeconds()) - before }
}
