import t from 'tap'
import { waitFor, withDatabase } from '../testing/database.ts'
import { openListener } from './listener.ts'
import { connectWorker } from './database.ts'
import { createLog } from './log.ts'

const db = await withDatabase(t)
let woken = 0
const listener = openListener({
  service: 'archiver',
  channel: 'fleet_archiver',
  worker: 'me',
  connect: () =>
    connectWorker({ url: db.url('fleet_archiver') }, { max: 1, connection: { application_name: 'fleet-archiver listen' } }),
  onWake: () => woken++,
  log: createLog('archiver', 'silent'),
})
t.teardown(() => listener.close())
const terminate = () => db.admin`
  select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and application_name = 'fleet-archiver listen'`

t.test('it wakes when it begins to listen, and on each notification', async t => {
  await listener.listen()
  t.equal(woken, 1)
  await db.sql.notify('fleet_archiver', 'work')
  await waitFor(async () => woken === 2)
  await listener.check()
  await db.sql.notify('fleet_archiver', 'ping another')
  await db.sql.notify('fleet_archiver', 'work')
  await waitFor(async () => woken === 3)
  t.equal(woken, 3, 'the pings of other archivers do not wake it')
})

t.test('a lost connection is opened again, and missed work is looked for', async () => {
  const before = woken
  await terminate()
  await waitFor(async () => woken > before)
})

t.test('also after the database was unavailable for a while', async t => {
  await db.admin.unsafe(`alter database ${db.name} connection limit 0`)
  await terminate()
  await new Promise(resolve => setTimeout(resolve, 200))
  await db.admin.unsafe(`alter database ${db.name} connection limit -1`)
  await listener.check()
  await listener.check()
  const before = woken
  await db.sql.notify('fleet_archiver', 'work')
  await waitFor(async () => woken > before)
  t.ok(woken > before)
})
