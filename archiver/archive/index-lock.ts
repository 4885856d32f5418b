import { openSession, type Database } from '../database.ts'

/**
 * Runs `use` while this process alone writes what several archivers write: index.json, and manifests that are moved.
 * @param what what is not done if the lock cannot be had, as a sentence without its full stop
 * @throws if another archiver holds the lock for 10 s: one that hangs must not keep all others from their work
 */
export async function withIndexLock<T>(
  database: Database,
  what: string,
  use: () => Promise<T>,
  signal?: AbortSignal,
): Promise<T> {
  const session = await openSession(database, signal)
  try {
    // The lock ends with its connection.
    await session.sql`select fleet.take_index_lock()`.catch((cause: unknown) => {
      throw new Error(`${what}: another archiver may be writing it`, { cause })
    })
    return await use()
  } finally {
    await session.close()
  }
}
