import { readFile } from 'node:fs/promises'
import t from 'tap'
import { alertmanager, amtool, withAlertmanager } from '../testing/alertmanager.ts'
import { withDatabase, waitFor } from '../testing/database.ts'
import { enroll } from '../testing/fleet.ts'
import { change, closeIncident, messages, notifyOnce, openIncident, withReceiver } from '../testing/webhooks.ts'
import { describe, render, type Body, type Format } from './formats.ts'

const AT = '2026-11-29T18:04:05.123456+00:00'
const device = (event: string, data: Partial<Body['data']> = {}): Body => ({
  type: `device.${event}`,
  version: 1,
  timestamp: AT,
  data: {
    kind: 'first',
    event,
    device: { id: 7, alias: 'lobby-7', cohort: 'lobby' },
    began_at: '2026-11-29T17:54:05+00:00',
    ...data,
  },
})
const incident = (event: string, data: Partial<Body['data']> = {}): Body => ({
  type: `incident.${event}`,
  version: 1,
  timestamp: AT,
  data: { kind: 'first', event, subject: 'lobby', devices: 40, began_at: '2026-11-29T17:54:05+00:00', ...data },
})

function parsed(body: Body, format: Format, url = 'https://example.com/x') {
  const { url: to, text } = render(body, format, url, new Date('2026-11-29T18:05:00Z'))
  return { to: to.href, json: JSON.parse(text) as Record<string, unknown> }
}

t.test('every message has a title that says what happened', async t => {
  const titles = [
    device('offline'),
    device('late'),
    device('unity_down'),
    device('clock_skewed'),
    device('offline', { kind: 'reminder', reminder: 2 }),
    device('unity_down', { kind: 'reminder', reminder: 2 }),
    device('back', { kind: 'recovery' }),
    device('online', { kind: 'recovery' }),
    device('revoked'),
    device('offline', { device: { id: 9, alias: null, cohort: 'x' } }),
    incident('cohort_silent'),
    incident('network_silent', { subject: '10.0.0.0/24' }),
    incident('ingest_down', { kind: 'reminder', reminder: 1 }),
    incident('cohort_silent', { kind: 'recovery' }),
    { type: 'test', version: 1, timestamp: AT, data: { kind: 'test', webhook: 'on-call' } } satisfies Body,
  ].map(body => describe(body).title)
  t.same(titles, [
    'lobby-7 is offline',
    'lobby-7 is late',
    'lobby-7 sends, but its app is down',
    'lobby-7 has a wrong clock',
    'lobby-7 is still offline',
    'lobby-7 still sends, but its app is down',
    'lobby-7 is back',
    'lobby-7 is online',
    'lobby-7 was revoked',
    'Device 9 is offline',
    'Cohort lobby fell silent',
    'Network 10.0.0.0/24 fell silent',
    'Still: no heartbeats could be stored',
    'Over: cohort lobby fell silent',
    'Test of the webhook on-call',
  ])
  t.same(describe(device('offline', { reason: 'battery', battery_pct: 2, kind: 'reminder', reminder: 3 })).lines, [
    'Cohort lobby, since 2026-11-29 17:54 UTC',
    'Reason: its battery was empty',
    'Battery 2 %',
    'Reminder 3',
  ])
  t.same(describe(device('back', { kind: 'recovery' })).lines, ['Cohort lobby, at 2026-11-29 18:04 UTC', 'It lasted 10 min'])
})

t.test('an alias is text to every receiver, not markup', async t => {
  const alias = '<!channel> *x* [a](http://evil) & "q" \n日本'
  const body = device('offline', { device: { id: 7, alias, cohort: '<@U1>' } })
  const slack = parsed(body, 'slack').json as { text: string }
  t.notMatch(slack.text, /[<>]/)
  t.match(slack.text, '&lt;!channel&gt; *x* [a](http://evil) &amp; "q"')
  const teams = JSON.stringify(parsed(body, 'teams').json)
  t.notMatch(teams, /"TextBlock"/, 'only runs of plain text')
  t.match(parsed(body, 'json').json, { data: { device: { alias } } })
  t.match(parsed(body, 'ntfy').json, { title: `${alias} is offline` })
})

t.test('slack, teams and ntfy get what their documentation asks for', async t => {
  t.same(parsed(incident('cohort_silent'), 'slack').json, {
    text: ':red_circle: Cohort lobby fell silent\n40 devices\nSince 2026-11-29 17:54 UTC',
  })
  t.match(parsed(device('back', { kind: 'recovery' }), 'teams').json, {
    type: 'message',
    attachments: [
      {
        contentType: 'application/vnd.microsoft.card.adaptive',
        content: {
          type: 'AdaptiveCard',
          version: '1.4',
          body: [{ type: 'RichTextBlock', inlines: [{ type: 'TextRun', text: 'lobby-7 is back', color: 'Good' }] }],
        },
      },
    ],
  })
  t.same(parsed(device('offline'), 'ntfy', 'https://me:pw@ntfy.example/fleet-alerts'), {
    to: 'https://me:pw@ntfy.example/',
    json: {
      topic: 'fleet-alerts',
      title: 'lobby-7 is offline',
      message: 'Cohort lobby, since 2026-11-29 17:54 UTC',
      priority: 4,
      tags: ['warning'],
    },
  })
})

