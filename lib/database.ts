import postgres, { type Options, type Sql } from 'postgres'
import { withPassfile } from './database-url.ts'

/**
 * The search path of all our connections: only pg_catalog. With the default, "$user", public, a function that another role made
 * could be called instead of the intended one, with the rights of the connected role.
 */
export const SEARCH_PATH = 'pg_catalog, pg_temp'

/** Opens a database for a command. A lint rule makes sure that nothing else calls postgres(). */
export function openDatabase(url: string, options: Options<Record<string, never>> = {}): Sql {
  return postgres(url, { onnotice: () => {}, ...options, connection: { ...options.connection, search_path: SEARCH_PATH } })
}

/** Adds the search path to a URL for a client that supports libpq's `options`, which apply before the first statement. */
export function withSearchPath(url: string) {
  const fixed = new URL(url)
  const options = fixed.searchParams.get('options')
  fixed.searchParams.set('options', [options, `-c search_path=${SEARCH_PATH.replaceAll(' ', '')}`].filter(Boolean).join(' '))
  return fixed.href
}

/** Where a process connects, and the role that it takes there; without one the login decides. */
export interface Database {
  url: string
  role?: string
}

/**
 * A client for a process that works in the background. The URL may name several hosts and a passfile. Timestamps are strings in
 * UTC: a JavaScript Date has milliseconds, Postgres has microseconds.
 * @param connection settings of its sessions
 */
export function connectWorker({ url, role }: Database, { connection, ...options }: { max: number; connection: Connection }) {
  const from = withPassfile(url)
  return postgres(from.url, {
    ...options,
    password: from.password,
    fetch_types: false,
    connect_timeout: 10,
    onnotice: () => {},
    connection: { TimeZone: 'UTC', search_path: SEARCH_PATH, DateStyle: 'ISO', ...connection, ...(role ? { role } : {}) },
    types: {
      timestamptz: { to: 1184, from: [1184], serialize: (value: string) => value, parse: (value: string) => value },
    },
  })
}

type Connection = { application_name: string } & Record<string, string | number>
