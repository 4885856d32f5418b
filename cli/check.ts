// npm run check: prints the result of fleet.check() with remedies, and the health of the server's pools. Exit code 1 if anything
// fails.
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { optionalDatabaseUrl, serverAddress } from '../local/config.ts'
import { repository } from '../lib/repository.ts'
import { openDatabase } from '../lib/database.ts'
import { ownCluster } from '../local/own-cluster.ts'
import { ask } from '../local/own-server.ts'
import { say } from '../lib/progress.ts'
import { explain, reportFailure } from '../lib/errors.ts'

interface Check {
  check_name: string
  status: 'ok' | 'warn' | 'fail'
  detail: string
  remedy: string | null
}

/** The rows of fleet.check(), worst first, as text for a terminal. */
export function table(checks: Check[]) {
  const rank = { fail: 0, warn: 1, ok: 2 }
  const width = Math.max(...checks.map(check => check.check_name.length))
  return [...checks]
    .sort((a, b) => rank[a.status] - rank[b.status])
    .map(({ check_name: name, status, detail, remedy }) => {
      const line = `${status.padEnd(4)}  ${name.padEnd(width)}  ${detail}`
      return status !== 'ok' && remedy
        ? `${line}\n${' '.repeat(width + 8)}-> ${remedy.replaceAll('\n', `\n${' '.repeat(width + 11)}`)}`
        : line
    })
    .join('\n')
}

/** DATABASE_URL, or the URL of npm start's cluster if that is running. */
async function url() {
  const given = optionalDatabaseUrl()
  if (given) return given
  const own = await ownCluster()
  if (!own?.isRunning) {
    throw new Error('DATABASE_URL is not set, and the cluster of npm start is not running; start it, or set DATABASE_URL')
  }
  return own.cluster.url('fleet_owner', 'fleet')
}

interface PoolHealth {
  status: 'ok' | 'warn' | 'critical'
  reason?: string
  pool: { in_use: number; max: number; utilization_pct: number; waiting: number }
}

/** The answer of GET /ops/pool_health as one more check. If the server cannot be asked, the check says why. */
export async function poolHealth(address: ReturnType<typeof serverAddress>): Promise<Check> {
  const check: Check = { check_name: 'pool_health', status: 'warn', detail: '', remedy: null }
  if (!address) {
    return { ...check, status: 'ok', detail: 'not checked: ADMIN_KEY is not set, and there is no server of npm start' }
  }
  try {
    const { url, adminKey, certFile } = address
    const answer = await ask(`${url}/ops/pool_health`, { headers: { 'x-admin': adminKey }, timeoutMs: 5000, certFile })
    if (answer.status !== 200)
      return {
        ...check,
        detail: `${url} answers ${answer.status}`,
        remedy: 'Check that ADMIN_KEY is the key of this server.',
      }
    const { status, reason, pool } = JSON.parse(answer.text) as PoolHealth
    if (reason !== undefined) {
      return {
        ...check,
        status: 'fail',
        detail: `a new connection is refused: ${reason}`,
        remedy: 'RUNBOOK.md, "Connections run out" or "A password is refused"',
      }
    }
    return {
      ...check,
      status: status === 'critical' ? 'fail' : status,
      detail: `${pool.in_use} of ${pool.max} connections in use (${pool.utilization_pct} %), ${pool.waiting} requests waiting`,
      remedy: 'RUNBOOK.md, "Heartbeats come faster than they are written"',
    }
  } catch (error) {
    return { ...check, detail: `${address.url} cannot be reached: ${explain(error)}`, remedy: 'npm run server' }
  }
}

/** The address from the environment, otherwise from the file that npm start wrote. */
async function server() {
  const kept = await readFile(join(repository, '.local', 'env'), 'utf8').catch(() => '')
  const lines = [...kept.matchAll(/^(HOST|PORT|TLS_CERT|ADMIN_KEY)='(.*)'$/gm)].map(
    ([, name = '', text = '']) => [name, text.replaceAll(`'\\''`, `'`)] as const,
  )
  return serverAddress() ?? (optionalDatabaseUrl() ? undefined : serverAddress(Object.fromEntries(lines)))
}

async function main() {
  try {
    const sql = openDatabase(await url(), { max: 1, connection: { role: 'fleet_owner' } })
    try {
      const checks = await sql<Check[]>`select check_name, status, detail, remedy from fleet.check()`
      checks.push(await poolHealth(await server()))
      say(table(checks))
      if (checks.some(check => check.status === 'fail')) process.exitCode = 1
    } finally {
      await sql.end({ timeout: 5 })
    }
  } catch (error) {
    process.exitCode = reportFailure(error)
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) await main()
