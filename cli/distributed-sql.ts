// sql/distributed: the forms of functions and views that a distributed store needs in place of the plain ones.
import { readdir, readFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import type { Sql, TransactionSql } from 'postgres'
import { repository } from '../lib/repository.ts'

const ROOT = join(repository, 'sql')
const GRANTS = ['setup/grants.sql', 'distributed/grants.sql']

/**
 * Installs all of sql/distributed, or nothing, in a session of fleet_owner on the coordinator. Citus passes it on to the workers. Can
 * be repeated; a migration installs plain forms, so it is repeated after each.
 */
export async function installDistributed(owner: Sql) {
  const files = await distributedFiles()
  await owner.begin(async sql => {
    // Citus warns of each function that takes a row of a table of the coordinator, and keeps it there.
    await sql`set local client_min_messages = error`
    await sql`set local citus.enable_unsafe_triggers = on`
    // For functions that are created again Citus sends no rights, so all are granted again, and what they must not have is revoked.
    for (const file of [...files, ...GRANTS]) await runFile(sql, file)
    await sql`select fleet.record_forms(${files.map(file => basename(file).replace(/(\.view|\.trigger)?\.sql$/, ''))})`
  })
  return files.length
}

/** Grants all rights again, and revokes what nobody may have: Citus gives a new node the functions and views without them. */
export async function grantAgain(owner: Sql) {
  await owner.begin(async sql => {
    await sql`set local client_min_messages = error`
    for (const file of GRANTS) await runFile(sql, file)
  })
}

/** Functions first, then views, then triggers. */
async function distributedFiles() {
  const names = await readdir(join(ROOT, 'distributed'))
  const rank = (name: string) => (name.endsWith('.trigger.sql') ? 2 : name.endsWith('.view.sql') ? 1 : 0)
  return names
    .filter(name => name.endsWith('.sql') && !name.endsWith('.inc.sql') && name !== 'grants.sql')
    .sort((a, b) => rank(a) - rank(b) || (a < b ? -1 : 1))
    .map(name => join('distributed', name))
}

async function runFile(sql: TransactionSql, file: string) {
  try {
    await sql.unsafe(await withIncludes(file))
  } catch (cause) {
    throw new Error(`sql/${file} failed`, { cause })
  }
}

/** The text of a file with what its `--!include` lines name, as graphile-migrate reads it. */
async function withIncludes(path: string): Promise<string> {
  const lines = (await readFile(join(ROOT, path), 'utf8')).split('\n')
  const texts: string[] = []
  for (const line of lines) {
    const [, included] = /^--!include (.+)$/.exec(line) ?? []
    texts.push(included === undefined ? line : await withIncludes(included))
  }
  return texts.join('\n')
}
