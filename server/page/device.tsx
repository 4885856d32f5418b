import type { Reader } from '../reader.ts'
import { Bars, Chart, Line, shareOf, type Tick, ticksTo } from './chart.tsx'
import { type Device, Status } from './devices.tsx'
import { count, duration, plural } from './format.ts'
import { Rows } from './layout.tsx'
import { reasonOf } from './reasons.ts'
import { Moment } from './time.tsx'

/** A row of the view fleet.device_status. */
export interface DeviceDetail extends Device {
  unity_running: boolean | null
  signal_dbm: number | null
  ip: string | null
  /** As JSON text. */
  extra: string | null
  /** When its next heartbeat comes, if the newest one said so. */
  announced_at: string | null
  /** Why it was about to stop. */
  stopping: string | null
  /** Why it is silent; null if it is not. */
  reason: string | null
  /** What is wrong with its clock, such as "lags by 6 h"; null unless it is clock_skewed. */
  clock: string | null
  interval_s: number
  enrolled_at: string
}

/** A row of fleet.device_day(): ten minutes of a device's day. */
export interface Span {
  span_start: string
  beats: number
  unity_down: number
  battery_pct: number | null
  signal_dbm: number | null
}

/** @param cohorts all that a session knows of the fleet, if it is bound to some; see cohortsOf() */
export async function readDevice(reader: Reader, deviceId: number, cohorts: string | null = null) {
  const [device] = await reader.run(
    sql => sql<DeviceDetail[]>`
    select device_id, alias, cohort, status, last_received_at,
      case when status = 'clock_skewed' then fleet.describe_clock(device_id) end as clock, battery_pct, network_type,
      unity_running, signal_dbm, agent_version, ip, extra::text, stopping, reason,
      last_received_at + next_in_s * interval '1 second' as announced_at,
      extract(epoch from heartbeat_interval)::float8 as interval_s, enrolled_at
    from fleet.device_status
    where device_id = ${deviceId} and (${cohorts}::text::text[] is null or cohort = any (${cohorts}::text::text[]))
  `,
  )
  return device
}

export async function readDay(reader: Reader, deviceId: number) {
  return [
    ...(await reader.run(
      sql => sql<Span[]>`
    select span_start, beats, unity_down, battery_pct::float8, signal_dbm::float8 from fleet.device_day(${deviceId})
  `,
    )),
  ]
}

export function DeviceFacts({ device, now }: { device: DeviceDetail; now: Date }) {
  const { unity_running: unity } = device
  return (
    <dl class="facts">
      <div>
        <dt>Status</dt>
        <dd>
          <Status status={device.status} />
        </dd>
      </div>
      <div>
        <dt>Last heartbeat</dt>
        <dd>{device.last_received_at === null ? 'never' : <Moment at={device.last_received_at} now={now} />}</dd>
      </div>
      {device.reason !== null && (
        <div>
          <dt>Reason</dt>
          <dd>{reasonOf(device.reason)}</dd>
        </div>
      )}
      {device.announced_at !== null && (
        <div>
          <dt>Next heartbeat</dt>
          <dd>
            announced: <Moment at={device.announced_at} now={now} />
          </dd>
        </div>
      )}
      {device.stopping !== null && (
        <div>
          <dt>Stopping</dt>
          <dd>{device.stopping}</dd>
        </div>
      )}
      {device.clock !== null && (
        <div>
          <dt>Clock</dt>
          <dd>{device.clock}</dd>
        </div>
      )}
      <div>
        <dt>Unity</dt>
        <dd>{unity === null ? '–' : unity ? 'running' : <span class="badge is-unity_down">down</span>}</dd>
      </div>
      <div>
        <dt>Battery</dt>
        <dd>{device.battery_pct === null ? '–' : `${device.battery_pct} %`}</dd>
      </div>
      <div>
        <dt>Signal</dt>
        <dd>{device.signal_dbm === null ? '–' : `${device.signal_dbm} dBm`}</dd>
      </div>
      <div>
        <dt>Network</dt>
        <dd>{device.network_type ?? '–'}</dd>
      </div>
      <div>
        <dt>Agent</dt>
        <dd>{device.agent_version ?? '–'}</dd>
      </div>
      <div>
        <dt>Address</dt>
        <dd>{device.ip ?? '–'}</dd>
      </div>
      <div>
        <dt>Cohort</dt>
        <dd>{device.cohort}</dd>
      </div>
      <div>
        <dt>Heartbeat requested</dt>
        <dd>every {duration(device.interval_s)}</dd>
      </div>
      <div>
        <dt>Enrolled</dt>
        <dd>
          <Moment at={device.enrolled_at} now={now} />
        </dd>
      </div>
      <div>
        <dt>Device id</dt>
        <dd>{device.device_id}</dd>
      </div>
      {device.extra !== null && (
        <div class="wide">
          <dt>Own values</dt>
          <dd>
            <code>{device.extra}</code>
          </dd>
        </div>
      )}
    </dl>
  )
}

