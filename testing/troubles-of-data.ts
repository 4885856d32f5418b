// What can go wrong with partitions, heartbeats, last status, archives and imports, for sql/checks/check.test.ts.
import { rename, rm, writeFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { waitFor } from './database.ts'
import { daysAgo, enroll, ingest, partitionAt, value } from './fleet.ts'
import { withReceiver } from './webhooks.ts'
import type { HealthyStore, Trouble } from './troubles.ts'

const OLD_TABLE = 'public.old_heartbeats'

export function troublesOfData(store: HealthyStore): Trouble[] {
  const { sql, admin, dba, owner, directory, all, first, good, unguarded, endArchiver, endNotifier, login } = store

  const day = (days: number) => partitionAt(sql, daysAgo(days))

  /** Gives a past day some heartbeats and sends it to the archiver; returns its name when it has this state. */
  async function archived(days: number, state: 'archived' | 'dropped') {
    const name = await day(days)
    await admin`
      insert into fleet.device_heartbeats (ts, received_at, device_id)
      select t.ts, t.ts, ${first} from generate_series(1, 100) n
      cross join lateral (select date_trunc('day', ${daysAgo(days)}::timestamptz) + n * interval '1 minute') t (ts)`
    await dba`select fleet.archive_partition(${name})`
    await waitFor(
      async () => (await value(sql`select state from fleet.hb_partitions where partition_name = ${name}`)) === state,
      { what: () => `${name} to be ${state}` },
    )
    return name
  }

  let hiddenArchive = ''
  let receiver: Awaited<ReturnType<typeof withReceiver>> | undefined

  return [
    {
      what: 'more days ahead are wanted than there are partitions',
      checks: ['partitions_ahead'],
      inject: () => dba`select fleet.set_premake(20)`,
    },
    {
      what: 'there is a gap between partitions',
      checks: ['partition_gaps'],
      inject: () => dba`select fleet.create_partitions(current_date + 30, current_date + 31)`,
    },
    {
      what: 'a table is in the way of a partition',
      checks: ['partition_obstacles'],
      inject: async () => admin.unsafe(`create table fleet.${nextDay(await day(-31))} (x integer)`),
    },
    {
      what: "today's partition was detached by hand",
      checks: ['partition_catalog', 'partition_today'],
      inject: async () => owner.unsafe(`alter table fleet.device_heartbeats detach partition fleet.${await day(0)}`),
    },
    {
      what: 'the table of a partition is gone',
      checks: ['partition_tables'],
      inject: async () => unguarded(`drop table fleet.${await day(20)}`),
    },
    {
      what: 'a partition was renamed',
      checks: ['partition_names'],
      inject: async () => owner.unsafe(`alter table fleet.${await day(12)} rename to old_heartbeats`),
    },
    {
      what: 'somebody created a default partition',
      checks: ['default_partition'],
      inject: () => admin`create table fleet.everything_else partition of fleet.device_heartbeats default`,
    },
    {
      what: 'a partition lost its key and took duplicates',
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
      what: 'a dump was restored, so each oid is that of another table or of none',
      checks: ['partition_oids'],
      inject: () =>
        admin`update fleet.hb_partitions set relid = relid::bigint + case when random() < 0.5 then 1 else 1000000 end where relid is not null`,
    },
    {
      what: 'the guard is disabled',
      checks: ['guard'],
      inject: () => admin`alter event trigger fleet_guard_drop disable`,
    },
    {
      what: 'event triggers were dropped',
      checks: ['archive_columns', 'guard'],
      inject: async () => {
        await admin`drop event trigger fleet_guard_find`
        await admin`drop event trigger fleet_guard_columns`
      },
    },
    {
      what: 'the guard of the columns is disabled',
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
      what: 'a trigger is disabled, and last status is not kept',
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
      what: 'the clock of Postgres ran ahead by a day',
      checks: ['heartbeats', 'last_status'],
      inject: () =>
        admin`update fleet.device_last_status set last_ts = last_ts + interval '1 day', last_received_at = last_received_at + interval '1 day'`,
    },
    {
      what: 'devices send heartbeats that are too old',
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
      what: 'agents send fields that cannot be read',
      checks: ['unreadable_fields'],
      inject: async () => {
        const counts = all.slice(0, 3).map(device_id => ({ device_id, field: 'battery_pct', times: 5, example: '87.5' }))
        await sql`select fleet.record_unreadable_fields(${JSON.stringify(counts)}::text::json)`
      },
      // An hour passes after the agents are corrected.
      besides: async () => admin`update fleet.device_unreadable_fields set last_at = last_at - interval '1 hour'`,
    },
    {
      what: 'a device sends more requests than the servers accept',
      checks: ['slowed_devices'],
      inject: async () => {
        const token_hash = await value(admin`select encode(token_hash, 'hex') from fleet.devices where device_id = ${first}`)
        await sql`select fleet.record_slowed(${JSON.stringify([{ token_hash, times: 500 }])}::text::json)`
      },
      // An hour passes after its agent is fixed.
      besides: async () => admin`update fleet.device_slowdowns set last_at = last_at - interval '1 hour'`,
    },
    {
      what: 'the clocks of devices are wrong',
      checks: ['clocks'],
      inject: () =>
        ingest(
          sql,
          all.slice(0, 5).map(device_id => ({ device_id, ts: daysAgo(-9) })),
        ),
      besides: () =>
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
        await admin`update fleet.device_last_status set last_received_at = now() - interval '4 minutes' where device_id = any (${all.slice(0, 12)})`
      },
      besides: async () => {
        await ingest(sql, good(all))
        await admin`delete from fleet.silence_usual`
        await admin`delete from fleet.silence_samples`
      },
    },
    {
      what: 'no heartbeat arrives',
      checks: ['heartbeats'],
      inject: async () => {
        await dba`update fleet.settings set ingest_gap = '3 minutes'`
        await admin`update fleet.device_last_status set last_received_at = now() - interval '4 minutes'`
      },
      besides: async () => {
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
      what: 'a day is too large to be settled within settle_max_wait',
      checks: ['settled_days'],
      inject: async () => {
        await admin`
          insert into fleet.device_heartbeats (ts, received_at, device_id)
          select t.ts, t.ts, ${first} from generate_series(0, 999) n
          cross join lateral (select date_trunc('day', ${daysAgo(30)}::timestamptz) + n * interval '1 minute') t (ts)`
        await dba`update fleet.settings set settle_max_wait = '1 ms'`
      },
      besides: () => dba`update fleet.settings set settle_max_wait = '15 seconds'`,
    },
    {
      what: 'max_late was raised, and a settled day must take heartbeats again',
      checks: ['settled_days'],
      inject: () => dba`update fleet.settings set max_late = '40 days'`,
      besides: () => dba`update fleet.settings set max_late = '7 days'`,
    },
    {
      what: 'the constraint of a settled day was dropped, and the day took duplicates',
      checks: ['settled_days'],
      inject: async () => {
        const name = await day(30)
        await dba`select fleet.settle_partition(${name})`
        await admin.unsafe(`alter table fleet.${name} drop constraint device_heartbeats_settled`)
        await admin.unsafe(`insert into fleet.${name} select * from fleet.${name} limit 50`)
      },
    },
    {
      what: 'an import was ended in the middle',
      checks: ['imports'],
      inject: async () => {
        await admin.unsafe(`
          create table ${OLD_TABLE} (device_id text, ts timestamp, battery_pct integer, ip text);
          grant select, trigger on ${OLD_TABLE} to fleet_owner;
          insert into ${OLD_TABLE} select 'device-' || n, now() at time zone 'UTC' - n * interval '1 minute', n from generate_series(1, 100) n`)
        const importing = login('fleet_dba')
        const [backend] = await importing<{ pid: number }[]>`select pg_backend_pid() as pid`
        const ended = importing.unsafe(`call fleet.import_table('${OLD_TABLE}', p_pause => '20 seconds')`).catch(() => {})
        await waitFor(async () => (await sql`select from fleet.imports`).length === 1)
        await admin`select pg_terminate_backend(${backend!.pid}, 5000)`
        await ended
      },
    },
    {
      what: 'a row of a table that is being imported cannot be forwarded',
      checks: ['import_forwards'],
      inject: () =>
        admin.unsafe(
          `insert into ${OLD_TABLE} values ('device-1', now() at time zone 'UTC' - interval '3 hours', 7, 'somewhere')`,
        ),
    },
    {
      what: 'the trigger of a table that is being imported is disabled',
      checks: ['import_forwards'],
      inject: () => admin.unsafe(`alter table ${OLD_TABLE} disable trigger fleet_forward`),
    },
    {
      what: 'an import was not completed for a month',
      checks: ['imports'],
      inject: () => admin`update fleet.imports set started_at = now() - interval '31 days'`,
    },
    {
      what: 'an archive fails',
      checks: ['archive_failed'],
      inject: async () => {
        await rename(`${directory}/archive`, `${directory}/away`).catch(() => {})
        await writeFile(`${directory}/archive`, 'no directory')
        await dba`select fleet.archive_partition(${await day(60)})`
      },
      besides: async () => {
        await rm(`${directory}/archive`)
        await rename(`${directory}/away`, `${directory}/archive`).catch(() => {})
      },
    },
    {
      what: 'a superuser changed a retired table after the proof of its archive',
      checks: ['archive_undropped'],
      inject: async () => {
        await dba`update fleet.settings set archive_grace = '1 day'`
        const name = await archived(62, 'archived')
        await admin.unsafe(
          `insert into fleet_detached.${name} (ts, device_id) select min(ts) + interval '9 hours', ${first} from fleet_detached.${name}`,
        )
        await dba`update fleet.settings set archive_grace = '0'`
        await admin`update fleet.hb_partitions set lease_until = null where partition_name = ${name}`
        await dba`select fleet.wake_archiver()`
      },
    },
    {
      what: 'the archive of a day is missing when the day is to be restored',
      checks: ['restores'],
      inject: async () => {
        const name = await archived(63, 'dropped')
        hiddenArchive = fileURLToPath(
          (await value(sql`select archive_url from fleet.hb_partitions where partition_name = ${name}`)) as string,
        )
        await rename(hiddenArchive, `${hiddenArchive}.away`)
        await dba`select fleet.request_restore(${daysAgo(63).slice(0, 10)})`
      },
      besides: () => rename(`${hiddenArchive}.away`, hiddenArchive),
    },
    {
      what: 'an archive is missing from which a device is to be erased',
      checks: ['erasures'],
      inject: async () => {
        // An erasure looks into every table with a device_id, and the owner may not read what another trouble left.
        await admin`drop table if exists fleet.everything_else`
        const name = await archived(65, 'dropped')
        hiddenArchive = fileURLToPath(
          (await value(sql`select archive_url from fleet.hb_partitions where partition_name = ${name}`)) as string,
        )
        await rename(hiddenArchive, `${hiddenArchive}.away`)
        const [device] = await enroll(sql, 1, 'to-erase')
        await dba`select fleet.erase_device(${device!}, 'a test')`
      },
      besides: () => rename(`${hiddenArchive}.away`, hiddenArchive),
    },
    {
      what: 'no second login confirms an archive',
      checks: ['archive_unconfirmed'],
      inject: async () => {
        await dba`update fleet.settings set proofs_needed = 2`
        const name = await archived(64, 'archived')
        await admin`update fleet.hb_partitions set proven_at = now() - interval '25 hours' where partition_name = ${name}`
      },
    },
    {
      what: 'the archiver is gone, and its work waits',
      checks: ['archive_backlog', 'archiver'],
      inject: async () => {
        await dba`update fleet.settings set proofs_needed = 1`
        endArchiver()
        const name = await day(61)
        await dba`select fleet.archive_partition(${name})`
        await admin`update fleet.archivers set last_seen_at = now() - interval '1 hour'`
        await admin`update fleet.hb_partitions set detached_at = now() - interval '1 day' where partition_name = ${name}`
      },
    },
    {
      what: 'the archiver is gone, and a month of the audit log waits',
      checks: ['archive_backlog', 'archiver'],
      inject: async () => {
        endArchiver()
        await sql`update fleet.settings set audit_archive = true`
        await admin`
          insert into fleet.audit_log (at, actor, how, action) values (now() - interval '70 days', 'ann', 'sql', 'x.done')`
        await admin`update fleet.archivers set last_seen_at = now() - interval '1 hour'`
      },
    },
    {
      what: 'messages wait for a notifier that does not run',
      checks: ['notifier'],
      inject: async t => {
        receiver = await withReceiver(t)
        await dba`select fleet.create_webhook('on-call', ${receiver.url})`
        await dba`select fleet.test_webhook('on-call')`
        await admin`update fleet.webhook_deliveries set due_at = due_at - interval '1 hour'`
      },
    },
    {
      what: 'a receiver refused a message for three days',
      checks: ['webhooks'],
      inject: async () => {
        receiver!.answer = 500
        await dba`select fleet.test_webhook('on-call')`
        await waitFor(async () => receiver!.received.length >= 2, { what: () => 'the message to be tried' })
        await admin`update fleet.webhook_deliveries set due_at = due_at - interval '4 days', next_attempt_at = now() where state = 'pending'`
        await admin`update fleet.webhooks set hold_until = null`
        await waitFor(
          async () => (await value(sql`select count(*)::int from fleet.webhook_deliveries where state = 'dead'`)) === 1,
          {
            what: () => 'it to be given up',
          },
        )
      },
      // The remedy sends it again.
      besides: async () => {
        receiver!.answer = 204
        await admin`update fleet.webhooks set failures = 0`
      },
    },
    {
      what: 'a receiver accepts nothing',
      checks: ['webhooks'],
      inject: async () => {
        receiver!.answer = 503
        await admin`update fleet.webhooks set last_success_at = null, created_at = now() - interval '1 hour'`
        await dba`select fleet.test_webhook('on-call')`
      },
      besides: async () => {
        receiver!.answer = 204
      },
    },
    {
      what: 'the notifier is gone',
      checks: ['notifier'],
      inject: async () => {
        endNotifier()
        await admin`update fleet.notifiers set last_seen_at = now() - interval '1 hour'`
      },
    },
    {
      what: 'old days are not retired',
      checks: ['retention'],
      inject: () => dba`select fleet.set_retention('80 days')`,
    },
    {
      what: 'a step of maintenance fails',
      checks: ['maintenance'],
      inject: async () => {
        await admin`revoke delete on fleet.heartbeat_quarantine from fleet_owner`
        await dba`call fleet.nightly()`
      },
      besides: () => admin`grant delete on fleet.heartbeat_quarantine to fleet_owner`,
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
    {
      what: 'two devices send with the token of one, for two days',
      checks: ['shared_tokens'],
      inject: async () => {
        await admin`
          insert into fleet.device_heartbeats (ts, received_at, device_id)
          select b.ts, b.ts, ${first} from generate_series(1, 2 * 2880) n
          cross join lateral (select date_trunc('day', now()) - n * interval '30 seconds' as ts) b
          on conflict do nothing`
        // As if nobody had touched the devices for days: after a change of a device only the days that follow count.
        await admin`update fleet.devices set changed_at = null`
        await owner`select fleet.roll_up(current_date - n) from generate_series(1, 3) n`
      },
    },
  ]
}

/** The name of the partition after this one. */
function nextDay(name: string) {
  const [, y, m, d] = /(\d{4})(?:_?)(\d\d)(?:_?)(\d\d)$/.exec(name) ?? []
  const next = new Date(Date.UTC(Number(y), Number(m) - 1, Number(d) + 1)).toISOString().slice(0, 10)
  return name.replace(/\d[\d_]*$/, next.replaceAll('-', name.includes('_p20') && /\d_\d/.test(name) ? '_' : ''))
}
