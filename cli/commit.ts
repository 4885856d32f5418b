// npm run migrate:commit -- "what it does" moves migrations/current.sql to migrations/committed; npm run migrate:uncommit moves
// it back.
import { commit, uncommit } from 'graphile-migrate'
import { throwawayCluster } from '../local/cluster.ts'
import { openDatabase, withSearchPath } from '../lib/database.ts'
import { requirePostgres } from '../local/packages.ts'
import { migrate, migrationSettings, poolsEnded, SETUP_FILES } from './migrate.ts'
import { say } from '../lib/progress.ts'
import { reportFailure, UsageError } from '../lib/errors.ts'

const USAGE = 'usage: npm run migrate:commit -- "<what the migration does>"\n       npm run migrate:uncommit'

/** The message becomes the name of the file. */
const MAX_WORDS = 6

/** Runs one of graphile-migrate's commands, which need two databases, in a cluster made for the purpose. */
async function inThrowawayCluster(command: (settings: Parameters<typeof commit>[0]) => Promise<void>) {
  const { cluster, end } = await throwawayCluster({
    postgres: await requirePostgres(),
    databases: ['fleet', 'fleet_shadow', 'fleet_cron'],
    cronDatabase: 'fleet_cron',
  })
  try {
    await migrate(cluster.url('postgres', 'fleet'), { log: () => {} })
    await cluster.allowLogins()
    const admin = openDatabase(cluster.url('postgres', 'fleet'), { max: 1 })
    // graphile-migrate runs `create schema if not exists` in this database too, and that needs the right to create a schema.
    await admin`grant create on database fleet to fleet_owner`
    const { pgSettings, ...settings } = await migrationSettings(admin, cluster.url('fleet_owner', 'fleet'), say)
    await admin.end({ timeout: 5 })
    // With `role` set, graphile-migrate would also drop and create databases as that role. Here the owner logs in itself instead.
    const { role, ...others } = pgSettings ?? {}
    await command({
      ...settings,
      manageGraphileMigrateSchema: true,
      pgSettings: others,
      shadowConnectionString: withSearchPath(cluster.url(role as 'fleet_owner', 'fleet_shadow')),
      rootConnectionString: withSearchPath(cluster.url('postgres', 'postgres')),
      afterReset: SETUP_FILES.map(file => `!../sql/setup/${file}`),
    })
  } finally {
    await poolsEnded()
    await end()
  }
}

const [command, message, ...rest] = process.argv.slice(2)
try {
  if (command === 'commit' && message && (message.match(/\w+/g) ?? []).length > MAX_WORDS) {
    process.stderr.write(
      `A migration is named in at most ${MAX_WORDS} words, and these are more: ${message}\nNothing was committed.\n`,
    )
    process.exitCode = 2
  } else if (command === 'commit' && message && !rest.length) {
    await inThrowawayCluster(settings => commit(settings, message))
    say('migrations/current.sql is committed.')
  } else if (command === 'uncommit' && !message) {
    await inThrowawayCluster(uncommit)
    say('The last committed migration is back in migrations/current.sql. Drop every database that has it.')
  } else {
    throw new UsageError(USAGE)
  }
} catch (error) {
  process.exitCode = reportFailure(error)
}
