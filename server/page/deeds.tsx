import type { Context } from 'hono'
import type { PendingQuery, Row } from 'postgres'
import { acting, requireScope } from '../auth/acting.ts'
import type { Principal } from '../auth/principal.ts'
import type { Scope } from '../auth/scopes.ts'
import type { ServerConfig } from '../config.ts'
import type { AppEnv } from '../env.ts'
import type { Pool, Sql } from '../database.ts'
import { newCommand } from '../fleet/commands.ts'
import { Problem } from '../problem.ts'
import { answer } from './answer.ts'
import { Page } from './layout.tsx'
import { fromThisPage, readForm } from './login.tsx'

/** Room for the largest payload of a command, as it is encoded in a form. */
const MAX_FORM_BYTES = 256 * 1024

interface Field {
  label: string
  /** What it must look like. The database checks the rest. */
  pattern: RegExp
  /** A field without a hint is part of the link, and is not asked for. */
  hint?: string
  isOptional?: boolean
  /** What is wrong with a text that has this pattern, if something is. */
  check?: (text: string) => string | undefined
}

interface Deed {
  /** On the button, and as the heading of the confirmation. */
  title: string
  /** Besides operate, without which nobody sees a button. */
  scope: Scope
  about: string
  fields: Record<string, Field>
  /** The call, with the names of the fields in place of its arguments. */
  call: string
  /** What is shown of its result. */
  result?: (value: unknown) => string
  /** Where to go afterwards. */
  back: (values: Record<string, string>) => string
}

const partition: Field = { label: 'Partition', pattern: /^\w{1,63}$/ }
const webhook: Field = { label: 'Webhook', pattern: /^.{1,100}$/s }
const device: Field = { label: 'Device', pattern: /^\d{1,15}$/ }
const day: Field = {
  label: 'Day',
  pattern: /^\d{4}-\d\d-\d\d$/,
  check: text => (isDay(text) ? undefined : 'is not a day of the calendar'),
}

/** What the page can do. Each of these can be undone, or repeated without harm, and is in fleet.audit_log. */
export const DEEDS = {
  hold: {
    title: 'Hold',
    scope: 'operate',
    about: 'The day stays online, whatever its age, until somebody releases it.',
    fields: {
      partition,
      reason: { label: 'Reason', pattern: /^.{1,500}$/s, hint: 'Why? Everybody who looks at the day reads it.' },
    },
    call: 'fleet.hold_partition(partition, reason)',
    back: () => '/#partitions',
  },
  release: {
    title: 'Release',
    scope: 'operate',
    about: 'The day is archived and dropped by its age again.',
    fields: { partition },
    call: 'fleet.release_partition(partition)',
    back: () => '/#partitions',
  },
  restore: {
    title: 'Restore',
    scope: 'operate',
    about: 'The archiver brings the day back online from its archive. It is dropped again later.',
    fields: { day },
    call: 'fleet.request_restore(day::date, day::date)',
    result: value => `Request ${String(value)} waits for the archiver.`,
    back: () => '/#partitions',
  },
  token: {
    title: 'New token',
    scope: 'enroll',
    about: 'The device gets a new token, which is shown once. The old one stops at once.',
    fields: { device },
    call: 'fleet.renew_token(device::bigint)',
    result: value => `The new token: ${String(value)}`,
    back: ({ device }) => `/devices/${device}`,
  },
  command: {
    title: 'Send a command',
    scope: 'command',
    about: 'The device gets the command at its next poll.',
    fields: {
      device,
      command: { label: 'Command', pattern: /^.{1,64}$/s, hint: 'As the agent knows it, such as restart_unity.' },
      payload: { label: 'Payload', pattern: /^.{0,60000}$/s, hint: 'JSON, or nothing.', isOptional: true, check: checkPayload },
    },
    call: 'fleet.send_command(device::bigint, command, payload::jsonb)',
    result: value => `Command ${String(value)} waits for the device.`,
    back: ({ device }) => `/devices/${device}`,
  },
  pause: {
    title: 'Pause',
    scope: 'operate',
    about: 'Nothing is sent to this webhook until somebody resumes it. Its messages wait.',
    fields: { webhook },
    call: 'fleet.pause_webhook(webhook)',
    back: () => '/#webhooks',
  },
  resume: {
    title: 'Resume',
    scope: 'operate',
    about: 'The messages that wait are sent.',
    fields: { webhook },
    call: 'fleet.resume_webhook(webhook)',
    back: () => '/#webhooks',
  },
  session: {
    title: 'End',
    scope: 'operate',
    about: 'This login ends at once, on every server.',
    fields: { session: { label: 'Session', pattern: /^\d{1,15}$/ } },
    call: 'fleet.close_session(session::bigint)',
    back: () => '/sessions',
  },
} satisfies Record<string, Deed>

export type DeedName = keyof typeof DEEDS
const deeds: Record<string, Deed> = DEEDS

/** A link that looks like a button, if this person may do it. It leads to the confirmation. */
export function Do({ deed, who, ...values }: { deed: DeedName; who: Principal } & Record<string, unknown>) {
  if (!mayDo(who, DEEDS[deed])) return null
  const query = new URLSearchParams(Object.entries(values).map(([name, value]): [string, string] => [name, String(value)]))
  return (
    <a class="button" href={`/do/${deed}?${query.toString()}`}>
      {DEEDS[deed].title}
    </a>
  )
}

/** Asks whether to do it, and shows the SQL. */
export function confirmDeed(): (c: Context<AppEnv>, who: Principal) => Promise<Response> {
  return async (c, who) => {
    const deed = deedOf(c, who)
    const values = valuesOf(deed, name => c.req.query(name), true)
    return answer(c, <Confirm name={c.req.param('deed')!} deed={deed} values={values} who={who} />)
  }
}

