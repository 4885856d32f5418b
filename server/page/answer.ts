import type { Context } from 'hono'
import type { HtmlEscapedString } from 'hono/utils/html'
import type { ContentfulStatusCode } from 'hono/utils/http-status'
import type { AppEnv } from '../env.ts'

/** What JSX returns. */
export type Html = HtmlEscapedString | Promise<HtmlEscapedString>

const HEADERS = {
  'content-type': 'text/html; charset=utf-8',
  // Only our own files, no inline script or style, no frame around the page, no form to another site.
  'content-security-policy': [
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self'",
    "connect-src 'self'",
    "form-action 'self'",
    "base-uri 'none'",
    "frame-ancestors 'none'",
  ].join('; '),
  'x-content-type-options': 'nosniff',
  // Not no-referrer: with that, a browser sends the origin `null` with our own forms.
  'referrer-policy': 'same-origin',
  'cross-origin-opener-policy': 'same-origin',
  'cross-origin-resource-policy': 'same-origin',
  'cache-control': 'no-store',
}

/** A page, or its live parts, with the headers that all of them have. */
export async function answer(
  c: Context<AppEnv>,
  page: Html,
  status: ContentfulStatusCode = 200,
  headers: Record<string, string> = {},
) {
  return c.body(`<!doctype html>\n${(await page).toString()}`, status, { ...HEADERS, ...headers })
}
