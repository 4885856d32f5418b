// A superuser writes to a retired table between its proof and its drop. The store's roles cannot.
import { rename } from 'node:fs/promises'
import t, { type Test } from 'tap'
import { asRole, value } from '../../testing/fleet.ts'
import { pathsOf, retiredDay as day, stateOf, stepsOf, withRetiredDay, workAll } from '../../testing/archiver.ts'
import { contentOf } from '../../testing/rows.ts'

const changes = {
  'an UPDATE': { statement: 'update {table} set battery_pct = 55 where device_id = 7', isKept: false },
  'a DELETE': { statement: 'delete from {table} where device_id = 7', isKept: false },
  'an INSERT': {
    statement: `insert into {table} (ts, device_id) select min(ts) + interval '1 hour', 4711 from {table}`,
    isKept: true,
  },
  // The same number of rows, but one has lost its value and another has a different one.
  'a swap of values': {
    statement: `update {table} set signal_dbm = case device_id when 7 then null else -99 end where device_id in (7, 8)`,
    isKept: false,
  },
}

/** A day that is archived, stays for its grace period, and is changed meanwhile. */
async function withChangedDay(t: Test, change: keyof typeof changes) {
  const retired = await withRetiredDay(t)
  const { db, directory, partition } = retired
  await db.admin`update fleet.settings set archive_grace = '1 day'`
  await workAll(t, db, directory)
  t.match(await stateOf(db.sql, partition), { state: 'archived' })
  await db.admin.unsafe(changes[change].statement.replaceAll('{table}', `fleet_detached.${partition}`))
  await db.admin`update fleet.settings set archive_grace = '0'`
  await db.admin`update fleet.hb_partitions set lease_until = null` // the archiver that proved it has finished with it
  const archived = (await value(
    db.sql`select rows_sha256 from fleet.hb_partitions where partition_name = ${partition}`,
  )) as string
  const content = async (table: string) => (await contentOf(db.admin, table)).rows_sha256
  return { ...retired, archived, content, changed: await content(`fleet_detached.${partition}`) }
}

for (const change of Object.keys(changes) as (keyof typeof changes)[]) {
  t.test(`${change} after the proof is found, and either the table or the archive can be kept`, async t => {
    await t.test('neither is dropped automatically; here the archive is kept', async t => {
      const { db, directory, partition, archived, content } = await withChangedDay(t, change)
      t.same((await workAll(t, db, directory)).results, ['failed'])
      const state = await stateOf(db.sql, partition)
      t.match(state, {
        state: 'archived',
        last_error: /differs from its archive and is not dropped: it has \d+ rows and its archive 1000/,
      })
      t.match(
        await db.sql`select status, remedy from fleet.check() where check_name = 'archive_undropped'`,
        [
          {
            status: 'warn',
            remedy: new RegExp(
              `retry_archive\\('${partition}'\\);(.|\\n)*-- select fleet\\.accept_archive\\('${partition}', 'why'\\);`,
            ),
          },
        ],
        'reported at once instead of after hours',
      )
      t.notOk((await stepsOf(db.sql, partition)).includes('partition.drop'), 'and no event says that it was dropped')

      // Keep the archive.
      const dba = asRole(t, db, 'fleet_dba')
      await t.rejects(dba`select fleet.accept_archive(${partition}, ' ')`, { code: 'FL422' })
      await dba`select fleet.hold_partition(${partition}, 'wait')`
      await t.rejects(dba`select fleet.accept_archive(${partition}, 'why')`, { code: 'FL002', message: /held \(wait\)/ })
      await dba`select fleet.release_partition(${partition})`
      await dba`select fleet.accept_archive(${partition}, 'changed by mistake')`
      t.match(await stateOf(db.sql, partition), {
        state: 'dropped',
        row_count: '1000',
        rows_sha256: archived,
        last_error: null,
      })
      t.match(await db.sql`select detail from fleet.events where event = 'partition.archive.accept'`, [
        {
          detail:
            /^by fleet_dba: changed by mistake\. Dropped: \d+ rows \(row hash -?\d+\)\. Archive: 1000 rows \(row hash -?\d+; rows_sha256 \w{64}\), file:/,
        },
      ])
      await db.sql`select fleet.request_restore(${day})`
      await workAll(t, db, directory)
      t.equal(await content(`fleet.${partition}`), archived)
    })

    await t.test('the table is kept', async t => {
      const { db, directory, partition, changed, content } = await withChangedDay(t, change)
      const dba = asRole(t, db, 'fleet_dba')
      t.match(await value(dba`select fleet.retry_archive(${partition})`), /differs from its archive and is waiting/)
      await workAll(t, db, directory)
      if (!changes[change].isKept) {
        // Rows of the archive would be lost, and only a person may decide that.
        t.match(
          await stateOf(db.sql, partition),
          {
            state: 'archive_failed',
            row_count: '1000',
            archive_url: /^file:/,
            proven_at: Date,
            last_error:
              /of its 1000 rows are not in the partition .* move it and its manifest .* away, .*retry_archive.*accept_archive/,
          },
          'the database still knows the archive',
        )
        await rename(pathsOf(directory).folder, `${pathsOf(directory).folder}.old`)
        await rename(pathsOf(directory).manifest, `${pathsOf(directory).manifest}.old`)
        await dba`select fleet.retry_archive(${partition})`
        await workAll(t, db, directory)
      }
      t.match(await stateOf(db.sql, partition), { state: 'dropped', rows_sha256: changed })
      await db.sql`select fleet.request_restore(${day})`
      await workAll(t, db, directory)
      t.equal(await content(`fleet.${partition}`), changed)
    })
  })
}

