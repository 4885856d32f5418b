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

/** Always from the primary: a replica has no jobs, no sessions of ingest and no settings of its own. */
export async function readChecks(pool: Pool) {
  return [...(await pool.run(sql => sql<Check[]>`select check_name, status, detail, remedy from fleet.check()`))]
}

/** The checks that are not ok, failures first. */
function attention(checks: Check[]) {
  return [...checks.filter(({ status }) => status === 'fail'), ...checks.filter(({ status }) => status === 'warn')]
}

/** The summary of all checks, such as `2 checks fail, 1 check warns`. */
export function headline(checks: Result<Check[]>) {
  if (checks.error !== undefined) return { level: 'fail', text: 'The checks could not be read' }
  const open = attention(checks.value)
  if (open.length === 0) return { level: 'ok', text: 'Everything is fine' }
  const failing = open.filter(({ status }) => status === 'fail').length
  const warning = open.length - failing
  const fail = failing > 0 && `${plural(failing, 'check')} ${failing === 1 ? 'fails' : 'fail'}`
  const warn = warning > 0 && `${plural(warning, 'check')} ${warning === 1 ? 'warns' : 'warn'}`
  return { level: fail ? 'fail' : 'warn', text: [fail, warn].filter(Boolean).join(', ') }
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
