// What a webhook is told while things fail: some devices fall silent and come back, notifiers send the messages to a receiver.
import { setTimeout as sleep } from 'node:timers/promises'
import type { Sql } from 'postgres'
import { startProgram, type Device, type Program } from '../../bench/store.ts'
import { waitFor, type Owner } from '../database.ts'
import { withReceiver, type Answer, type Received } from '../webhooks.ts'

/** The parts of a system that this needs. */
export interface Asked {
  ask: <T>(use: (sql: Sql) => Promise<T>) => Promise<T>
}

/** Devices that fall silent at each fault. */
const AT_ONCE = 3
const NOTIFIERS = 2

export class Told {
  /** Nothing else sends heartbeats of these. */
  readonly devices: number[]
  readonly notifiers: Program[] = []
  /** How the receiver answers. */
  readonly receiver: { received: Received[]; answer: Answer }
  readonly #asked: Asked
  readonly #env: Record<string, string>

  private constructor(
    asked: Asked,
    devices: number[],
    receiver: { received: Received[]; answer: Answer },
    env: Record<string, string>,
  ) {
    this.#asked = asked
    this.devices = devices
    this.receiver = receiver
    this.#env = env
  }

  static async start(asked: Asked, owner: Owner, devices: Device[], databaseUrl: string) {
    const receiver = await withReceiver(owner)
    await asked.ask(
      sql => sql`
      select fleet.create_webhook('drills', ${receiver.url}, array['offline', 'unity_down'], p_grace => '0')`,
    )
    const ids = devices.map(({ device_id }) => device_id)
    const told = new Told(asked, ids, receiver, { NOTIFIER_DATABASE_URL: databaseUrl, WEBHOOK_ALLOW: '127.0.0.1' })
    for (let n = 0; n < NOTIFIERS; n++) await told.startNotifier()
    owner.teardown(() => Promise.all(told.notifiers.map(notifier => notifier.stop())))
    return told
  }

  async startNotifier() {
    const notifier = startProgram('notifier/main.ts', { env: this.#env })
    this.notifiers.push(notifier)
    await waitFor(async () => notifier.hasEnded() || notifier.output().includes('notifier.ready'), {
      what: () => `a notifier to become ready:\n${notifier.output()}`,
    })
    this.mustLive()
  }

  /** @throws an Error with a notifier's output if one ended by itself */
  mustLive() {
    const dead = this.notifiers.find(notifier => notifier.hasEnded())
    if (dead) throw new Error(`a notifier ended by itself:\n${dead.output()}`)
  }

  /** Some devices have been silent for eleven minutes, and the minute's job sees it. */
  async fall(random: () => number) {
    const from = Math.floor(random() * this.devices.length)
    const fallen = Array.from({ length: AT_ONCE }, (_, n) => this.devices[(from + n) % this.devices.length]!)
    await this.#asked.ask(async sql => {
      // Those that are silent already stay so.
      await sql`
        update fleet.device_last_status set last_received_at = now() - interval '11 minutes', noted_since = now() - interval '11 minutes'
        where device_id = any (${array(fallen)}::bigint[]) and noted_status = 'online'`
      await sql`select fleet.note_transitions(${array(fallen)}::bigint[], now())`
    })
    return fallen
  }

  /** They are heard from again. */
  async rise(fallen: number[]) {
    await this.#asked.ask(
      sql => sql`
      select fleet.ingest(json_agg(json_build_object('device_id', d))) from unnest(${array(fallen)}::bigint[]) d`,
    )
  }

  /** What a receiver and the messages should be after all that happened; waits until everything is sent. */
  async problems() {
    let left = ''
    await waitFor(
      async () => {
        left = await this.#asked.ask(async sql => {
          await sql`
            update fleet.webhook_deliveries set next_attempt_at = now()
            where state = 'pending' and lease_owner is null and due_at <= now() and next_attempt_at > now()`
          await sql`update fleet.webhooks set hold_until = null`
          const rows = await sql<{ message: string }[]>`
            select format('%s of %s, due in %s, next attempt in %s', event, device_id, due_at - now(), next_attempt_at - now()) as message
            from fleet.webhook_deliveries where state = 'pending'`
          return rows.map(({ message }) => message).join('; ')
        })
        return left === ''
      },
      {
        timeoutMs: 120_000,
        every: 500,
        what: () => `${left} to be sent:\n${this.notifiers.map(notifier => notifier.output()).join('\n')}`,
      },
    )
    // A copy that a dead notifier had sent may still be on its way.
    await sleep(200)
    return this.#asked.ask(sql => untold(sql, this.devices, this.receiver.received))
  }
}

/**
 * A sentence for each transition of these devices without its message, and for each message that came wrongly. Not told is a silence
 * while heartbeats could not be stored, one of many devices, which is an incident, and one that was over when it was first seen.
 */
export async function untold(sql: Sql, devices: number[], received: Received[]) {
  const wrong: string[] = []
  const rows = await sql<
    { transition_id: string; device_id: string; event: string; about: string; ids: string[] | null; states: string[] | null }[]
  >`
    select t.transition_id, t.device_id, t.event, format('at %s, %s, incident %s', t.at, t.reason, t.incident_id) as about,
      json_agg(d.message_id) filter (where d.message_id is not null) as ids,
      json_agg(d.state) filter (where d.state is not null) as states
    from fleet.device_transitions t
    left join fleet.webhook_deliveries d on d.transition_id = t.transition_id and d.kind in ('first', 'recovery', 'change')
    where t.device_id = any (${array(devices)}::bigint[]) and t.event in ('offline', 'back') and t.reason is distinct from 'ingest_down'
      and t.incident_id is null
      and not exists (
        select from fleet.device_transitions o
        where o.device_id = t.device_id and o.at = t.at and o.event <> t.event and o.event in ('offline', 'back')
      )
    group by t.transition_id
    order by t.transition_id`
  const byId = new Map<string, string[]>()
  const places = new Map<string, number>()
  for (const { headers, text } of received) {
    const id = headers['webhook-id'] ?? ''
    byId.set(id, [...(byId.get(id) ?? []), text])
  }
  const before = new Map<string, string>()
  for (const { transition_id, device_id, event, about, ids, states } of rows) {
    if (before.get(device_id) === event) wrong.push(`device ${device_id} is ${event} twice in a row`)
    before.set(device_id, event)
    if (ids?.length !== 1 || states?.[0] !== 'delivered') {
      wrong.push(
        `${event} of device ${device_id} (${transition_id}, ${about}) has ${ids?.length ?? 0} messages: ${states?.join(', ') ?? ''}`,
      )
      continue
    }
    const copies = byId.get(ids[0]!) ?? []
    if (copies.length === 0) wrong.push(`message ${ids[0]} of device ${device_id} counts as delivered and never arrived`)
    if (new Set(copies).size > 1) wrong.push(`message ${ids[0]} arrived with different content`)
    places.set(ids[0]!, places.size)
  }
  const newest = new Map<unknown, number>()
  for (const { headers, body } of received) {
    const place = places.get(headers['webhook-id'] ?? '')
    const device = (body.data as { device?: { id?: unknown } }).device?.id
    if (place === undefined) continue
    if (place < (newest.get(device) ?? -1))
      wrong.push(`message ${headers['webhook-id']} of device ${String(device)} came after a later one`)
    newest.set(device, place)
  }
  return wrong
}

/** As text, because a connection that has not fetched the types cannot send an array. */
function array(ids: number[]) {
  return `{${ids.join()}}`
}
