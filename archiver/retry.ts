import { setTimeout as sleep } from 'node:timers/promises'

/** Of a statement that gave up waiting for a lock, because its lock_timeout is short so that no other session queues behind it. */
const LOCK_NOT_AVAILABLE = '55P03'
/** Of a statement that Postgres, or Citus between its nodes, ended because it and another one waited for each other. */
const DEADLOCK = '40P01'

/** Repeats a statement that did not get its locks. Throws the last error after about a minute. */
export async function whenUnlocked<T>(statement: () => Promise<T>, signal: AbortSignal): Promise<T> {
  for (let tried = 1; ; tried++) {
    try {
      return await statement()
    } catch (error) {
      const isLocked = error instanceof Error && 'code' in error && (error.code === LOCK_NOT_AVAILABLE || error.code === DEADLOCK)
      if (!isLocked || tried === 40) throw error
      await sleep(1000 + Math.random() * 500, undefined, { signal })
    }
  }
}
