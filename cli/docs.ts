// npm run docs: writes the generated pages, from the code and the catalog of a migrated database. With --check it only reports
// which pages are stale, and fails if there are any.
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import type { Sql } from 'postgres'
import { throwawayCluster } from '../local/cluster.ts'
import { repository } from '../lib/repository.ts'
import { reportFailure, UsageError } from '../lib/errors.ts'
import { openDatabase } from '../lib/database.ts'
import { migrate } from './migrate.ts'
import { requirePostgres } from '../local/packages.ts'
import { say } from '../lib/progress.ts'
import { apiPage } from './docs/api.ts'
import { metricsPage } from './docs/metrics.ts'
import { rightsPage } from './docs/rights.ts'
import { envExample, settingsPage } from './docs/settings.ts'
import { sqlPage } from './docs/sql.ts'

/** The function that makes each page, by the page's path in the repository. */
const PAGES: Record<string, (sql: Sql) => string | Promise<string>> = {
  'docs/api.md': apiPage,
  'docs/settings.md': settingsPage,
  '.env.example': envExample,
  'docs/metrics.md': metricsPage,
  'docs/sql.md': sqlPage,
  'docs/rights.md': rightsPage,
}

/** Makes each page from the database at `sql`, as a superuser, and reads the version in the repository. */
export async function makePages(sql: Sql) {
  return Promise.all(
    Object.entries(PAGES).map(async ([path, make]) => ({
      path,
      made: await make(sql),
      found: await readFile(join(repository, path), 'utf8').catch(() => ''),
    })),
  )
}

async function main() {
  try {
    const args = process.argv.slice(2)
    if (args.some(arg => arg !== '--check')) throw new UsageError('usage: npm run docs [-- --check]')
    const isCheck = args.length > 0
    const stale = (await withCatalog(makePages)).filter(({ made, found }) => made !== found)
    if (!isCheck) for (const { path, made } of stale) await writeFile(join(repository, path), made)
    for (const { path } of stale) say(isCheck ? `${path} is stale; run: npm run docs` : `${path} is written.`)
    if (stale.length === 0) say('All generated pages are up to date.')
    else if (isCheck) process.exitCode = 1
  } catch (error) {
    process.exitCode = reportFailure(error)
  }
}

/** Runs `work` with a migrated database in a cluster that is removed afterwards. */
async function withCatalog<T>(work: (sql: Sql) => Promise<T>) {
  const postgres = await requirePostgres()
  const { cluster, end } = await throwawayCluster({ postgres, databases: ['fleet'], cronDatabase: 'fleet' })
  try {
    const url = cluster.url('postgres', 'fleet')
    await migrate(url, { current: true, log: () => {} })
    const sql = openDatabase(url, { max: 1 })
    return await work(sql).finally(() => sql.end({ timeout: 5 }))
  } finally {
    await end()
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) await main()
