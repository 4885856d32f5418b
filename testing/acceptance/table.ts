// The lines of testing/acceptance/RESULTS.md.

export interface Line {
  /** The document that requires it, and the section: `000 A`, `001`, `004`. */
  source: string
  criterion: string
  target: string
  measured: string
  verdict: 'PASS' | 'FAIL' | 'shown'
  /** Why it fails, or how the measurement differs from the criterion. */
  note?: string
}

type Rest = Pick<Line, 'note'>

export function atMost(source: string, criterion: string, measured: number, most: number, unit: string, rest: Rest = {}): Line {
  return {
    source,
    criterion,
    target: `at most ${most} ${unit}`.trim(),
    measured: show(measured, unit),
    verdict: measured <= most ? 'PASS' : 'FAIL',
    ...rest,
  }
}

export function atLeast(source: string, criterion: string, measured: number, least: number, unit: string, rest: Rest = {}): Line {
  return {
    source,
    criterion,
    target: `at least ${least.toLocaleString('en')} ${unit}`.trim(),
    measured: show(measured, unit),
    verdict: measured >= least ? 'PASS' : 'FAIL',
    ...rest,
  }
}

export function equal(
  source: string,
  criterion: string,
  measured: number | string,
  wanted: number | string,
  rest: Rest = {},
): Line {
  const text = (value: number | string) => (typeof value === 'number' ? value.toLocaleString('en') : value)
  return {
    source,
    criterion,
    target: text(wanted),
    measured: text(measured),
    verdict: measured === wanted ? 'PASS' : 'FAIL',
    ...rest,
  }
}

/** A value that no document requires. It is only shown. */
export function shown(source: string, criterion: string, target: string, measured: string, rest: Rest = {}): Line {
  return { source, criterion, target, measured, verdict: 'shown', ...rest }
}

function show(value: number, unit: string) {
  const text = Number.isInteger(value) || value >= 100 ? Math.round(value).toLocaleString('en') : value.toFixed(2)
  return `${text} ${unit}`.trim()
}

/** The lines as a Markdown table. */
export function tableOf(lines: Line[]) {
  return [
    '| | criterion | target | measured | |',
    '|---|---|---|---|---|',
    ...lines.map(({ source, criterion, target, measured, verdict, note }) => {
      const cells = [source, criterion + (note ? `. ${note}` : ''), target, measured, verdict === 'FAIL' ? '**FAIL**' : verdict]
      return `| ${cells.map(cell => cell.replaceAll('|', '\\|').replaceAll('\n', ' ')).join(' | ')} |`
    }),
  ].join('\n')
}
