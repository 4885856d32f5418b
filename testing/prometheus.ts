// Runs Prometheus as docker/prometheus/ configures it, for tests: Debian's programs, in a temporary directory, on a free port of
// loopback.
import { execFile } from 'node:child_process'
import { chown, cp, mkdtemp, readdir, readFile, realpath, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import type { Test } from 'tap'
import { clusterUser, freePort } from '../local/cluster.ts'
import { plainEnv } from '../local/config.ts'
import { repository } from '../lib/repository.ts'
import { find, hasPrograms, testPrograms } from './optional-programs.ts'
import { spawnProgram } from './database.ts'

const run = promisify(execFile)
export const prometheus = testPrograms('Prometheus', ['prometheus'], () => hasPrograms('prometheus', 'promtool'))

/**
 * Runs promtool.
 * @returns what it printed, and whether it found nothing wrong
 */
export async function promtool(...args: string[]) {
  try {
    const { stdout, stderr } = await run(find('promtool'), args, { env: plainEnv() })
    return { isOk: true, output: stdout + stderr }
  } catch (error) {
    const { stdout = '', stderr = '', message } = error as { stdout?: string; stderr?: string; message: string }
    return { isOk: false, output: stdout + stderr || message }
  }
}

export interface Targets {
  adminKey: string
  /** As `host:port`. */
  servers: string[]
  haproxy?: string[]
  alertmanagers?: string[]
  /** Rules in addition to those of docker/prometheus/. */
  rules?: string
}

/** Makes a copy of docker/prometheus/ with this key and these targets. Everything else stays as it is. */
export async function configurePrometheus(
  t: Test,
  { adminKey, servers, haproxy = [], alertmanagers = [], rules }: Targets,
  port = 9090,
) {
  const dir = await mkdtemp(join(await realpath(tmpdir()), 'nexmdm-prometheus-'))
  t.teardown(() => rm(dir, { recursive: true, force: true }))
  await cp(join(repository, 'docker/prometheus'), dir, { recursive: true })
  await writeFile(join(dir, 'admin_key'), adminKey, { mode: 0o600 })
  for (const [name, targets] of Object.entries({ servers, haproxy, alertmanagers, prometheus: [`127.0.0.1:${port}`] })) {
    await writeFile(join(dir, 'targets', `${name}.yml`), JSON.stringify([{ targets }]))
  }
  if (rules !== undefined) await writeFile(join(dir, 'rules/more.yml'), rules)
  return dir
}

/** Runs Prometheus with the real configuration, except that it has other targets, and scrapes and evaluates each second. */
export async function withPrometheus(t: Test, targets: Targets) {
  const port = await freePort(true)
  const dir = await configurePrometheus(t, targets, port)
  const file = join(dir, 'prometheus.yml')
  const text = await readFile(file, 'utf8')
  await writeFile(
    file,
    text.replace('scrape_interval: 15s', 'scrape_interval: 1s').replace('evaluation_interval: 15s', 'evaluation_interval: 1s'),
  )
  const user = clusterUser()
  if (user) {
    for (const path of ['', ...(await readdir(dir, { recursive: true }))]) await chown(join(dir, path), user.uid, user.gid)
  }
  const url = `http://127.0.0.1:${port}`
  const server = await spawnProgram(
    t,
    find('prometheus'),
    [`--config.file=${file}`, `--storage.tsdb.path=${join(dir, 'data')}`, `--web.listen-address=127.0.0.1:${port}`],
    { cwd: dir, ...user, ready: `${url}/-/ready` },
  )

  /**
   * Calls the HTTP API, for example query?query=up.
   * @throws an Error with Prometheus's message
   */
  const api = async <T>(path: string, parameters: Record<string, string> = {}) => {
    const answer = await fetch(`${url}/api/v1/${path}?${new URLSearchParams(parameters).toString()}`)
    const { status, data, error } = (await answer.json()) as { status: string; data: T; error?: string }
    if (status !== 'success') throw new Error(`${path} ${JSON.stringify(parameters)}: ${error}`)
    return data
  }
  return { url, api, server }
}
