import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { configurePrometheus, prometheus, promtool } from '../../testing/prometheus.ts'
import { withDatabase } from '../../testing/database.ts'
import { asRole } from '../../testing/fleet.ts'
import { metricNames, readAlerts } from '../../testing/monitoring.ts'
import { repository } from '../../lib/repository.ts'

const here = join(repository, 'docker/prometheus')

t.test('promtool finds no problem', { skip: prometheus.without }, async t => {
  const dir = await configurePrometheus(t, { adminKey: 'x', servers: ['127.0.0.1:1'] })
  const config = await promtool('check', 'config', join(dir, 'prometheus.yml'))
  t.ok(config.isOk, config.output)
  t.equal(config.output.match(/SUCCESS: \d+ rules found/g)?.length, 3, config.output)
  for (const name of ['servers', 'haproxy', 'prometheus', 'alertmanagers']) {
    t.match(await readFile(join(here, 'targets', `${name}.yml`), 'utf8'), /^(- targets: \[|# .*\n\[\]\n$)/, name)
  }
})

t.test('every alert fires and ends', { skip: prometheus.without }, async t => {
  const { isOk, output } = await promtool('test', 'rules', join(here, 'tests/alerts.yml'))
  t.ok(isOk, output)
  const tests = await readFile(join(here, 'tests/alerts.yml'), 'utf8')
  const fired = new Map(
    [...tests.matchAll(/^ {6}- alertname: (\w+)\n +eval_time: (\w+)\n +exp_alerts:\n +- exp_labels:/gm)].map(([, name, time]) => [
      name!,
      minutes(time!),
    ]),
  )
  const ended = new Map(
    [...tests.matchAll(/^ {6}- \{alertname: (\w+), eval_time: (\w+), exp_alerts: \[\]\}$/gm)].map(([, name, time]) => [
      name!,
      minutes(time!),
    ]),
  )
  const names = (await readAlerts()).map(({ name }) => name)
  t.ok(names.length > 8)
  t.equal(new Set(names).size, names.length, 'no name twice')
  t.same(
    names.filter(name => !fired.has(name)),
    [],
    'each fires',
  )
  t.same(
    names.filter(name => !(ended.get(name)! > fired.get(name)!)),
    [],
    'and ends again',
  )
})

function minutes(time: string) {
  return parseInt(time) * (time.endsWith('h') ? 60 : 1)
}

t.test('every alert has a text with its value, and links to a section of the runbook that lists it', async t => {
  const runbook = await readFile(join(here, '../../RUNBOOK.md'), 'utf8')
  const anchors = [...runbook.matchAll(/^## (.*)$/gm)].map(match => match[1]!.toLowerCase().replaceAll(' ', '-'))
  const listed = new Map(
    [...runbook.matchAll(/^\| `([A-Z]\w+)`.*\| \[[^\]]*\]\(#([a-z-]+)\) \| `.*` \|$/gm)].map(([, name, anchor]) => [
      name!,
      anchor!,
    ]),
  )
  const found = await readAlerts()
  for (const { name, body } of found) {
    t.match(body, /^ +for: \d+[mh]$/m, `${name} waits`)
    t.match(body, /^ +labels: \{severity: (critical|warning)\}$/m, `${name} has a severity`)
    t.match(body, /^ +summary: \S/m, `${name} has a summary`)
    t.match(body, /^ +description: .*\{\{ \$value/m, `${name} shows its value`)
    const anchor = /^ +runbook_url: RUNBOOK\.md#([a-z-]+)$/m.exec(body)?.[1]
    t.ok(anchors.includes(anchor ?? ''), `${name} links to ${anchor}`)
    t.equal(listed.get(name), anchor, `${name} is in the table of the runbook`)
  }
  t.same([...listed.keys()].toSorted(), found.map(({ name }) => name).toSorted())
})

t.test('the alerts have the targets of fleet.slo', async t => {
  const { sql } = await withDatabase(t)
  const targets = await sql<{ slo: string; target: string }[]>`select slo, target::text from fleet.slo`
  for (const { slo, target } of targets) {
    const of = (await readAlerts()).filter(({ body }) => body.includes(`slo="${slo}"`))
    t.equal(of.length, 2)
    for (const { name, body } of of) {
      const numbers = [...body.matchAll(/> (?:6 \* )?(0\.\d+)/g)].map(match => Number(match[1]))
      t.ok(numbers.length > 0 && numbers.every(number => number === Number(target)), name)
      t.match(body, `${Number(target) * 100} %`, `${name} says so`)
    }
  }
})

t.test('the first check that the runbook gives for each alert runs as fleet_dba', async t => {
  const runbook = await readFile(join(here, '../../RUNBOOK.md'), 'utf8')
  const looks = new Set([...runbook.matchAll(/^\| `[A-Z]\w+`.* \| `(select .*)` \|$/gm)].map(match => match[1]!))
  t.ok(looks.size > 8)
  const session = asRole(t, await withDatabase(t), 'fleet_dba')
  for (const look of looks) await t.resolves(session.unsafe(look), look)
})

t.test('the names that an expression has', async t => {
  t.same(
    metricNames('100 * sum by (instance) (rate(a_total{b="c", d=~"e|f"}[5m])) / max(g:h) offset 30m > 1 and on (i) j == 1'),
    ['a_total', 'g:h', 'j'],
  )
})
