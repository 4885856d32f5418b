import { setTimeout as sleep } from 'node:timers/promises'
import type { Log } from '../lib/log.ts'

/** The lease ran out or was taken: the work must stop, and nothing may be recorded. */
class LeaseLost extends Error {}

/**
 * Keeps a lease during the work. `signal` fires with LeaseLost when the database says that the lease is lost, or when
 * the database could not be reached for as long as the lease lasts.
 * @param renew extends the lease; returns false if another archiver has it
 */
export function holdLease(seconds: number, renew: () => Promise<boolean>, log: Log) {
  const lost = new AbortController()
  const ended = new AbortController()
  const keep = async () => {
    // Not the system clock, which may be changed.
    let until = performance.now() + seconds * 1000
    while (!ended.signal.aborted) {
      await sleep(seconds * 200, undefined, { signal: ended.signal })
      const asked = performance.now()
      try {
        if (!(await renew())) return lost.abort(new LeaseLost('the lease was lost to another archiver'))
        until = asked + seconds * 1000
      } catch (error) {
        log.warn({ event: 'archiver.lease.unrenewed', error }, 'the lease could not be renewed; trying again')
        if (performance.now() >= until) {
          return lost.abort(new LeaseLost(`the lease could not be renewed for ${seconds} s`, { cause: error }))
        }
      }
    }
  }
  keep().catch(() => {})
  return { signal: lost.signal, end: () => ended.abort() }
}
