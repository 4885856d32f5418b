// What a plain store accepts and Citus does not, found in the text of sql/. The tests on nodes (npm run test:citus) find the rest.
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { repository } from '../../lib/repository.ts'

const DISTRIBUTED = [
  'device_heartbeats',
  'device_last_status',
  'late_arrivals',
  'heartbeat_quarantine',
  'device_availability_daily',
  'device_commands',
  'command_dispatch_log',
  'device_unreadable_fields',
  'device_slowdowns',
]

t.test('EXISTS over a distributed table selects something: Citus cannot pass on rows without columns', async t => {
  const empty = new RegExp(
    `exists\\s*\\(\\s*select\\s+from\\s+(?:(?:only\\s+)?(?:%[sI]|\\$\\{)|fleet\\.(?:${DISTRIBUTED.join('|')})\\b)`,
  )
  t.match('if exists (select from fleet.late_arrivals l)', empty)
  t.match('exists (\n  select from only %s)', empty)
  const names = await readdir(join(repository, 'sql'), { recursive: true })
  // A distributed store has no imports.
  const files = names.filter(file => file.endsWith('.sql') && !file.startsWith('import/')).map(file => join('sql', file))
  for (const folder of ['archiver', 'server', 'notifier', 'lib'])
    for (const name of await readdir(join(repository, folder), { recursive: true }))
      if (/(?<!\.test)\.ts$/.test(name)) files.push(join(folder, name))
  for (const file of files) t.notMatch(await readFile(join(repository, file), 'utf8'), empty, file)
})

t.test(
  'each sorted view of distributed tables has a form that ends with OFFSET 0: otherwise each shard is sorted alone',
  async t => {
    const sorted: string[] = []
    const names = (await readdir(join(repository, 'sql'), { recursive: true })).filter(file => file.endsWith('.view.sql'))
    for (const name of names) {
      const [text = ''] = (await readFile(join(repository, 'sql', name), 'utf8')).split('\ncomment on')
      // These read devices by their status. Those that count or list something else have few rows, or read tables of the coordinator.
      if (!/^order by/m.test(text) || !/\bfleet\.device_state\b/.test(text) || /\bcount\(/.test(text)) continue
      const view = name.replace(/^.*\//, '')
      sorted.push(view)
      t.match(await readFile(join(repository, 'sql/distributed', view), 'utf8'), /\norder by [^;]*\noffset 0;\n/, view)
    }
    t.same([...new Set(sorted)].sort(), ['devices_offline.view.sql', 'missed_beats.view.sql', 'unity_down.view.sql'])
  },
)
