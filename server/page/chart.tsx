import type { Child, PropsWithChildren } from 'hono/jsx'

const TOP = 18
const BOTTOM = 22

/** A tick on the x axis. `at` is a share (0 to 1) of its length. */
export interface Tick {
  at: number
  label: string
}

interface ChartProps {
  /** Unique on the page. */
  id: string
  title: string
  /** What the chart says, for people who do not see it. */
  description: string
  /** From the axis up, evenly spaced. The last one is the top. */
  yTicks: number[]
  yLabel: (value: number) => string
  xTicks: Tick[]
  series: string[]
  /** The same values as a table. Charts of the same rows share one. */
  table?: Child
  height?: number
  class?: string
}

/**
 * A plot as inline SVG. Everything is placed by percentages, so that the plot fills its place while its text keeps its size.
 * Labels of the y axis are on their lines.
 */
export function Chart({
  id,
  title,
  description,
  yTicks,
  yLabel,
  xTicks,
  series,
  table,
  height = 190,
  class: name,
  children,
}: PropsWithChildren<ChartProps>) {
  const y = (value: number) => percent(1 - shareOf(value, yTicks))
  return (
    <figure class={name === undefined ? 'chart' : `chart ${name}`}>
      <figcaption>
        <span>{title}</span>
        {series.length > 1 && <Legend series={series} />}
      </figcaption>
      <svg role="img" aria-labelledby={`${id}-title ${id}-desc`} width="100%" height={height}>
        <title id={`${id}-title`}>{title}</title>
        <desc id={`${id}-desc`}>{description}</desc>
        <svg y={TOP} width="100%" height={height - TOP - BOTTOM} overflow="visible">
          {yTicks.map((value, n) => (
            <line class={n === 0 ? 'axis' : 'grid'} x1="0" x2="100%" y1={y(value)} y2={y(value)} />
          ))}
          {children}
          {yTicks.map(
            value =>
              value !== 0 && (
                <text x="0" y={y(value)} dy="-4">
                  {yLabel(value)}
                </text>
              ),
          )}
        </svg>
        {xTicks.map(({ at, label }) => (
          <text x={percent(at)} y={height - 5} text-anchor={at < 0.06 ? 'start' : at > 0.94 ? 'end' : 'middle'}>
            {label}
          </text>
        ))}
      </svg>
      {table !== undefined && (
        <details id={`${id}-table`}>
          <summary>As a table</summary>
          <div class="scroll" tabindex={0} role="region" aria-label={`${title}, as a table`}>
            {table}
          </div>
        </details>
      )}
    </figure>
  )
}

function Legend({ series }: { series: string[] }) {
  return (
    <span class="legend">
      {series.map((name, n) => (
        <span>
          <svg width="10" height="10" aria-hidden="true">
            <rect width="10" height="10" rx="2" class={`series-${n + 1}`} />
          </svg>{' '}
          {name}
        </span>
      ))}
    </span>
  )
}

export interface Bar {
  /** Shown under the mouse pointer. */
  title: string
  /** One for each series, from the axis up. */
  values: number[]
}

/** Stacked bars side by side, for a chart whose y axis ends at `top`. */
export function Bars({ bars, top }: { bars: Bar[]; top: number }) {
  const width = 1 / bars.length
  return (
    <>
      {bars.map(({ title, values }, n) => {
        let below = 0
        return (
          <g>
            {values.map((value, series) => {
              below += value
              if (value === 0) return null
              return (
                <rect
                  class={`series-${series + 1}`}
                  x={percent((n + 0.1) * width)}
                  width={percent(0.8 * width)}
                  y={percent(1 - below / top)}
                  height={percent(value / top)}
                />
              )
            })}
            <rect class="over" x={percent(n * width)} width={percent(width)} y="0" height="100%">
              <title>{title}</title>
            </rect>
          </g>
        )
      })}
    </>
  )
}

export interface Point {
  x: number
  /** Shares (0 to 1) of the axes; null interrupts the line. */
  y: number | null
}

export function Line({ points, series }: { points: Point[]; series: number }) {
  const runs: Point[][] = [[]]
  for (const point of points) {
    if (point.y !== null) runs.at(-1)!.push(point)
    else if (runs.at(-1)!.length > 0) runs.push([])
  }
  return (
    <svg width="100%" height="100%" viewBox="0 0 1000 1000" preserveAspectRatio="none" overflow="visible">
      {runs
        .filter(run => run.length > 0)
        .map(run => (
          <polyline
            class={`line-${series}`}
            vector-effect="non-scaling-stroke"
            points={stretched(run)
              .map(({ x, y }) => `${Math.round(x * 1000)},${Math.round((1 - y!) * 1000)}`)
              .join(' ')}
          />
        ))}
    </svg>
  )
}

/** A point without neighbours would be invisible. */
function stretched(run: Point[]) {
  const [only] = run
  return run.length > 1
    ? run
    : [
        { ...only!, x: only!.x - 0.002 },
        { ...only!, x: only!.x + 0.002 },
      ]
}

/** The position of a value between the first and the last tick, from 0 to 1. */
export function shareOf(value: number, ticks: number[]) {
  const [first, last] = [ticks[0]!, ticks.at(-1)!]
  return Math.min(1, Math.max(0, (value - first) / (last - first)))
}

/** Round numbers from 0 to at least `max`, in two to five steps of 1, 2 or 5 times a power of ten. */
export function ticksTo(max: number) {
  if (!(max > 0)) return [0, 1]
  const rough = max / 4
  const power = 10 ** Math.floor(Math.log10(rough))
  const step = [1, 2, 5, 10].map(times => times * power).find(size => size >= rough)!
  const count = Math.ceil(max / step - 1e-9)
  return Array.from({ length: count + 1 }, (_, n) => Number((n * step).toPrecision(12)))
}

/** At most `most` ticks, including the first and the last, each in the middle of one of the `count` places. */
export function ticksOf(count: number, most: number, label: (n: number) => string): Tick[] {
  const marks = Math.min(count, most)
  const places = Array.from({ length: marks }, (_, n) => (marks === 1 ? 0 : Math.round((n * (count - 1)) / (marks - 1))))
  return places.map(n => ({ at: (n + 0.5) / count, label: label(n) }))
}

function percent(share: number) {
  return `${Number((100 * share).toFixed(3))}%`
}
