// npm run check: what fleet.check() says, with remedies. Exit code 1 when anything fails.
import { realpath } from 'node:fs/promises'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import postgres from 'postgres'
import { Cluster, clusterMajor } from './cluster.ts'
import { optionalDatabaseUrl, repository, SettingsError } from './config.ts'
import { findPostgres } from './packages.ts'
import { explain, say } from './progress.ts'

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
      return status !== 'ok' && remedy ? `${line}\n${' '.repeat(width + 8)}-> ${remedy}` : line
    })
    .join('\n')
}

/** DATABASE_URL, or the running cluster of npm start. */
async function url() {
  const given = optionalDatabaseUrl()
  if (given) return given
  const dir = await realpath(join(repository, '.local', 'pg')).catch(() => undefined)
  const packages = dir && await findPostgres(await clusterMajor(dir))
  const cluster = packages && new Cluster({ dir, postgres: packages, databases: ['fleet'], cronDatabase: 'fleet' })
  if (!cluster || !await cluster.attach()) {
    throw new Error('DATABASE_URL is not set, and the cluster of npm start is not running; start it, or set DATABASE_URL')
  }
  return cluster.url('fleet_owner', 'fleet')
}

async function main() {
  try {
    const sql = postgres(await url(), { max: 1, connection: { role: 'fleet_owner' }, onnotice: () => {} })
    try {
      const checks = await sql<Check[]>`select check_name, status, detail, remedy from fleet.check()`
      say(table(checks))
      if (checks.some(check => check.status === 'fail')) process.exitCode = 1
    } finally {
      await sql.end({ timeout: 5 })
    }
  } catch (error) {
    process.stderr.write(`${explain(error)}\n`)
    process.exitCode = error instanceof SettingsError ? 2 : 1
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) await main()
