const COUNT = new Intl.NumberFormat('en', { maximumFractionDigits: 0 })
const UNITS = ['B', 'kB', 'MB', 'GB', 'TB', 'PB']

/** `1,234,567`. */
export function count(value: number) {
  return COUNT.format(value)
}

/** `12.3 MB`, in powers of a thousand. */
export function bytes(value: number) {
  let unit = 0
  let scaled = value
  while (scaled >= 999.5 && unit < UNITS.length - 1) {
    scaled /= 1_000
    unit++
  }
  return `${short(scaled)} ${UNITS[unit]}`
}

/** At most two decimals, fewer for larger values: `0.12`, `3.4`, `87`, `1,204`. */
export function short(value: number) {
  if (value === 0) return '0'
  const size = Math.abs(value)
  return size >= 99.5 ? count(value) : String(Number(value.toFixed(size >= 9.95 ? 0 : size >= 0.995 ? 1 : 2)))
}

/** `4 s`, `3 min`, `5 h`, `12 days`: the largest unit of which there is at least one. */
export function duration(seconds: number) {
  const s = Math.max(0, Math.round(seconds))
  if (s < 60) return `${s} s`
  if (s < 3_600) return `${Math.floor(s / 60)} min`
  if (s < 2 * 86_400) return `${Math.floor(s / 3_600)} h`
  return `${Math.floor(s / 86_400)} days`
}

/** `2 devices`, `1 device`. */
export function plural(value: number, noun: string) {
  return `${count(value)} ${noun}${value === 1 ? '' : 's'}`
}
