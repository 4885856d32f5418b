import type { Reader } from '../reader.ts'
import { Moment } from './time.tsx'
import { Table } from './layout.tsx'
import { reasonOf } from './reasons.ts'
import type { Result } from './result.ts'

const LIMIT = 25
const FILTERS = ['offline', 'unity_down', 'late', 'clock_skewed', 'new', 'online', 'any'] as const

export interface Search {
  status: (typeof FILTERS)[number]
  /** Part of an alias or cohort, or a whole device_id. */
  q: string
  /** The last row of the previous page: `<last_received_at>~<device_id>` for offline devices, otherwise `<device_id>`. */
  after: string
}

export interface Device {
  device_id: number
  alias: string | null
  cohort: string
  status: string
  last_received_at: string | null
  battery_pct: number | null
  network_type: string | null
  agent_version: string | null
  /** Why it is silent; null if it is not. */
  reason: string | null
}

/** What a query string asks for. Invalid values are ignored, because only the page itself writes them. */
export function searchOf({ status, q = '', after = '' }: Record<string, string>): Search {
  return {
    status: FILTERS.find(filter => filter === status) ?? 'offline',
    // PostgreSQL cannot store NUL in text.
    q: q.replaceAll('\0', '').trim().slice(0, 100),
    after: /^(?:\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?Z~)?\d{1,15}$/.test(after) ? after : '',
  }
}

/** One row more than a page, which shows whether there is another page. */
export async function readDevices(reader: Reader, { status, q, after }: Search, cohorts: string | null = null) {
  const pattern = q === '' ? null : `%${q.replace(/[\\%_]/g, '\\$&')}%`
  const [id = null, ts = null] = after === '' ? [] : after.split('~').reverse()
  if (status === 'offline') {
    return [
      ...(await reader.run(
        sql => sql<Device[]>`
      select device_id, alias, cohort, 'offline' as status, last_received_at, battery_pct, network_type, agent_version, reason
      from fleet.devices_offline
      where (${pattern}::text is null or alias ilike ${pattern} or cohort ilike ${pattern} or device_id::text = ${q})
        and (${cohorts}::text::text[] is null or cohort = any (${cohorts}::text::text[]))
        and (${ts}::timestamptz is null or (last_received_at, device_id) > (${ts}::timestamptz, ${id}::bigint))
      order by last_received_at, device_id
      limit ${LIMIT + 1}
    `,
      )),
    ]
  }
  if (pattern === null) {
    return [
      ...(await reader.run(
        sql => sql<Device[]>`
      select device_id, alias, cohort, status, last_received_at, battery_pct, network_type, agent_version, reason
      from ${cohorts === null ? sql`fleet.list_devices(` : sql`fleet.list_devices_of(${cohorts}::text::text[],`}
        ${status === 'any' ? null : status}, null, ${id ?? 0}, ${LIMIT + 1}
      )
    `,
      )),
    ]
  }
  return [
    ...(await reader.run(
      sql => sql<Device[]>`
    select device_id, alias, cohort, status, last_received_at, battery_pct, network_type, agent_version, reason
    from fleet.device_status
    where (
        status = ${status} or ${status} = 'any'
        or ${status} = 'unity_down' and unity_running is false and status in ('online', 'late', 'clock_skewed')
      )
      and (alias ilike ${pattern} or cohort ilike ${pattern} or device_id::text = ${q})
      and (${cohorts}::text::text[] is null or cohort = any (${cohorts}::text::text[]))
      and device_id > coalesce(${id}::bigint, 0)
    order by device_id
    limit ${LIMIT + 1}
  `,
    )),
  ]
}

interface DevicesProps {
  devices: Result<Device[]>
  search: Search
  now: Date
}

/** The section with the search and what it found. */
export function Devices({ devices, search, now }: DevicesProps) {
  return (
    <section id="devices" class="card" aria-labelledby="devices-heading">
      <h2 id="devices-heading">Devices</h2>
      <DeviceSearch search={search} />
      <div id="devices-found" data-live>
        {devices.error === undefined ? (
          <DeviceTable devices={devices.value} search={search} now={now} />
        ) : (
          <p class="unread">This could not be read: {devices.error}</p>
        )}
      </div>
    </section>
  )
}

/** Not a live part, so that nobody is interrupted while typing. */
function DeviceSearch({ search }: { search: Search }) {
  return (
    <form method="get" action="/#devices" role="search" class="search">
      <label for="q" class="unseen">
        Alias, cohort or id
      </label>
      <input id="q" name="q" type="search" value={search.q} placeholder="Alias, cohort or id" maxlength={100} />
      <label for="status" class="unseen">
        Status
      </label>
      <select id="status" name="status">
        {FILTERS.map(filter => (
          <option value={filter} selected={filter === search.status}>
            {filter.replaceAll('_', ' ')}
          </option>
        ))}
      </select>
      <button type="submit">Search</button>
    </form>
  )
}

function DeviceTable({ devices, search, now }: { devices: Device[]; search: Search; now: Date }) {
  const status = search.status === 'any' ? '' : `${search.status.replaceAll('_', ' ')} `
  const what = `${search.after === '' ? '' : 'further '}${status}devices`
  if (devices.length === 0) {
    return (
      <p class="muted">
        No {what}
        {search.q === '' ? ' found' : ` match “${search.q}”`}.
      </p>
    )
  }
  const shown = devices.slice(0, LIMIT)
  const last = shown.at(-1)!
  const link = (after: string) => `/?${new URLSearchParams({ status: search.status, q: search.q, after }).toString()}#devices`
  return (
    <>
      <Table
        label="Devices found"
        head={['Device', 'Status', 'Last heartbeat', 'Reason', { number: 'Battery' }, 'Cohort', 'Network', 'Agent']}
        rows={shown.map(device => [
          <a href={`/devices/${device.device_id}`}>{nameOf(device)}</a>,
          <Status status={device.status} />,
          device.last_received_at === null ? 'never' : <Moment at={device.last_received_at} now={now} />,
          reasonOf(device.reason),
          device.battery_pct === null ? '–' : `${device.battery_pct} %`,
          device.cohort,
          device.network_type ?? '–',
          device.agent_version ?? '–',
        ])}
      />
      <nav class="pages" aria-label="Pages of devices">
        {search.after !== '' && <a href={link('')}>First page</a>}
        {devices.length > LIMIT && (
          <a href={link(search.status === 'offline' ? `${last.last_received_at}~${last.device_id}` : String(last.device_id))}>
            Next page
          </a>
        )}
      </nav>
    </>
  )
}

export function Status({ status }: { status: string }) {
  return <span class={`badge is-${status}`}>{status.replaceAll('_', ' ')}</span>
}

export function nameOf({ alias, device_id }: Pick<Device, 'alias' | 'device_id'>) {
  return alias ?? `device ${device_id}`
}
