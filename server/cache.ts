/**
 * A value that is read again at most every `keepMs`, however many callers want it. A caller that arrives during a read gets its
 * result, even if the caller that began it has gone. A failure is not kept.
 */
export class Source<T> {
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
