import type { Log } from '../log.ts'
import { toProblem } from '../problem.ts'

/** What a part of the page shows: what was read, or why it could not be. */
export type Result<T> = { value: T, error?: undefined } | { value?: undefined, error: string }

/** Runs at most `width` works at a time, so that the page leaves the pool's other connections to heartbeats. */
export class Lane {
  #running = 0
  readonly #waiting: (() => void)[] = []

  constructor(readonly width: number) {}

  async run<T>(work: () => Promise<T>) {
    if (this.#running >= this.width) await new Promise<void>(resolve => this.#waiting.push(resolve))
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

/**
 * Something the page reads, read anew at most each `keepMs` however many watch. Who comes while it is being read gets
 * what that brings; a failure is not kept.
 */
export class Source<T> {
  #kept: { value: T, at: number } | undefined
  #reading: Promise<T> | undefined

  constructor(readonly keepMs: number, readonly read: () => Promise<T>) {}

  async get() {
    if (this.#kept !== undefined && performance.now() - this.#kept.at < this.keepMs) return this.#kept.value
    this.#reading ??= this.read()
      .then(value => {
        this.#kept = { value, at: performance.now() }
        return value
      })
      .finally(() => { this.#reading = undefined })
    return this.#reading
  }
}

/** Waits for a part of the page for `patienceMs`; its failure is logged and is the part's own. */
export async function settled<T>(part: string, reading: Promise<T>, log: Log, patienceMs: number): Promise<Result<T>> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Late(`It took longer than ${patienceMs / 1_000} s.`)), patienceMs)
  })
  try {
    return { value: await Promise.race([reading, late]) }
  } catch (error) {
    log.warn({ event: 'page.part_failed', part, error }, 'A part of the page could not be read.')
    if (error instanceof Late) return { error: error.message }
    return { error: toProblem(error).message.replace('; nothing was acknowledged', '') }
  } finally {
    clearTimeout(timer)
  }
}

class Late extends Error {}
