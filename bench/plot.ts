// Makes plots as SVG that are readable on white and on black.
export interface Series {
  name: string
  points: [x: number, y: number][]
}

interface Plot {
  title: string
  x: string
  y: string
  series: Series[]
  /** Periods in which something happens. They are shaded. */
  spans?: { name: string; from: number; to: number }[]
  /** Whether both axes are logarithmic. */
  isLogarithmic?: boolean
}

const WIDTH = 800
const HEIGHT = 320
const LEFT = 60
const RIGHT = 16
const TOP = 44
const BOTTOM = 44
const COLOURS = ['#2f7ed8', '#d9692b', '#3a9d5d', '#9b59b6', '#c0392b', '#7f8c8d']

const colour = (index: number) => COLOURS[index % COLOURS.length]!

export function plot({ title, x, y, series, spans = [], isLogarithmic = false }: Plot) {
  const all = series.flatMap(({ points }) => points)
  if (all.length === 0) throw new Error(`${title}: there are no points to plot`)
  const scale = isLogarithmic ? (value: number) => Math.log10(Math.max(value, 1e-9)) : (value: number) => value
  const xs = all.map(([at]) => scale(at))
  const ys = all.map(([, value]) => scale(value))
  const [left, right] = [Math.min(...xs), Math.max(...xs)]
  const [low, high] = isLogarithmic ? [Math.floor(Math.min(...ys)), Math.ceil(Math.max(...ys))] : [0, 1.1 * Math.max(...ys)]
  const px = (at: number) => LEFT + ((scale(at) - left) / (right - left || 1)) * (WIDTH - LEFT - RIGHT)
  const py = (value: number) => HEIGHT - BOTTOM - ((scale(value) - low) / (high - low || 1)) * (HEIGHT - TOP - BOTTOM)
  const ticks = (from: number, to: number) =>
    isLogarithmic
      ? Array.from({ length: Math.floor(to + 1e-9) - Math.ceil(from - 1e-9) + 1 }, (_, n) => 10 ** (Math.ceil(from - 1e-9) + n))
      : rounded(from, to)
  const text = (at: number, top: number, words: string, anchor = 'middle') =>
    `<text x="${at.toFixed(1)}" y="${top.toFixed(1)}" text-anchor="${anchor}">${escape(words)}</text>`
  const lines = [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" font-family="sans-serif" font-size="12" fill="#808080" role="img">`,
    `<title>${escape(title)}</title>`,
    ...spans.flatMap(({ name, from, to }) => [
      `<rect x="${px(from).toFixed(1)}" y="${TOP}" width="${Math.max(2, px(to) - px(from)).toFixed(1)}" height="${HEIGHT - TOP - BOTTOM}" fill="#808080" opacity="0.2"/>`,
      text((px(from) + px(to)) / 2, TOP - 4, name),
    ]),
    ...ticks(low, high).flatMap(value => [
      `<line x1="${LEFT}" x2="${WIDTH - RIGHT}" y1="${py(value).toFixed(1)}" y2="${py(value).toFixed(1)}" stroke="#808080" opacity="0.3"/>`,
      text(LEFT - 6, py(value) + 4, short(value), 'end'),
    ]),
    ...ticks(left, right).map(value => text(px(value), HEIGHT - BOTTOM + 16, short(value))),
    text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x),
    text(LEFT, TOP - 24, y, 'start'),
    ...series.map(
      ({ points }, index) =>
        `<polyline fill="none" stroke="${colour(index)}" stroke-width="1.5" points="${points.map(([at, value]) => `${px(at).toFixed(1)},${py(value).toFixed(1)}`).join(' ')}"/>`,
    ),
    `<text x="${WIDTH - RIGHT}" y="${TOP - 24}" text-anchor="end">`,
    ...series.map(({ name }, index) => `<tspan dx="${index && 20}" fill="${colour(index)}">${escape(name)}</tspan>`),
    '</text>',
    '</svg>',
  ]
  return `${lines.join('\n')}\n`
}

/** About five round numbers between two values, for the axis. */
function rounded(from: number, to: number) {
  const rough = (to - from || 1) / 5
  const power = 10 ** Math.floor(Math.log10(rough))
  const step = [1, 2, 5, 10].map(factor => factor * power).find(candidate => candidate >= rough)!
  const values: number[] = []
  for (let value = Math.ceil(from / step) * step; value <= to; value += step) values.push(value)
  return values
}

function short(value: number) {
  if (value >= 1e6) return `${Number((value / 1e6).toPrecision(3))}M`
  if (value >= 1e3) return `${Number((value / 1e3).toPrecision(3))}k`
  return String(Number(value.toPrecision(3)))
}

function escape(text: string) {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;')
}
