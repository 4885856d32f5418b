import type { Child, PropsWithChildren } from 'hono/jsx'
import { version } from '../../lib/version.ts'
import { assetPath } from './assets.ts'
import type { Result } from './result.ts'

/** How often a visible page is refreshed. Without JavaScript it reloads itself, less often because that disturbs more. */
const LIVE_MS = 5_000
const RELOAD_S = 60

interface PageProps {
  title: string
  /** Nobody is logged in, so there is nothing to refresh and no navigation. */
  isBare?: boolean
  nav?: Child
}

export function Page({ title, isBare = false, nav, children }: PropsWithChildren<PageProps>) {
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
          {!isBare && (
            <p id="live" role="status" aria-live="polite">
              As of {new Date().toISOString().slice(11, 16)} UTC
            </p>
          )}
          {!isBare && (
            <form method="post" action="/logout">
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

/** The head of a table. A column of numbers has the same alignment as the numbers. */
export function Head({ cells }: { cells: (string | { number: string })[] }) {
  return (
    <thead>
      <tr>
        {cells.map(cell =>
          typeof cell === 'string' ? (
            <th scope="col">{cell}</th>
          ) : (
            <th scope="col" class="number">
              {cell.number}
            </th>
          ),
        )}
      </tr>
    </thead>
  )
}

/** A table that scrolls by itself if it is too wide. */
export function Table({ label, head, children }: PropsWithChildren<{ label: string; head: (string | { number: string })[] }>) {
  return (
    <div class="scroll" tabindex={0} role="region" aria-label={label}>
      <table>
        <Head cells={head} />
        <tbody>{children}</tbody>
      </table>
    </div>
  )
}
