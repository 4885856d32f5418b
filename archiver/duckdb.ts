import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import { DuckDBInstance, type DuckDBConnection } from '@duckdb/node-api'

/**
 * A DuckDB in memory that works in UTC, fetches nothing, and is gone afterwards.
 * @param work a directory for what does not fit into memory
 * @param memoryLimit of DuckDB's buffers, such as 350MB; the process takes more
 */
export async function withDuckDB<T>(
  work: string,
  memoryLimit: string,
  use: (duckdb: DuckDBConnection) => Promise<T>,
): Promise<T> {
  const instance = await DuckDBInstance.create(':memory:', {
    threads: String(Math.min(availableParallelism(), 4)),
    memory_limit: memoryLimit,
    temp_directory: join(work, 'spill'),
    // Everything used here is built in; nothing may be fetched while a partition waits.
    autoinstall_known_extensions: 'false',
    autoload_known_extensions: 'false',
  })
  try {
    const duckdb = await instance.connect()
    try {
      await duckdb.run(`set TimeZone = 'UTC'`)
      return await use(duckdb)
    } finally {
      duckdb.closeSync()
    }
  } finally {
    instance.closeSync()
  }
}

/**
 * Leaves a DuckDB these files and directories, and no network: what an archive, a manifest or a query says, nothing else is opened.
 * Its settings cannot be changed after that.
 */
export async function confine(
  duckdb: DuckDBConnection,
  { directories = [], files = [] }: { directories?: string[]; files?: string[] },
) {
  // With a slash at its end: else a directory whose name begins alike is one of them too.
  await duckdb.run(`set allowed_directories = [${directories.map(directory => literal(`${directory}/`)).join(', ')}]`)
  await duckdb.run(`set allowed_paths = [${files.map(literal).join(', ')}]`)
  await duckdb.run('set enable_external_access = false')
  await duckdb.run('set lock_configuration = true')
}

export function identifier(name: string) {
  return `"${name.replaceAll('"', '""')}"`
}

export function literal(text: string) {
  return `'${text.replaceAll(`'`, `''`)}'`
}
