import type { Log } from '../lib/log.ts'

/** A place where a person watches the progress. Without one, progress goes to the log. */
export interface Display {
  everyMs: number
  show: (text: string) => void
}

const LOG_EVERY_MS = 5000

/**
 * Reports the progress of a long copy at intervals: rows, MB, rate, and the time left if the number of rows is known.
 * @returns a function to call with the totals so far
 */
export function followCopy(
  to: { log: Log; display?: Display | undefined },
  event: string,
  partition: string,
  total_rows: number | undefined,
) {
  const began = performance.now()
  let said = began
  return (rows: number, bytes: number) => {
    const now = performance.now()
    if (now - said < (to.display?.everyMs ?? LOG_EVERY_MS)) return
    said = now
    const rows_per_second = Math.round((rows / (now - began)) * 1000)
    const seconds_left =
      total_rows !== undefined && rows_per_second > 0 ? Math.round(Math.max(0, total_rows - rows) / rows_per_second) : undefined
    if (to.display) to.display.show(`${partition}: ${describeCopy({ rows, bytes, total_rows, rows_per_second, seconds_left })}`)
    else to.log.info({ event, partition, rows, total_rows, bytes, rows_per_second, seconds_left }, 'copying')
  }
}

/** Shows which of many items is being worked on, no more often than the display allows. */
export function followItems(display: Display | undefined) {
  let said = performance.now()
  return (text: string) => {
    const now = performance.now()
    if (!display || now - said < display.everyMs) return
    said = now
    display.show(text)
  }
}

interface CopyProgress {
  rows: number
  bytes: number
  total_rows: number | undefined
  rows_per_second: number
  seconds_left: number | undefined
}

/** `1,200,000 of 2,880,000 rows, 108 MB, 812,000 rows/s, 3 s left` */
export function describeCopy({ rows, bytes, total_rows, rows_per_second, seconds_left }: CopyProgress) {
  const number = (value: number) => value.toLocaleString('en-US')
  const of = total_rows === undefined ? '' : ` of ${number(total_rows)}`
  const left = seconds_left === undefined ? '' : `, ${describeSeconds(seconds_left)} left`
  return `${number(rows)}${of} rows, ${number(Math.round(bytes / 1e6))} MB, ${number(rows_per_second)} rows/s${left}`
}

function describeSeconds(seconds: number) {
  return seconds < 120 ? `${seconds} s` : `${Math.round(seconds / 60)} min`
}
