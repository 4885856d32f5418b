// fleet.check(): what may be wrong with partitions, heartbeats, last status and archives. check-postgres.test.ts has the rest.
import { rename, rm, writeFile } from 'node:fs/promises'
import t from 'tap'
import { withCluster } from '../../testing/database.ts'
import { withoutTroubles } from '../../testing/troubles.ts'
import { asRole, daysAgo, ingest, value } from '../../testing/fleet.ts'

t.setTimeout(600_000)

t.test('check() names each trouble with the data, and its remedy ends it', { timeout: 600_000 }, async t => {
  const { sql, admin, dba, owner, directory, all, first, good, day, unguarded, goThrough, endArchiver } = await withoutTroubles(t)
  const nextName = (name: string, days: number) => {
    const [, y, m, d] = /(\d{4})(?:_?)(\d\d)(?:_?)(\d\d)$/.exec(name) ?? []
    const next = new Date(Date.UTC(Number(y), Number(m) - 1, Number(d) + days)).toISOString().slice(0, 10)
    return name.replace(/\d[\d_]*$/, next.replaceAll('-', name.includes('_p20') && /\d_\d/.test(name) ? '_' : ''))
  }

  await goThrough([
    {
      what: 'more days are wanted ahead than were made',
      checks: ['partitions_ahead'],
      inject: () => dba`select fleet.set_premake(20)`,
    },
    {
      what: 'a hole between partitions',
      checks: ['partition_gaps'],
      inject: () => dba`select fleet.create_partitions(current_date + 30, current_date + 31)`,
    },
    {
      what: 'a table is in the way of a partition',
      checks: ['partition_obstacles'],
      inject: async () => admin.unsafe(`create table fleet.${nextName(await day(-31), 1)} (x integer)`),
    },
    {
      what: "today's partition was detached by hand",
      checks: ['partition_catalog', 'partition_today'],
      inject: async () => owner.unsafe(`alter table fleet.device_heartbeats detach partition fleet.${await day(0)}`),
    },
    {
      what: "a partition's table is gone",
      checks: ['partition_tables'],
      inject: async () => unguarded(`drop table fleet.${await day(20)}`),
    },
    {
      what: 'a partition was renamed',
      checks: ['partition_names'],
      inject: async () => owner.unsafe(`alter table fleet.${await day(12)} rename to old_heartbeats`),
    },
    {
      what: 'somebody made a default partition',
      checks: ['default_partition'],
      inject: () => admin`create table fleet.everything_else partition of fleet.device_heartbeats default`,
    },
    {
      what: 'a partition lost its key, and took duplicates',
      checks: ['partition_indexes'],
      inject: async () => {
        const name = await day(0)
        const index = (await value(
          admin`select indexrelid::regclass::text from pg_index where indisunique and indrelid = ${`fleet.${name}`}::regclass`,
        )) as string
        await admin.unsafe(`drop index ${index}`)
        await admin.unsafe(`insert into fleet.${name} select * from fleet.${name} limit 50`)
      },
    },
    {
      what: 'the index for reading is gone',
      checks: ['partition_indexes'],
      inject: () => admin`drop index fleet.device_heartbeats_device_id_ts_idx`,
    },
    {
      what: 'a dump was restored: each oid is that of something else, or of nothing',
      checks: ['partition_oids'],
      inject: () =>
        admin`update fleet.hb_partitions set relid = relid::bigint + case when random() < 0.5 then 1 else 1000000 end where relid is not null`,
    },
    {
      what: 'the guard is off',
      checks: ['guard'],
      inject: () => admin`alter event trigger fleet_guard_drop disable`,
    },
    {
      what: 'the guard of the columns is off',
      checks: ['archive_columns'],
      inject: () => admin`alter event trigger fleet_guard_columns disable`,
    },
    {
      what: 'a column was added that cannot be archived',
      checks: ['archive_columns'],
      inject: async () => {
        await admin`alter event trigger fleet_guard_columns disable`
        await owner`alter table fleet.device_heartbeats add column payload bytea`
        await admin`alter event trigger fleet_guard_columns enable always`
      },
    },
    {
      what: 'a trigger is off, and last status is not kept',
      checks: ['last_status', 'triggers'],
      inject: async () => {
        await admin`alter table fleet.device_heartbeats disable trigger device_heartbeats_record_last_status`
        await admin`update fleet.device_last_status set last_ts = last_ts - interval '1 hour'`
      },
    },
    {
      what: 'last status was lost',
      checks: ['last_status'],
      inject: () => admin`delete from fleet.device_last_status`,
    },
    {
      what: 'devices send what is too old',
      checks: ['quarantine'],
      inject: () => ingest(sql, [...good(all), ...all.map(device_id => ({ device_id, ts: daysAgo(10) }))]),
    },
    {
      what: 'a device fills its quarantine',
      checks: ['quarantine_full'],
      inject: async () => {
        await dba`update fleet.settings set quarantine_per_device = 3`
        await ingest(sql, [...good([first]), ...[1, 2, 3, 4].map(day => ({ device_id: first, ts: daysAgo(-day) }))])
      },
    },
    {
      what: 'clocks are wrong',
      checks: ['clocks'],
      inject: () =>
        ingest(
          sql,
          all.slice(0, 5).map(device_id => ({ device_id, ts: daysAgo(-9) })),
        ),
      beside: () =>
        ingest(
          sql,
          all.slice(0, 5).map(device_id => ({ device_id, ts: new Date(Date.now() + 30_000).toISOString() })),
        ),
    },
    {
      what: 'a cohort goes quiet',
      checks: ['silent_cohorts'],
      inject: async () => {
        await admin`update fleet.devices set cohort = 'yard' where device_id = any (${all.slice(0, 20)})`
        await ingest(sql, good(all))
        // A day of samples, and no gap since.
        await admin`
          insert into fleet.silence_samples (cohort, sampled_at, active, gone_quiet)
          select c, now() - n * interval '10 minutes', 20, 0 from unnest(array['yard', 'default', '(all)']) c, generate_series(10, 200) n
        `
        await admin`update fleet.silence_watch set looked_at = now(), gap_from = null, gap_to = null, sampled_at = '-infinity'`
        await admin`select fleet.watch_silence()`
        await admin`update fleet.device_last_status set last_ts = now() - interval '4 minutes' where device_id = any (${all.slice(0, 12)})`
      },
      beside: async () => {
        await ingest(sql, good(all))
        await admin`delete from fleet.silence_usual`
        await admin`delete from fleet.silence_samples`
      },
    },
    {
      what: 'nothing comes in',
      checks: ['heartbeats'],
      inject: async () => {
        await dba`update fleet.settings set ingest_gap = '3 minutes'`
        await admin`update fleet.device_last_status set last_received_at = now() - interval '4 minutes'`
      },
      beside: async () => {
        await ingest(sql, good(all))
        await dba`update fleet.settings set ingest_gap = '1 day'`
      },
    },
    {
      what: 'a past day was not vacuumed',
      checks: ['partitions_vacuumed'],
      inject: async () => {
        await owner.unsafe(`alter table fleet.${await day(3)} set (autovacuum_enabled = false)`)
        await sql`
          insert into fleet.device_heartbeats (ts, received_at, device_id)
          select date_trunc('day', now()) - interval '3 days' + n * interval '10 seconds', now(), d
          from generate_series(0, 8000) n, generate_series(1, 3) d
        `
      },
    },
    {
      what: 'an archive fails',
      checks: ['archive_failed'],
      inject: async () => {
        await rename(`${directory}/archive`, `${directory}/away`).catch(() => {})
        await writeFile(`${directory}/archive`, 'no directory')
        await dba`select fleet.archive_partition(${await day(60)})`
      },
      beside: async () => {
        await rm(`${directory}/archive`)
        await rename(`${directory}/away`, `${directory}/archive`).catch(() => {})
      },
    },
    {
      what: 'the archiver is gone, and its work waits',
      checks: ['archive_backlog', 'archiver'],
      inject: async () => {
        endArchiver()
        const name = await day(61)
        await dba`select fleet.archive_partition(${name})`
        await admin`update fleet.archivers set last_seen_at = now() - interval '1 hour'`
        await admin`update fleet.hb_partitions set detached_at = now() - interval '1 day' where partition_name = ${name}`
      },
    },
    {
      what: 'old days are not retired',
      checks: ['retention'],
      inject: () => dba`select fleet.set_retention('80 days')`,
    },
    {
      what: 'past days are not rolled up',
      checks: ['rollups'],
      inject: () => admin`update fleet.devices set enrolled_at = enrolled_at - interval '5 days'`,
    },
    {
      what: 'late heartbeats are not counted',
      checks: ['rollups'],
      later: '4 hours',
      inject: () =>
        ingest(
          sql,
          good(all).map(beat => ({ ...beat, ts: daysAgo(1) })),
        ),
    },
  ])
})

t.test('check() answers whatever is broken', async t => {
  const db = await withCluster(t)
  const { admin } = db
  const dba = asRole(t, db, 'fleet_dba')
  const failed = async () =>
    (await dba`select check_name from fleet.check() where detail like 'the check itself failed%'`).map(
      row => row.check_name as string,
    )
  await admin`alter table fleet.settings rename to mislaid`
  t.same(await failed(), ['check_partitions', 'check_ingest', 'check_silence', 'check_archive', 'check_storage'])
  await admin`alter table fleet.mislaid rename to settings`
  const locker = asRole(t, db, 'fleet_owner')
  await locker`begin`
  await locker`lock table fleet.hb_partitions, fleet.device_last_status, fleet.events in access exclusive mode`
  t.ok((await failed()).includes('check_ingest'), 'what is locked is not waited for')
  await locker`rollback`
  await admin`drop extension pg_cron`
  await admin`drop function fleet_guard.lost_jobs()`
  await admin`drop function fleet_guard.memory_bytes()`
  await admin`revoke pg_monitor from fleet_owner`
  t.same(await failed(), [])
})
