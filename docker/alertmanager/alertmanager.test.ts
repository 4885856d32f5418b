import { join } from 'node:path'
import t from 'tap'
import { repository } from '../../lib/repository.ts'
import { prometheus, withPrometheus } from '../../testing/prometheus.ts'
import { waitFor } from '../../testing/database.ts'
import { alertmanager, amtool, withAlertmanager } from '../../testing/alertmanager.ts'
import { blocksOf, readPage, runShell } from '../../testing/pages.ts'

t.test('amtool finds no problem, and the routes are those of docs/alert-me.md', { skip: alertmanager.without }, async t => {
  t.match(
    await amtool('check-config', join(repository, 'docker/alertmanager/alertmanager.yml')),
    /SUCCESS[^]*1 inhibit rules[^]*2 receivers/,
  )
  const [routes = '', ...others] = blocksOf(await readPage('docs/alert-me.md'), 'sh')
  t.same(others, [])
  const { code, output } = await runShell(routes, {})
  // Debian's amtool warns each time that the file overrides its URL, before or after it prints the route.
  const printed = output.split('\n').filter(line => line !== '' && !line.startsWith('Warning: '))
  t.same({ code, printed }, { code: 0, printed: ['slack-and-email', 'slack'] })
})

t.test('an alert of Prometheus arrives in Slack and by e-mail', { skip: alertmanager.without || prometheus.without }, async t => {
  const { address, url, messages, mails, server } = await withAlertmanager(t)
  const rules = `
groups:
  - name: try
    rules:
      - alert: TryOut
        expr: up{job="nexmdm"} == 0
        labels: {severity: critical}
        annotations: {summary: 'a summary', description: 'a description', runbook_url: 'RUNBOOK.md#a-section'}
      - alert: OnlyAWarning
        expr: up{job="nexmdm"} == 0
        labels: {severity: warning}
        annotations: {summary: 'a warning', description: 'a description', runbook_url: 'RUNBOOK.md#a-section'}
`
  await withPrometheus(t, { adminKey: 'x', servers: ['127.0.0.1:1', '127.0.0.1:2'], alertmanagers: [address], rules })
  await waitFor(async () => messages.length >= 2 && mails.length >= 1, { timeoutMs: 60_000, what: server.output })
  const [critical] = messages.filter(({ title }) => title === 'TryOut (critical)')
  t.match(critical, { channel: '#fleet', text: /^a summary\na description\nRUNBOOK.md#a-section\n/ })
  t.match(
    messages.filter(({ title }) => title === 'OnlyAWarning (warning)'),
    [{ text: /^a warning\n/ }],
    'one message for both servers',
  )
  t.match(mails[0], /^Subject: TryOut: a summary\r?$/m)
  t.match(mails[0], /a description/)
  t.match(mails[0], /^To: oncall@example\.com\r?$/m)
  t.notMatch(mails.join(), /OnlyAWarning/, 'a warning is not sent by e-mail')

  const [, adding = ''] = /^(amtool .* alert add .*)$/m.exec(await readPage('docs/alert-me.md')) ?? []
  const by = (command: string) => runShell(command.replace('http://127.0.0.1:9093', url), {})
  t.match(await by(adding), { code: 0 })
  t.match(await by('amtool --alertmanager.url=http://127.0.0.1:9093 alert query'), { code: 0, output: /This is a test/ })
  const [, silencing = ''] = /^(amtool .* silence add .*)$/m.exec(await readPage('docs/alert-me.md')) ?? []
  t.match(await by(silencing), { code: 0 })
  t.same(
    (await by('amtool --alertmanager.url=http://127.0.0.1:9093 alert query')).output.trim().split('\n').slice(1),
    [],
    'all of them are silenced',
  )
})
