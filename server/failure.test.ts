import t, { type Test } from 'tap'
import postgres, { type Sql } from 'postgres'
import { size } from '../local/config.ts'
import { spawnNode, waitFor, withCluster, withDatabase } from '../testing/database.ts'
import { client, serverEnv } from '../testing/server.ts'
import { checkStored, enrollMany, more, startTraffic } from '../testing/traffic.ts'

const SENDERS = 300
const BATCHERS = 20

t.setTimeout(300_000)

/** A server on this database under load. */
async function withTraffic(t: Test, env: ReturnType<typeof serverEnv>, sql: Sql) {
  const devices = await enrollMany(sql, SENDERS)
  const server = await spawnNode(t, 'server/main.ts', { env, ready: /"server.listening"/ })
  const url = `http://127.0.0.1:${/"port":(\d+)/.exec(server.output())![1]}`
  const traffic = startTraffic([url], devices, { batchers: BATCHERS, pause: 600 })
  t.teardown(traffic.stop)
  await more(traffic)
  const refusals = async (count: number) => {
    const before = traffic.refused
    await waitFor(async () => traffic.refused >= before + count, { what: () => `${count} refusals` })
  }
  /** Checks that the server has recovered by itself, that nothing is lost, and that the process is healthy. */
  const check = async (sql: Sql) => {
    await more(traffic, 2 * SENDERS)
    await traffic.stop()
    t.equal((await client(url)('GET /readyz')).status, 200)
    await checkStored(t, sql, traffic)
    t.equal(traffic.cut, 0, 'every request was answered')
    t.equal((await server.stop('SIGTERM')).code, 0)
    t.notOk(server.output().includes(devices[0]!.token), 'no token in the log')
  }
  return { traffic, refusals, check }
}

t.test('Postgres crashes under load', async t => {
  const db = await withCluster(t)
  const { traffic, refusals, check } = await withTraffic(t, serverEnv(db), db.sql)
  for (let crash = 1; crash <= 3; crash++) {
    await db.cluster.stop('immediate')
    await refusals(SENDERS)
    await db.cluster.start()
    await more(traffic)
  }
  // The connections of the test itself did not survive the crashes.
  const sql = postgres(db.url('fleet_owner'), { max: 1 })
  t.teardown(() => sql.end({ timeout: 1 }))
  await check(sql)
})

t.test('connections are cut all the time', async t => {
  const db = await withDatabase(t)
  const { traffic, check } = await withTraffic(t, serverEnv(db), db.sql)
  let cut = 0
  while (cut < size({ deep: 100, quick: 30 })) {
    const rows = await db.admin`
      select pg_terminate_backend(pid) from pg_stat_activity
      where datname = current_database() and application_name like 'nexmdm %'
    `
    cut += rows.length
    await more(traffic, 20)
  }
  t.ok(traffic.refused > 0)
  await check(db.sql)
})

t.test('a lock holds up writes for longer than the statement timeout', async t => {
  const db = await withDatabase(t)
  const { traffic, refusals, check } = await withTraffic(t, serverEnv(db), db.sql)
  const [partition] = await db.sql<{ name: string }[]>`
    select partition_name as name from fleet.hb_partitions where range_start <= now() and range_end > now()
  `
  for (const table of ['device_last_status', partition!.name]) {
    await db.admin.begin(async locker => {
      await locker.unsafe(`lock table fleet.${table} in exclusive mode`)
      await refusals(SENDERS)
    })
    await more(traffic)
  }
  await check(db.sql)
})
