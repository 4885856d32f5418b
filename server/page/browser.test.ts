import { createRequire } from 'node:module'
import { readFile } from 'node:fs/promises'
import type { Browser, BrowserContextOptions, Page } from 'playwright-core'
import t, { type Test } from 'tap'
import { makeDirectory, partitionOf, retiredDay, workAll } from '../../testing/archiver.ts'
import { debianChromium, launchBrowser } from '../../testing/browser.ts'
import { leftToCi } from '../../local/config.ts'
import { ADMIN_KEY, ago, enroll, withServer } from '../../testing/server.ts'

// All tests share Debian's Chromium and one server, and each begins where the previous one ended. They wait for texts of the
// page; a text that does not appear fails the test after 30 s.
const skip = debianChromium.without
t.setTimeout(300_000)
let browser: Browser
let server: Awaited<ReturnType<typeof withServer>>
if (skip === false) {
  server = await withServer(t)
  // The counts of a day, which the server reads only every 30 s.
  await server.db.admin`
    insert into fleet.fleet_samples (sampled_at, devices, online, late, offline, new, clock_skewed, unity_down)
    select date_bin('10 minutes', now(), '2000-01-01Z') - n * interval '10 minutes', 10, 6 + n % 3, 0, 4 - n % 3, 0, 0, n % 2
    from generate_series(0, 143) n
    on conflict do nothing
  `
  browser = await launchBrowser()
  t.teardown(() => browser.close())
}

/** From all tabs: errors in scripts, what the CSP blocked, and requests to other servers. */
const complaints: string[] = []

async function withTab(t: Test, options: BrowserContextOptions = {}) {
  const context = await browser.newContext(options)
  const page = await context.newPage()
  page.on('pageerror', error => complaints.push(String(error)))
  page.on('console', message => {
    // Answers of 4xx or 5xx are errors too, and some of them are expected.
    if (message.type() === 'error' && !/Failed to load resource/.test(message.text())) complaints.push(message.text())
  })
  page.on('request', request => {
    const { origin } = new URL(request.url())
    if (origin !== server.url && origin !== OTHER_SITE) complaints.push(`asked for ${request.url()}`)
  })
  t.teardown(() => context.close())
  return page
}

const OTHER_SITE = 'http://elsewhere.example'

async function login(page: Page) {
  await page.goto(server.url)
  await page.getByLabel('Key', { exact: true }).fill(ADMIN_KEY)
  await page.getByLabel('Key', { exact: true }).press('Enter')
  await page.getByRole('heading', { level: 2, name: 'Fleet' }).waitFor()
}

t.test('the person on call logs in, and sees a device go offline without reloading the page', { skip }, async t => {
  const { url, db, call } = server
  const { device_id, token } = await enroll(db, 'lobby-7')
  await call('POST /v1/heartbeat', { token, body: {} })
  const page = await withTab(t)
  await page.goto(url)
  t.equal(await page.evaluate('document.activeElement.id'), 'key')
  await page.keyboard.type('a wrong key')
  await page.keyboard.press('Enter')
  await page.getByRole('alert').filter({ hasText: 'That is not a valid key' }).waitFor()
  await login(page)
  t.equal(await page.evaluate('document.cookie'), '', 'scripts do not see the session')
  t.equal(await page.getByRole('heading', { level: 1 }).count(), 1)
  await page.locator('#headline', { hasText: '1 online, 0 late, 0 offline' }).waitFor()
  await page.getByText('No offline devices found').waitFor()

  await page.evaluate('window.loadedOnce = true')
  await page.locator('#checks-ok summary').focus()
  await page.keyboard.press('Enter')
  await db.admin`
    update fleet.device_last_status set last_received_at = now() - interval '11 minutes', is_silent = true where device_id = ${device_id}
  `
  await page.locator('#headline', { hasText: '0 online, 0 late, 1 offline' }).waitFor()
  await page.locator('#devices-found', { hasText: 'lobby-7' }).waitFor()
  t.equal(await page.evaluate('window.loadedOnce'), true)
  t.equal(await page.getByRole('status').textContent(), 'Live')
  t.equal(await page.evaluate('document.activeElement.closest("details").id'), 'checks-ok', 'the focus stays')
  t.equal(await page.locator('#checks-ok').getAttribute('open'), '', 'and what was opened is open')

  await page.getByRole('region', { name: 'Devices found' }).getByRole('link', { name: 'lobby-7' }).click()
  await page.getByRole('heading', { level: 1, name: 'lobby-7' }).waitFor()
  await page.getByRole('button', { name: 'Log out' }).click()
  await page.getByLabel('Key', { exact: true }).waitFor()
  await page.goto(`${url}/devices/${device_id}`)
  await page.getByLabel('Key', { exact: true }).waitFor()
})

