import postgres, { type Options, type Sql } from 'postgres'

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
