// npm run migrate: brings a database to the state that this version of the code needs.
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { pathToFileURL } from 'node:url'
import { Logger, migrate as runCommitted, watch, type Settings } from 'graphile-migrate'
import type { Sql } from 'postgres'
import { installDistributed } from './distributed-sql.ts'
import { isVersion010, upgradeFrom010 } from './upgrade.ts'
import { databaseUrl, ownerDatabaseUrl } from '../local/config.ts'
import { repository } from '../lib/repository.ts'
import { openDatabase, SEARCH_PATH, withSearchPath } from '../lib/database.ts'
import { say } from '../lib/progress.ts'
import { reportFailure, UsageError } from '../lib/errors.ts'

export interface MigrateOptions {
  /** Also run migrations/current.sql, the migration that is being written. For tests and development. */
  current?: boolean
  /**
   * The URL with which fleet_owner itself logs in. Migrations run there, so that the owner's code never runs in the
   * administrator's session, where `reset role` would give it the administrator's rights. Without it they run in that session, as
   * fleet_owner.
   */
  ownerUrl?: string
  /** Called between the setup and the migrations, for example to let fleet_owner log in. */
  afterSetup?: () => Promise<void>
  /** Receives a line for each thing that was done or is missing. */
  log?: (line: string) => void
}

/** The files that the administrator runs in each database before the migrations, in this order. Each can be run again. */
export const SETUP_FILES = [
  'roles.sql',
  'extensions.sql',
  'guard.sql',
  'shape-guard.sql',
  'privileged-views.sql',
  'public.sql',
  'reader-logins.sql',
]

// Only one migration runs in a database at a time. graphile-migrate's own lock fails at once; this one waits.
const MIGRATION_LOCK = 4_727_445_306
const INSUFFICIENT_PRIVILEGE = '42501'
// The others mean that the role does not exist or that its login is refused.
const CANNOT_BE_OWNER = new Set([INSUFFICIENT_PRIVILEGE, '22023', '42704', '28000', '28P01'])

/**
 * Sets up and migrates the database at `adminUrl`, whose user is the administrator: a superuser, or a role that may become
 * fleet_owner in a database where the roles and extensions exist. A second run does only what is new.
 * @throws an Error that names the file or migration at fault, with the cause; what was committed before it stays
 */
export async function migrate(adminUrl: string, options: MigrateOptions = {}) {
  const log = options.log ?? say
  const sql = openDatabase(adminUrl, {
    max: 1,
    connection: { TimeZone: 'UTC', application_name: 'fleet migrate' },
    onnotice: notice => {
      if (notice.severity === 'WARNING') log([notice.message, notice.detail, notice.hint].filter(Boolean).join('\n  '))
    },
  })
  try {
    await sql`select pg_advisory_lock(${MIGRATION_LOCK})`
    await refuseUnknown(sql, options.ownerUrl)
    for (const file of SETUP_FILES) {
      await runFile(sql, file, log)
      await requirePreparation(sql, file)
    }
    await options.afterSetup?.()
    await asOwner(sql, options.ownerUrl, async owner => {
      if (!(await isVersion010(owner))) return
      await upgradeFrom010(owner)
      log('Upgraded the tables of 0.1.0')
    })
    const applied: string[] = []
    const settings = await migrationSettings(sql, options.ownerUrl ?? adminUrl, log, name => applied.push(name))
    try {
      await runCommitted(settings)
    } catch (cause) {
      throw applied.length ? new Error(`migration ${applied.pop()} failed and was rolled back`, { cause }) : cause
    } finally {
      const count = applied.length === 1 ? '1 migration' : `${applied.length} migrations`
      if (applied.length) log(`Applied ${count}: ${applied.join(', ')}`)
    }
    if (options.current) await watch(settings, true)
    await asOwner(sql, options.ownerUrl, async owner => {
      // Missing if the administrator has not run the new guard.sql yet.
      const [guard] = await owner<
        { can_end: boolean }[]
      >`select to_regprocedure('fleet_guard.end_setup()') is not null as can_end`
      if (guard!.can_end) await owner`select fleet_guard.end_setup()`
      await keepDistributed(owner)
      await recordTriggers(owner)
      await scheduleJobs(owner, log)
    })
  } finally {
    await sql.end({ timeout: 5 })
    await poolsEnded()
  }
}

/** Settings for graphile-migrate: it runs as the owner, in UTC, and with only pg_catalog in the search path. */
export async function migrationSettings(
  sql: Sql,
  url: string,
  log: (line: string) => void,
  onMigration: (name: string) => void = () => {},
): Promise<Settings> {
  const [found] = await sql<{ is_missing: boolean }[]>`
    select to_regclass('graphile_migrate.migrations') is null or to_regclass('graphile_migrate.current') is null as is_missing
  `
  return {
    connectionString: withSearchPath(url),
    migrationsFolder: join(repository, 'migrations'),
    pgSettings: { role: 'fleet_owner', timezone: 'UTC', search_path: SEARCH_PATH },
    // Even "create schema if not exists" needs the right to create one, which the owner loses once the schemas exist.
    manageGraphileMigrateSchema: found!.is_missing,
    logger: logger(log, onMigration),
  }
}