t.test('a partition becomes archived while the page is open', { skip }, async t => {
  const { db } = server
  const directory = await makeDirectory(t)
  await db.admin`
    insert into fleet.device_heartbeats (ts, received_at, device_id)
    select b.ts, b.ts, d.device_id
    from fleet.devices d, generate_series(0, 999) n, lateral (select ${retiredDay}::timestamptz + n * interval '80 seconds' as ts) b
  `
  await db.sql`update fleet.settings set archive_grace = interval '1 day'`
  const page = await withTab(t)
  await login(page)
  const cell = page.locator('#partitions .strip li', { hasText: `${retiredDay}:` })
  await cell.filter({ hasText: `${retiredDay}: active` }).waitFor()
  await page.getByText('Nothing is archived yet').waitFor()

  await db.sql`select fleet.archive_partition(${await partitionOf(db.sql, retiredDay)})`
  await cell.filter({ hasText: `${retiredDay}: detached` }).waitFor()
  await workAll(t, db, directory)
  await cell.filter({ hasText: `${retiredDay}: archived, 1,000 rows, ` }).waitFor()
  const row = page.getByRole('region', { name: 'Archives' }).getByRole('row', { name: retiredDay })
  t.match(await row.textContent(), new RegExp(`1,000.*kB.* ago.*date=${retiredDay}/`))
  await page.getByRole('link', { name: 'Each day in numbers' }).click()
  await page
    .getByRole('region', { name: 'Days, as a table' })
    .getByRole('row', { name: `${retiredDay} archived 1,000` })
    .waitFor()
})

t.test('everything can be reached by keyboard', { skip }, async t => {
  const page = await withTab(t)
  await login(page)
  await page.goto(`${server.url}/?status=any`)
  await page.keyboard.press('Tab')
  t.equal(await page.evaluate('document.activeElement.textContent'), 'Skip to content')
  t.ok((await page.evaluate<number>('document.activeElement.getBoundingClientRect().top')) >= 0, 'and can be seen then')
  await page.keyboard.press('Enter')
  t.equal(await page.evaluate('document.activeElement.id'), 'main')
  const reached: string[] = []
  for (let n = 0; n < 100; n++) {
    await page.keyboard.press('Tab')
    const [tag, name, outline] = await page.evaluate<[string, string, string]>(`(() => {
      const { activeElement: e } = document
      return [e.tagName, e.getAttribute('aria-label') ?? e.getAttribute('name') ?? e.textContent, getComputedStyle(e).outlineStyle]
    })()`)
    if (tag === 'BODY') break
    reached.push(name.trim())
    if (outline !== 'solid') t.fail(`${tag} ${name} does not show that it has the focus`)
  }
  for (const name of [
    'q',
    'status',
    'Search',
    'lobby-7',
    'Devices found',
    'List of archives',
    'Each day in numbers',
    'All jobs',
  ]) {
    t.ok(reached.includes(name), name, { reached })
  }
  await page.getByLabel('Alias, cohort or id').focus()
  await page.keyboard.type('nobody')
  await page.keyboard.press('Enter')
  await page.getByText('No devices match “nobody”').waitFor()
})

t.test('the page says when it is not live, and continues when the server is back', { skip }, async t => {
  const page = await withTab(t)
  await login(page)
  // As if the tab came into view again, which refreshes at once.
  const look = () => page.evaluate('document.dispatchEvent(new Event("visibilitychange"))')
  await look()
  await page
    .getByRole('status')
    .filter({ hasText: /^Live$/ })
    .waitFor()
  await page.context().setOffline(true)
  await look()
  await page.getByRole('status').filter({ hasText: 'Not live: the server cannot be reached' }).waitFor()
  await page.context().setOffline(false)
  await look()
  await page
    .getByRole('status')
    .filter({ hasText: /^Live$/ })
    .waitFor()
  await page.context().clearCookies()
  await look()
  await page.getByLabel('Key', { exact: true }).waitFor()
})

t.test('a link from another site finds the session, and a form from another site does nothing', { skip }, async t => {
  const { url } = server
  const page = await withTab(t)
  await login(page)
  await page.route(`${OTHER_SITE}/`, route =>
    route.fulfill({
      contentType: 'text/html',
      body: `<a href="${url}/?status=any">the fleet</a><form method="post" action="${url}/logout"><button>out</button></form>`,
    }),
  )
  await page.goto(`${OTHER_SITE}/`)
  await page.getByRole('link').click()
  await page.getByRole('heading', { level: 2, name: 'Fleet' }).waitFor()
  t.equal(page.url(), `${url}/?status=any`)
  await page.goto(`${OTHER_SITE}/`)
  await page.getByRole('button').click()
  await page.getByText('This form was sent by another site').waitFor()
  await page.goto(url)
  await page.getByRole('heading', { level: 2, name: 'Fleet' }).waitFor()
})