const BATTERY = [0, 25, 50, 75, 100]
const SIGNAL = [-120, -100, -80, -60, -40]

/** The last day in spans of ten minutes: battery, signal, and the number of heartbeats. */
export function DeviceDay({ spans, interval_s }: { spans: Span[]; interval_s: number }) {
  const beats = spans.reduce((sum, span) => sum + span.beats, 0)
  if (beats === 0) return <p class="muted">No heartbeat in the last 24 hours.</p>
  const silent = spans.filter(span => span.beats === 0).length
  const down = spans.reduce((sum, span) => sum + span.unity_down, 0)
  const yTicks = ticksTo(Math.max(600 / interval_s, ...spans.map(span => span.beats)))
  const xTicks: Tick[] = [0, 1, 2, 3, 4].map(n => {
    const at = Date.parse(spans[0]!.span_start) + (n / 4) * spans.length * 600_000
    return { at: n / 4, label: new Date(at).toISOString().slice(11, 16) }
  })
  const line = (value: (span: Span) => number | null, ticks: number[]) =>
    spans.map((span, n) => {
      const found = value(span)
      return { x: (n + 0.5) / spans.length, y: found === null ? null : shareOf(found, ticks) }
    })
  const table = (
    <Rows
      head={['From (UTC)', ...['Heartbeats', 'Unity down', 'Battery', 'Signal'].map(number => ({ number }))]}
      rows={spans
        .toReversed()
        .map(span => [
          span.span_start.slice(0, 16).replace('T', ' '),
          span.beats,
          span.unity_down,
          span.battery_pct === null ? '–' : `${Math.round(span.battery_pct)} %`,
          span.signal_dbm === null ? '–' : `${Math.round(span.signal_dbm)} dBm`,
        ])}
    />
  )
  return (
    <>
      <p>
        {plural(beats, 'heartbeat')}, {down > 0 && `${count(down)} of them with Unity down, `}
        {silent === 0 ? 'no span of ten minutes without one.' : `${plural(silent, 'span')} of ten minutes without one.`}
      </p>
      <Chart
        id="beats-plot"
        title="Heartbeats per ten minutes"
        description={`${plural(beats, 'heartbeat')} in 24 hours, ${plural(silent, 'span')} of ten minutes without one.`}
        yTicks={yTicks}
        yLabel={count}
        xTicks={xTicks}
        series={['Unity running', 'Unity down', 'no heartbeat']}
        table={table}
      >
        <Bars
          top={yTicks.at(-1)!}
          bars={spans.map(span => ({
            title: `${span.span_start.slice(11, 16)} UTC: ${span.beats === 0 ? 'no heartbeat' : plural(span.beats, 'heartbeat')}`,
            // Silence is a full bar, because an empty one would be invisible.
            values: [span.beats - span.unity_down, span.unity_down, span.beats === 0 ? yTicks.at(-1)! : 0],
          }))}
        />
      </Chart>
      <Chart
        id="battery-plot"
        title="Battery"
        description={rangeOf(
          spans.map(span => span.battery_pct),
          '%',
        )}
        yTicks={BATTERY}
        yLabel={value => `${value} %`}
        xTicks={xTicks}
        series={['battery']}
      >
        <Line series={1} points={line(span => span.battery_pct, BATTERY)} />
      </Chart>
      <Chart
        id="signal-plot"
        title="Signal"
        description={rangeOf(
          spans.map(span => span.signal_dbm),
          'dBm',
        )}
        yTicks={SIGNAL}
        yLabel={value => `${value} dBm`}
        xTicks={xTicks}
        series={['signal']}
      >
        <Line series={1} points={line(span => span.signal_dbm, SIGNAL)} />
      </Chart>
    </>
  )
}

function rangeOf(values: (number | null)[], unit: string) {
  const known = values.filter(value => value !== null)
  if (known.length === 0) return 'Not reported.'
  return `Between ${Math.round(Math.min(...known))} and ${Math.round(Math.max(...known))} ${unit}, most recently ${Math.round(known.at(-1)!)} ${unit}.`
}
