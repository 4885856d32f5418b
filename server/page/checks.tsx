import type { Pool } from '../database.ts'
import { plural } from './format.ts'
import type { Result } from './result.ts'

/** A row of fleet.check(). */
export interface Check {
  check_name: string
  status: 'ok' | 'warn' | 'fail'
  detail: string
  remedy: string | null
}

/** Of the primary, always: a replica has no jobs, no sessions of ingest and no settings of its own. */
export async function readChecks(pool: Pool) {
  return [...(await pool.run(sql => sql<Check[]>`select check_name, status, detail, remedy from fleet.check()`))]
}

/** Those that are not ok, failures first. */
function attention(checks: Check[]) {
  return [...checks.filter(({ status }) => status === 'fail'), ...checks.filter(({ status }) => status === 'warn')]
}

/** The answer to "is all well?". */
export function headline(checks: Result<Check[]>) {
  if (checks.error !== undefined) return { level: 'fail', text: 'Cannot tell whether all is well' }
  const open = attention(checks.value)
  if (open.length === 0) return { level: 'ok', text: 'All is well' }
  const isBad = open.some(({ status }) => status === 'fail')
  return {
    level: isBad ? 'fail' : 'warn',
    text: `${plural(open.length, 'thing')} ${open.length === 1 ? 'needs' : 'need'} attention`,
  }
}

export function Checks({ checks }: { checks: Check[] }) {
  const open = attention(checks)
  const fine = checks.filter(({ status }) => status === 'ok')
  return (
    <>
      {open.length > 0 && (
        <ul class="open">
          {open.map(({ check_name, status, detail, remedy }) => (
            <li class={`check ${status}`}>
              <h3>
                <span class={`badge ${status}`}>{status === 'fail' ? 'Fail' : 'Warn'}</span> {check_name.replaceAll('_', ' ')}
              </h3>
              <p>{detail}</p>
              {remedy !== null && remedy !== '' && (
                <>
                  <p class="muted">Remedy:</p>
                  <pre tabindex={0} aria-label={`Remedy of ${check_name}`}>
                    {remedy}
                  </pre>
                </>
              )}
            </li>
          ))}
        </ul>
      )}
      <details id="checks-ok">
        <summary>
          {open.length === 0 ? `All ${plural(fine.length, 'check')} pass` : `${plural(fine.length, 'check')} pass`}
        </summary>
        <ul class="fine">
          {fine.map(({ check_name, detail }) => (
            <li>
              <b>{check_name.replaceAll('_', ' ')}</b> {detail}
            </li>
          ))}
        </ul>
      </details>
    </>
  )
}
