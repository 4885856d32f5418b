// The nodes of a distributed store: what each must have, the logins between them, and adding one.
import type { Sql } from 'postgres'
import { openDatabase } from '../lib/database.ts'
import { UsageError } from '../lib/errors.ts'
import { step } from '../lib/progress.ts'
import { setNode } from './node-settings.ts'

/** The roles as which the coordinator logs in at the workers: Citus asks them in the name of the login that asks it. */
const ROLES = ['fleet_owner', 'fleet_server', 'fleet_archiver', 'fleet_reader', 'fleet_dba', 'fleet_verifier']

export interface Node {
  name: string
  host: string
  port: number
  sql: Sql
}

export function node(adminUrl: string, address?: string): Node {
  const url = new URL(adminUrl)
  if (address !== undefined) {
    const [, host, port = '5432'] = /^([^:]+|\[.*\])(?::(\d+))?$/.exec(address) ?? []
    if (host === undefined) throw new UsageError(`${JSON.stringify(address)} is no host or host:port`)
    url.hostname = host
    url.port = port
  }
  const host = url.hostname
  const port = Number(url.port || 5432)
  return { name: `${host}:${port}`, host, port, sql: openDatabase(url.href, { max: 1, connection: { TimeZone: 'UTC' } }) }
}

/** What each node must have, by itself. */
export async function checkNode({ name, sql }: Node, coordinator: Node) {
  const [found] = await sql<
    {
      major: number
      libraries: string
      available: string | null
      installed: string | null
      prepared: number
      is_superuser: boolean
      missing: string[]
      has_store: boolean
      is_member: boolean
    }[]
  >`
    select current_setting('server_version_num')::integer / 10000 as major,
      current_setting('shared_preload_libraries') as libraries,
      (select default_version from pg_available_extensions where name = 'citus') as available,
      (select extversion from pg_extension where extname = 'citus') as installed,
      current_setting('max_prepared_transactions')::integer as prepared,
      (select rolsuper from pg_roles where rolname = current_user) as is_superuser,
      array(select r from unnest(${ROLES}::text[]) r where to_regrole(r) is null) as missing,
      to_regclass('fleet.hb_partitions') is not null as has_store,
      to_regclass('fleet.settings') is not null and to_regclass('fleet.hb_partitions') is null as is_member
  `.catch((cause: unknown) => {
    throw new Error(`${name} cannot be asked. Can this machine log in there with the user and the database of DATABASE_URL?`, {
      cause,
    })
  })
  const node = found!
  const refuse = (problem: string, remedy: string) => {
    throw new Error(`${name}: ${problem}. ${remedy}`)
  }
  if (!node.is_superuser) refuse('the login is no superuser', 'Citus adds nodes only for one. Use another DATABASE_URL.')
  if (node.available === null) refuse('Citus is not installed', 'Install its package for this version of PostgreSQL.')
  if (!/^\s*"?citus"?\s*(,|$)/.test(node.libraries))
    refuse(
      `shared_preload_libraries is '${node.libraries}' and must begin with citus`,
      `Run: alter system set shared_preload_libraries = ${citusFirst(node.libraries)}; and restart Postgres.`,
    )
  if (node.prepared === 0)
    refuse('max_prepared_transactions is 0', 'Run: alter system set max_prepared_transactions = 200; and restart Postgres.')
  if (node.missing.length > 0)
    refuse(
      `there is no role ${node.missing.join(', ')}`,
      'Run there: psql -f sql/setup/roles.sql, and npm run logins with the same passwords as on the coordinator.',
    )
  const [first] = await coordinator.sql<{ major: number; available: string }[]>`
    select current_setting('server_version_num')::integer / 10000 as major,
      (select default_version from pg_available_extensions where name = 'citus') as available`
  if (node.major !== first!.major || node.available !== first!.available)
    refuse(
      `it has PostgreSQL ${node.major} with Citus ${node.available}, and the coordinator PostgreSQL ${first!.major} with Citus ${first!.available}`,
      'All nodes need the same versions.',
    )
  const isCoordinator = name === coordinator.name
  if (isCoordinator && !node.has_store) refuse('there is no store in this database', 'Run: npm run migrate')
  if (!isCoordinator && node.has_store)
    refuse('there is another store in this database', 'A worker begins with an empty database.')
  if (!isCoordinator && node.is_member) {
    const [known] = await coordinator.sql`select from pg_dist_node where nodename || ':' || nodeport = ${name}`.catch(() => [
      undefined,
    ])
    if (!known) refuse('it has tables of a store', 'A worker begins with an empty database. Drop this one and make it again.')
  }
}

/** Whether the store of the coordinator knows what these commands call. */
export async function checkVersion({ name, sql }: Node) {
  const [found] = await sql<{ can: boolean }[]>`select to_regprocedure('fleet.distribute_step(text, integer)') is not null as can`
  if (!found!.can) throw new Error(`${name}: the store is older than this version. Run: npm run migrate`)
}

