// Attacks by a role that passes times in the future, runs steps of maintenance of its own choice, or forges events.
import t from 'tap'
import { waitFor, withDatabase } from '../../testing/database.ts'
import { asRole, daysAgo, enroll, ingest, partitionAt, value } from '../../testing/fleet.ts'

const ROLES = ['fleet_server', 'fleet_archiver', 'fleet_reader', 'fleet_dba'] as const
/** As the server's connections for /ops have it; the 2 s of its role are for the hot path. */
const opsConnection = { statement_timeout: '60s' }
const LATER = '2999-01-01T00:00:00Z'

t.test('no routine that a role may call accepts a time later than now', async t => {
  const db = await withDatabase(t)
  await enroll(db.sql, 1)
  // Immutable functions use no clock. The times of the others here are not "now". They are ranges of ts, which end at infinity by
  // default, the time at which an archive had its columns (map_columns), what the archiver says about an archive (record_proof,
  // record_erasure, register_archive: see attack-archiver.test.ts), or the expiry of a cookie, of which at most a day counts
  // (end_session).
  const ranges = [
    'replay_quarantine',
    'import_plan',
    'begin_import',
    'import_table',
    'record_proof',
    'record_erasure',
    'register_archive',
    'adoption_plan', // the old names of these
    'adopt_table',
    'adopt_archive',
    'map_columns',
    'end_session',
    'open_session', // ends after a day at most
    'create_api_key', // when the key expires
  ]
  const calls = await db.sql<{ role: (typeof ROLES)[number]; name: string; kind: string; arguments: string[] }[]>`
    select r.role, p.proname as name, p.prokind as kind,
      array(
        select case
          when a.type = 'timestamptz'::regtype then ${`'${LATER}'::timestamptz`}
          when a.type = 'json'::regtype then ${`'[{"device_id": 1}]'::json`}
          when a.type = 'date'::regtype then 'current_date - 5'
          when a.type = 'interval'::regtype then ${`interval '90 days'`}
          when p.proname = 'set_cadence' then ${`'monthly'`}
          when p.proname = 'begin_run' then ${`'nightly'`}
          else 'null::' || format_type(a.type, null)
        end
        from unnest(p.proargtypes) with ordinality as a (type, position)
        order by a.position
      ) as arguments
    from pg_proc p
    cross join unnest(${[...ROLES]}::text[]) as r (role)
    where p.pronamespace = 'fleet'::regnamespace and has_function_privilege(r.role, p.oid, 'execute')
      and 'timestamptz'::regtype = any (p.proargtypes) and p.provolatile <> 'i' and p.proname <> all (${ranges})
    order by 1, 2`
  t.ok(calls.length > 25, `${calls.length} calls`)
  for (const call of calls) {
    const sql = asRole(t, db, call.role, opsConnection)
    const text = `${call.name}(${call.arguments.join(', ')})`
    await t.rejects(
      sql.unsafe(call.kind === 'p' ? `call fleet.${text}` : `select * from fleet.${text}`),
      { code: 'FL422', message: /later than now; only the owner of the store may/ },
      `${call.role}: ${text}`,
    )
  }
  t.match(await db.sql`select * from fleet.hb_partitions where state <> 'active'`, [], 'nothing was retired')
})

t.test('a run does only the steps that the owner planned, and only in its own session', async t => {
  const db = await withDatabase(t)
  const { sql } = db
  const [device] = (await enroll(sql, 1)) as [number]
  await ingest(sql, [{ device_id: device }])
  const today = await partitionAt(sql, daysAgo(0))
  for (const role of ['fleet_server', 'fleet_dba'] as const) {
    const attacker = asRole(t, db, role, opsConnection)
    for (const call of [
      `do_step('retire', '${today}', '${LATER}')`,
      `do_step('prune', null, '${LATER}')`,
      `retire_partition('${today}', '${LATER}')`,
      `prune('${LATER}')`,
      `record_event('nightly.start')`,
      `record_event('partition.archive.end', '${today}', 1)`,
      `increment_counter('archive_failures_total', 1000)`,
    ]) {
      await t.rejects(
        attacker.unsafe(`select fleet.${call}`),
        { code: '42501', message: /permission denied for function/ },
        `${role}: ${call}`,
      )
    }
    for (const statement of [
      `insert into fleet.planned_steps values (1, 1, 'retire', '${today}', null, null, '${LATER}', pg_backend_pid())`,
      'delete from fleet.planned_steps',
      'select * from fleet.planned_steps',
    ]) {
      await t.rejects(attacker.unsafe(statement), { code: '42501' }, `${role}: ${statement}`)
    }
    await t.rejects(
      attacker.unsafe(`call fleet.nightly(null, '-3000 years')`),
      { code: 'FL422', message: /less than 1 day/ },
      role,
    )
    await t.rejects(attacker.unsafe(`call fleet.nightly(null, '1 hour')`), { code: 'FL422', message: /less than 1 day/ }, role)
    await attacker.unsafe(`call fleet.nightly(null, null, '2026-01-01T00:00Z')`)
    t.same(
      await sql`select day from fleet.storage_daily where day < current_date - 1`,
      [],
      `${role}: a time in the past counts as now`,
    )
    await t.rejects(
      attacker.unsafe(`select fleet.begin_run('everything')`),
      { code: 'FL422', message: /^everything is not a kind of maintenance/ },
      role,
    )
    await t.rejects(attacker.unsafe('select fleet.end_run(1)'), { code: 'FL404', message: /not running in this session/ }, role)
  }

  // The owner began a run as of a later time and stopped in the middle. No other session may continue it.
  const owner = asRole(t, db, 'fleet_owner')
  const run = (await value(owner`select fleet.begin_run('nightly', '1 day', now() + interval '100 days')`)) as string
  t.equal(await value(owner`select fleet.run_next_step(${run})`), 'done')
  const server = asRole(t, db, 'fleet_server', opsConnection)
  t.equal(await value(server`select fleet.run_next_step(${run})`), 'over')
  await owner.end()
  await waitFor(async () => (await db.admin`select * from fleet.lock_holders('maintenance')`).length === 0)
  t.equal(await value(server`select fleet.run_next_step(${run})`), 'over')
  await server`call fleet.nightly()`
  t.match(await sql`select count(*)::int as n from fleet.planned_steps`, [{ n: 0 }], 'the steps that were left are gone')
  t.match(await sql`select state from fleet.hb_partitions where partition_name = ${today}`, [{ state: 'active' }])
  t.match(await ingest(sql, [{ device_id: device, ts: daysAgo(1) }]), [{ result: 'stored' }])
})

t.test('fleet.nightly() does the same for the server as for the owner', async t => {
  const db = await withDatabase(t)
  const { sql } = db
  await sql`update fleet.settings set retention = '80 days'`
  const server = asRole(t, db, 'fleet_server', opsConnection)
  const [run] = await server<{ p_run_id: string }[]>`call fleet.nightly()`
  const steps =
    await server`select step, count(*)::int as n, bool_and(ok) as ok from fleet.run_steps(${run?.p_run_id ?? null}) group by step`
  t.match(
    new Map(steps.map(row => [row.step as string, row.n as number])),
    new Map([
      ['nightly.start', 1],
      ['maintenance.premake', 1],
      ['maintenance.retire', 10],
      ['maintenance.prune', 1],
      ['maintenance.wake_archiver', 1],
      ['nightly.end', 1],
    ]),
  )
  t.ok(steps.every(row => row.ok))
  t.equal(
    await value(sql`select detail from fleet.events where event = 'nightly.start'`),
    'fleet_server',
    'the event names the role that began it',
  )
})