t.test('an alert for Alertmanager has the same labels until it ends', async t => {
  const alert = (body: Body) => (parsed(body, 'alertmanager').json as unknown as [Record<string, unknown>])[0]
  const late = alert(device('late'))
  t.match(late, {
    labels: { alertname: 'DeviceTrouble', device_id: '7' },
    annotations: { summary: 'lobby-7 is late', device: 'lobby-7', cohort: 'lobby' },
    startsAt: '2026-11-29T17:54:05.000Z',
    endsAt: '2027-11-29T18:05:00.000Z',
  })
  for (const body of [device('offline', { kind: 'change' }), device('back', { kind: 'recovery' })])
    t.same(alert(body).labels, late.labels)
  const moved = device('back', { kind: 'recovery', device: { id: 7, alias: 'hall-1', cohort: 'hall' } })
  t.same(alert(moved).labels, late.labels, 'also if it has another name and cohort now')
  t.equal(alert(device('back', { kind: 'recovery' })).endsAt, '2026-11-29T18:05:00.000Z')
  t.equal(parsed(device('late'), 'alertmanager', 'http://am:9093').to, 'http://am:9093/api/v2/alerts')
  t.equal(parsed(device('late'), 'alertmanager', 'http://am/prefix/api/v2/alerts').to, 'http://am/prefix/api/v2/alerts')
})

t.test('a replay says that it is one, and is trouble or not as the message was', async t => {
  t.match(describe(device('back', { kind: 'replay', replay_of: 'recovery' })), { title: 'lobby-7 is back', isTrouble: false })
  t.match(describe(device('offline', { kind: 'replay', replay_of: 'first' })), {
    isTrouble: true,
    lines: [/^Cohort/, 'Sent again; it happened at 2026-11-29 18:04 UTC'],
  })
})

t.test('each format arrives as the database makes its messages', async t => {
  const db = await withDatabase(t)
  const receiver = await withReceiver(t)
  const [one, two] = (await enroll(db.sql, 2)) as [number, number]
  for (const format of ['json', 'slack', 'teams', 'ntfy'])
    await db.sql`select fleet.create_webhook(${format}, ${`${receiver.url}/${format}`}, p_format => ${format}, p_grace => '0')`
  await change(db.sql, one, { event: 'offline', reason: 'battery' })
  await change(db.sql, one, { event: 'back', from: 'offline' })
  await closeIncident(db.sql, await openIncident(db.sql, 'cohort', 'default', [two], '10 minutes'))
  t.match(await notifyOnce(t, db), { code: 0 })
  t.equal(receiver.received.length, 16)
  const texts = (path: string) => receiver.received.filter(received => received.path === path).map(({ text }) => text)
  t.match(texts('/slack').join('\n'), /device-1 is offline[^]*its battery was empty[^]*device-1 is back/)
  t.match(texts('/teams').join('\n'), /Cohort default fell silent[^]*Over: cohort default fell silent/)
  t.equal(texts('/').length, 4, 'ntfy')
  const [first] = await messages(db.sql, 'json')
  t.same(JSON.parse(texts('/json').find(text => text.includes('device.offline'))!), first!.body)
})

t.test(
  'Alertmanager shows the trouble of a device until it is back',
  { skip: alertmanager.without, timeout: 120_000 },
  async t => {
    const { url } = await withAlertmanager(t)
    const db = await withDatabase(t)
    const [one, two] = (await enroll(db.sql, 2)) as [number, number]
    await db.sql`select fleet.create_webhook('hook', ${url}, array['late', 'offline', 'cohort_silent'], p_grace => '0', p_format => 'alertmanager')`
    const alerts = async () => {
      const answer = await fetch(`${url}/api/v2/alerts`)
      const list = (await answer.json()) as {
        labels: Record<string, string>
        annotations: { summary: string }
        status: { state: string }
      }[]
      return list.map(({ labels, annotations }) => `${labels.alertname} ${annotations.summary}`).sort()
    }
    await change(db.sql, one, { event: 'late' })
    t.match(await notifyOnce(t, db), { code: 0 })
    t.same(await alerts(), ['DeviceTrouble device-1 is late'])
    await change(db.sql, one, { event: 'offline', from: 'late' })
    const cohort = await openIncident(db.sql, 'cohort', 'default', [two])
    t.match(await notifyOnce(t, db), { code: 0 })
    t.same(
      await alerts(),
      ['CohortSilent Cohort default fell silent', 'DeviceTrouble device-1 is offline'],
      'one alert for a device',
    )
    await change(db.sql, one, { event: 'back', from: 'offline' })
    t.match(await notifyOnce(t, db), { code: 0 })
    await waitFor(async () => (await alerts()).length === 1)
    t.same(await alerts(), ['CohortSilent Cohort default fell silent'])
    await closeIncident(db.sql, cohort)
    t.match(await notifyOnce(t, db), { code: 0 })
    await waitFor(async () => (await alerts()).length === 0)
    await db.sql`select fleet.test_webhook('hook')`
    t.match(await notifyOnce(t, db), { code: 0 })
    t.same(await alerts(), ['WebhookTest Test of the webhook hook'])
    await change(db.sql, one, { event: 'offline' })
    t.match(await notifyOnce(t, db), { code: 0 })
    await db.sql`select fleet.erase_device(${one}, 'a test')`
    t.match(await notifyOnce(t, db), { code: 0 })
    t.match(await alerts(), ['DeviceTrouble device-1 is offline', /^WebhookTest/], 'of a device that is gone it hears no more')
    const command = /amtool --alertmanager\.url=\S+ (alert add [^]*?) --end=/.exec(
      await readFile('docs/webhooks.md', 'utf8'),
    )![1]!
    const words = command.replaceAll(/\\\n/g, ' ').replace('device_id=42', `device_id=${one}`).split(/\s+/)
    await amtool(`--alertmanager.url=${url}`, ...words, `--end=${new Date().toISOString()}`)
    await waitFor(async () => (await alerts()).length === 1)
    t.match(await alerts(), [/^WebhookTest/], 'until somebody ends it as docs/webhooks.md says')
  },
)