t.test('the archive can still be kept after the archiver refused the table', async t => {
  const { db, directory, partition, archived } = await withChangedDay(t, 'a DELETE')
  await db.sql`select fleet.retry_archive(${partition})`
  await workAll(t, db, directory)
  t.match(await stateOf(db.sql, partition), { state: 'archive_failed' })
  await db.sql`select fleet.accept_archive(${partition}, 'the archive is right')`
  t.match(await stateOf(db.sql, partition), { state: 'dropped', rows_sha256: archived })
})

t.test('accept_archive() refuses a day without an archive, and one that equals its archive', async t => {
  const { db, directory, partition } = await withRetiredDay(t)
  await t.rejects(db.sql`select fleet.accept_archive(${partition}, 'why')`, { code: 'FL001', message: /no proven archive/ })
  await db.admin`update fleet.settings set archive_grace = '1 day'`
  await workAll(t, db, directory)
  t.match(await value(db.sql`select fleet.accept_archive(${partition}, 'why')`), /nothing to accept/)
  t.match(await value(db.sql`select fleet.retry_archive(${partition})`), /already archived/)
  t.match(await stateOf(db.sql, partition), { state: 'archived' })
})

t.test('a comparison blocks writers, but neither readers nor the lease', async t => {
  const { db, directory, partition } = await withRetiredDay(t)
  await db.admin`update fleet.settings set archive_grace = '1 day'`
  await workAll(t, db, directory)
  const session = asRole(t, db, 'fleet_owner')
  await session`begin`
  await session`select fleet.compare_with_archive(${partition})`
  await t.rejects(
    db.admin.begin(async sql => {
      await sql`set local lock_timeout = '50ms'`
      await sql.unsafe(`update fleet_detached.${partition} set battery_pct = 1`)
    }),
    { code: '55P03' },
    'writers are blocked',
  )
  t.match(await db.admin.unsafe(`select count(*)::int from fleet_detached.${partition}`), [{ count: 1000 }], 'readers can read')
  t.match(
    await db.sql`select bytes_size from fleet.partition_health where partition_name = ${partition}`,
    [{}],
    'views can be read',
  )
  await db.admin.begin(async sql => {
    await sql`set local lock_timeout = '50ms'`
    await sql`update fleet.hb_partitions set lease_until = now() where partition_name = ${partition}`
  })
  await session`rollback`
  await db.admin`update fleet.settings set archive_grace = '0'`
  await t.rejects(
    session.begin('isolation level repeatable read', sql => sql`select fleet.drop_partition(${partition})`),
    { code: 'FL002', message: /repeatable read/ },
  )
})

t.test('the event for a table that was dropped by hand does not claim a comparison', async t => {
  const { db, directory, partition } = await withRetiredDay(t)
  await db.admin`update fleet.settings set archive_grace = '1 day'`
  await workAll(t, db, directory)
  await db.admin.unsafe(`drop table fleet_detached.${partition}`)
  await db.admin`update fleet.settings set archive_grace = '0'`
  t.equal(await value(db.sql`select fleet.drop_partition(${partition})`), true)
  t.match(await db.sql`select detail from fleet.events where event = 'partition.drop'`, [
    { detail: 'the table was already gone; nothing was compared' },
  ])
  t.equal(Number((await value(db.sql`select total from fleet.counters where counter = 'hb_partition_dropped_total'`)) ?? 0), 0)
})