/** shared_preload_libraries with citus at its beginning. The others stay, in their order. */
export function citusFirst(libraries: string) {
  const names = libraries.split(',').map(name => name.trim())
  return ['citus', ...names.filter(name => name !== '' && name !== 'citus')].join(', ')
}

/**
 * Whether each node can log in at each other one as each role.
 * @returns false if a database has no Citus yet, so that nothing can be tried
 */
export async function checkLogins(nodes: Node[]) {
  for (const { sql } of nodes) {
    const [found] = await sql`select from pg_extension where extname = 'citus'`
    if (!found) return false
  }
  for (const from of nodes) {
    for (const to of nodes) {
      for (const role of ROLES) {
        await from.sql.begin(async sql => {
          await sql`set local client_min_messages = error`
          await sql.unsafe(`set local role ${role}`)
          const [row] = await sql<{ ok: boolean }[]>`select citus_check_connection_to_node(${to.host}, ${to.port}) as ok`
          if (!row!.ok)
            throw new Error(
              `${from.name} cannot log in at ${to.name} as ${role}. Give it a line in pg_hba.conf of ${to.name}, and the password on ` +
                `${from.name}: insert into pg_dist_authinfo values (0, '${role}', 'password=…'); Check the host, too: every node must ` +
                `reach every other one, and the coordinator by its --coordinator.`,
            )
        })
      }
    }
  }
  return true
}

/** Only one of these commands works on a store. One that was killed may have a statement that still runs. */
export async function lockNodes({ sql }: Node, log: (line: string) => void) {
  const key = 'fleet.distribute'
  const [row] = await sql<{ locked: boolean }[]>`select pg_try_advisory_lock(hashtextextended(${key}, 0)) as locked`
  if (row!.locked) return
  log('Waiting for another run of this command, or for a statement that it left on the coordinator.')
  await sql`select pg_advisory_lock(hashtextextended(${key}, 0))`
}

/** The workers that the store has. */
export async function knownWorkers({ sql }: Node) {
  const rows = await sql<{ name: string }[]>`
    select nodename || ':' || nodeport as name from pg_dist_node where groupid <> 0 and noderole = 'primary' order by nodeid`
  return rows.map(row => row.name)
}

/** What each node must have so that shards can move between nodes while heartbeats come in. */
export async function checkMoves(nodes: Node[]) {
  for (const { name, sql } of nodes) {
    const [found] = await sql<{ level: string; senders: number; slots: number; workers: number }[]>`
      select current_setting('wal_level') as level, current_setting('max_wal_senders')::integer as senders,
        current_setting('max_replication_slots')::integer as slots,
        current_setting('max_logical_replication_workers')::integer as workers`
    const { level, senders, slots, workers } = found!
    if (level !== 'logical' || Math.min(senders, slots, workers) < 4)
      throw new Error(
        `${name}: wal_level is ${level}, max_wal_senders ${senders}, max_replication_slots ${slots} and ` +
          `max_logical_replication_workers ${workers}, and shards move by logical replication. Run: alter system set wal_level = logical; ` +
          `alter system set max_wal_senders = 20; alter system set max_replication_slots = 20; ` +
          `alter system set max_logical_replication_workers = 16; alter system set max_worker_processes = 40; and restart Postgres.`,
      )
  }
}

export async function addNodes(coordinator: Node, workers: Node[]) {
  const { sql } = coordinator
  await sql`select citus_set_coordinator_host(${coordinator.host}, ${coordinator.port})
    where not exists (select from pg_dist_node where groupid = 0 and nodename = ${coordinator.host} and nodeport = ${coordinator.port})`
  for (const worker of workers) {
    // As on the coordinator: nobody may call a function only because it exists.
    await worker.sql`alter default privileges for role fleet_owner revoke execute on functions from public`
    // A store that is distributed sends its functions at once, made by this login and without their rights.
    await worker.sql`alter default privileges revoke execute on functions from public`
    try {
      await step(`Adding ${worker.name}`, async () => {
        await sql`select citus_add_node(${worker.host}, ${worker.port})
          where not exists (select from pg_dist_node where nodename = ${worker.host} and nodeport = ${worker.port})`
      })
    } finally {
      await worker.sql`alter default privileges grant execute on functions to public`
    }
  }
  // Also for the migrations to come: the triggers of reference tables are made on each node, and do something on the coordinator only.
  const [{ database }] = (await sql`select current_database() as database`) as unknown as [{ database: string }]
  await sql.unsafe(`alter database "${database.replaceAll('"', '""')}" set citus.enable_unsafe_triggers = on`)
  for (const each of [coordinator, ...workers]) await setNode(each.sql)
}

export function megabytes(bytes: number) {
  return `${Math.ceil(bytes / 1e6)} MB`
}
