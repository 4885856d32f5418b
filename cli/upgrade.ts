// Upgrades a store of 0.1.0. Its 27 migrations became one, so its list of migrations is replaced.
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Sql } from 'postgres'
import { repository } from '../lib/repository.ts'

/** The migrations of 0.1.0. Each hash covers the hash before it, so the last one stands for the whole list. */
const version010 = {
  commit: 'c27bf5cd0aaac3b88f157e8020d7c98d1f7723d7',
  count: 27,
  first: 'sha1:3049aa638ec4482720c5bf9cff43c111ead20a1b',
  last: 'sha1:0b4b26d6b47a7d2682253d5f4f36f7616f259278',
}

/** A 28th migration was in use in development, before there was one initial migration. */
const UNRELEASED = 'sha1:8aeca77ddc7515f65b0f5551c0df636aef3cebc9'

/**
 * Finds out whether the migrations of this database are those of 0.1.0. False for a new database and for one with migrations of
 * this version (a newer version may have added others). Throws for any other list. `sql` is fleet_owner's session.
 */
export async function isVersion010(sql: Sql) {
  const [found] = await sql<{ has_list: boolean }[]>`select to_regclass('graphile_migrate.migrations') is not null as has_list`
  if (!found!.has_list) return false
  const applied = await sql<{ filename: string; hash: string }[]>`
    select filename, hash from graphile_migrate.migrations order by filename`
  const known = await committedHashes()
  if (applied.every(({ hash }, n) => known[n] === undefined || known[n] === hash)) return false
  const hashes = applied.map(({ hash }) => hash)
  const newest = applied.at(-1)!
  const later = hashes.slice(version010.count)
  if (hashes[version010.count - 1] === version010.last && later.every(hash => hash === UNRELEASED)) return true
  if (hashes[0] === version010.first && hashes.length < version010.count) {
    throw new Error(
      `this database is older than 0.1.0: its newest migration is ${newest.filename}, and this version continues only from the ` +
        `${version010.count} migrations of 0.1.0. Check out 0.1.0 (commit ${version010.commit}), run npm run migrate there, then ` +
        'run it here again. Nothing was changed.',
    )
  }
  throw new Error(
    `this database has migrations that no released version has; the newest one is ${newest.filename} with hash ${newest.hash}. ` +
      'Restore a backup from before they were applied, or use the version that they came from. Nothing was changed.',
  )
}

/**
 * In one transaction, empties the list of migrations and brings the tables to the shape that the initial migration expects. That
 * migration must run next. If this process ends in between, the list is empty, so the next `npm run migrate` runs it. `sql` is
 * fleet_owner's session.
 */
export async function upgradeFrom010(sql: Sql) {
  const text = await readFile(join(repository, 'migrations/upgrade-from-0.1.0.sql'), 'utf8')
  // Statements that are sent together are one transaction.
  await sql.unsafe(`delete from graphile_migrate.migrations;\n${text}`)
}

/** The hashes of the committed migrations, in order. */
async function committedHashes() {
  const folder = join(repository, 'migrations/committed')
  const names = (await readdir(folder)).filter(name => name.endsWith('.sql')).sort()
  return Promise.all(names.map(async name => /^--! Hash: (\S+)$/m.exec(await readFile(join(folder, name), 'utf8'))?.[1]))
}
