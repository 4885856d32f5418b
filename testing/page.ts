// What the tests of the page share.
import { ADMIN_KEY } from './server.ts'

export interface PageAnswer {
  status: number
  headers: Headers
  html: string
}

/** A browser without JavaScript and without a jar: paths and forms of one server, the cookie in the open. */
export function visitor(url: string) {
  const { host } = new URL(url)
  async function get(path: string, headers: Record<string, string> = {}): Promise<PageAnswer> {
    const response = await fetch(url + path, { headers, redirect: 'manual' })
    return { status: response.status, headers: response.headers, html: await response.text() }
  }
  async function post(
    path: string,
    form: Record<string, string> = {},
    headers: Record<string, string> = {},
  ): Promise<PageAnswer> {
    const response = await fetch(url + path, {
      method: 'POST',
      redirect: 'manual',
      body: new URLSearchParams(form).toString(),
      headers: { 'content-type': 'application/x-www-form-urlencoded', origin: `http://${host}`, ...headers },
    })
    return { status: response.status, headers: response.headers, html: await response.text() }
  }
  /** Logs in; the headers of who is. */
  async function login() {
    const { headers } = await post('/login', { key: ADMIN_KEY })
    return { cookie: headers.getSetCookie()[0]!.split(';')[0]! }
  }
  return { get, post, login }
}

/** The text of a part of the page, without tags, with single spaces. */
export function textOf(html: string, id: string) {
  const from = html.indexOf(`id="${id}"`)
  if (from === -1) throw new Error(`there is no #${id}:\n${html}`)
  const end = html.indexOf('</section>', from)
  return html
    .slice(html.indexOf('>', from) + 1, end)
    .replace(/<[^>]*>/g, ' ')
    .replace(/\s+/g, ' ')
    .trim()
}
