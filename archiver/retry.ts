import { setTimeout as sleep } from 'node:timers/promises'

/**
 * Repeats a statement that gave up waiting for a lock (55P03): its lock_timeout is short so that no other session queues
 * behind it. Throws the last error after about a minute.
 */
export async function whenUnlocked<T>(statement: () => Promise<T>, signal: AbortSignal): Promise<T> {
  for (let tried = 1; ; tried++) {
    try {
      return await statement()
    } catch (error) {
      const isLocked = error instanceof Error && 'code' in error && error.code === '55P03'
      if (!isLocked || tried === 40) throw error
      await sleep(1000 + Math.random() * 500, undefined, { signal })
    }
  }
}
