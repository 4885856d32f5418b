import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import { DuckDBInstance, type DuckDBConnection } from '@duckdb/node-api'

/**
 * A DuckDB in memory that works in UTC, fetches nothing, and is gone afterwards.
 * @param work a directory for what does not fit into memory
 * @param memoryLimit of DuckDB's buffers, such as 350MB; the process takes more
 */
export async function withDuckDB<T>(work: string, memoryLimit: string, use: (duckdb: DuckDBConnection) => Promise<T>): Promise<T> {
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

export function identifier(name: string) {
  return `"${name.replaceAll('"', '""')}"`
}

export function literal(text: string) {
  return `'${text.replaceAll(`'`, `''`)}'`
}