t.test('without JavaScript the page is complete', { skip }, async t => {
  const page = await withTab(t, { javaScriptEnabled: false })
  await login(page)
  await page.getByLabel('Alias, cohort or id').fill('LOBBY')
  await page.getByLabel('Status', { exact: true }).selectOption('any')
  await page.getByRole('button', { name: 'Search' }).click()
  await page.getByRole('region', { name: 'Devices found' }).getByRole('link', { name: 'lobby-7' }).click()
  await page.getByText('1 heartbeat, 143 spans of ten minutes without one').waitFor()
})

/** A long name, values that cannot be read, days in each state, checks that fail, and a cohort that has gone quiet. */
async function fill() {
  const { db, call, unreadable } = server
  const { device_id, token } = await enroll(db, 'a-device-with-a-long-name-that-has-no-place-to-break-a-line-0123456789')
  const beats = Array.from({ length: 100 }, (_, n) => ({
    ts: ago(3_600 + 90 * n),
    battery_pct: n,
    signal_dbm: -n,
    unity_running: n % 3 > 0,
  }))
  await call('POST /v1/heartbeats', { token, body: beats })
  await call('POST /v1/heartbeat', { token, body: { ts: ago(60), signal_dbm: 'no-signal-'.repeat(6) } })
  await unreadable.tell()
  // A day in each state, and checks that fail.
  await db.admin`
  with days as (select partition_name, row_number() over (order by range_start) as n from fleet.hb_partitions where state = 'active')
  update fleet.hb_partitions p
    set state = (array['detached', 'archiving', 'archive_failed', 'active', 'restored'])[d.n],
      checksum_sha256 = repeat('a', 64), content_checksum = 1, proven_at = now(), archive_url = 's3://bucket/one', row_count = 1,
      held_reason = case when d.n = 4 then 'legal hold' end, last_error = case when d.n = 3 then 'the store is away' end
  from days d
  where d.partition_name = p.partition_name and d.n <= 5
`
  // A cohort that has gone quiet.
  await db.sql`select fleet.create_device('quiet-' || n, 'yard') from generate_series(1, 10) n`
  await db.admin`
  insert into fleet.silence_samples (cohort, sampled_at, active, gone_quiet)
  select c, now() - n * interval '10 minutes', 10, 0 from unnest(array['yard', '(all)']) c, generate_series(10, 200) n
`
  await call('POST /v1/heartbeat', { token, body: { extra: { note: 'without-a-place-to-break-'.repeat(40) } } })
  await db.admin`
  update fleet.device_last_status ls set last_ts = now(), last_received_at = now(), status = 'ok'
  from fleet.devices d where d.device_id = ls.device_id and d.cohort = 'yard'
`
  await db.admin`update fleet.silence_watch set looked_at = now(), gap_from = null, gap_to = null, sampled_at = '-infinity'`
  await db.admin`select fleet.watch_silence()`
  await db.admin`
  update fleet.device_last_status ls set last_received_at = now() - interval '4 minutes'
  from fleet.devices d where d.device_id = ls.device_id and d.cohort = 'yard'
`
  return device_id
}

/** The texts of which a part is outside the window or the box that clips it, except remedies, which scroll, and hidden texts. */
const CUT_OFF = `(() => {
  const cut = []
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  while (texts.nextNode()) {
    const { parentElement: parent, data } = texts.currentNode
    if (data.trim() === '' || parent.closest('pre, .unseen, .skip, thead, script, noscript')) continue
    const range = document.createRange()
    range.selectNodeContents(texts.currentNode)
    let [left, right] = [0, innerWidth]
    for (let e = parent; e !== document.body; e = e.parentElement) {
      if (e instanceof SVGElement || getComputedStyle(e).overflowX === 'visible') continue
      const from = e.getBoundingClientRect().left + e.clientLeft
      left = Math.max(left, from)
      right = Math.min(right, from + e.clientWidth)
    }
    const rects = [...range.getClientRects()].filter(rect => rect.width > 0)
    if (rects.some(rect => rect.left < left - 1 || rect.right > right + 1)) cut.push(data.trim().slice(0, 60))
  }
  return cut.slice(0, 5)
})()`

let filled: number

