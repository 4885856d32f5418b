import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Sql } from 'postgres'
import t from 'tap'
import { daysAgo, fillDay, makeDirectory, partitionOf, runOnce } from '../archiver.ts'
import { isCI, leftToCi, needsRealClock } from '../../local/config.ts'
import { spawnNode, withDatabase } from '../database.ts'
import { enroll, ingest } from '../fleet.ts'
import { change, messages, type Received } from '../webhooks.ts'
import { checkNow, daysOnline, heartbeats, leftovers } from './invariants.ts'
import { rowsOf, type Rows } from '../rows.ts'
import { untold } from './told.ts'

// The drills make their own durable cluster.
t.setTimeout(600_000)

// The faults of S3 need a store that takes long to start. archiver/store/s3-archive.test.ts tests them too.
const skip = leftToCi() || needsRealClock('the drills move clocks themselves')
t.test('ten faults under load lose nothing', { skip }, async t => {
  const directory = await mkdtemp(join(tmpdir(), 'fleet-drills-test-'))
  t.teardown(() => rm(directory, { recursive: true, force: true }))
  const file = join(directory, 'DRILLS.md')
  const drills = await spawnNode(t, 'testing/drills/main.ts', {
    args: ['--count', '10', '--seed', '9', '--no-s3', '--devices', '600', '--report', file],
  })
  t.equal((await drills.exited).code, 0, drills.output())
  const report = await readFile(file, 'utf8')
  t.match(report, /^Nothing was lost\.$/m)
  t.match(report, /--count 10 --seed 9 --no-s3/)
  t.equal(report.match(/^\| .+ \| 1 \| [\d.]+ \|/gm)?.length, 10, 'ten kinds, each once')
  t.match(report, /^- [1-9]\d* archives were read back/m)
  if (isCI()) t.notMatch(report, /faketime/, 'in CI no package is missing')
})

t.test('the checks after a fault find each kind of loss', async t => {
  const db = await withDatabase(t)
  const [device_id] = await enroll(db.sql, 1)
  const times = [30, 20, 10].map(minutes => new Date(Date.now() - minutes * 60_000))
  await ingest(
    db.sql,
    times.map(ts => ({ device_id: device_id!, ts: ts.toISOString(), battery_pct: 50 })),
  )
  const beats = times.map(ts => ({ device_id: device_id!, ts: ts.getTime(), status: 201 }))
  const system = {
    ask: <T>(use: (sql: Sql) => Promise<T>) => use(db.admin),
    written: new Map<string, Rows>(),
  }
  const day = daysAgo(50)
  await fillDay(db.admin, day, 300)
  const partition = await partitionOf(db.sql, day)
  system.written.set(partition, await rowsOf(db.admin, `fleet.${partition}`))
  await checkNow(system, beats)
  t.same(await daysOnline(db.admin, system), [])

  const found = async (message: RegExp, what: string) => t.rejects(checkNow(system, beats), { name: 'Error', message }, what)
  const [kept] = await db.admin`select * from fleet.device_heartbeats where device_id = ${device_id!} and ts = ${times[0]!}`
  await db.admin`delete from fleet.device_heartbeats where device_id = ${device_id!} and ts = ${times[0]!}`
  await found(/^heartbeat of device \d+ at .*, answered with 201, is not stored exactly once$/, 'a stored heartbeat')
  t.same((await heartbeats(db.admin, [{ ...beats[0]!, status: 200 }])).length, 1, 'a duplicate of a heartbeat that is not there')
  t.same((await heartbeats(db.admin, [{ ...beats[1]!, status: 202 }])).length, 1, 'a heartbeat that should be in quarantine')
  await db.admin`insert into fleet.device_heartbeats ${db.admin(kept!)}`
  await checkNow(system, beats)

  await db.admin`update fleet.device_last_status set battery_pct = 7 where device_id = ${device_id!}`
  await found(/^last status of device/, 'a last status that is not from the newest heartbeat')
  await db.admin`update fleet.device_last_status set battery_pct = 50 where device_id = ${device_id!}`

  const bounds = `for values from ('${day} 00:00:00Z') to ('${new Date(Date.parse(day) + 86_400_000).toISOString()}')`
  await db.admin.unsafe(`alter table fleet.device_heartbeats detach partition fleet.${partition}`)
  await found(RegExp(`^${partition} is active, but not attached$`), 'a day that is not attached')
  await db.admin.unsafe(`alter table fleet.device_heartbeats attach partition fleet.${partition} ${bounds}`)
  await checkNow(system, beats)

  await db.admin`delete from fleet.device_heartbeats where device_id = 7 and ts < ${day}::date + 1`
  t.match(await daysOnline(db.admin, system), [/ has \d+ rows .*, but 300 rows .* were written/], 'rows of a past day')
  const directory = await makeDirectory(t)
  await db.sql`select fleet.archive_partition(${partition})`
  t.equal((await runOnce(t, db, directory)).code, 0)
  await found(/ is dropped with \d+ rows .*, but 300 rows .* were written/, 'and of a day that is only in the archive')
  system.written.delete(partition)
  await found(/but 0 rows .* were written/, 'or that nobody wrote')

  t.same(await leftovers(db.admin), [])
  await db.sql.unsafe(`create table fleet.restoring_${partition} (); create table fleet_detached.${partition} ()`)
  t.same((await leftovers(db.admin)).sort(), [
    `fleet.restoring_${partition} was left behind`,
    `fleet_detached.${partition} was left behind`,
  ])
})

