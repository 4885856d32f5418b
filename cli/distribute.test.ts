import t, { type Test } from 'tap'
import { daysAgo, fillDay } from '../testing/archiver.ts'
import { onWorker, withCitus, withoutCitus, type CitusNodes } from '../testing/citus.ts'
import { ingest, value } from '../testing/fleet.ts'
import { distribute, readArguments } from './distribute.ts'
import { citusFirst } from './nodes.ts'

const OPTIONS = { skip: withoutCitus, timeout: 900_000 }

async function withStore(t: Test) {
  const nodes = await withCitus(t)
  await nodes.sql`select fleet.create_device('device-' || n) from generate_series(1, 10) n`
  await fillDay(nodes.admin, daysAgo(3), 500)
  return nodes
}

function distributed({ coordinator, hosts }: CitusNodes, more: Partial<Parameters<typeof distribute>[1]> = {}) {
  const lines: string[] = []
  const done = distribute(coordinator.url('postgres', 'fleet'), {
    workers: hosts,
    shards: 2,
    log: line => lines.push(line),
    ...more,
  })
  return done.then(() => lines)
}

t.test('the arguments are judged', t => {
  t.throws(() => readArguments([]), /--workers names no host/)
  t.throws(() => readArguments(['--workers', 'a', '--shards', 'many']), /--shards is a number/)
  t.throws(() => readArguments(['--workers', 'a', '--worker', 'b']), /usage:/)
  t.match(readArguments(['--workers', 'a,b:5433', '--shards', '8', '--dry-run']), {
    workers: ['a', 'b:5433'],
    shards: 8,
    isDryRun: true,
  })
  t.end()
})

t.test('citus comes first in shared_preload_libraries, and the other libraries stay', t => {
  t.equal(citusFirst(''), 'citus')
  t.equal(citusFirst('pg_cron'), 'citus, pg_cron')
  t.equal(citusFirst('pg_stat_statements,pg_cron, citus'), 'citus, pg_stat_statements, pg_cron')
  t.end()
})

t.test('a store that cannot be distributed is refused with what to do, and a dry run changes nothing', OPTIONS, async t => {
  const nodes = await withStore(t)
  const { sql, admin, workers } = nodes
  const isPlain = async () => (await value(sql`select fleet.is_distributed()`)) === false

  await t.rejects(distributed(nodes, { workers: ['127.0.0.1:1'] }), /cannot be asked/)
  const first = onWorker(t, workers[0]!)
  await first`delete from pg_dist_authinfo where rolename = 'fleet_reader'`
  await t.rejects(distributed(nodes, { isDryRun: true }), /cannot log in at .* as fleet_reader.*pg_dist_authinfo/s)
  await first`insert into pg_dist_authinfo values (0, 'fleet_reader', ${`password=${new URL(nodes.url('fleet_reader')).password}`})`

  await admin`insert into fleet.readers (reader, cohorts) values ('bound', '{lobby}')`
  await t.rejects(distributed(nodes), /see only their cohorts.*drop_reader/s)
  t.ok(await isPlain())
  await admin`delete from fleet.readers`

  const lines = await distributed(nodes, { isDryRun: true })
  t.match(lines.join('\n'), /device_heartbeats: distributed.*Nothing was changed/s)
  t.ok(await isPlain())
  t.match(await ingest(sql, [{ device_id: 1 }]), [{ result: 'stored' }])

  await sql`select fleet.archive_partition(partition_name) from fleet.hb_partitions where range_start = ${daysAgo(3)}::date`
  await t.rejects(distributed(nodes), /retired days wait for the archiver.*partition_health/s)
  t.ok(await isPlain())
})

t.test('it may be stopped after each step, and goes on', OPTIONS, async t => {
  const nodes = await withStore(t)
  const { sql, admin } = nodes
  const before = await admin`
    select count(*)::int, sum(hash_record_extended(h, 0)::numeric)::text as hash from fleet.device_heartbeats h`
  const stops: string[] = []
  for (let isOver = false; !isOver;) {
    let stopped: string | undefined
    await distributed(nodes, {
      afterStep: name => {
        if (stops.includes(name)) return
        stops.push((stopped = name))
        throw new Error('stopped by the test')
      },
    }).then(
      () => (isOver = true),
      (error: Error) => {
        if (error.message !== 'stopped by the test') throw error
      },
    )
    if (stopped === 'close')
      await t.rejects(
        onWorkerOrNot(nodes)`select fleet.ingest_batch('[{"device_id":1}]')`,
        { code: '42501' },
        'heartbeats are refused meanwhile',
      )
  }
  t.equal(stops[0], 'nodes')
  t.equal(stops.at(-1), 'sql/distributed')
  t.ok(stops.length > 15, stops.join(', '))
  t.same(
    await admin`select count(*)::int, sum(hash_record_extended(h, 0)::numeric)::text as hash from fleet.device_heartbeats h`,
    before,
  )
  t.match(await ingest(sql, [{ device_id: 1 }]), [{ result: 'stored' }])
  t.same(await sql`select 1 from fleet.distribution_plan() where not is_done`, [])

  function onWorkerOrNot({ coordinator }: CitusNodes) {
    return onWorker(t, coordinator, 'fleet_server')
  }
})
