import type { IncomingMessage } from 'node:http'
import { clientAddress, networkOf } from './address.ts'
import { BoundedMap } from './bounded-map.ts'
import { Problem } from '../problem.ts'

/** A further network replaces the one that has sent no wrong token or key for longest. */
const MAX_NETWORKS = 10_000
/** Wrong tokens that arrive at the same moment all count, but nobody waits for longer than this. */
const MAX_WAIT_MS = 5 * 60_000

/**
 * Limits the wrong tokens or keys that come from a client's network. Each worker counts for itself: `perMinute` may arrive at
 * once, and as many again each minute. As long as no client sends a wrong one, a check costs nothing.
 */
export class RateLimit {
  /** For each network, the time in ms at which its wrong tokens or keys no longer count. */
  readonly #paid: BoundedMap<number>
  readonly #cost: number

  constructor(
    readonly trustProxy: boolean,
    readonly perMinute: number,
    readonly onRefused = () => {},
    readonly now: () => number = () => performance.now(),
    max = MAX_NETWORKS,
  ) {
    this.#paid = new BoundedMap(max)
    this.#cost = 60_000 / perMinute
  }

  get size() {
    return this.#paid.size
  }

  /** @throws Problem 429 while too many wrong tokens or keys came from this client's network */
  check(incoming: IncomingMessage) {
    const wait = this.wait(incoming)
    if (wait > 0) throw this.refusal(wait)
  }

  /** For how many ms this client's network is over the limit, or 0. */
  wait(incoming: IncomingMessage) {
    if (this.#paid.size === 0) return 0
    const wait = (this.#paid.get(this.network(incoming)) ?? -Infinity) + this.#cost - 60_000 - this.now()
    // The sums are not exact, because the cost need not be a whole number.
    return wait <= 0.001 ? 0 : wait
  }

  /** Whether wrong tokens or keys of this client's network still count. */
  hasWrong(incoming: IncomingMessage) {
    return this.#paid.size > 0 && (this.#paid.get(this.network(incoming)) ?? -Infinity) > this.now()
  }

  /** The 429 for a request that may come again after `wait` ms. */
  refusal(wait: number) {
    this.onRefused()
    return new Problem(429, 'Too many wrong tokens or keys came from this address.', {
      headers: { 'retry-after': String(Math.ceil(wait / 1_000)) },
    })
  }

  wrong(incoming: IncomingMessage) {
    const network = this.network(incoming)
    const paid = Math.max(this.#paid.get(network) ?? -Infinity, this.now()) + this.#cost
    this.#paid.set(network, Math.min(paid, this.now() + 60_000 + MAX_WAIT_MS))
  }

  network(incoming: IncomingMessage) {
    return networkOf(clientAddress(incoming, this.trustProxy))
  }
}
