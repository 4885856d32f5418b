import { duration } from './format.ts'

/** A time as RFC 3339 text, shown as the time since it or until it, with the time of day in UTC. */
export function Moment({ at, now }: { at: string; now: Date }) {
  return (
    <time dateTime={at} class="moment">
      {relative(at, now)} <small>{utc(at, now)}</small>
    </time>
  )
}

/** `3 min ago`, `in 5 h`. */
export function relative(at: string, now: Date) {
  const seconds = (now.getTime() - Date.parse(at)) / 1_000
  if (Math.abs(seconds) < 1) return 'now'
  return seconds > 0 ? `${duration(seconds)} ago` : `in ${duration(-seconds)}`
}

/** `14:03 UTC`, with the date if it is not today. */
export function utc(at: string, now: Date) {
  const iso = new Date(at).toISOString()
  const day = iso.slice(0, 10)
  return `${day === now.toISOString().slice(0, 10) ? '' : `${day} `}${iso.slice(11, 16)} UTC`
}

/** `2026-11-21`. */
export function dayOf(at: string | Date) {
  return new Date(at).toISOString().slice(0, 10)
}
