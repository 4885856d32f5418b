// Takes messages from the database, sends them, and records what became of them.
import { setTimeout as sleep } from 'node:timers/promises'
import type { Notifier } from './context.ts'
import { deliver, TIMEOUT_MS, type Message, type Outcome } from './deliver.ts'

const MAX_IN_FLIGHT = 16
/** A lease is longer than an attempt can take, together with some time to record it. */
const LEASE_S = 60
const RECORD_FOR_MS = 30_000

/**
 * Begins to send what is due, as far as there is room.
 * @param onEnd called when one of them is sent or has failed: what follows it may be due now
 * @returns idle if nothing was due
 * @throws if the database cannot be asked
 */
export async function sendDue(notifier: Notifier, onEnd: () => void): Promise<'idle' | 'done'> {
  const { sql, name, inFlight } = notifier
  if (inFlight.size >= MAX_IN_FLIGHT) {
    await Promise.race(inFlight)
    return 'done'
  }
  const claimedAt = performance.now()
  const due = await sql<Message[]>`
    select delivery_id, message_id, webhook_name, url, format, to_jsonb(secrets) as secrets, event, kind, first_id, body, attempts
    from fleet.claim_deliveries(${name}, ${MAX_IN_FLIGHT - inFlight.size}, make_interval(secs => ${LEASE_S}))`
  for (const message of due) {
    const sending: Promise<void> = send(notifier, message, claimedAt).finally(() => {
      inFlight.delete(sending)
      onEnd()
    })
    inFlight.add(sending)
  }
  return due.length > 0 ? 'done' : 'idle'
}

/** Waits for what is on its way, and gives back what was not finished. */
export async function finish({ sql, name, inFlight, log }: Notifier) {
  await Promise.all(inFlight)
  await sql`select fleet.release_deliveries(${name})`.catch((error: unknown) =>
    log.warn(
      { event: 'notifier.unreleased', error },
      'messages were not given back; another notifier sends them when their lease ends',
    ),
  )
}

async function send(notifier: Notifier, message: Message, claimedAt: number) {
  // If this process was stopped for a while, another one may have sent the message, and those that follow it.
  if (performance.now() - claimedAt > LEASE_S * 1000 - 2 * TIMEOUT_MS) return
  const { webhook_name: webhook, message_id: message_id, event: about, kind, attempts } = message
  const said = { webhook, message_id, about, kind, attempts }
  const began = performance.now()
  const outcome = await deliver(message, notifier.allowed)
  const ms = Math.round(performance.now() - began)
  const state = await record(notifier, message, outcome)
  if (outcome.isAccepted) {
    notifier.log.info({ event: 'webhook.delivered', ...said, status: outcome.status, ms }, 'sent')
    return
  }
  notifier.failures++
  const { status, error } = outcome
  if (state === 'dead') notifier.log.error({ event: 'webhook.dead', ...said, status, ms }, `given up after three days: ${error}`)
  else notifier.log.warn({ event: 'webhook.failed', ...said, status, ms }, `not sent, and tried again: ${error}`)
}

/**
 * Records an outcome, also if the database is away for a moment. If it stays away, the message is sent again after its lease, with
 * the same id.
 * @returns the new state of a message that failed; null if this notifier no longer has its lease
 */
async function record({ sql, name, log }: Notifier, { delivery_id, message_id }: Message, outcome: Outcome) {
  for (const end = performance.now() + RECORD_FOR_MS; ;) {
    try {
      if (outcome.isAccepted) {
        await sql`select fleet.record_delivery(${delivery_id}, ${name}, ${outcome.status})`
        return 'delivered'
      }
      const { status = null, error, isDown, retryAfterS = null } = outcome
      const [row] = await sql<{ state: string | null }[]>`
        select fleet.fail_delivery(
          ${delivery_id}, ${name}, ${status}, ${error}, ${isDown}, make_interval(secs => ${retryAfterS}::double precision)
        ) as state`
      return row?.state ?? null
    } catch (error) {
      if (performance.now() > end) {
        log.error(
          { event: 'notifier.unrecorded', message_id, error },
          'what became of the message could not be recorded; it is sent again when its lease ends',
        )
        return null
      }
      await sleep(1000)
    }
  }
}
