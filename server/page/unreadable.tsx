import type { Reader } from '../reader.ts'
import { count } from './format.ts'
import { Table } from './layout.tsx'
import { Moment } from './time.tsx'

/** A row of the view fleet.unreadable_fields. */
export interface UnreadableField {
  field: string
  times: number
  last_at: string
  example: string
}

export async function readUnreadable(reader: Reader, deviceId: number) {
  return [
    ...(await reader.run(
      sql => sql<UnreadableField[]>`
    select field, times, last_at, example from fleet.unreadable_fields where device_id = ${deviceId} order by last_at desc
  `,
    )),
  ]
}

/** What the device sends that cannot be read. */
export function UnreadableFields({ fields, now }: { fields: UnreadableField[]; now: Date }) {
  return (
    <Table
      label="Fields that could not be read"
      head={['Field', { number: 'Times' }, 'Last', 'Value']}
      rows={fields.map(({ field, times, last_at, example }) => [
        field,
        count(times),
        <Moment at={last_at} now={now} />,
        <code>{example}</code>,
      ])}
    />
  )
}
