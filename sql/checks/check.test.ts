// fleet.check() of partitions, heartbeats, last status, archives and imports; check-postgres.test.ts has the rest.
import t from 'tap'
import { withCluster, withDatabase, withPlainDatabase } from '../../testing/database.ts'
import { plainOnly } from '../../testing/distributed.ts'
import { withHealthyStore, type HealthyStore } from '../../testing/troubles.ts'
import { troublesOfData } from '../../testing/troubles-of-data.ts'
import { troublesOfPostgres } from '../../testing/troubles-of-postgres.ts'
import { asRole, partitionAt, value } from '../../testing/fleet.ts'

t.setTimeout(900_000)

t.test('each check has a trouble in these tests, and each trouble has a check', async t => {
  const { sql } = await withPlainDatabase(t)
  const checks = await sql<{ check_name: string }[]>`select distinct check_name from fleet.check() order by 1`
  // Only their names are needed here; nothing is injected.
  const none = {} as HealthyStore
  t.same(
    [...new Set([...troublesOfData(none), ...troublesOfPostgres(none)].flatMap(trouble => trouble.checks))].sort(),
    checks.map(row => row.check_name).sort(),
  )
})

const ownCluster = plainOnly('it has a cluster of its own')
t.test('check() names each trouble with the data, and its remedy ends it', { timeout: 900_000, skip: ownCluster }, async t => {
  const store = await withHealthyStore(t)
  await store.goThrough(troublesOfData(store))
})

t.test('check() finds each trigger of the store that is disabled or missing, and its remedy brings it back', async t => {
  const db = await withDatabase(t)
  const { sql, admin } = db
  const owner = asRole(t, db, 'fleet_owner')
  const triggersOfStore = async () =>
    await sql<{ relation: string; name: string; definition: string; isOn: boolean }[]>`
      select g.tgrelid::regclass::text as relation, g.tgname as name, pg_get_triggerdef(g.oid) as definition, g.tgenabled <> 'D' as "isOn"
      from pg_trigger g
      join pg_class c on c.oid = g.tgrelid
      where c.relnamespace = 'fleet'::regnamespace and not g.tgisinternal
      order by 1, 2`.then(rows => rows.map(row => ({ ...row })))
  const checked = async () =>
    (
      await sql<
        { status: string; detail: string; remedy: string | null }[]
      >`select * from fleet.check_ingest() where check_name = 'triggers'`
    )[0]!
  const before = await triggersOfStore()
  t.ok(before.length >= 7, `${before.length} triggers`)
  t.match(await checked(), { status: 'ok', remedy: null })
  for (const { relation, name } of before) {
    for (const harm of [`alter table ${relation} disable trigger ${name}`, `drop trigger ${name} on ${relation}`]) {
      await admin.unsafe(harm)
      const { status, detail, remedy } = await checked()
      t.equal(status, 'fail', harm)
      t.equal(detail, `disabled or missing: ${name} on ${relation}`)
      t.match(remedy, /^-- as fleet_owner\n/)
      for (const line of remedy!.split('\n').filter(line => !line.startsWith('--'))) await owner.unsafe(line)
      t.match(await checked(), { status: 'ok', remedy: null }, `${harm}: the remedy undoes it`)
      t.same(await triggersOfStore(), before)
    }
  }

  await admin`drop trigger devices_note_change on fleet.devices`
  await sql`select fleet.record_triggers()`
  t.equal((await checked()).status, 'fail', 'a migration does not forget a trigger that was dropped by hand')
  await owner.unsafe((await checked()).remedy!)

  await admin`alter table fleet.restore_items disable trigger all`
  const foreignKey = await checked()
  t.match(foreignKey, { status: 'fail', detail: /a foreign key on fleet\.restore_items/, remedy: /^-- as superuser\n/ })
  await admin.unsafe(foreignKey.remedy!)
  t.match(await checked(), { status: 'ok' })
})

t.test('after the trigger of the guard was off, the remedy tells the guard what it missed', async t => {
  const db = await withDatabase(t)
  const { sql, admin } = db
  const partition = await partitionAt(sql, new Date(Date.now() + 5 * 86_400_000).toISOString())
  const isProven = async () =>
    await value(admin`select is_proven from fleet_guard.partitions where partition_name = ${partition}`)
  await admin`update fleet.hb_partitions set is_proven_empty = true where partition_name = ${partition}`
  t.equal(await isProven(), true)
  await admin`alter table fleet.hb_partitions disable trigger hb_partitions_protect`
  await admin`update fleet.hb_partitions set is_proven_empty = false where partition_name = ${partition}`
  t.equal(await isProven(), true, 'the guard has not heard of it')
  const { remedy } = (await sql`select remedy from fleet.check_ingest() where check_name = 'triggers'`)[0] as { remedy: string }
  await asRole(t, db, 'fleet_owner').unsafe(remedy)
  t.equal(await isProven(), false)
})

t.test('check() finds each event trigger that is disabled or missing', async t => {
  const { admin } = await withDatabase(t)
  const events = await admin<
    { name: string }[]
  >`select evtname as name from pg_event_trigger where evtname like 'fleet%' order by 1`
  t.ok(events.length >= 3, `${events.length} event triggers`)
  for (const { name } of events) {
    for (const harm of [
      `alter event trigger ${name} enable`,
      `alter event trigger ${name} disable`,
      `drop event trigger ${name}`,
    ]) {
      await admin
        .begin(async sql => {
          await sql.unsafe(harm)
          t.match(
            await sql`select status from fleet.check() where status <> 'ok' and detail like ${`%${name}%`}`,
            [{ status: 'warn' }],
            harm,
          )
          throw new Error('roll back')
        })
        .catch((error: Error) => t.equal(error.message, 'roll back'))
    }
  }
})

t.test('check() answers, whatever is broken', { skip: ownCluster }, async t => {
  const db = await withCluster(t)
  const { admin } = db
  const dba = asRole(t, db, 'fleet_dba')
  const failed = async () =>
    (await dba`select check_name from fleet.check() where detail like 'the check itself failed%'`).map(
      row => row.check_name as string,
    )
  await admin`alter table fleet.settings rename to mislaid`
  t.same(await failed(), [
    'check_partitions',
    'check_ingest',
    'check_silence',
    'check_archive',
    'check_erasures',
    'check_storage',
  ])
  await admin`alter table fleet.mislaid rename to settings`
  const locker = asRole(t, db, 'fleet_owner')
  await locker`begin`
  await locker`lock table fleet.hb_partitions, fleet.device_last_status, fleet.events in access exclusive mode`
  t.ok((await failed()).includes('check_ingest'), 'check() does not wait for a lock')
  await locker`rollback`
  await admin`drop extension pg_cron`
  await admin`drop function fleet_guard.lost_jobs()`
  await admin`drop function fleet_guard.memory_bytes()`
  await admin`revoke pg_monitor from fleet_owner`
  t.same(await failed(), [])
})
