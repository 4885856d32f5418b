import type { Worker } from '../context.ts'
import { openSession } from '../database.ts'
import type { Database } from '../../lib/database.ts'
import type { Store } from '../store/store.ts'
import { commitManifest, keysOf, type FoundManifest } from './manifest.ts'

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

/** commitManifest(), in turns with `npm run archive -- reindex`, which may be moving the manifest of an older version. */
export async function commitInTurn(
  { database }: Pick<Worker, 'database'>,
  store: Store,
  input: Parameters<typeof commitManifest>[1],
  replaced: FoundManifest | undefined,
  reason: string,
  signal?: AbortSignal,
) {
  const write = () => commitManifest(store, input, replaced, reason, signal)
  const { manifest } = keysOf(input.range_start, input.range_end)
  if (replaced === undefined || replaced.key === manifest) return await write()
  return await withIndexLock(database, `${store.url}/${manifest}: not written`, write, signal)
}
