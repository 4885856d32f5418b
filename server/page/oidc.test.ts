import { setTimeout as sleep } from 'node:timers/promises'
import type { Browser, Page } from 'playwright-core'
import t, { type Test } from 'tap'
import { debianChromium, launchBrowser } from '../../testing/browser.ts'
import { CLIENT_ID, CLIENT_SECRET, withProvider } from '../../testing/oidc-provider.ts'
import { ADMIN_KEY, enroll, serverEnv, withServer } from '../../testing/server.ts'
import { visitor } from '../../testing/page.ts'
import { freePort } from '../../local/cluster.ts'
import { readConfig } from '../config.ts'
import { withDatabase } from '../../testing/database.ts'

const skip = debianChromium.without
t.setTimeout(300_000)
let browser: Browser
if (skip === false) {
  browser = await launchBrowser()
  t.teardown(() => browser.close())
}

const GROUPS = {
  ops: { scopes: ['read', 'metrics', 'enroll', 'command', 'operate'] },
  lobby: { scopes: ['read'], cohorts: ['lobby'] },
  robots: { scopes: ['metrics'] },
}
const PEOPLE = { ann: ['everybody', 'ops', 'lobby'], bob: ['lobby'], eve: ['everybody'], rob: ['robots'], kim: undefined }

async function withLogin(t: Test, { codeTtl, issuer }: { codeTtl?: number; issuer?: string } = {}) {
  const db = await withDatabase(t)
  const port = await freePort(true)
  const url = `http://127.0.0.1:${port}`
  const provider = issuer ?? (await withProvider(t, PEOPLE, `${url}/login/oidc/callback`, codeTtl))
  const config = readConfig({
    ...serverEnv(db),
    LOG_LEVEL: 'silent',
    PORT: String(port),
    PUBLIC_URL: url,
    OIDC_ISSUER: provider,
    OIDC_CLIENT_ID: CLIENT_ID,
    OIDC_CLIENT_SECRET: CLIENT_SECRET,
    OIDC_GROUPS: JSON.stringify(GROUPS),
  })
  const server = await withServer(t, config, db)
  return { ...server, url }
}

async function withTab(t: Test) {
  const context = await browser.newContext()
  t.teardown(() => context.close())
  return { context, page: await context.newPage() }
}

/** Goes to the page, to the provider, and logs in there. */
async function logIn(page: Page, url: string, name: string) {
  await page.goto(url)
  await page.getByRole('link', { name: /^Log in with 127\.0\.0\.1/ }).click()
  await page.locator('input[name=login]').fill(name)
  await page.locator('input[name=password]').fill('any')
  await page.locator('button[type=submit]').click()
  await page.getByRole('button', { name: 'Continue' }).click()
}

t.test('a person logs in with OpenID Connect, does something, and logs out', { skip }, async t => {
  const { url, db } = await withLogin(t)
  const { device_id } = await enroll(db, 'lobby-1')
  const { context, page } = await withTab(t)
  await logIn(page, `${url}/devices/${device_id}`, 'ann')
  await page.getByRole('heading', { level: 1, name: 'lobby-1' }).waitFor()
  await page.getByText('ann@example.com').waitFor()
  t.notMatch(JSON.stringify(await context.cookies(url)), /fleet_login/, 'nothing is left of the way there')

  await page.getByRole('link', { name: 'Send a command' }).click()
  await page.getByLabel('Command').fill("it's")
  await page.getByRole('button', { name: 'Send a command' }).click()
  await page.getByText('Command 1 waits for the device.').waitFor()
  t.match(await db.sql`select command, payload, created_by from fleet.device_commands`, [
    { command: "it's", payload: null, created_by: 'ann@example.com' },
  ])
  t.match(
    await db.sql`select actor, how, action, address from fleet.audit_log where action <> 'device.enrolled' order by audit_id`,
    [
      { actor: 'ann@example.com', how: 'session', action: 'session.opened', address: '127.0.0.1' },
      { actor: 'ann@example.com', how: 'session', action: 'command.sent', address: '127.0.0.1' },
    ],
  )

  const cookies = await context.cookies(url)
  await page.goto(url)
  await page.getByRole('button', { name: 'Log out' }).click()
  await page.getByLabel('Key', { exact: true }).waitFor()
  await context.addCookies(cookies)
  await page.goto(url)
  await page.getByLabel('Key', { exact: true }).waitFor()
  t.match(await db.sql`select actor, login, ended_at is not null as ended from fleet.sessions`, [
    { actor: 'ann@example.com', login: 'oidc', ended: true },
  ])
})

