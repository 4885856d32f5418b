// fleet.check() of a distributed store; check.test.ts and check-postgres.test.ts have the rest.
import { chmod, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { distribute } from '../../cli/distribute.ts'
import { repository } from '../../lib/repository.ts'
import { makeDirectory } from '../../testing/archiver.ts'
import { onWorker, withCitus, withoutCitus } from '../../testing/citus.ts'
import { makeClock } from '../../testing/clock.ts'
import { client, waitFor, withPlainDatabase } from '../../testing/database.ts'
import { asRole, enroll, ingest, value } from '../../testing/fleet.ts'
import { runShell } from '../../testing/pages.ts'

interface Found {
  check_name: string
  status: string
  detail: string
  remedy: string | null
}

interface Trouble {
  what: string
  check: string
  detail: RegExp
  /** How much later the check looks, if the trouble is that something lasts. */
  later?: string
  inject: () => Promise<unknown>
  /** What people do besides the remedy, which only shows where to look. */
  besides?: () => Promise<unknown>
}

t.test('a plain store has no nodes to check', async t => {
  const { sql } = await withPlainDatabase(t)
  t.same(await sql`select * from fleet.check_nodes()`, [])
  t.equal(await value(sql`select fleet.nodes_away()`), null)
})

t.test('check() names each trouble with the nodes, and its remedy ends it', { skip: withoutCitus, timeout: 900_000 }, async t => {
  const directory = await makeDirectory(t)
  await chmod(directory, 0o755) // Postgres runs as another user and reads the clock there
  const clock = await makeClock(directory, 'worker')
  const nodes = await withCitus(t, clock ? { env: clock.env } : {})
  const { sql, admin, coordinator, workers, hosts } = nodes
  const [first, second] = workers as [(typeof workers)[0], (typeof workers)[0]]
  const url = coordinator.url('postgres', 'fleet')
  const dba = asRole(t, nodes, 'fleet_dba')
  const owner = asRole(t, nodes, 'fleet_owner')
  const devices = await enroll(sql, 20)
  const allBad = async () =>
    (await dba<Found[]>`select check_name from fleet.check() where status <> 'ok'`).map(({ check_name }) => check_name)
  // Settings of this cluster, which is made for the test, and that no archiver runs.
  const badBefore = await allBad()
  await distribute(url, { workers: hosts, shards: 4, log: () => {} })
  await ingest(
    sql,
    devices.map(device_id => ({ device_id, ts: new Date().toISOString() })),
  )
  // Citus would end these transactions itself, within a minute.
  for (const session of [admin, ...workers.map(worker => onWorker(t, worker))]) {
    await session`alter system set citus.recover_2pc_interval = -1`
    await session`select pg_reload_conf()`
  }
  const plainForm = await readFile(join(repository, 'sql/ingest/quarantine.sql'), 'utf8')

  // Only the owner may pass a later time.
  const found = async (later = '0') =>
    (later === '0' ? dba : owner)<Found[]>`select * from fleet.check_nodes(now() + ${later}::interval) where status <> 'ok'`
  async function run(remedy: string) {
    if (remedy.startsWith('# in a shell')) {
      const { code, output } = await runShell(remedy, { DATABASE_URL: url })
      return t.equal(code, 0, output)
    }
    const session = /^-- as superuser/.test(remedy) ? admin : dba
    for (const line of remedy.split('\n').filter(line => !line.startsWith('--'))) await session.unsafe(line)
  }

  const troubles: Trouble[] = [
    {
      what: 'somebody installed the plain form of a function',
      check: 'node_versions',
      detail: /coordinator: fleet\.quarantine\(.*127\.0\.0\.1:\d+: fleet\.quarantine\(/,
      inject: () => owner.unsafe(plainForm),
    },
    {
      what: 'a function differs on one node',
      check: 'node_versions',
      detail: new RegExp(`migrate installed in a distributed store: 127\\.0\\.0\\.1:${second.port}: fleet\\.quarantine\\(`),
      inject: () =>
        onWorker(t, second).begin(async worker => {
          await worker`set local citus.enable_ddl_propagation = off`
          await worker.unsafe(plainForm)
        }),
    },
    {
      what: 'a transaction over several nodes is half done',
      check: 'node_transactions',
      detail: new RegExp(`127\\.0\\.0\\.1:${first.port}: citus_0_1_1_1 since`),
      later: '11 minutes',
      inject: async () => {
        const worker = client(first.url('postgres', 'fleet'), 1)
        await worker.unsafe(`begin; create table public.half (); prepare transaction 'citus_0_1_1_1'`)
        await worker.end({ timeout: 1 })
      },
    },
    {
      what: 'a node has more shards than another',
      check: 'shards',
      detail: /:\d+ has [13], .*:\d+ has [13]/,
      inject: () => admin`
        select citus_move_shard_placement(p.shardid, '127.0.0.1', ${first.port}, '127.0.0.1', ${second.port}, 'block_writes')
        from (
          select shardid from citus_shards
          where table_name = 'fleet.device_last_status'::regclass and nodeport = ${first.port} order by shardid limit 1
        ) p`,
    },
    {
      what: 'a node does not answer',
      check: 'nodes',
      detail: new RegExp(`no answer from 127\\.0\\.0\\.1:${first.port}: its devices are refused`),
      inject: () => first.stop(),
      besides: () => first.start(),
    },
  ]
  if (clock)
    for (const seconds of [30, -30])
      troubles.push({
        what: 'the clocks of the nodes differ',
        check: 'node_clocks',
        detail: new RegExp(`127\\.0\\.0\\.1:\\d+ is (29|30)(\\.\\d)? s ${seconds > 0 ? 'ahead' : 'behind'}`),
        inject: async () => {
          await clock.jump(seconds)
        },
        besides: () => clock.jump(0),
      })

  const all = await dba<Found[]>`select * from fleet.check_nodes()`
  t.same(
    all.filter(({ status }) => status !== 'ok'),
    [],
    'in a healthy store every check of the nodes is ok',
  )
  t.same(
    (await allBad()).filter(name => !badBefore.includes(name)),
    [],
    'and check() names nothing that it did not name before the store was distributed',
  )
  t.same(
    [...new Set([...troubles.map(({ check }) => check), 'node_clocks'])].sort(),
    all.map(({ check_name }) => check_name).sort(),
    'each check has a trouble here',
  )
  for (const { what, check, detail, later, inject, besides } of troubles) {
    await inject()
    // A clock takes a second to jump.
    let rows: Found[] = []
    await waitFor(async () => (rows = await found(later)).length > 0, { every: 300 }).catch(() => {})
    t.match(rows, [{ check_name: check, detail }], what)
    t.equal(rows.length, 1, `${what}: no other check reports it`)
    if (check === 'nodes') await aWorkerIsDown()
    await besides?.()
    await run(rows[0]?.remedy ?? '')
    await waitFor(async () => (rows = await found(later)).length === 0, { every: 300 }).catch(() => {})
    t.same(rows, [], `${what}: its remedy ends it`)
  }
  // A session from before the restart would fail once, with its old connection to that worker.
  t.match(await ingest(asRole(t, nodes, 'fleet_owner'), [{ device_id: devices[0]!, ts: new Date().toISOString() }]), [
    { result: /stored|duplicate/ },
  ])

  /** The other parts of check() answer, and say what they could not see. */
  async function aWorkerIsDown() {
    const rows = await dba<Found[]>`select * from fleet.check()`
    t.same(
      rows.filter(({ detail }) => detail.includes('the check itself failed')),
      [],
    )
    const unjudged = rows.filter(({ detail }) => detail.startsWith('could not be judged'))
    t.same(
      unjudged.map(({ check_name, status }) => ({ check_name, status })),
      ['check_partitions', 'check_ingest', 'check_fields', 'check_silence', 'check_devices', 'check_storage'].map(check_name => ({
        check_name,
        status: 'warn',
      })),
    )
    t.match(unjudged[0]?.detail, `127.0.0.1:${first.port} does not answer`)
    for (const check of ['jobs', 'archiver', 'connections', 'nodes'])
      t.ok(
        rows.some(({ check_name }) => check_name === check),
        check,
      )
  }
})
