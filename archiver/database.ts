import { once } from 'node:events'
import type { Readable } from 'node:stream'
import { connectWorker, type Database } from '../lib/database.ts'

export type Sql = ReturnType<typeof connect>

/** VACUUM and COPY of a whole partition have no time limit. The 0 is a text, because postgres.js omits a parameter that is 0. */
const UNLIMITED = { statement_timeout: '0', idle_in_transaction_session_timeout: '0' }

/** A client of the archiver. A proof must not round, so timestamps are strings, and doubles have all their digits. */
export function connect(
  database: Database,
  { max, application_name = 'fleet-archiver' }: { max: number; application_name?: string },
) {
  // With fewer digits, the text of a double would mean a different value.
  return connectWorker(database, { max, connection: { application_name, extra_float_digits: 1, ...UNLIMITED } })
}

/**
 * Ends the sessions of this login that keep writers out of a retired table, or wait to do so (fleet.lock_retired()).
 * @param table a qualified and quoted name
 */
export async function endHolders(database: Database, table: string) {
  await asLogin(
    database,
    sql => sql`
    select pg_terminate_backend(l.pid)
    from pg_locks l
    join pg_stat_activity a on a.pid = l.pid
    join pg_database d on d.oid = l.database and d.datname = current_database()
    where l.relation = ${table}::text::regclass and l.mode = 'ShareRowExclusiveLock' and a.usename = session_user
  `,
  )
}

/** Runs a statement without `role`: the right to cancel or end a session depends on the user that logged in. */
async function asLogin(database: Database, statement: (sql: Sql) => Promise<unknown>) {
  const sql = connect({ url: database.url }, { max: 1 })
  try {
    await statement(sql)
  } finally {
    await sql.end({ timeout: 5 })
  }
}

/** A client with exactly one connection, and a way to cancel what that connection is doing. */
export type Session = Awaited<ReturnType<typeof openSession>>

/**
 * Opens one connection for long statements. When `signal` fires, the running statement is cancelled on
 * the server. postgres.js can cancel a query, but not a COPY once its stream is handed out. If the connection
 * were only closed, the backend would wait for a reader.
 */
export async function openSession(database: Database, signal?: AbortSignal) {
  signal?.throwIfAborted()
  const sql = connect(database, { max: 1 })
  const [row] = await sql<{ pid: number }[]>`select pg_catalog.pg_backend_pid() as pid`
  const pid = row?.pid ?? 0
  if (signal?.aborted) {
    // The signal fired during the connect, and will not fire again.
    await sql.end({ timeout: 1 })
    signal.throwIfAborted()
  }
  const onAbort = () => void cancel().catch(() => {})
  signal?.addEventListener('abort', onAbort)

  async function cancel() {
    // With its type, because Citus has another function of this name.
    await asLogin(database, sql => sql`select pg_catalog.pg_cancel_backend(${pid}::integer)`)
  }

  function release(stream: Readable) {
    try {
      stream._read(0)
    } catch {
      // The connection is closed: the next statement reports that.
    }
  }

  return {
    sql,
    /** Ends a COPY that will not be read to its end. */
    async discard(stream: Readable) {
      if (stream.destroyed || stream.readableEnded) return
      const closed = Promise.race([once(stream, 'end'), once(stream, 'close')]).catch(() => {})
      stream.removeAllListeners('data')
      stream.on('error', () => {})
      stream.resume()
      await cancel()
      await closed
      release(stream)
    },
    /**
     * Resumes the connection after a COPY was read to its end. postgres.js pauses the socket while the stream is
     * full, and resumes it when the stream asks for more. A stream that already has its end asks for nothing more, so
     * after a COPY of about 16 KB that arrived at once, the next statement would wait forever.
     */
    release,
    async close() {
      signal?.removeEventListener('abort', onAbort)
      await sql.end({ timeout: 1 })
    },
  }
}
