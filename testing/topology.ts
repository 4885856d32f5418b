// Runs pgBouncer and HAProxy as docker/ configures them, for tests: Debian's programs, on free ports of loopback.
import { chown, mkdtemp, readFile, realpath, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Test } from 'tap'
import { clusterUser, freePort } from '../local/cluster.ts'
import { repository } from '../lib/repository.ts'
import { find, hasPrograms, testPrograms } from './optional-programs.ts'
import { spawnProgram, type Owner, type TestProcess } from './database.ts'

/** pgBouncer and HAProxy. */
export const topology = testPrograms('pool and balancer', ['pgbouncer', 'haproxy'], () => hasPrograms('pgbouncer', 'haproxy'))

export interface Service {
  port: number
  /** Starts it; a later start uses the same port. Resolves to the process. */
  start: () => Promise<TestProcess>
}

/** Makes a pgBouncer in front of the database at `url`, only for that URL's role. `through` is the URL through pgBouncer. */
export async function withPgbouncer(t: Test, url: string): Promise<Service & { through: string }> {
  const target = new URL(url)
  const dir = await mkdtemp(join(await realpath(tmpdir()), 'nexmdm-pgbouncer-'))
  t.teardown(() => rm(dir, { recursive: true, force: true }))
  const port = await freePort(true)
  const userlist = join(dir, 'userlist.txt')
  const ini = await configuration('docker/pgbouncer/pgbouncer.ini', {
    'host=postgres port=5432 dbname=fleet': `host=${target.hostname} port=${target.port} dbname=${target.pathname.slice(1)}`,
    'listen_addr = *': 'listen_addr = 127.0.0.1',
    'listen_port = 6432': `listen_port = ${port}`,
    '/etc/pgbouncer/userlist.txt': userlist,
  })
  await writeFile(join(dir, 'pgbouncer.ini'), ini)
  await writeFile(userlist, `"${target.username}" "${target.password}"\n`, { mode: 0o600 })
  // Like Postgres, pgBouncer does not run as root.
  const user = clusterUser()
  if (user) for (const path of [dir, userlist]) await chown(path, user.uid, user.gid)
  const through = new URL(url)
  through.host = `127.0.0.1:${port}`
  through.pathname = '/fleet'
  through.searchParams.set('prepare', 'false')
  const start = () =>
    spawnProgram(t, find('pgbouncer'), [join(dir, 'pgbouncer.ini')], {
      cwd: dir,
      ...user,
      ready: /process up/,
    })
  return { port, start, through: through.href }
}

/** Makes an HAProxy in front of two servers on these ports. `states` returns the results of its health checks. */
export async function withHaproxy(
  t: Owner,
  servers: [number, number],
): Promise<Service & { url: string; operators: string; stats: string; states: () => Promise<string[]> }> {
  const port = await freePort(true)
  const operators = await freePort(true)
  const stats = await freePort(true)
  const env = {
    BALANCER_BIND: `127.0.0.1:${port}`,
    OPERATORS_BIND: `127.0.0.1:${operators}`,
    STATS_BIND: `127.0.0.1:${stats}`,
    SERVER_1: `127.0.0.1:${servers[0]}`,
    SERVER_2: `127.0.0.1:${servers[1]}`,
  }
  // HAProxy reads a copy, because its user may not be able to enter this clone, for example in root's home directory.
  const dir = await mkdtemp(join(await realpath(tmpdir()), 'nexmdm-haproxy-'))
  t.teardown(() => rm(dir, { recursive: true, force: true }))
  const file = join(dir, 'haproxy.cfg')
  await writeFile(file, await configuration('docker/haproxy/haproxy.cfg', {}))
  const user = clusterUser()
  if (user) for (const path of [dir, file]) await chown(path, user.uid, user.gid)
  const start = () =>
    spawnProgram(t, find('haproxy'), ['-db', '-f', file], {
      cwd: dir,
      ...user,
      env,
      ready: `http://127.0.0.1:${stats}/metrics`,
    })
  const states = async () => {
    const csv = await (await fetch(`http://127.0.0.1:${stats}/stats;csv`)).text()
    const [header = '', ...lines] = csv
      .trim()
      .split('\n')
      .map(line => line.split(','))
    const column = header.indexOf('status')
    return lines.filter(([proxy, name]) => proxy === 'servers' && name !== 'BACKEND').map(line => line[column] ?? '')
  }
  return {
    port,
    start,
    url: `http://127.0.0.1:${port}`,
    operators: `http://127.0.0.1:${operators}`,
    stats: `http://127.0.0.1:${stats}`,
    states,
  }
}

/** A file of docker/ with these changes. Everything else stays as it is. */
async function configuration(file: string, changes: Record<string, string>) {
  let text = await readFile(join(repository, file), 'utf8')
  for (const [from, to] of Object.entries(changes)) {
    if (!text.includes(from)) throw new Error(`${file} no longer contains ${from}`)
    text = text.replace(from, to)
  }
  return text
}
