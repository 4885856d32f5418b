// Helpers for the tests of webhooks: changes of devices and incidents as fleet.note_transitions() writes them, and receivers.
import type { Sql } from 'postgres'

export interface Change {
  event: 'online' | 'late' | 'offline' | 'clock_skewed' | 'unity_down' | 'back' | 'revoked'
  /** The status before; online by default. */
  from?: string
  /** The new status; that of the event by default, online of back. */
  status?: string
  cohort?: string
  incident?: number | undefined
  /** How long ago it was seen, as an interval. */
  ago?: string
  reason?: string
}

/** Writes a change of a device and queues its messages in one transaction. Returns the number of the transition. */
export async function change(sql: Sql, device: number, { event, from, status, cohort, incident, ago, reason }: Change) {
  return await sql.begin(async transaction => {
    const [row] = await transaction<{ transition_id: string }[]>`
      insert into fleet.device_transitions
        (position, device_id, cohort, at, since, event, status, previous_status, incident_id, reason, battery_pct)
      select 0, ${device}, coalesce(${cohort ?? null}, d.cohort), now() - ${ago ?? '0'}::interval,
        now() - ${ago ?? '0'}::interval - interval '10 minutes',
        ${event}, ${status ?? (event === 'back' ? 'online' : event)}, ${from ?? 'online'}, ${incident ?? null}, ${reason ?? null}, 17
      from fleet.devices d where d.device_id = ${device}
      returning transition_id`
    const id = Number(row!.transition_id)
    await transaction`select fleet.queue_messages(array[${id}::bigint], '{}', '{}')`
    return id
  })
}

/** Opens an incident, whose devices are offline, and queues its messages. Returns its number. */
export async function openIncident(
  sql: Sql,
  kind: 'ingest' | 'cohort' | 'network',
  subject: string,
  devices: number[] = [],
  ago = '0',
) {
  return await sql.begin(async transaction => {
    const [row] = await transaction<{ incident_id: string }[]>`
      insert into fleet.incidents (kind, subject, began_at, seen_at, devices)
      values (${kind}, ${subject}, now() - ${ago}::interval - interval '10 minutes', now() - ${ago}::interval, ${devices.length})
      returning incident_id`
    const id = Number(row!.incident_id)
    const transitions = await transaction<{ transition_id: string }[]>`
      insert into fleet.device_transitions
        (position, device_id, cohort, at, since, event, status, previous_status, incident_id, reason)
      select 0, d.device_id, d.cohort, now(), now(), 'offline', 'offline', 'online', ${id}, 'cohort_silent'
      from fleet.devices d where d.device_id = any (${devices})
      returning transition_id`
    await transaction`
      select fleet.queue_messages(${transitions.map(({ transition_id }) => transition_id)}, array[${id}::bigint], '{}')`
    return id
  })
}

/** Ends an incident and queues its messages. */
export async function closeIncident(sql: Sql, incident: number) {
  await sql.begin(async transaction => {
    await transaction`update fleet.incidents set ended_at = now() where incident_id = ${incident}`
    await transaction`select fleet.queue_messages('{}', '{}', array[${incident}::bigint])`
  })
}

export interface Delivery {
  delivery_id: string
  message_id: string
  webhook_name: string
  device_id: string | null
  event: string
  kind: string
  first_id: string | null
  state: string
  is_open: boolean
  attempts: number
  last_error: string | null
  body: { type: string; version: number; timestamp: string; data: Record<string, unknown> }
}

/** All messages of a webhook, in order. */
export function messages(sql: Sql, webhook = 'hook') {
  return sql<Delivery[]>`
    select d.*, w.webhook_name from fleet.webhook_deliveries d join fleet.webhooks w using (webhook_id)
    where w.webhook_name = ${webhook} order by d.delivery_id`
}

/** `event kind state` of each message of a webhook, in order. */
export async function told(sql: Sql, webhook = 'hook') {
  return (await messages(sql, webhook)).map(({ event, kind, state }) => `${event} ${kind} ${state}`)
}
