import type { Sql } from 'postgres'

/**
 * How long a session of a distributed store waits for a lock until Citus looks for a deadlock, in ms. It looks on all nodes, every twice
 * this time. With the default of a second, the statements of a server, which may take two, would end before.
 */
const DEADLOCK_TIMEOUT_MS = 250

/** Lets this node find deadlocks between nodes before servers give up. For a superuser; holds in this database only. */
export async function endDeadlocksSoon(sql: Sql) {
  await sql.unsafe(`
    do $$ begin
      set local citus.enable_ddl_propagation = off;  -- each node is asked itself
      execute format('alter database %I set deadlock_timeout = ${DEADLOCK_TIMEOUT_MS}', current_database());
    end $$`)
  // The process of Citus that looks for them starts again at once, and reads the setting.
  await sql`
    select pg_terminate_backend(a.pid) from pg_stat_activity a
    where a.datname = current_database() and a.backend_type like 'Citus Maintenance Daemon%'`
}
