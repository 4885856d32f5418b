import type { Pool } from '../database.ts'
import { count, duration, short } from './format.ts'

/** A row of the view fleet.slo. */
export interface Budget {
  slo: string
  target: number
  period_s: number
  good: number
  bad: number
  budget_left: number
  status: 'ok' | 'warn' | 'fail' | 'idle'
}

export async function readBudgets(pool: Pool) {
  return [
    ...(await pool.run(
      sql => sql<Budget[]>`
    select slo, target::float8, extract(epoch from period)::float8 as period_s, good, bad, budget_left::float8, status
    from fleet.slo
    order by slo desc
  `,
    )),
  ]
}

/** How much is left of the error budgets, over all servers. */
export function Budgets({ budgets }: { budgets: Budget[] }) {
  return (
    <dl class="facts budgets">
      {budgets.map(({ slo, target, period_s, good, bad, budget_left, status }) => (
        <div>
          <dt>Error budget: {slo.replaceAll('_', ' ')}</dt>
          <dd>
            <span class={`badge ${status}`}>
              {status === 'idle' ? 'idle' : `${short(100 * Math.max(0, budget_left))} % left`}
            </span>{' '}
            <small>
              {count(bad)} of {count(good + bad)} failed in {duration(period_s)}, {short(100 * target)} % may fail
            </small>
          </dd>
        </div>
      ))}
    </dl>
  )
}
