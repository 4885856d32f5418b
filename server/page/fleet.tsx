import type { Reader } from '../reader.ts'
import { count, plural } from './format.ts'
import { Table } from './layout.tsx'
import { FleetSilence, type Silence, SilenceAlarm } from './silence.tsx'
import { Moment } from './time.tsx'
import { type Sample, sinceAnHour, Trend } from './trend.tsx'

/** A row of the view fleet.fleet_summary. */
export interface CohortCount {
  cohort: string
  devices: number
  online: number
  late: number
  offline: number
  new: number
  clock_skewed: number
  unity_down: number
  /** Null if they were counted for this read. A large fleet is counted once a minute. */
  counted_at: string | null
  /** How many cohorts there are, also those that were not read. */
  cohorts: number
}

/** How many cohorts are shown. A page with thousands takes a second to make, and nobody reads it. */
const MOST_COHORTS = 50

/**
 * The first row is the whole fleet. Then its cohorts in order, those with the most devices offline if there are too many.
 * @param cohorts all that a session knows of the fleet, if it is bound to some; see cohortsOf()
 */
export async function readFleet(reader: Reader, cohorts: string | null = null) {
  return [
    ...(await reader.run(
      sql => sql<CohortCount[]>`
    select f.cohort, f.devices, f.online, f.late, f.offline, f.new, f.clock_skewed, f.unity_down,
      nullif(f.counted_at, now()) as counted_at, f.cohorts
    from (
      select s.*, row_number() over () as place, count(*) over () - 1 as cohorts,
        rank() over (order by s.offline desc, s.late desc, s.cohort) as rank
      from ${cohorts === null ? sql`fleet.fleet_summary` : sql`fleet.fleet_summary_of(${cohorts}::text::text[])`} s
    ) f
    where f.place = 1 or f.rank <= ${MOST_COHORTS + 1}
    order by f.place
  `,
    )),
  ]
}

const STATUSES = [
  ['online', 'online'],
  ['late', 'late'],
  ['offline', 'offline'],
  ['clock_skewed', 'clock skewed'],
  ['new', 'new'],
] as const

interface FleetProps {
  cohorts: CohortCount[]
  /** Undefined if it could not be read, null if the session may not see it, like `trend`. The counts are shown all the same. */
  silence: Silence[] | undefined | null
  trend: Sample[] | undefined | null
  now: Date
}

export function Fleet({ cohorts, silence, trend, now }: FleetProps) {
  const [all, ...others] = cohorts
  const alarms = new Map((silence ?? []).slice(1).map(cohort => [cohort.cohort, cohort]))
  const since = (status: keyof Sample & keyof CohortCount) =>
    trend && all ? sinceAnHour(trend, now, all[status], status) : undefined
  if (all === undefined || all.devices === 0) return <p class="muted">No device is enrolled yet.</p>
  return (
    <>
      <ul class="tiles">
        <Tile status="online" label="online" value={all.online} more={since('online')} />
        <Tile status="late" label="late" value={all.late} more={since('late')} />
        <Tile status="offline" label="offline" value={all.offline} more={since('offline')} />
        <Tile status="unity_down" label="Unity down" value={all.unity_down} more={since('unity_down')} />
        <Tile status="clock_skewed" label="clock skewed" value={all.clock_skewed} />
        <Tile status="new" label="new" value={all.new} />
      </ul>
      <Share all={all} />
      {all.counted_at !== null && (
        <p class="muted">
          Counted <Moment at={all.counted_at} now={now} />
        </p>
      )}
      {silence === undefined ? (
        <p class="unread">The silence of cohorts could not be read.</p>
      ) : (
        silence?.[0] !== undefined && <FleetSilence silence={silence[0]} />
      )}
      {all.cohorts > others.length && (
        <p class="muted">
          These {others.length} of {count(all.cohorts)} cohorts have the most devices offline. The view fleet.fleet_summary has
          all.
        </p>
      )}
      {[...alarms.values()]
        .filter(({ cohort }) => others.every(shown => shown.cohort !== cohort))
        .map(alarm => (
          <p>
            {alarm.cohort} <SilenceAlarm silence={alarm} />
          </p>
        ))}
      {others.length > 1 && (
        <Table
          label="Devices by cohort"
          head={[
            'Cohort',
            ...['Devices', 'Online', 'Late', 'Offline', 'Clock skewed', 'New', 'Unity down'].map(number => ({ number })),
          ]}
          rows={others.map(cohort => {
            const alarm = alarms.get(cohort.cohort)
            return [
              <>
                {cohort.cohort}
                {alarm !== undefined && (
                  <>
                    <br />
                    <SilenceAlarm silence={alarm} />
                  </>
                )}
              </>,
              ...[cohort.devices, ...STATUSES.map(([status]) => cohort[status]), cohort.unity_down].map(value =>
                value === 0 ? <span class="muted">0</span> : count(value),
              ),
            ]
          })}
        />
      )}
      {trend === undefined && <p class="unread">The trend could not be read.</p>}
      {trend && <Trend samples={trend} now={now} />}
    </>
  )
}

function Tile({ status, label, value, more }: { status: string; label: string; value: number; more?: number | undefined }) {
  return (
    <li class={value === 0 ? 'tile zero' : `tile is-${status}`}>
      <a href={`/?status=${status}#devices`}>
        <b>{count(value)}</b> <span>{label}</span>
      </a>
      {more !== undefined && (
        <small>
          {more < 0 ? '−' : more > 0 ? '+' : '±'}
          {count(Math.abs(more))} in 1 h
        </small>
      )}
    </li>
  )
}

/** The statuses as one bar. */
function Share({ all }: { all: CohortCount }) {
  let from = 0
  return (
    <svg
      class="share"
      width="100%"
      height="12"
      role="img"
      aria-label={STATUSES.map(([status, label]) => `${all[status]} ${label}`).join(', ')}
    >
      {STATUSES.map(([status, label]) => {
        const width = (100 * all[status]) / all.devices
        const x = from
        from += width
        return width === 0 ? null : (
          <rect class={`is-${status}`} x={`${x}%`} width={`${width}%`} height="12">
            <title>
              {plural(all[status], 'device')} {label}
            </title>
          </rect>
        )
      })}
    </svg>
  )
}
