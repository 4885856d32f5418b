// Another worker for a distributed store. See docs/scale-out.md.
import t from 'tap'
import { onWorker, withCitus, withoutCitus } from '../testing/citus.ts'
import { daysAgo, fillDay } from '../testing/archiver.ts'
import { client, waitFor } from '../testing/database.ts'
import { enroll, ingest, value } from '../testing/fleet.ts'
import { blocksOf, readPage, runShell } from '../testing/pages.ts'
import { distribute, readArguments } from './distribute.ts'
import { rebalance } from './rebalance.ts'

const OPTIONS = { skip: withoutCitus, timeout: 900_000 }

t.test('the arguments are judged', t => {
  t.throws(
    () => readArguments(['--add', 'c', '--workers', 'a']),
    /--workers and --shards are for a store that is not distributed/,
  )
  t.throws(() => readArguments(['--add', '']), /--add names no host/)
  t.match(readArguments(['--add', 'c:5433', '--dry-run']), { isRebalance: true, add: ['c:5433'], isDryRun: true })
  t.match(readArguments(['--rebalance']), { isRebalance: true, isDryRun: false })
  t.end()
})

t.test('a worker is added while heartbeats come in, and shards move to it', OPTIONS, async t => {
  const nodes = await withCitus(t)
  const { sql, admin, coordinator, workers, hosts } = nodes
  const [first, second] = hosts as [string, string]
  const url = coordinator.url('postgres', 'fleet')
  const lines: string[] = []
  const log = (line: string) => lines.push(line)
  const devices = await enroll(sql, 60)
  await fillDay(admin, daysAgo(3), 500)

  await t.rejects(rebalance(url, { add: [second] }), /not distributed yet.*--workers/s)
  await distribute(url, { workers: [first], shards: 4, log: () => {} })
  await rebalance(url, { log })
  t.same(lines, ['Each worker has its share of the shards.'], 'one worker has all, and nothing moves')

  // Each worker, the new one too, is checked as the first were.
  await t.rejects(rebalance(url, { add: ['127.0.0.1:1'] }), /cannot be asked/)
  const spare = onWorker(t, workers[1]!)
  const password = `password=${new URL(nodes.url('fleet_reader')).password}`
  await spare`delete from pg_dist_authinfo where rolename = 'fleet_reader'`
  await t.rejects(rebalance(url, { add: [second] }), /cannot log in at .* as fleet_reader.*pg_dist_authinfo/s)
  await spare`insert into pg_dist_authinfo values (0, 'fleet_reader', ${password})`
  await spare`alter system set wal_level = 'replica'`
  await workers[1]!.stop()
  await workers[1]!.start()
  await t.rejects(rebalance(url, { add: [second] }), /wal_level is replica.*alter system set wal_level = logical/s)
  const again = onWorker(t, workers[1]!)
  await again`alter system reset wal_level`
  await workers[1]!.stop()
  await workers[1]!.start()

  lines.length = 0
  await rebalance(url, { add: [second], isDryRun: true, log })
  t.match(lines.join('\n'), /Would add .* move about 2 of 4 shards there.*Nothing was changed/s)
  t.equal(await value(sql`select count(*)::int from pg_dist_node where groupid <> 0`), 1)

  // Heartbeats of all devices, all the time. What is answered is what must be there in the end.
  const server = client(nodes.url('fleet_server'), 2)
  const sent = new Map<string, number>()
  const failures: string[] = []
  const base = Date.now() - 30 * 3_600_000
  let isOver = false
  const sending = (async () => {
    for (let n = 0; !isOver; n++) {
      const ts = new Date(base + n * 10_000).toISOString()
      const batch = JSON.stringify(devices.map(device_id => ({ device_id, ts, battery_pct: n % 100 })))
      await server<{ results: (string | null)[] | null }[]>`select results from fleet.ingest_batch(${batch}::text::json)`.then(
        ([row]) => {
          // One that failed may be stored all the same, and comes again.
          if ((row!.results ?? []).every(result => result === null || result === 'duplicate')) sent.set(ts, n % 100)
          else failures.push(String(row!.results))
        },
        (error: Error) => {
          failures.push(error.message)
          isOver ||= failures.length > 20
          n--
        },
      )
    }
  })()
  t.teardown(async () => {
    isOver = true
    await sending
    await server.end({ timeout: 1 })
  })
  await waitFor(async () => sent.size > 5, { what: () => `heartbeats; ${failures.slice(0, 3).join('; ')}` })

  // Stopped once the node is known, and between two moves, and run again.
  const stops: string[] = []
  lines.length = 0
  for (let isDone = false; !isDone;) {
    await rebalance(url, {
      add: [second],
      log,
      afterStep: name => {
        const isNew = !stops.includes(name)
        stops.push(name)
        const isSecondMove = stops.filter(stop => /^\d+$/.test(stop)).length > 1
        if (!isNew || isSecondMove || ['rights', 'reference tables'].includes(name)) return
        throw new Error('stopped by the test')
      },
    }).then(
      () => (isDone = true),
      (error: Error) => {
        if (error.message !== 'stopped by the test') throw error
      },
    )
  }
  const during = sent.size
  await waitFor(async () => sent.size > during + 5)
  isOver = true
  await sending
  t.comment(`${during} batches while shards moved`)
  t.same(stops.slice(0, 3), ['nodes', 'rights', 'reference tables'])
  t.equal(stops.filter(name => /^\d+$/.test(name)).length, 2, 'two shards moved')
  t.match(lines.join('\n'), /shard \d+ \(1 of 2\), \d+ MB: .* → .*: [\d.]+ s/)

  t.same(
    await admin`
      select nodeport as port, count(*)::int as shards from citus_shards where table_name = 'fleet.device_last_status'::regclass
      group by 1 order by 1`,
    workers.map(({ port }) => ({ port, shards: 2 })).sort((a, b) => a.port - b.port),
  )
  // The last moment of a move makes heartbeats wait. One that waits for 2 seconds is answered with 503, and comes again.
  t.same(
    failures.filter(failure => !failure.includes('statement timeout')),
    [],
    'no heartbeat failed for another reason',
  )
  const stored = await admin<{ ts: string; rows: number; devices: number }[]>`
    select ts::text, count(*)::int as rows, count(distinct device_id)::int as devices from fleet.device_heartbeats
    where ts >= ${new Date(base)} group by 1`
  t.equal(stored.length, sent.size)
  t.ok(
    stored.every(({ rows, devices: different }) => rows === devices.length && different === devices.length),
    'nothing is lost or doubled',
  )
  t.equal(await value(admin`select count(*)::int from fleet.device_heartbeats where ts < ${new Date(base)}`), 500)
  const [[newest, battery]] = [...sent].slice(-1) as [[string, number]]
  t.same(
    await admin`select distinct last_ts, battery_pct from fleet.device_last_status where device_id = any (${devices})`,
    [{ last_ts: new Date(newest), battery_pct: battery }],
    'last status is that of the newest heartbeat',
  )

  // The new worker is as good as the first.
  const rights = (worker: number) => onWorker(t, workers[worker]!)`
    select p.oid::regprocedure::text as name, array(select a::text from unnest(p.proacl) a order by 1) as rights, p.prosrc
    from pg_proc p where p.pronamespace = 'fleet'::regnamespace
    union all
    select c.relname, array(select a::text from unnest(c.relacl) a order by 1), null
    from pg_class c
    where c.relnamespace = 'fleet'::regnamespace and c.relkind in ('p', 'v')
    order by 1`
  t.same(await rights(1), await rights(0), 'functions, views and rights are the same on both')
  const at = await onWorker(t, workers[1]!, 'fleet_server')`
    select results from fleet.ingest_batch(${JSON.stringify(devices.map(device_id => ({ device_id })))}::text::json)`
  t.equal(at[0]!.results, null, 'all are stored')
  t.match(await sql`select count(*)::int from fleet.audit_log where action = 'store.node_added'`, [{ count: 1 }])
  t.match(await ingest(sql, [{ device_id: devices[0]!, ts: new Date(Date.now() + 15_000).toISOString() }]), [
    { result: 'stored' },
  ])

  // What the runbook says about such a store.
  const page = await readPage('RUNBOOK.md')
  const statements = blocksOf(page, 'sql citus')
    .flatMap(block => block.split(/;\n/))
    .map(part => part.trim())
    .filter(Boolean)
  t.ok(statements.length >= 8, `${statements.length} statements`)
  for (const statement of statements) await t.resolves(admin.unsafe(statement), statement)
  const commands = blocksOf(page, 'sh citus')
  t.ok(commands.length >= 4, `${commands.length} commands`)
  for (const command of commands) {
    const { code, output } = await runShell(command, { DATABASE_URL: url, NEW_WORKER: second })
    t.equal(code, 0, `${command}\n${output}`)
  }
})
