// Copies of the store that Postgres keeps: logical subscribers, and a standby that takes over.
import postgres from 'postgres'
import t from 'tap'
import { daysAgo, fillDay, makeDirectory, partitionOf, workAll } from '../../testing/archiver.ts'
import { waitFor, withCluster, withReplica, type TestDatabase } from '../../testing/database.ts'
import { asRole, enroll, ingest, value } from '../../testing/fleet.ts'

const day = daysAgo(70)

t.test('publications, a subscriber and a standby', { timeout: 300_000 }, async t => {
  const db = await withCluster(t)
  const { sql, admin, cluster } = db
  await admin`alter system set wal_level = logical`
  await admin`alter system set max_wal_senders = 10`
  await Promise.all([sql.end({ timeout: 1 }), admin.end({ timeout: 1 })])
  await cluster.stop()
  await cluster.start()
  const store = again(t, db)

  await t.test('maintenance can delete despite a publication of all tables', async t => {
    t.same(
      await store.admin`
      select c.oid::regclass::text as table from pg_class c
      where c.relkind = 'r' and not c.relispartition and c.relpersistence = 'p'
        and c.relnamespace::regnamespace::text in ('fleet', 'fleet_guard', 'partman', 'cron', 'graphile_migrate')
        and c.relreplident = 'd' and not exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary)
      order by 1
    `,
      [{ table: 'fleet.device_heartbeats_template' }],
      'every table has a replica identity, except one that never has rows',
    )
    await store.admin`create publication everything for all tables`
    const [device] = await enroll(store.sql, 1)
    await ingest(store.sql, [
      { device_id: device! },
      { device_id: device!, ts: new Date(Date.now() - 2 * 86_400_000).toISOString() },
    ])
    t.equal(await value(store.sql`select count(*)::int from fleet.late_arrivals`), 1)
    await store.admin`update fleet.late_arrivals set day = day - 4000`
    await store.sql`select fleet.prune()`
    t.equal(await value(store.sql`select count(*)::int from fleet.late_arrivals`), 0)
  })

  await t.test('a subscriber of the heartbeats survives nightly runs and drops', async t => {
    const { url } = db
    await store.admin`create database subscriber template template0`
    const subscriber = postgres(url('postgres').replace(/fleet$/, 'subscriber'), { max: 1, onnotice: () => {} })
    t.teardown(() => subscriber.end({ timeout: 1 }))
    const columns = (
      await store.sql<{ definition: string }[]>`
      select string_agg(format('%I %s', attname, format_type(atttypid, atttypmod)), ', ' order by attnum) as definition
      from pg_attribute where attrelid = 'fleet.device_heartbeats'::regclass and attnum > 0 and not attisdropped
    `
    )[0]!.definition
    await subscriber.unsafe(`create schema fleet; create table fleet.device_heartbeats (${columns})`)
    await store.admin`create publication beats for table fleet.device_heartbeats with (publish_via_partition_root = true)`
    await fillDay(store.admin, day, 300)
    // A subscription in the same cluster cannot create its own slot.
    await store.admin`select pg_create_logical_replication_slot('beats', 'pgoutput')`
    await subscriber.unsafe(
      `create subscription beats connection '${url('postgres')}' publication beats with (create_slot = false, slot_name = 'beats')`,
    )
    const follows = async (what: string) => {
      const here = async () => Number(await value(store.sql`select count(*) from fleet.device_heartbeats`)) + gone
      await waitFor(
        async () => Number(await value(subscriber`select count(*) from fleet.device_heartbeats`)) === (await here()),
        {
          what: () => `the subscriber to follow ${what}`,
        },
      )
      t.pass(what)
    }
    let gone = 0
    await follows('the existing rows')

    await store.sql`call fleet.nightly()`
    t.same(await store.sql`select event, detail from fleet.events where event like 'maintenance.%' and not is_ok`, [])
    await ingest(store.sql, [{ device_id: 1 }])
    await follows('a nightly run')

    const directory = await makeDirectory(t)
    const partition = await partitionOf(store.sql, day)
    await store.sql`select fleet.archive_partition(${partition})`
    await workAll(t, store, directory)
    t.match(await store.sql`select state from fleet.hb_partitions where partition_name = ${partition}`, [{ state: 'dropped' }])
    gone = 300
    await store.sql`select fleet.create_partitions(current_date + 60, current_date + 61)`
    await store.admin`insert into fleet.device_heartbeats (ts, device_id) values (current_date + interval '61 days', 1)`
    await follows('a drop: it keeps those rows and receives the rows of a new partition')
    t.same(await subscriber`select * from pg_stat_subscription_stats where apply_error_count + sync_error_count > 0`, [])
    await subscriber`alter subscription beats disable`
    await subscriber`alter subscription beats set (slot_name = none)`
    await subscriber`drop subscription beats`
    await waitFor(async () => (await store.admin`select from pg_replication_slots where active`).length === 0)
    await store.admin`select pg_drop_replication_slot('beats')`
  })

  await t.test('check() does not advise restarting a standby, and the standby can take over', async t => {
    const replica = await withReplica(t, cluster)
    const standby = again(t, { ...db, url: role => replica.url(role, 'fleet') })
    await waitFor(async () => (await value(standby.admin`select pg_is_in_recovery()`)) === true)
    const found = await standby.sql<
      { check_name: string; status: string; detail: string; remedy: string | null }[]
    >`select * from fleet.check()`
    t.match(
      found.find(({ check_name }) => check_name === 'scheduler'),
      { status: 'ok', detail: /this is a standby/, remedy: null },
    )
    t.same(
      found.filter(
        ({ detail, remedy }) => /^the check itself failed/.test(detail) || /pg_ctl|call fleet\.maintain/.test(remedy ?? ''),
      ),
      [],
    )

    await fillDay(store.admin, daysAgo(71), 200)
    const lsn = await value(store.admin`select pg_current_wal_lsn()::text`)
    await waitFor(async () => (await value(standby.admin`select pg_last_wal_replay_lsn() >= ${lsn as string}::pg_lsn`)) === true)
    await cluster.stop('immediate')
    await standby.admin`select pg_promote()`
    await waitFor(
      async () => (await standby.admin`select from pg_stat_activity where backend_type = 'pg_cron launcher'`).length === 1,
      {
        what: () => 'pg_cron to start on the promoted standby',
      },
    )
    t.match(
      await standby.sql`select status, detail from fleet.check() where check_name in ('scheduler', 'partition_oids') order by check_name`,
      [
        { status: 'ok', detail: /with its oid in this cluster/ },
        { status: 'ok', detail: 'pg_cron runs' },
      ],
      'a standby has the same catalog, so every oid is valid',
    )
    await standby.sql`call fleet.nightly()`
    const partition = await partitionOf(standby.sql, daysAgo(71))
    await standby.sql`select fleet.archive_partition(${partition})`
    await workAll(t, standby, await makeDirectory(t))
    t.match(await standby.sql`select state, row_count::int from fleet.hb_partitions where partition_name = ${partition}`, [
      { state: 'dropped', row_count: 200 },
    ])
    t.same(
      await standby.sql`select event, detail from fleet.events where event like 'maintenance.%' and not is_ok or event = 'store.relinked'`,
      [],
    )
  })
})

/** The same database with new connections. */
function again(t: Parameters<typeof asRole>[0], db: TestDatabase): TestDatabase {
  return { ...db, sql: asRole(t, db, 'fleet_owner'), admin: asRole(t, db, 'postgres') }
}
