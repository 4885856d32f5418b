/**
 * A value that is read at most once each `keepMs`, however many callers want it. Callers that come during a read share its result, even
 * if the first of them has gone. A failure is not kept.
 */
export class Cache<T> {
  #kept: { value: T; at: number } | undefined
  #reading: Promise<T> | undefined

  constructor(
    readonly keepMs: number,
    readonly read: () => Promise<T>,
  ) {}

  async get() {
    if (this.#kept !== undefined && performance.now() - this.#kept.at < this.keepMs) return this.#kept.value
    if (this.#reading !== undefined) return this.#reading
    const reading: Promise<T> = this.read()
      .then(value => {
        // A read that began before clear() may be of an earlier state.
        if (this.#reading === reading) this.#kept = { value, at: performance.now() }
        return value
      })
      .finally(() => {
        if (this.#reading === reading) this.#reading = undefined
      })
    this.#reading = reading
    return reading
  }

  /** The next caller reads again. */
  clear() {
    this.#kept = this.#reading = undefined
  }
}
