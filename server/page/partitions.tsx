import { type Day, LOOKS, type Look } from './days.ts'
import { bytes, count, plural } from './format.ts'

/** Older days than these are counted in words. */
const MAX_MONTHS = 13

/** The letter beside the colour, and what it means. */
const MEANING: Record<Look, [string, string]> = {
  active: ['A', 'active: online, in the table'],
  ready: ['·', 'ready: made ahead, still empty'],
  detached: ['W', 'detached: waits for the archiver'],
  archiving: ['▸', 'archiving: being written and proven'],
  archived: ['P', 'archived: proven, about to be dropped'],
  dropped: ['D', 'dropped: only in the archive'],
  failed: ['!', 'failed: the archiver tries again'],
  held: ['H', 'held: kept online by hand'],
  restored: ['R', 'restored: back from the archive'],
  missing: ['×', 'missing: no partition'],
}

export function PartitionStrip({ days }: { days: Day[] }) {
  if (days.length === 0) return <p class="muted">There is no partition yet.</p>
  const months = new Map<string, Day[]>()
  for (const day of days) months.set(day.day.slice(0, 7), [...months.get(day.day.slice(0, 7)) ?? [], day])
  const shown = [...months].slice(-MAX_MONTHS)
  const older = days.length - shown.reduce((sum, [, ofMonth]) => sum + ofMonth.length, 0)
  const used = LOOKS.filter(look => days.some(day => day.look === look))
  return (
    <>
      <ul class="legend" aria-label="Legend">
        {used.map(look => (
          <li>
            <span class={`cell day-${look}`} aria-hidden="true">{MEANING[look][0]}</span> {MEANING[look][1]}
            <b> {count(days.filter(day => day.look === look).length)}</b>
          </li>
        ))}
      </ul>
      {older > 0 && <p class="muted">And {plural(older, 'older day')}: <code>select * from fleet.partition_health;</code></p>}
      {shown.map(([month, ofMonth]) => (
        <div class="month">
          <h3>{month}</h3>
          <ol class="strip">{ofMonth.map(day => <Cell day={day} />)}</ol>
        </div>
      ))}
    </>
  )
}

function Cell({ day }: { day: Day }) {
  const said = describe(day)
  return (
    <li class={`cell day-${day.look}`} title={said}>
      <span aria-hidden="true"><small>{day.day.slice(8)}</small>{MEANING[day.look][0]}</span>
      <span class="unseen">{said}</span>
    </li>
  )
}

/** `2026-08-15: dropped, 288,000 rows, archive 4.1 MB`. */
export function describe({ day, look, partition }: Day) {
  if (partition === undefined) return `${day}: missing`
  const { row_count, bytes_size, archive_bytes, held_reason, last_error, step } = partition
  return [
    `${day}: ${look}`,
    row_count === null ? undefined : plural(row_count, 'row'),
    bytes_size > 0 ? `${bytes(bytes_size)} online` : undefined,
    archive_bytes === null ? undefined : `${bytes(archive_bytes)} archived`,
    held_reason === null ? undefined : `held: ${held_reason}`,
    look === 'archiving' && step !== null ? `step ${step}` : undefined,
    look === 'failed' && last_error !== null ? last_error : undefined,
  ].filter(part => part !== undefined).join(', ')
}
