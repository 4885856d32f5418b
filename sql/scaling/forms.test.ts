// What a plain store accepts and Citus does not, found in the text of sql/. The tests on nodes (npm run test:citus) find the rest.
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { repository } from '../../lib/repository.ts'
import { withPlainDatabase } from '../../testing/database.ts'

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

t.test(
  'who may read a view may read the distributed tables in it, because Citus reads them with the rights of the login',
  async t => {
    const { admin } = await withPlainDatabase(t)
    const missing = await admin<{ view: string; table: string; role: string }[]>`
    with recursive reads (view, relation) as (
      select r.ev_class, d.refobjid
      from pg_rewrite r
      join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
      where d.refclassid = 'pg_class'::regclass and d.refobjid <> r.ev_class
      union
      select reads.view, d.refobjid
      from reads
      join pg_rewrite r on r.ev_class = reads.relation
      join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
      where d.refclassid = 'pg_class'::regclass and d.refobjid <> r.ev_class
    )
    select v.relname as view, c.relname as table, l.rolname as role
    from reads
    join pg_class v on v.oid = reads.view and v.relnamespace = 'fleet'::regnamespace
    join pg_class c on c.oid = reads.relation and c.relname = any (${DISTRIBUTED})
    join pg_roles l on l.rolname ~ '^fleet_'
    where has_table_privilege(l.oid, v.oid, 'select') and not has_any_column_privilege(l.oid, c.oid, 'select')
      and v.relname <> 'device_status_legacy' and l.rolname <> 'fleet_cohort_reader'
    order by 1, 2, 3`
    t.same([...missing], [])
  },
)
