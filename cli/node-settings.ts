import type { Sql } from 'postgres'

/**
 * How long a session of a distributed store waits for a lock until Citus looks for a deadlock, in ms. It looks on all nodes, every twice
 * this time. With the default of a second, the statements of a server, which may take two, would end before.
 */
const DEADLOCK_TIMEOUT_MS = 250

/**
 * How many connections to each other node a session of a server keeps. A batch that came to a node without its devices opens one for
 * each shard that it writes to; with the default of 1 all others are closed after each batch, and opened again for the next one.
 */
const CACHED_CONNECTIONS = 16

/** Sets what a node of a distributed store needs, in this database only. For a superuser. */
export async function setNode(sql: Sql) {
  await sql.unsafe(`
    do $$ begin
      set local citus.enable_ddl_propagation = off;  -- each node is asked itself
      execute format('alter database %I set deadlock_timeout = ${DEADLOCK_TIMEOUT_MS}', current_database());
      execute format(
        'alter role fleet_server in database %I set citus.max_cached_conns_per_worker = ${CACHED_CONNECTIONS}', current_database()
      );
    end $$`)
  // The process of Citus that looks for deadlocks starts again at once, and reads the setting.
  await sql`
    select pg_terminate_backend(a.pid) from pg_stat_activity a
    where a.datname = current_database() and a.backend_type like 'Citus Maintenance Daemon%'`
}
