// What a distributed store refuses, each with a sentence that says what to do instead. See "Limits" in docs/scale-out.md.
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { distribute } from '../../cli/distribute.ts'
import { repository } from '../../lib/repository.ts'
import { withCitus, withoutCitus } from '../../testing/citus.ts'
import { withDatabase } from '../../testing/database.ts'
import { asRole, enroll, ingest } from '../../testing/fleet.ts'

const TRIGGERS = ['sql/ingest/device_heartbeats.trigger.sql', 'sql/status/device_last_status.trigger.sql']
const NAMES = ['device_heartbeats_record_last_status', 'device_last_status_add_last_status']
const textOf = (file: string) => readFile(join(repository, file), 'utf8')

t.test('a plain store gets its triggers when a migration includes them again', async t => {
  const { sql } = await withDatabase(t)
  const triggers = () => sql`select tgname from pg_trigger where tgname = any (${NAMES}) and tgparentid = 0 order by 1`
  await sql`drop trigger device_heartbeats_record_last_status on fleet.device_heartbeats`
  await sql`drop trigger device_last_status_add_last_status on fleet.device_last_status`
  for (const file of TRIGGERS) await sql.unsafe(await textOf(file))
  t.same(
    await triggers(),
    NAMES.map(tgname => ({ tgname })),
  )
})

t.test(
  'a distributed store refuses what it cannot do, and says what to do instead',
  { skip: withoutCitus, timeout: 600_000 },
  async t => {
    const nodes = await withCitus(t, { workers: 1 })
    const { sql, admin, coordinator, hosts } = nodes
    const [device] = (await enroll(sql, 3)) as [number]
    await admin.unsafe(`
    create table public.old_heartbeats (device_id bigint, ts timestamptz, battery_pct integer);
    insert into public.old_heartbeats values (1, now() - interval '1 hour', 50);
    grant select on public.old_heartbeats to fleet_owner`)
    await distribute(coordinator.url('postgres', 'fleet'), { workers: hosts, shards: 2, log: () => {} })

    for (const [what, role, statement, hint] of [
      ['an import', 'fleet_dba', `call fleet.import_table('public.old_heartbeats')`, /plain store.*docs\/scale-out\.md/],
      [
        'the plan of one',
        'fleet_dba',
        `select * from fleet.import_plan('public.old_heartbeats')`,
        /plain store.*docs\/scale-out\.md/,
      ],
      ['an import by its old name', 'fleet_dba', `call fleet.adopt_table('public.old_heartbeats')`, /plain store/],
      ['a login for some cohorts', 'fleet_dba', `select fleet.create_reader('partner', '{lobby}')`, /fleet\.create_api_key\(/],
      ['the old view of status', 'fleet_dba', 'select * from fleet.device_status_legacy', /docs\/scale-out\.md/],
      ['lists from the heartbeats', 'fleet_server', 'select * from fleet.list_devices_legacy()', /docs\/scale-out\.md/],
    ] as const) {
      const error = await asRole(t, nodes, role)
        .unsafe(statement)
        .then(
          () => ({ code: 'none' }),
          (caught: { code: string; message: string; hint: string }) => caught,
        )
      t.match(error, { code: 'FL002', message: /distributed/, hint }, `${what}: ${statement}`)
    }
    t.same(await sql`select source, state from fleet.imports`, [], 'no import has begun')
    t.same(
      await admin`
      select c.relname from pg_class c
      where c.relnamespace = 'fleet'::regnamespace and c.relkind in ('r', 'p', 'v') and has_table_privilege('fleet_cohort_reader', c.oid, 'select')`,
      [],
      'logins that were made before see nothing',
    )

    // A migration that includes the triggers of a plain store.
    for (const file of TRIGGERS) await sql.unsafe(await textOf(file))
    t.same(await sql`select tgname from pg_trigger where tgname = any (${NAMES})`, [])
    t.match(await ingest(sql, [{ device_id: device }]), [{ result: 'stored' }])
  },
)
