import { networkOf } from '../auth/address.ts'
import { BoundedMap } from '../auth/bounded-map.ts'

/** Wrong keys that do not lead to a wait. */
const FREE = 3
const MAX_WAIT_MS = 5 * 60_000
const FORGET_MS = 15 * 60_000

interface Failures {
  count: number
  last: number
}

/**
 * Failed logins by network, for each worker. After a few, each one doubles the wait before the next key is checked. Holds `max`
 * networks; a further one replaces the one that has been quiet for longest.
 */
export class Attempts {
  readonly #failures: BoundedMap<Failures>

  constructor(max = 10_000) {
    this.#failures = new BoundedMap(max)
  }

  get size() {
    return this.#failures.size
  }

  /** How many seconds this address has to wait, or 0. */
  waitS(address: string | null, now = performance.now()) {
    const failures = this.#of(address, now)
    if (failures === undefined || failures.count < FREE) return 0
    const wait = Math.min(1_000 * 2 ** (failures.count - FREE), MAX_WAIT_MS)
    return Math.max(0, Math.ceil((failures.last + wait - now) / 1_000))
  }

  failed(address: string | null, now = performance.now()) {
    const count = (this.#of(address, now)?.count ?? 0) + 1
    this.#failures.set(networkOf(address), { count, last: now })
  }

  succeeded(address: string | null) {
    this.#failures.delete(networkOf(address))
  }

  #of(address: string | null, now: number) {
    const failures = this.#failures.get(networkOf(address))
    return failures !== undefined && now - failures.last < FORGET_MS ? failures : undefined
  }
}
