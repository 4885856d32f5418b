import type { Log } from '../../lib/log.ts'
import { type Problem, toProblem } from '../problem.ts'
import { TimeoutError, withTimeout } from '../../lib/timeout.ts'

/** What a part of the page shows: what was read, or why it could not be read. */
export type Result<T> = { value: T; error?: undefined } | { value?: undefined; error: string }

/** Waits for a part of the page for `timeoutMs`. A failure is logged and affects only this part. */
export async function settled<T>(part: string, reading: Promise<T>, log: Log, timeoutMs: number): Promise<Result<T>> {
  try {
    return { value: await withTimeout(timeoutMs, reading) }
  } catch (error) {
    log.warn({ event: 'page.part_failed', part, error }, 'A part of the page could not be read.')
    return { error: error instanceof TimeoutError ? `It took longer than ${timeoutMs / 1_000} s.` : toReader(toProblem(error)) }
  }
}

/** The message of a problem for people who only read. */
export function toReader({ message }: Problem) {
  return message.replace('; nothing was acknowledged', '')
}
