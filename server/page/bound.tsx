import type { Principal } from '../auth/principal.ts'
import { type Change, Changes } from './changes.tsx'
import { type Device, Devices, type Search } from './devices.tsx'
import { type CohortCount, Fleet } from './fleet.tsx'
import { plural } from './format.ts'
import { Section } from './layout.tsx'
import type { Result } from './result.ts'

interface BoundFleetProps {
  fleet: Result<CohortCount[]>
  changes: Result<Change[]>
  devices: Result<Device[]>
  search: Search
  now: Date
  who: Principal
}

/** The page of a session that is bound to cohorts: their devices, and nothing about the store. */
export function BoundFleet({ fleet, changes, devices, search, now, who }: BoundFleetProps) {
  const all = fleet.value?.[0]
  return (
    <>
      <section id="headline" data-live class="headline ok" aria-label="Summary">
        <h1>{all === undefined ? 'Devices' : plural(all.devices, 'device')}</h1>
        <p>
          {all !== undefined &&
            `${all.online} online, ${all.late} late, ${all.offline} offline, ${all.unity_down} with Unity down. `}
          This login shows {plural(who.cohorts!.length, 'cohort')}: {who.cohorts!.join(', ')}.
        </p>
      </section>
      <Section
        id="fleet"
        title="Fleet"
        of={fleet}
        show={value => <Fleet cohorts={value} silence={null} trend={null} now={now} />}
      />
      <Section
        id="changes"
        title="What changed in the last hour"
        of={changes}
        show={value => <Changes changes={value} now={now} />}
      />
      <Devices devices={devices} search={search} now={now} />
    </>
  )
}
