import type { Pool } from '../database.ts'
import { count } from './format.ts'
import { Table } from './layout.tsx'
import { Do } from './deeds.tsx'
import type { Principal } from '../auth/principal.ts'
import { Moment } from './time.tsx'

/** A row of the view fleet.webhook_health. */
export interface Webhook {
  webhook_name: string
  state: string
  receiver: string
  cohort: string | null
  pending: number
  dead: number
  last_success_at: string | null
  last_error: string | null
}

/** From the primary, where messages are queued and marked as sent. */
export async function readWebhooks(pool: Pool) {
  return [
    ...(await pool.run(
      sql => sql<Webhook[]>`
    select webhook_name, state, receiver, cohort, pending, dead, last_success_at, last_error
    from fleet.webhook_health
    order by webhook_name
  `,
    )),
  ]
}

export function Webhooks({ webhooks, now, who }: { webhooks: Webhook[]; now: Date; who: Principal }) {
  const isOperator = who.scopes.includes('operate')
  if (webhooks.length === 0)
    return (
      <p class="muted">
        Nobody is told of changes. To tell somebody: <code>select fleet.create_webhook('name', 'url');</code>
      </p>
    )
  return (
    <Table
      label="List of webhooks"
      head={[
        'Webhook',
        'State',
        'Receiver',
        'Cohort',
        { number: 'Waiting' },
        { number: 'Given up' },
        'Last sent',
        'Last error',
        ...(isOperator ? ['Action'] : []),
      ]}
      rows={webhooks.map(({ webhook_name, state, receiver, cohort, pending, dead, last_success_at, last_error }) => [
        webhook_name,
        <span class={`badge ${BADGES[state] ?? ''}`}>{state.replaceAll('_', ' ')}</span>,
        <code>{receiver}</code>,
        cohort ?? 'all',
        count(pending),
        count(dead),
        last_success_at === null ? 'never' : <Moment at={last_success_at} now={now} />,
        state === 'ok' ? '–' : (last_error ?? '–'),
        ...(isOperator ? [<Do deed={state === 'paused' ? 'resume' : 'pause'} who={who} webhook={webhook_name} />] : []),
      ])}
    />
  )
}

const BADGES: Record<string, string> = { ok: 'ok', failing: 'warn', dead_letters: 'fail', paused: '' }
