import type { Principal } from '../auth/principal.ts'
import type { Pool } from '../database.ts'
import { Do } from './deeds.tsx'
import { Table } from './layout.tsx'
import { Moment } from './time.tsx'

/** A row of the view fleet.open_sessions. */
export interface OpenSession {
  session_id: number
  actor: string
  login: string
  scopes: string[]
  cohorts: string[] | null
  address: string | null
  started_at: string
  last_seen_at: string
}

/** A row of fleet.audit_log. */
export interface Audited {
  audit_id: number
  at: string
  actor: string
  how: string
  action: string
  target: string | null
  /** As JSON text. */
  before: string | null
  after: string | null
  address: string | null
  request_id: string | null
}

const LIMIT = 100

export async function readSessions(pool: Pool) {
  return [
    ...(await pool.run(
      sql => sql<OpenSession[]>`
    select session_id, actor, login, to_json(scopes) as scopes, to_json(cohorts) as cohorts, address, started_at, last_seen_at
    from fleet.open_sessions
    limit ${LIMIT}
  `,
    )),
  ]
}

/** The newest rows of the audit log, of one actor, action or target if `q` names one. */
export async function readAudit(pool: Pool, q: string) {
  return [
    ...(await pool.run(
      sql => sql<Audited[]>`
    select audit_id, at, actor, how, action, target, before::text, after::text, address, request_id
    from fleet.audit_log
    where ${q} = '' or actor = ${q} or action = ${q} or target = ${q}
    order by audit_id desc
    limit ${LIMIT}
  `,
    )),
  ]
}

const LOGINS: Record<string, string> = { admin_key: 'ADMIN_KEY', api_key: 'an API key', oidc: 'OpenID Connect' }

export function SessionTable({ sessions, who, now }: { sessions: OpenSession[]; who: Principal; now: Date }) {
  return (
    <Table
      label="Open sessions"
      head={['Who', 'With', 'May', 'Cohorts', 'Address', 'Since', 'Last seen', 'Action']}
      rows={sessions.map(session => [
        session.actor,
        LOGINS[session.login] ?? session.login,
        session.scopes.join(', '),
        session.cohorts?.join(', ') ?? 'all',
        session.address ?? '–',
        <Moment at={session.started_at} now={now} />,
        <Moment at={session.last_seen_at} now={now} />,
        <Do deed="session" who={who} session={session.session_id} />,
      ])}
    />
  )
}

export function AuditTable({ rows, q, now }: { rows: Audited[]; q: string; now: Date }) {
  return (
    <>
      <form method="get" action="/audit" role="search" class="search">
        <label for="q" class="unseen">
          Actor, action or target
        </label>
        <input id="q" name="q" type="search" value={q} placeholder="Actor, action or target" maxlength={200} />
        <button type="submit">Search</button>
      </form>
      {rows.length === 0 ? (
        <p class="muted">Nothing is recorded{q === '' ? '' : ` of “${q}”`}.</p>
      ) : (
        <Table
          label="Audit log, newest first"
          head={['When', 'Who', 'How', 'Action', 'Target', { remark: 'Before' }, { remark: 'After' }, 'Address', 'Request']}
          rows={rows.map(row => [
            <Moment at={row.at} now={now} />,
            <a href={`/audit?${new URLSearchParams({ q: row.actor }).toString()}`}>{row.actor}</a>,
            row.how,
            row.action,
            row.target === null ? '–' : <a href={`/audit?${new URLSearchParams({ q: row.target }).toString()}`}>{row.target}</a>,
            row.before ?? '–',
            row.after ?? '–',
            row.address ?? '–',
            row.request_id ?? '–',
          ])}
        />
      )}
      {rows.length === LIMIT && (
        <p class="muted">
          These are the newest {LIMIT}. To see more: <code>select * from fleet.audit_log order by audit_id desc;</code>
        </p>
      )}
    </>
  )
}
