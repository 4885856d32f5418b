import postgres, { type Options, type Sql } from 'postgres'

/**
 * Where names are found on every connection of ours: in Postgres itself. With the default, "$user", public, a schema or a function that
 * somebody else made could take the place of what is meant, with the rights of whoever is connected.
 */
export const SEARCH_PATH = 'pg_catalog, pg_temp'

/** Opens a database for a command; a lint rule sees to it that nothing else calls postgres(). */
export function openDatabase(url: string, options: Options<Record<string, never>> = {}): Sql {
  return postgres(url, { onnotice: () => {}, ...options, connection: { ...options.connection, search_path: SEARCH_PATH } })
}

/** The same URL for a client of libpq's kind, whose options are the server's from its first statement on. */
export function withSearchPath(url: string) {
  const fixed = new URL(url)
  const options = fixed.searchParams.get('options')
  fixed.searchParams.set('options', [options, `-c search_path=${SEARCH_PATH.replaceAll(' ', '')}`].filter(Boolean).join(' '))
  return fixed.href
}
