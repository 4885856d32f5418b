import { type Day, LOOKS, type Look, type Partition } from './days.ts'
import { bytes, count, plural } from './format.ts'
import { Table } from './layout.tsx'
import { Do } from './deeds.tsx'
import type { Principal } from '../auth/principal.ts'

/** Days that can be held. */
const HOLDABLE: Look[] = ['active', 'settled', 'detached', 'failed', 'restored']

/** Older days are only counted. */
const MAX_MONTHS = 13

/** The letter in the cell of a day, and what it means. */
const MEANING: Record<Look, [string, string]> = {
  active: ['A', 'active: online'],
  settled: ['S', 'settled: online in the order of devices, closed for new heartbeats'],
  ready: ['·', 'ready: made ahead, still empty'],
  detached: ['W', 'detached: waiting for the archiver'],
  archiving: ['▸', 'archiving: being written and proven'],
  archived: ['P', 'archived: proven, about to be dropped'],
  dropped: ['D', 'dropped: only in the archive'],
  failed: ['!', 'failed: the archiver will try again'],
  held: ['H', 'held: kept online until somebody releases it'],
  restored: ['R', 'restored: brought back from the archive'],
  missing: ['×', 'missing: no partition'],
}

export function PartitionStrip({ days, who }: { days: Day[]; who: Principal }) {
  const isOperator = who.scopes.includes('operate')
  if (days.length === 0) return <p class="muted">There is no partition yet.</p>
  const months = new Map<string, Day[]>()
  for (const day of days) months.set(day.day.slice(0, 7), [...(months.get(day.day.slice(0, 7)) ?? []), day])
  const shown = [...months].slice(-MAX_MONTHS)
  const older = days.length - shown.reduce((sum, [, ofMonth]) => sum + ofMonth.length, 0)
  const used = LOOKS.filter(look => days.some(day => day.look === look))
  return (
    <>
      <ul class="legend" aria-label="Legend">
        {used.map(look => (
          <li>
            <span class={`cell day-${look}`} aria-hidden="true">
              {MEANING[look][0]}
            </span>{' '}
            {MEANING[look][1]}
            <b> {count(days.filter(day => day.look === look).length)}</b>
          </li>
        ))}
      </ul>
      {older > 0 && (
        <p class="muted">
          {plural(older, 'older day')} not shown here: <code>select * from fleet.partition_health;</code>
        </p>
      )}
      {shown.map(([month, ofMonth]) => (
        <div class="month">
          <h3>{month}</h3>
          <ol class="strip">
            {/* Puts a day in one column with the same day of other months, where a month has a line to itself. */}
            {Array.from({ length: Number(ofMonth[0]!.day.slice(8)) - 1 }, () => (
              <li class="blank" aria-hidden="true"></li>
            ))}
            {ofMonth.map(day => (
              <Cell day={day} />
            ))}
          </ol>
        </div>
      ))}
      <details id="days-table">
        <summary>As a table, with rows and bytes</summary>
        <Table
          id="days-rows"
          label="Days, as a table"
          head={[
            'Day',
            'State',
            { number: 'Rows' },
            { number: 'Online' },
            { number: 'Archived' },
            { remark: 'Note' },
            ...(isOperator ? ['Action'] : []),
          ]}
          rows={shown
            .flatMap(([, ofMonth]) => ofMonth)
            .toReversed()
            .map(day => [...rowOf(day), ...(isOperator ? [<Deeds day={day} who={who} />] : [])])}
        />
      </details>
    </>
  )
}

/** What an operator can do with a day. */
function Deeds({ day: { day, look, partition }, who }: { day: Day; who: Principal }) {
  if (partition === undefined) return null
  const { partition_name } = partition
  if (look === 'held') return <Do deed="release" who={who} partition={partition_name} />
  if (look === 'dropped') return <Do deed="restore" who={who} day={day} />
  return <>{HOLDABLE.includes(look) && <Do deed="hold" who={who} partition={partition_name} />}</>
}

function rowOf({ day, look, partition }: Day) {
  const { row_count = null, bytes_size = 0, archive_bytes = null } = partition ?? {}
  return [
    day,
    look,
    row_count === null ? '–' : count(row_count),
    bytes_size === 0 ? '–' : bytes(bytes_size),
    archive_bytes === null ? '–' : bytes(archive_bytes),
    remarkOf(look, partition) ?? '–',
  ]
}

/** Why a day is in its state, if that needs words. */
function remarkOf(look: Look, partition: Partition | undefined) {
  if (look === 'held') return `held: ${partition?.held_reason}`
  if (look === 'restored' && partition?.settled_at != null) return 'settled'
  if (look === 'archiving' && partition?.step != null) return `step ${partition.step}`
  return look === 'failed' ? (partition?.last_error ?? undefined) : undefined
}

function Cell({ day }: { day: Day }) {
  const said = describe(day)
  return (
    <li class={`cell day-${day.look}`} title={said}>
      <span aria-hidden="true">
        <small>{day.day.slice(8)}</small>
        {MEANING[day.look][0]}
      </span>
      <span class="unseen">{said}</span>
    </li>
  )
}

/** `2026-08-15: dropped, 288,000 rows, 4.1 MB archived`. */
export function describe({ day, look, partition }: Day) {
  if (partition === undefined) return `${day}: missing`
  const { row_count, bytes_size, archive_bytes } = partition
  return [
    `${day}: ${look}`,
    row_count === null ? undefined : plural(row_count, 'row'),
    bytes_size > 0 ? `${bytes(bytes_size)} online` : undefined,
    archive_bytes === null ? undefined : `${bytes(archive_bytes)} archived`,
    remarkOf(look, partition),
  ]
    .filter(part => part !== undefined)
    .join(', ')
}
