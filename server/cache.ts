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
    this.#reading ??= this.read()
      .then(value => {
        this.#kept = { value, at: performance.now() }
        return value
      })
      .finally(() => {
        this.#reading = undefined
      })
    return this.#reading
  }
}
