/** A place in the lane. It is given back with whether it was of use. */
type Leave = (isGood: boolean) => void

interface Waiter {
  go: (leave: Leave) => void
  refuse: () => void
}

/**
 * Lets a few lookups of networks over the limit through at a time. Who finds no place waits among a few of its network; when there
 * are more, one of them is refused, chosen at random, so that a flood cannot crowd out the others by coming first. After a wrong
 * token its place stays taken for a pause.
 */
export class Lane {
  #taken = 0
  readonly #takenBy = new Map<string, number>()
  /** In the order in which networks get the next place. */
  readonly #waiting = new Map<string, Waiter[]>()

  constructor(
    readonly limits = { places: 8, ofNetwork: 2, waiting: 8, pauseMs: 10 },
    readonly random: () => number = Math.random,
  ) {}

  /** @returns what gives the place back; undefined if the caller is refused */
  enter(network: string): Promise<Leave | undefined> {
    if (this.#isFree(network)) return Promise.resolve(this.#take(network))
    return new Promise(resolve => {
      const waiters = this.#waiting.get(network) ?? []
      this.#waiting.set(network, waiters)
      waiters.push({ go: resolve, refuse: () => resolve(undefined) })
      if (waiters.length > this.limits.waiting) this.#anyOf(waiters).refuse()
    })
  }

  #isFree(network: string) {
    return this.#taken < this.limits.places && (this.#takenBy.get(network) ?? 0) < this.limits.ofNetwork
  }

  #take(network: string): Leave {
    this.#taken++
    this.#takenBy.set(network, (this.#takenBy.get(network) ?? 0) + 1)
    return isGood => {
      if (isGood) this.#free(network)
      else setTimeout(() => this.#free(network), this.limits.pauseMs).unref()
    }
  }

  #free(network: string) {
    this.#taken--
    const left = this.#takenBy.get(network)! - 1
    if (left > 0) this.#takenBy.set(network, left)
    else this.#takenBy.delete(network)
    // Few networks have to be skipped: those that have all their places.
    for (const [next, waiters] of this.#waiting) {
      if (!this.#isFree(next)) continue
      const { go } = this.#anyOf(waiters)
      this.#waiting.delete(next)
      if (waiters.length > 0) this.#waiting.set(next, waiters)
      return go(this.#take(next))
    }
  }

  /** Removes one of the waiters, chosen at random. */
  #anyOf(waiters: Waiter[]) {
    return waiters.splice(Math.floor(this.random() * waiters.length), 1)[0]!
  }
}
