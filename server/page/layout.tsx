import type { Child, PropsWithChildren } from 'hono/jsx'
import { version } from '../../lib/version.ts'
import { assetPath } from './assets.ts'
import type { Principal } from '../auth/principal.ts'
import type { Result } from './result.ts'

/** How often a visible page is refreshed. Without JavaScript it reloads itself, less often because that disturbs more. */
const LIVE_MS = 5_000
const RELOAD_S = 60

interface PageProps {
  title: string
  /** Nobody is logged in, so there is nothing to refresh and no navigation. */
  isBare?: boolean
  nav?: Child
  /** Who is logged in. */
  who?: Principal
}

export function Page({ title, isBare = false, nav, who, children }: PropsWithChildren<PageProps>) {
  return (
    <html lang="en">
      <head>
        <meta charset="utf-8" />
        <title>{title}</title>
        <meta name="viewport" content="width=device-width, initial-scale=1" />
        <meta name="color-scheme" content="light dark" />
        <meta name="robots" content="noindex" />
        <link rel="icon" href={assetPath('icon.svg')} type="image/svg+xml" />
        <link rel="stylesheet" href={assetPath('page.css')} />
        {!isBare && <script src={assetPath('live.js')} defer></script>}
        {!isBare && (
          <noscript>
            <meta http-equiv="refresh" content={String(RELOAD_S)} />
          </noscript>
        )}
      </head>
      <body data-every={String(LIVE_MS)}>
        <a class="skip" href="#main">
          Skip to content
        </a>
        <header class="top">
          <p class="brand">
            <img src={assetPath('icon.svg')} alt="" width="28" height="28" /> <a href="/">NexMDM</a>
          </p>
          {!isBare && nav}
          {who?.scopes.includes('operate') === true && (
            <nav aria-label="People">
              <ul>
                <li>
                  <a href="/sessions">Sessions</a>
                </li>
                <li>
                  <a href="/audit">Audit</a>
                </li>
              </ul>
            </nav>
          )}
          {!isBare && (
            <p id="live" role="status" aria-live="polite">
              As of {new Date().toISOString().slice(11, 16)} UTC
            </p>
          )}
          {!isBare && (
            <form method="post" action="/logout">
              {who !== undefined && <span class="muted">{who.actor}</span>}{' '}
              <button type="submit" class="quiet">
                Log out
              </button>
            </form>
          )}
        </header>
        <main id="main" tabindex={-1}>
          {children}
        </main>
        <footer class="bottom">NexMDM fleet heartbeats {version}</footer>
      </body>
    </html>
  )
}

interface SectionProps<T> {
  id: string
  title: string
  of: Result<T>
  show: (value: T) => Child
  class?: string
}

/** A part of the page that is kept up to date, or says why it cannot be shown. */
export function Section<T>({ id, title, of, show, class: name }: SectionProps<T>) {
  return (
    <section id={id} data-live aria-labelledby={`${id}-h`} class={name === undefined ? 'card' : `card ${name}`}>
      <h2 id={`${id}-h`}>{title}</h2>
      {of.error === undefined ? show(of.value) : <p class="unread">This could not be read: {of.error}</p>}
    </section>
  )
}

type Column = string | { number: string } | { remark: string }

interface RowsProps {
  head: Column[]
  /** A cell for each column; the first one names the row. */
  rows: Child[][]
}

/** A table without a box that scrolls. On a phone each row is a paragraph in which each cell has the label of its column. */
export function Rows({ head, rows }: RowsProps) {
  const columns = head.map(column => {
    if (typeof column === 'string') return { name: column }
    return 'number' in column ? { name: column.number, kind: 'number' } : { name: column.remark, kind: 'remark' }
  })
  return (
    <table>
      <thead>
        <tr>
          {columns.map(({ name, kind }) => (
            <th scope="col" class={kind}>
              {name}
            </th>
          ))}
        </tr>
      </thead>
      <tbody>
        {rows.map(([first, ...cells]) => (
          <tr>
            <th scope="row">{first}</th>
            {cells.map((cell, n) => (
              <td class={columns[n + 1]!.kind} data-label={columns[n + 1]!.name}>
                {cell}
              </td>
            ))}
          </tr>
        ))}
      </tbody>
    </table>
  )
}

/** A table that scrolls by itself if it is too large. */
export function Table({ label, id, head, rows }: RowsProps & { label: string; id?: string }) {
  return (
    <div class="scroll" id={id} tabindex={0} role="region" aria-label={label}>
      <Rows head={head} rows={rows} />
    </div>
  )
}
