// Makes the pictures of the ops page in docs/. While npm run demo runs: npm run build; node build/testing/screenshots.js. The pictures
// are cropped to stay small.
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import type { Browser } from 'playwright-core'
import { launchBrowser } from './browser.ts'
import { serverAddress } from '../local/config.ts'
import { repository } from '../lib/repository.ts'
import { SettingsError } from '../lib/errors.ts'

const server = serverAddress()
if (server === undefined)
  throw new SettingsError(['ADMIN_KEY: not set; while npm run demo runs, run: set -a; . .local/env; set +a'])
const { url, adminKey } = server
const docs = join(repository, 'docs')
const desktop = { width: 1120, height: 800 }
const phone = { width: 360, height: 740 }
const MARGIN = 16

await mkdir(docs, { recursive: true })
const browser = await launchBrowser()
try {
  await take(browser, 'page-desktop-light', 'light', desktop, '#headline', '#fleet')
  await take(browser, 'page-desktop-dark', 'dark', desktop, '#partitions', '#archives')
  await take(browser, 'page-phone-light', 'light', phone, '#headline', '#fleet')
  await take(browser, 'page-phone-dark', 'dark', phone, '#devices', '#partitions')
  await take(browser, 'page-device', 'light', desktop, '#now', '#day')
} finally {
  await browser.close()
}

/** Takes a picture of the page from the headline, or from `first`, to the end of `last`. */
async function take(
  browser: Browser,
  name: string,
  colorScheme: 'light' | 'dark',
  viewport: typeof desktop,
  first: string,
  last: string,
) {
  const page = await browser.newPage({ colorScheme, viewport })
  await page.goto(url)
  await page.getByLabel('Key', { exact: true }).fill(adminKey)
  await page.getByRole('button', { name: 'Log in' }).click()
  await page.getByRole('heading', { level: 2, name: 'Fleet' }).waitFor()
  if (last === '#day') {
    await page.goto(`${url}/?status=any&q=sim`)
    await page.getByRole('region', { name: 'Devices found' }).getByRole('link').first().click()
    await page.getByRole('heading', { name: 'The last 24 hours' }).waitFor()
  } else {
    // The rate covers the time between two samples.
    await page.locator('#ingest', { hasText: 'in the last' }).waitFor({ timeout: 30_000 })
  }
  const [from, to] = [await page.locator(first).boundingBox(), await page.locator(last).boundingBox()]
  const top = ['#headline', '#now'].includes(first) ? 0 : from!.y - MARGIN
  const clip = { x: 0, y: top, width: viewport.width, height: to!.y + to!.height + MARGIN - top }
  await page.screenshot({ path: join(docs, `${name}.png`), fullPage: true, clip })
  await page.close()
}
