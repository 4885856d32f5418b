// Helpers for the tests of webhooks: changes of devices and incidents as fleet.note_transitions() writes them, and receivers.
import { createServer, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import type { Sql } from 'postgres'
import { spawnNode, type Owner, type TestDatabase } from './database.ts'

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

export interface Received {
  headers: Record<string, string>
  path: string
  text: string
  body: { type: string; data: Record<string, unknown> }
}

/** How a receiver answers: with a status, or whatever the function does with the response. */
export type Answer = number | ((response: ServerResponse, received: Received) => unknown)

/**
 * A receiver of webhooks on 127.0.0.1. It answers as `answer` says, which may be changed, and keeps what it received before it
 * answers.
 */
export async function withReceiver(t: Owner, answer: Answer = 204) {
  const received: Received[] = []
  const receiver: { received: Received[]; answer: Answer; url: string; port: number } = { received, answer, url: '', port: 0 }
  const server = createServer((request, response) => {
    let text = ''
    request.on('data', (chunk: Buffer) => {
      text += chunk.toString()
    })
    request.on('end', () => {
      const one: Received = {
        headers: request.headers as Record<string, string>,
        path: request.url ?? '',
        text,
        body: JSON.parse(text) as Received['body'],
      }
      received.push(one)
      const { answer } = receiver
      if (typeof answer === 'number') response.writeHead(answer).end()
      else answer(response, one)
    })
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  t.teardown(() => {
    server.closeAllConnections()
    server.close()
  })
  receiver.port = (server.address() as AddressInfo).port
  receiver.url = `http://127.0.0.1:${receiver.port}`
  return receiver
}

/** The settings of a notifier process that may send to this machine. */
export function notifierEnv(db: TestDatabase, env: Record<string, string> = {}) {
  return { NOTIFIER_DATABASE_URL: db.url('fleet_notifier'), WEBHOOK_ALLOW: '127.0.0.1', ...env }
}

/** Runs a notifier as a process until it listens. */
export function startNotifier(t: Owner, db: TestDatabase, env: Record<string, string> = {}) {
  return spawnNode(t, 'notifier/main.ts', { env: notifierEnv(db, env), ready: /notifier\.ready/ })
}

/** Runs `npm run notifier -- --once` and waits until it ends. */
export async function notifyOnce(t: Owner, db: TestDatabase, env: Record<string, string> = {}) {
  const notifier = await spawnNode(t, 'notifier/main.ts', { args: ['--once'], env: notifierEnv(db, env) })
  const { code } = await notifier.exited
  return { code, output: notifier.output() }
}
