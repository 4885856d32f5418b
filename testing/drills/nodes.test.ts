import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { createServer, connect } from 'node:net'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { withoutCitus } from '../citus.ts'
import { spawnNode, waitFor, withDatabase } from '../database.ts'
import { withServer } from '../server.ts'
import { Agents } from './agents.ts'
import { wireTo } from './cut.ts'

t.test('each kind of fault on a distributed store loses nothing', { skip: withoutCitus, timeout: 900_000 }, async t => {
  const directory = await mkdtemp(join(tmpdir(), 'fleet-drills-test-'))
  t.teardown(() => rm(directory, { recursive: true, force: true }))
  const file = join(directory, 'NODES.md')
  const drills = await spawnNode(t, 'testing/drills/nodes.ts', {
    args: ['--count', '9', '--seed', '3', '--devices', '30', '--report', file],
  })
  t.equal((await drills.exited).code, 0, drills.output())
  const report = await readFile(file, 'utf8')
  t.match(report, /^Nothing was lost\.$/m)
  t.match(report, /^\| worker added \| 1 \|/m)
  t.match(report, /^- [1-9]\d* archives were read back/m)
})

t.test('the checks find what is missing, doubled, invented or behind', async t => {
  const db = await withDatabase(t)
  const agents = await Agents.enroll(db.admin, 3)
  const { url } = await withServer(t, {}, db)
  const stage = { server: { output: () => '' } }
  agents.send(() => url)
  await agents.more(stage)
  await agents.more(stage)
  await agents.stop()
  t.same(await agents.problems(db.admin, true), [])
  const [row] = await db.admin<{ device_id: string; ts: Date; table: string }[]>`
    select device_id, ts, tableoid::regclass::text as table from fleet.device_heartbeats order by device_id, ts limit 1`
  const { device_id, ts, table } = row!
  await db.admin.unsafe('set session_replication_role = replica')
  const trouble = async (statement: string, what: RegExp) => {
    await db.admin.unsafe(statement).catch((error: unknown) => t.fail(String(error)))
    t.match((await agents.problems(db.admin, true)).join('\n'), what)
  }
  const where = `device_id = ${device_id} and ts = '${ts.toISOString()}'`
  await trouble(
    `create table public.kept as select * from ${table} where ${where}; delete from ${table} where ${where}`,
    /is stored 0 times/,
  )
  await trouble(`insert into ${table} select * from public.kept`, /^$/)
  await trouble(`update ${table} set ts = ts + interval '3 s' where ${where}`, /never sent what is stored/)
  await db.admin.unsafe(
    `update ${table} set ts = ts - interval '3 s' where device_id = ${device_id} and ts = '${ts.toISOString()}'::timestamptz + interval '3 s'`,
  )
  await trouble(
    `update fleet.device_last_status set last_ts = last_ts - interval '10 s' where device_id = ${device_id}`,
    /last status of device .* is from/,
  )
})

t.test('a wire that is cut lets nothing through until it is mended', async t => {
  const echo = createServer(socket => socket.pipe(socket))
  await new Promise<void>(resolve => echo.listen(0, '127.0.0.1', resolve))
  const wire = await wireTo((echo.address() as AddressInfo).port)
  t.teardown(async () => {
    await wire.end()
    echo.close()
  })
  const socket = connect(wire.port, '127.0.0.1')
  let got = ''
  socket.on('data', data => (got += data.toString()))
  socket.write('a')
  await waitFor(async () => got === 'a')
  wire.cut()
  socket.write('b')
  await sleep(300)
  t.equal(got, 'a')
  const late = connect(wire.port, '127.0.0.1')
  let other = ''
  late.on('data', data => (other += data.toString()))
  late.write('c')
  await sleep(300)
  t.equal(other, '')
  wire.mend()
  await waitFor(async () => got === 'ab' && other === 'c')
  t.equal(got, 'ab')
  socket.destroy()
  late.destroy()
})
