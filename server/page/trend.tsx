import type { Reader } from '../reader.ts'
import { Chart, Line, shareOf, type Tick, ticksTo } from './chart.tsx'
import { count } from './format.ts'
import { Rows } from './layout.tsx'

const STEP_MS = 600_000
const STEPS = 144
const SERIES = [
  ['online', 'online'],
  ['late', 'late'],
  ['offline', 'offline'],
  ['unity_down', 'Unity down'],
] as const

/** A row of the view fleet.fleet_trend. */
export interface Sample {
  sampled_at: string
  online: number
  late: number
  offline: number
  unity_down: number
}

/** The samples of the last day. */
export async function readTrend(reader: Reader) {
  return [
    ...(await reader.run(
      sql => sql<Sample[]>`
    select sampled_at, online, late, offline, unity_down
    from fleet.fleet_trend
    where sampled_at > now() - interval '1 day'
  `,
    )),
  ]
}

/** How many more devices there are than an hour ago. Undefined if there is no sample from then. */
export function sinceAnHour(samples: Sample[], now: Date, value: number, status: (typeof SERIES)[number][0]) {
  const then = samples.findLast(({ sampled_at }) => Date.parse(sampled_at) <= now.getTime() - 3_600_000)
  if (then === undefined || Date.parse(then.sampled_at) < now.getTime() - 2 * 3_600_000) return undefined
  return value - then[status]
}

/** The last day of the fleet. The lines are interrupted where there is no sample. */
export function Trend({ samples, now }: { samples: Sample[]; now: Date }) {
  if (samples.length < 2) return <p class="muted">The trend appears once the fleet has been counted twice, ten minutes apart.</p>
  const end = Math.ceil(now.getTime() / STEP_MS) * STEP_MS
  const at = (step: number) => end - (STEPS - step) * STEP_MS
  const byTime = new Map(samples.map(sample => [Date.parse(sample.sampled_at), sample]))
  const steps = Array.from({ length: STEPS }, (_, n) => byTime.get(at(n)))
  const yTicks = ticksTo(Math.max(...samples.flatMap(sample => SERIES.map(([status]) => sample[status]))))
  const xTicks: Tick[] = [0, 1, 2, 3, 4].map(n => ({
    at: n / 4,
    label: new Date(at((n / 4) * STEPS)).toISOString().slice(11, 16),
  }))
  const [first, last] = [samples[0]!, samples.at(-1)!]
  return (
    <Chart
      id="trend-plot"
      title="Devices, last 24 hours"
      description={SERIES.map(([status, label]) => `${label}: from ${first[status]} to ${last[status]}`).join('; ')}
      yTicks={yTicks}
      yLabel={count}
      xTicks={xTicks}
      series={SERIES.map(([, label]) => label)}
      class="statuses"
      table={
        <Rows
          head={['From (UTC)', ...SERIES.map(([, label]) => ({ number: label[0]!.toUpperCase() + label.slice(1) }))]}
          rows={samples
            .toReversed()
            .map(sample => [
              new Date(sample.sampled_at).toISOString().slice(0, 16).replace('T', ' '),
              ...SERIES.map(([status]) => sample[status]),
            ])}
        />
      }
    >
      {SERIES.map(([status], n) => (
        <Line
          series={n + 1}
          points={steps.map((sample, step) => ({
            x: (step + 0.5) / STEPS,
            y: sample === undefined ? null : shareOf(sample[status], yTicks),
          }))}
        />
      ))}
    </Chart>
  )
}
