import type { Log } from '../../lib/log.ts'
import { type Problem, toProblem } from '../problem.ts'
import { TimeoutError, withTimeout } from '../../lib/timeout.ts'

/** What a part of the page shows: what was read, or why it could not be. */
export type Result<T> = { value: T; error?: undefined } | { value?: undefined; error: string }

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

/** Waits for a part of the page for `patienceMs`; its failure is logged and is the part's own. */
export async function settled<T>(part: string, reading: Promise<T>, log: Log, patienceMs: number): Promise<Result<T>> {
  try {
    return { value: await withTimeout(patienceMs, reading) }
  } catch (error) {
    log.warn({ event: 'page.part_failed', part, error }, 'A part of the page could not be read.')
    return { error: error instanceof TimeoutError ? `It took longer than ${patienceMs / 1_000} s.` : toReader(toProblem(error)) }
  }
}

/** What a problem says to who only reads. */
export function toReader({ message }: Problem) {
  return message.replace('; nothing was acknowledged', '')
}