t.test('the check of messages finds each way in which a webhook can be told wrongly', async t => {
  const { sql, admin } = await withDatabase(t)
  const [device] = (await enroll(sql, 1)) as [number]
  await sql`select fleet.create_webhook('drills', 'https://hooks.example/', array['offline'], p_grace => '0')`
  await change(admin, device, { event: 'offline' })
  await change(admin, device, { event: 'back', from: 'offline' })
  await admin`update fleet.webhook_deliveries set state = 'delivered', delivered_at = now()`
  const copies = (await messages(admin, 'drills')).map(({ message_id, body }) => ({
    headers: { 'webhook-id': message_id },
    path: '/',
    text: JSON.stringify(body),
    body,
  }))
  const [offline, back] = [copies[0]!, copies[1]!]
  const found = (received: Received[]) => untold(admin, [device], received)
  t.same(await found([offline, offline, back]), [], 'a copy is nothing wrong')
  t.match(await found([back, offline]), [/came after a later one/])
  t.match(await found([offline, back, offline]), [/came after a later one/], 'also if it is a copy')
  t.match(await found([offline]), [/counts as delivered and never arrived/])
  t.match(await found([offline, { ...offline, text: '{}' }, back]), [/arrived with different content/])
  await admin`update fleet.webhook_deliveries set state = 'dead' where kind = 'recovery'`
  t.match(await found([offline, back]), [/^back of device \d+ \(\d+, .*\) has 1 messages: dead$/])
  await admin`delete from fleet.webhook_deliveries where kind = 'recovery'`
  t.match(await found([offline, back]), [/^back of device \d+ \(\d+, .*\) has 0 messages/])
  await admin`
    insert into fleet.device_transitions (position, device_id, cohort, at, since, event, status, previous_status)
    select position, device_id, cohort, at, since, event, status, previous_status
    from fleet.device_transitions where event = 'back'`
  t.match((await found([offline, back])).join('\n'), /is back twice in a row/)
})

t.test('a wrong option is answered with the usage and code 2', async t => {
  const drills = await spawnNode(t, 'testing/drills/main.ts', { args: ['--count', 'many'] })
  t.match(await drills.exited, { code: 2 })
  t.match(drills.output(), /--count needs a whole number of at least 1, got many[^]*--seed/)
})
