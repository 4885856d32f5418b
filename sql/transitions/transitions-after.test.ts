// What the feed of transitions reads.
import t from 'tap'
import { withDatabase } from '../../testing/database.ts'

t.test('the feed of a small cohort does not read the transitions of all others', async t => {
  const { admin } = await withDatabase(t)
  await admin`
    insert into fleet.device_transitions (position, device_id, cohort, at, since, event, status, previous_status)
    select i / 100 + 1, i, case when i % 10000 = 0 then 'small' else 'big' end, now(), now(), 'offline', 'offline', 'online'
    from generate_series(1, 20000) i`
  await admin`analyze fleet.device_transitions`
  const read = async (after: string | null, cohort: string | null) => {
    await admin`select pg_stat_force_next_flush()`
    return await admin.begin(async transaction => {
      const rows = await transaction<{ device_id: string; cursor: string }[]>`
        select device_id, cursor from fleet.transitions_after(${after}, 10, ${cohort})`
      const [read] = await transaction<{ rows: number }[]>`
        select (seq_tup_read + coalesce(idx_tup_fetch, 0))::int as rows
        from pg_stat_xact_user_tables where relid = 'fleet.device_transitions'::regclass`
      return { ids: rows.map(({ device_id }) => Number(device_id)), cursor: rows.at(-1)?.cursor ?? null, read: read!.rows }
    })
  }
  const small = await read(null, 'small')
  t.same(small.ids, [10000, 20000])
  t.ok(small.read < 100, `${small.read} rows read`)
  const rest = await read(small.cursor, 'small')
  t.same(rest.ids, [])
  t.ok(rest.read < 100, `${rest.read} rows read at its end`)
  const nothing = await read(null, 'empty')
  t.ok(nothing.read < 100, `${nothing.read} rows read of a cohort that has none`)
  const all = await read(null, null)
  t.same(
    all.ids,
    Array.from({ length: 10 }, (_, n) => n + 1),
  )
  t.ok(all.read < 100, `${all.read} rows read of all`)
})
