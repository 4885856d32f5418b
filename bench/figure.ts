/** A figure of a scenario, with its target if it has one. */
export interface Figure {
  name: string
  measured: number
  unit: string
  target?: { at: 'least' | 'most'; value: number }
}

export function isMet({ measured, target }: Figure) {
  return !target || (target.at === 'least' ? measured >= target.value : measured <= target.value)
}

/** The figure as a line of the table. */
export function line(figure: Figure) {
  const { name, measured, unit, target } = figure
  const value = `${measured >= 100 ? Math.round(measured).toLocaleString('en') : measured.toFixed(2)} ${unit}`.trim()
  const verdict = target ? `  ${isMet(figure) ? 'PASS' : 'FAIL'} (at ${target.at} ${target.value})` : ''
  return `${name.padEnd(62)} ${value.padStart(18)}${verdict}`
}

export const atLeast = (value: number) => ({ at: 'least', value }) as const
export const atMost = (value: number) => ({ at: 'most', value }) as const

export function median(values: number[]) {
  return percentile(values, 50)
}

/** The smallest value that is at least as large as `percent` percent of the values; NaN if there are none. */
export function percentile(values: number[], percent: number) {
  const sorted = [...values].sort((a, b) => a - b)
  return sorted[Math.max(0, Math.ceil((sorted.length * percent) / 100) - 1)] ?? NaN
}