t.test('the group decides: a bound one shows its cohorts, and without one nobody gets in', { skip }, async t => {
  const { url, db } = await withLogin(t)
  const [mine, theirs] = [await enroll(db, 'mine-1'), await enroll(db, 'theirs-1')]
  await db.sql`select fleet.move_device(${mine.device_id}, 'lobby')`
  const { page } = await withTab(t)
  await logIn(page, url, 'bob')
  await page.getByText('This login shows 1 cohort: lobby.').waitFor()
  t.equal(await page.getByRole('link', { name: 'Audit' }).count(), 0)
  for (const path of ['/audit', '/sessions', `/do/token?device=${mine.device_id}`])
    t.equal((await page.goto(url + path))!.status(), 403, path)
  t.equal((await page.goto(`${url}/devices/${theirs.device_id}`))!.status(), 404)

  const refused = {
    eve: 'eve@example.com is in no group that may use this page.',
    kim: 'kim@example.com is in no group that may use this page.',
    rob: 'The group robots does not have the scope read.',
  }
  for (const [name, why] of Object.entries(refused)) {
    const { page, context } = await withTab(t)
    await logIn(page, url, name)
    await page.getByRole('alert').filter({ hasText: why }).waitFor()
    t.notMatch(JSON.stringify(await context.cookies(url)), /fleet_session/, name)
  }
  t.equal((await db.sql`select from fleet.sessions`).length, 1)
})

t.test('an answer of the provider counts once, in time, and only for the browser that asked', { skip }, async t => {
  const { url, db } = await withLogin(t, { codeTtl: 2 })
  const refused = async (tamper: (page: Page, callback: string) => Promise<string>, why: RegExp) => {
    const { page } = await withTab(t)
    // The provider's answer to the last form leads back here in two redirects.
    let callback = ''
    await page.route(/\/interaction\//, async route => {
      if (!route.request().postData()?.includes('prompt=consent')) return route.continue()
      const first = await route.fetch({ maxRedirects: 0 })
      const second = await page.context().request.get(first.headers().location!, { maxRedirects: 0 })
      callback = second.headers().location!
      await route.fulfill({ status: 200, contentType: 'text/html', body: 'the answer is kept back' })
    })
    await logIn(page, url, 'ann')
    await page.getByText('the answer is kept back').waitFor()
    await page.goto(await tamper(page, callback))
    t.match(await page.getByRole('alert').textContent(), why)
  }
  const change = async (page: Page, name: 'state' | 'nonce' | 'verifier') => {
    const [cookie] = (await page.context().cookies(url)).filter(({ name }) => name === 'fleet_login')
    const pending = JSON.parse(Buffer.from(cookie!.value, 'base64url').toString()) as Record<string, string>
    const value = Buffer.from(JSON.stringify({ ...pending, [name]: 'A'.repeat(43) })).toString('base64url')
    await page.context().addCookies([{ ...cookie!, value }])
  }
  await refused(async (page, callback) => (await change(page, 'nonce'), callback), /could not be verified.*nonce/)
  await refused(async (page, callback) => (await change(page, 'state'), callback), /could not be verified.*state/)
  await sleep(1_000) // after a failure an address has to wait for a moment
  await refused(
    async (page, callback) => (await change(page, 'verifier'), callback),
    /refused the login: grant request is invalid/,
  )
  await sleep(2_000)
  await refused(async (_page, callback) => (await sleep(2_500), callback), /refused the login/)
  await sleep(4_000)
  await refused(async (page, callback) => (await page.context().clearCookies(), callback), /was not begun here, or has expired/)
  t.same(await db.sql`select from fleet.sessions`, [])

  // With an error of the provider, and a code that was used.
  const { page } = await withTab(t)
  let callback = ''
  page.on('request', request => {
    if (request.url().includes('/login/oidc/callback')) callback = request.url()
  })
  await sleep(4_000)
  await logIn(page, url, 'ann')
  await page.getByText('ann@example.com').waitFor()
  await page.goto(callback)
  await page
    .getByRole('alert')
    .filter({ hasText: /was not begun here/ })
    .waitFor()
  t.equal((await db.sql`select from fleet.sessions`).length, 1)
})

t.test('without a provider everything is as before, and one that is away leaves the keys', async t => {
  const plain = await withServer(t)
  const form = await visitor(plain.url).get('/')
  t.notMatch(form.html, /login\/oidc/)
  t.equal((await visitor(plain.url).get('/login/oidc')).status, 404)
  t.equal((await visitor(plain.url).get('/login/oidc/callback')).status, 404)

  const { url } = await withLogin(t, { issuer: `http://127.0.0.1:${await freePort(true)}` })
  const { get, post } = visitor(url)
  t.match(await get('/'), { html: /href="\/login\/oidc\?next=%2F"/ })
  t.match(await get('/login/oidc'), { status: 503, html: /identity provider cannot be reached\. Log in with a key/ })
  t.equal((await post('/login', { key: ADMIN_KEY })).status, 303)
  t.match(await get('/login/oidc/callback?code=x&state=y'), { status: 400, html: /was not begun here/ })
})
