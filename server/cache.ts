/**
 * Something that is read anew at most each `keepMs`, however many want it. Who comes while it is being read gets what that
 * brings, also when those who asked first have gone; a failure is not kept.
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
