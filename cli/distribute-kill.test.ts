// npm run distribute that is killed. distribute.test.ts stops it between its steps.
import t from 'tap'
import { daysAgo, fillDay, partitionOf } from '../testing/archiver.ts'
import { withCitus, withoutCitus } from '../testing/citus.ts'
import { client, spawnNode, waitFor } from '../testing/database.ts'
import { enroll, ingest, value } from '../testing/fleet.ts'

t.test('it may be killed in the middle of a step, and goes on', { skip: withoutCitus, timeout: 900_000 }, async t => {
  const nodes = await withCitus(t, { workers: 1 })
  const { sql, admin, coordinator, hosts } = nodes
  const [device] = (await enroll(sql, 10)) as [number]
  await fillDay(admin, daysAgo(3), 500)
  const url = coordinator.url('postgres', 'fleet')
  const content = async () =>
    await admin`
    select count(*)::int, sum(hash_record_extended(h, 0)::numeric)::text as hash from fleet.device_heartbeats h`
  const before = await content()
  const start = () =>
    spawnNode(t, 'cli/distribute.ts', { args: ['--workers', hosts.join(','), '--shards', '2'], env: { DATABASE_URL: url } })

  for (const [what, table, done, notDone] of [
    [
      'while it distributes the heartbeats',
      `fleet.${await partitionOf(sql, daysAgo(3))}`,
      /^device_last_status: \d/m,
      /^device_heartbeats: /m,
    ],
    ['while it installs sql/distributed', 'fleet.recorded_forms', /^clean_up: /m, /^sql\/distributed: /m],
  ] as const) {
    // It waits for this lock in the middle of the step.
    const holder = client(url, 1)
    await holder.unsafe(`begin; lock table only ${table} in access share mode; lock table only ${table} in share mode`)
    const run = await start()
    const isWaiting = () => value(admin`select exists (select from pg_locks where not granted and relation = ${table}::regclass)`)
    await waitFor(async () => (await isWaiting()) === true, {
      timeoutMs: 240_000,
      what: () => `the step, ${what}; it printed:\n${run.output()}`,
    })
    await run.stop('SIGKILL')
    t.match(run.output(), done, what)
    t.notMatch(run.output(), notDone, what)
    await holder.end({ timeout: 1 })
  }

  // What the killed one left on the coordinator may still run: this one waits for it.
  const last = await start()
  t.match(await last.exited, { code: 0 }, last.output())
  t.match(last.output(), /^sql\/distributed: \d+ files$/m)
  t.same(await content(), before, 'no row is lost, doubled or changed')
  t.same(await sql`select 1 from fleet.distribution_plan() where not is_done`, [])
  t.match(await sql`select status, detail from fleet.check_nodes() where check_name = 'node_versions'`, [{ status: 'ok' }])
  t.match(await ingest(sql, [{ device_id: device }]), [{ result: 'stored' }])
})
