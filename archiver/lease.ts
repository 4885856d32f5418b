import { setTimeout as sleep } from 'node:timers/promises'
import type { Log } from '../lib/log.ts'

/** The lease ran out or was taken: whatever was being done must stop, and nothing be recorded. */
export class LeaseLost extends Error {}

/**
 * Keeps a lease while work goes on. `signal` fires with LeaseLost when the database says it is another's, or when it
 * could not be asked for as long as the lease lasts.
 * @param renew prolongs the lease; false when another has it
 */
export function holdLease(seconds: number, renew: () => Promise<boolean>, log: Log) {
  const lost = new AbortController()
  const ended = new AbortController()
  const keep = async () => {
    // Not by the clock of day, which may be set.
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
