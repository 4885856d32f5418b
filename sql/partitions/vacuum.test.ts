import t from 'tap'
import { withDatabase } from '../../testing/database.ts'
import { asRole, daysAgo, enroll, ingest, partitionAt, value } from '../../testing/fleet.ts'

t.test('autovacuum is tuned by age, cold partitions are frozen once, and the last 7 days are vacuumed each night', async t => {
  const db = await withDatabase(t)
  const owner = asRole(t, db, 'fleet_owner')
  const [device] = (await enroll(owner, 1)) as [number]
  await owner`update fleet.settings set max_late = '20 days'`
  const days = { hot: daysAgo(0), recent: daysAgo(5), cold: daysAgo(15) }
  await ingest(
    owner,
    Object.values(days).map(ts => ({ device_id: device, ts })),
  )
  await owner`update fleet.settings set max_late = '7 days'`
  const partition = {
    hot: await partitionAt(owner, days.hot),
    recent: await partitionAt(owner, days.recent),
    cold: await partitionAt(owner, days.cold),
  }
  const options = (name: string) => value(owner`select reloptions from pg_class where oid = ${`fleet.${name}`}::regclass`)

  await owner`call fleet.nightly()`
  t.same(await options(partition.hot), ['autovacuum_analyze_scale_factor=0.02', 'autovacuum_vacuum_insert_scale_factor=0.05'])
  t.equal(await options(partition.recent), null)
  t.same(await options(partition.cold), ['autovacuum_enabled=false'])
  t.equal(await value(owner`select fleet.tune_autovacuum()`), 0, 'a second call changes nothing')

  const command = async (job: string) =>
    (await value(owner`select command from fleet.job_definitions() where jobname = ${job}`)) as string | undefined
  const nightly = (await command('fleet-vacuum')) ?? ''
  t.ok(nightly.includes(partition.hot) && nightly.includes(partition.recent) && !nightly.includes(partition.cold), nightly)
  t.equal(nightly.split(',').length, 8, 'today and the seven days before it')
  await owner.unsafe(nightly)

  const freeze = await command('fleet-freeze')
  t.equal(freeze, `vacuum (freeze, analyze) fleet.${partition.cold}`)
  await owner.unsafe(freeze ?? '')
  t.equal(await command('fleet-freeze'), undefined, 'it is not frozen again')

  await owner`select fleet.tune_autovacuum(now() + interval '6 days')`
  t.equal(await options(partition.hot), null, 'the hot partition is recent after some days')
  t.same(await options(partition.recent), ['autovacuum_enabled=false'], 'and the recent one is cold')
  t.equal(await command('fleet-freeze'), `vacuum (freeze, analyze) fleet.${partition.recent}`)
})
