import type { Log } from '../../lib/log.ts'
import { type Problem, toProblem } from '../problem.ts'
import { Late, within } from '../../lib/timeout.ts'

/** What a part of the page shows: what was read, or why it could not be read. */
export type Result<T> = { value: T; error?: undefined } | { value?: undefined; error: string }

/** Runs at most `width` tasks at the same time, so that the page leaves the other connections of the pool to heartbeats. */
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

/** Waits for a part of the page for `patienceMs`. A failure is logged and affects only this part. */
export async function settled<T>(part: string, reading: Promise<T>, log: Log, patienceMs: number): Promise<Result<T>> {
  try {
    return { value: await within(patienceMs, reading) }
  } catch (error) {
    log.warn({ event: 'page.part_failed', part, error }, 'A part of the page could not be read.')
    return { error: error instanceof Late ? `It took longer than ${patienceMs / 1_000} s.` : toReader(toProblem(error)) }
  }
}

/** The message of a problem for people who only read. */
export function toReader({ message }: Problem) {
  return message.replace('; nothing was acknowledged', '')
}
