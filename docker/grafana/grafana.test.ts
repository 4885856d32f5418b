import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { readDashboards } from '../../testing/monitoring.ts'
import { repository } from '../../lib/repository.ts'

const here = join(repository, 'docker/grafana')

t.test('the dashboards are provisioned, with the data sources that they use', async t => {
  const sources = await readFile(join(here, 'provisioning/datasources/nexmdm.yml'), 'utf8')
  const provisioned = new Map([...sources.matchAll(/^ {4}uid: (\S+)\n {4}type: (\S+)$/gm)].map(([, uid, type]) => [uid!, type!]))
  t.equal(provisioned.size, 2)
  t.match(sources, /user: fleet_reader\n/)
  t.notMatch(sources, /password: (?!\$__file\{)/, 'no password')
  t.match(
    await readFile(join(here, 'provisioning/dashboards/nexmdm.yml'), 'utf8'),
    /allowUiUpdates: false[^]*path: \/var\/lib\/grafana\/dashboards\n/,
  )

  const dashboards = await readDashboards()
  t.same(dashboards.map(({ uid }) => uid).toSorted(), ['nexmdm-database', 'nexmdm-fleet', 'nexmdm-ingest', 'nexmdm-partitions'])
  for (const { templating, panels } of dashboards) {
    for (const { datasource } of [...templating.list, ...panels]) t.equal(provisioned.get(datasource.uid), datasource.type)
  }
})

t.test('each panel has a description, a unit and a place of its own', async t => {
  for (const { title, templating, panels } of await readDashboards()) {
    t.equal(new Set(panels.map(({ id }) => id)).size, panels.length, `${title} has no id twice`)
    t.equal(new Set(panels.map(panel => panel.title)).size, panels.length, `${title} has no title twice`)
    const cells: string[] = []
    for (const {
      title: name,
      description,
      fieldConfig,
      gridPos: { x, y, w, h },
      targets,
    } of panels) {
      t.match(description, /\S.*\.$/, `${title}: ${name} is described`)
      t.ok(fieldConfig.defaults.unit, `${title}: ${name} has a unit`)
      t.ok(x + w <= 24)
      for (let cell = 0; cell < w * h; cell++) cells.push(`${x + (cell % w)},${y + Math.floor(cell / w)}`)
      const queries = targets.map(({ expr, rawSql }) => expr ?? rawSql ?? '').join('\n')
      const variables = [...queries.matchAll(/\$\{?(\w+)/g)].map(match => match[1]!)
      const known = ['__rate_interval', '__timeFilter', ...templating.list.map(variable => variable.name)]
      t.same(
        variables.filter(variable => !known.includes(variable)),
        [],
        `${title}: ${name} uses variables that exist`,
      )
    }
    t.equal(new Set(cells).size, cells.length, `${title}: no panel covers another`)
  }
})
