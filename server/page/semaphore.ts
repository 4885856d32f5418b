/** Runs at most `max` works at a time, so that the page leaves the pool's other connections to heartbeats. */
export class Semaphore {
  #running = 0
  readonly #waiting: (() => void)[] = []

  constructor(readonly max: number) {}

  async run<T>(work: () => Promise<T>) {
    if (this.#running >= this.max) await new Promise<void>(resolve => this.#waiting.push(resolve))
    else this.#running++
    try {
      return await work()
    } finally {
      const next = this.#waiting.shift()
      if (next === undefined) this.#running--
      else next()
    }
  }
}