/** Does it. @param onDone is called afterwards, because what the page shows has changed */
export function postDeed(
  config: ServerConfig,
  pool: Pool,
  onDone: () => void,
): (c: Context<AppEnv>, who: Principal) => Promise<Response> {
  return async (c, who) => {
    fromThisPage(c)
    const deed = deedOf(c, who)
    const form = await readForm(c, MAX_FORM_BYTES)
    const values = valuesOf(deed, name => onlyOne(form.getAll(name), name), false)
    const [row] = await pool.run(sql => statement(sql, c, deed, values, config))
    onDone()
    const result = deed.result?.(row!.result)
    if (result === undefined) return c.redirect(deed.back(values), 303)
    return answer(
      c,
      <Page title={`${deed.title} · NexMDM fleet`} isBare>
        <div class="card login">
          <h1>Done</h1>
          <p class="result">{result}</p>
          <p>
            <a href={deed.back(values)}>Back</a>
          </p>
        </div>
      </Page>,
    )
  }
}

function deedOf(c: Context<AppEnv>, who: Principal) {
  const name = c.req.param('deed') ?? ''
  const deed = Object.hasOwn(deeds, name) ? deeds[name] : undefined
  if (deed === undefined) throw new Problem(404, 'There is no such thing to do.')
  requireScope(who, 'operate')
  requireScope(who, deed.scope)
  return deed
}

export function mayDo({ scopes }: Principal, { scope }: Deed) {
  return scopes.includes('operate') && scopes.includes(scope)
}

/** @throws Problem 422 if a field came twice */
function onlyOne([value, ...more]: string[], name: string) {
  if (more.length > 0) throw new Problem(422, `${name} was sent twice; nothing was done.`)
  return value
}

function isDay(text: string) {
  const at = new Date(`${text}T00:00:00Z`)
  return !Number.isNaN(at.getTime()) && at.toISOString().startsWith(text)
}

/** The same rules as those of POST /admin/command. */
function checkPayload(text: string) {
  let payload: unknown
  try {
    payload = JSON.parse(text)
  } catch {
    return 'is not JSON'
  }
  return newCommand.shape.payload.safeParse(payload).error?.issues[0]?.message
}

/** @param isLink only what is part of the link is read: nobody else fills in what the person is asked for */
function valuesOf({ fields }: Deed, read: (name: string) => string | undefined, isLink: boolean) {
  const values: Record<string, string> = {}
  for (const [name, { label, pattern, hint, isOptional, check }] of Object.entries(fields)) {
    if (isLink && hint !== undefined) continue
    const value = read(name) ?? ''
    if (value === '' && isOptional) continue
    if (!pattern.test(value) || value.includes('\0')) throw new Problem(422, `${label} is missing or wrong.`)
    const fault = check?.(value)
    if (fault !== undefined) throw new Problem(422, `${label} ${fault}.`)
    values[name] = value
  }
  return values
}

/** The call with its arguments: as parameters, so that they are never taken for SQL. */
function statement(sql: Sql, c: Context<AppEnv>, deed: Deed, values: Record<string, string>, config: ServerConfig) {
  const parts = split(deed).map(part =>
    part.field === undefined ? sql.unsafe(part.text) : sql`${values[part.field] ?? null}::text`,
  )
  const call = parts.reduce<PendingQuery<Row[]>>((left, right) => sql`${left}${right}`, sql``)
  return sql<{ result: unknown }[]>`select ${call} as result from ${acting(sql, c, deed.scope, config)}`
}

/** The same call for people, with its arguments as literals. */
export function sqlOf(deed: Deed, values: Record<string, string>) {
  const text = split(deed).map(({ text, field }) =>
    field === undefined ? text : values[field] === undefined ? 'null' : `'${values[field].replaceAll("'", "''")}'`,
  )
  return `select ${text.join('')};`
}

/** The text of a call, divided at its fields. */
function split({ call, fields }: Deed): { text: string; field?: string }[] {
  const names = Object.keys(fields).join('|')
  return call
    .split(new RegExp(`(?<=[(, ])(${names})(?=[,):])`))
    .map((text, n) => (n % 2 === 0 ? { text } : { text, field: text }))
}

interface ConfirmProps {
  name: string
  deed: Deed
  values: Record<string, string>
  who: Principal
}

function Confirm({ name, deed, values, who }: ConfirmProps) {
  const asked = Object.entries(deed.fields).filter(([, { hint }]) => hint !== undefined)
  const shown = Object.fromEntries(asked.map(([field, { label }]) => [field, `<${label.toLowerCase()}>`]))
  return (
    <Page title={`${deed.title} · NexMDM fleet`} isBare>
      <form method="post" action={`/do/${name}`} class="card login">
        <h1>{deed.title}?</h1>
        <p>{deed.about}</p>
        {Object.entries(values).map(([field, value]) => (
          <>
            <p>
              {deed.fields[field]!.label}: <b>{value}</b>
            </p>
            <input type="hidden" name={field} value={value} />
          </>
        ))}
        {asked.map(([field, { label, hint, isOptional }]) => (
          <>
            <label for={field}>{label}</label>
            <input
              id={field}
              name={field}
              type="text"
              required={isOptional !== true}
              autocomplete="off"
              aria-describedby={`${field}-hint`}
            />
            <p id={`${field}-hint`} class="muted">
              {hint}
            </p>
          </>
        ))}
        <p>This runs, and is recorded as done by {who.actor}:</p>
        <pre>
          <code>{sqlOf(deed, { ...shown, ...values })}</code>
        </pre>
        <button type="submit">{deed.title}</button> <a href={deed.back(values)}>Cancel</a>
      </form>
    </Page>
  )
}