/** Runs work as the owner: in the owner's own session if it can log in, otherwise in the administrator's. */
async function asOwner(sql: Sql, ownerUrl: string | undefined, work: (owner: Sql) => Promise<void>) {
  if (ownerUrl !== undefined) {
    const owner = openDatabase(ownerUrl, { max: 1, connection: { role: 'fleet_owner', TimeZone: 'UTC' } })
    try {
      await work(owner)
    } finally {
      await owner.end({ timeout: 5 })
    }
    return
  }
  await sql`set role fleet_owner`
  try {
    await work(sql)
  } finally {
    await sql`reset role`
  }
}

/**
 * Runs before the setup, so that nothing is changed in a store that cannot be upgraded. The list is the owner's table, so it is
 * not read with the administrator's rights: the owner could put a view in its place. If the owner cannot be reached yet, the list
 * is read after the setup.
 */
async function refuseUnknown(sql: Sql, ownerUrl: string | undefined) {
  const [table] = await sql`
    select from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = 'graphile_migrate' and c.relname = 'migrations'`
  if (!table) return
  try {
    await asOwner(sql, ownerUrl, async owner => {
      await isVersion010(owner)
    })
  } catch (error) {
    if (!CANNOT_BE_OWNER.has((error as { code?: string }).code ?? '')) throw error
  }
}

/** Passes on errors and warnings, and the name of each migration before it runs. */
function logger(log: (line: string) => void, onMigration: (name: string) => void) {
  return new Logger(() => (level, message) => {
    const name = /Running migration '(.*)\.sql'/.exec(message)?.[1]
    if (name) onMigration(name)
    else if (level.toString() === 'error' || level.toString() === 'warning') log(message)
  })
}

/**
 * graphile-migrate keeps its connections for 200 ms after the last use, and ends this process if one of them is lost in that
 * time. Wait for this before you stop Postgres or drop the database.
 */
export function poolsEnded() {
  return sleep(300)
}

/** Runs all of a file or nothing of it. Without the right to run it, this continues with what an administrator made before. */
async function runFile(sql: Sql, file: string, log: (line: string) => void) {
  const text = await readFile(join(repository, 'sql/setup', file), 'utf8')
  try {
    await sql.unsafe(text)
  } catch (cause) {
    const { code, message } = cause as { code?: unknown; message?: string }
    if (code !== INSUFFICIENT_PRIVILEGE)
      throw new Error(`sql/setup/${file}, which the administrator runs at setup, failed`, { cause })
    log(`sql/setup/${file} needs an administrator and was not run (${message}). What is already there is used.`)
  }
}

/** What must be true after each file of the setup, no matter who ran it. */
const preparations: Record<string, string> = {
  'guard.sql': `to_regprocedure('fleet_guard.seal(oid)') is not null`,
  // The newest role: grants of the migrations name it.
  'roles.sql': `to_regrole('fleet_owner') is not null and to_regrole('fleet_cohort_reader') is not null`,
  'extensions.sql': `case
    when exists (select from pg_extension where extname = 'pg_partman') then
      has_schema_privilege('fleet_owner', 'partman', 'usage')
      and (to_regnamespace('fleet') is not null or has_database_privilege('fleet_owner', current_database(), 'create'))
    else false
  end`,
}

/** Throws if an administrator has not done what the migrations need; the message says what to do. */
async function requirePreparation(sql: Sql, file: string) {
  const [row] = await sql.unsafe<{ is_prepared: boolean }[]>(`select ${preparations[file] ?? 'true'} as is_prepared`)
  if (row?.is_prepared) return
  throw new Error(
    'this database is not prepared: the roles, pg_partman with its rights, or the guard of this version is missing. Run once, as a role that ' +
      `may create extensions and roles: psql -v ON_ERROR_STOP=1 ${SETUP_FILES.map(name => `-f sql/setup/${name}`).join(' ')} <the URL of this database>`,
  )
}

/** The migrations install what a plain store needs. On a distributed one, its own forms follow at once. */
async function keepDistributed(owner: Sql) {
  const [row] = await owner<
    { is_distributed: boolean }[]
  >`select to_regclass('fleet.online_ranges') is not null as is_distributed`
  if (row!.is_distributed) await installDistributed(owner)
}

/** fleet.check() compares with these. While a migration is being written, the committed ones may lack the function. */
async function recordTriggers(sql: Sql) {
  const [row] = await sql<{ can_record: boolean }[]>`
    select to_regprocedure('fleet.record_triggers()') is not null as can_record`
  if (row!.can_record) await sql`select fleet.record_triggers()`
}

async function scheduleJobs(sql: Sql, log: (line: string) => void) {
  const [{ can_schedule: canSchedule, has_cron: hasCron } = { can_schedule: false, has_cron: false }] = await sql<
    {
      can_schedule: boolean
      has_cron: boolean
    }[]
  >`
    select
      to_regprocedure('fleet.schedule_jobs()') is not null as can_schedule,
      exists (select from pg_extension where extname = 'pg_cron') as has_cron
  `
  if (!canSchedule) return
  if (!hasCron) {
    log(
      'pg_cron is not in this database, so no job is scheduled here. In the database that has it, run: select fleet.schedule_jobs()',
    )
    return
  }
  await sql`select fleet.schedule_jobs()`
}

async function main() {
  try {
    if (process.argv.length > 2) throw new UsageError('usage: DATABASE_URL=postgres://… npm run migrate (no arguments)')
    const ownerUrl = ownerDatabaseUrl()
    await migrate(databaseUrl(), ownerUrl === undefined ? {} : { ownerUrl })
    say('The database is up to date.')
  } catch (error) {
    process.exitCode = reportFailure(error)
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) await main()