t.test('on a phone all of every table can be seen', { skip }, async t => {
  filled = await fill()
  for (const width of [360, 390, 412]) {
    const page = await withTab(t, { viewport: { width, height: 800 } })
    await page.goto(server.url)
    t.same(await page.evaluate(CUT_OFF), [], `login, ${width} px`)
    await login(page)
    const seen: string[] = []
    for (const path of ['/', '/?status=any', `/devices/${filled}`]) {
      await page.goto(server.url + path)
      if (path === '/') await page.getByRole('row', { name: /^yard\s*10 of 10 devices went quiet/ }).waitFor()
      await page.evaluate('for (const details of document.querySelectorAll("details")) details.open = true')
      t.same(await page.evaluate(CUT_OFF), [], `${path}, ${width} px`)
      const tables = await page.getByRole('table').all()
      for (const table of tables) seen.push((await table.locator('..').getAttribute('aria-label')) ?? '')
      t.same(
        await page.evaluate(
          `[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).map(e => e.ariaLabel)`,
        ),
        [],
        `${path}, ${width} px: no table needs to be scrolled sideways`,
      )
      t.same(
        await page.evaluate(
          `[...document.querySelectorAll('#devices-found .scroll, #archives .scroll, #jobs .scroll')]
            .filter(e => e.scrollHeight > e.clientHeight).map(e => e.ariaLabel)`,
        ),
        [],
        `${path}, ${width} px: the short lists are shown to their end`,
      )
    }
    t.same([...new Set(seen)].sort(), [
      'All jobs',
      'Changes of the last hour',
      'Changes of this device',
      'Days, as a table',
      'Devices by cohort',
      'Devices found',
      'Devices, last 24 hours, as a table',
      'Fields that could not be read',
      'Heartbeats per ten minutes, as a table',
      'List of archives',
    ])
    await page.goto(`${server.url}/?status=any`)
    const row = page.getByRole('region', { name: 'Devices found' }).getByRole('row', { name: 'a-device-with-a-long-name' })
    t.notMatch(await row.getByRole('cell').nth(1).ariaSnapshot(), /Last heartbeat/, 'a screen reader hears only the value')
    t.equal(
      await page.evaluate(`getComputedStyle(document.querySelector('#devices-found td:nth-of-type(2)'), '::before').content`),
      '"Last heartbeat" / ""',
      'and shows the label of its column',
    )
  }
})

t.test(
  'dark and light, on a phone and on a desktop: nothing is cut off, and axe finds nothing',
  { skip: skip || leftToCi() },
  async t => {
    const { url } = server
    const axe = await readFile(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8')
    for (const [colorScheme, width] of [
      ['light', 360],
      ['dark', 1280],
      ['light', 1280],
      ['dark', 360],
    ] as const) {
      const page = await withTab(t, { colorScheme, viewport: { width, height: 800 } })
      await page.goto(url)
      // Two of the four combinations are enough for axe to see both colour schemes and both widths.
      const judges = (width === 360) === (colorScheme === 'dark') ? axe : undefined
      await judge(t, page, `login, ${colorScheme}, ${width} px`, judges)
      await login(page)
      for (const path of ['/', `/devices/${filled}`]) {
        await page.goto(url + path)
        if (path === '/') await page.getByRole('row', { name: /^yard\s*10 of 10 devices went quiet, usually 0 %/ }).waitFor()
        await page.evaluate('for (const details of document.querySelectorAll("details")) details.open = true')
        await judge(t, page, `${path}, ${colorScheme}, ${width} px`, judges)
      }
      const back = String(await page.evaluate('getComputedStyle(document.body).backgroundColor'))
      t.equal(Number(/\d+/.exec(back)![0]) < 100, colorScheme === 'dark', back)
    }
  },
)

async function judge(t: Test, page: Page, what: string, axe: string | undefined) {
  const [width, room] = await page.evaluate<[number, number]>('[document.documentElement.scrollWidth, innerWidth]')
  t.ok(width <= room, `${what}: ${width} px in ${room} px`)
  if (axe === undefined) return
  await page.evaluate(axe)
  const { violations } = await page.evaluate<{
    violations: { id: string; nodes: { target: string[]; failureSummary: string }[] }[]
  }>('axe.run()')
  t.same(
    violations.map(({ id, nodes }) => ({
      id,
      where: nodes.slice(0, 3).map(({ target, failureSummary }) => `${target.join(' ')}: ${failureSummary}`),
    })),
    [],
    `${what}: axe finds nothing`,
  )
}

t.test('the browser reported no error', { skip }, t => {
  t.same(complaints, [])
  t.end()
})
