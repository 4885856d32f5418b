import type { Reader } from '../reader.ts'
import { count, plural } from './format.ts'
import { Table } from './layout.tsx'

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
}

/** The first is the whole fleet. */
export async function readFleet(reader: Reader) {
  return [...await reader.run(sql => sql<CohortCount[]>`
    select cohort, devices, online, late, offline, new, clock_skewed, unity_down from fleet.fleet_summary
  `)]
}

const STATUSES = [
  ['online', 'online'], ['late', 'late'], ['offline', 'offline'], ['clock_skewed', 'clock skewed'], ['new', 'new'],
] as const

export function Fleet({ cohorts }: { cohorts: CohortCount[] }) {
  const [all, ...others] = cohorts
  if (all === undefined || all.devices === 0) return <p class="muted">No device is enrolled yet.</p>
  return (
    <>
      <ul class="tiles">
        {STATUSES.map(([status, label]) => <Tile status={status} label={label} value={all[status]} />)}
        <Tile status="unity_down" label="Unity down" value={all.unity_down} />
      </ul>
      <Share all={all} />
      {others.length > 1 && (
        <Table label="Devices by cohort" head={['Cohort', 'Devices', 'Online', 'Late', 'Offline', 'Skewed', 'New', 'Unity down']}>
          {others.map(cohort => (
            <tr>
              <th scope="row">{cohort.cohort}</th>
              {[cohort.devices, ...STATUSES.map(([status]) => cohort[status]), cohort.unity_down]
                .map(value => <td class={value === 0 ? 'number zero' : 'number'}>{count(value)}</td>)}
            </tr>
          ))}
        </Table>
      )}
    </>
  )
}

function Tile({ status, label, value }: { status: string, label: string, value: number }) {
  return (
    <li class={value === 0 ? 'tile zero' : `tile is-${status}`}>
      <a href={`/?status=${status}#devices`}><b>{count(value)}</b> <span>{label}</span></a>
    </li>
  )
}

/** The statuses as one bar. */
function Share({ all }: { all: CohortCount }) {
  let from = 0
  return (
    <svg class="share" width="100%" height="12" role="img" aria-label={STATUSES.map(([status, label]) => `${all[status]} ${label}`).join(', ')}>
      {STATUSES.map(([status, label]) => {
        const width = 100 * all[status] / all.devices
        const x = from
        from += width
        return width === 0 ? null
          : <rect class={`is-${status}`} x={`${x}%`} width={`${width}%`} height="12"><title>{plural(all[status], 'device')} {label}</title></rect>
      })}
    </svg>
  )
}
