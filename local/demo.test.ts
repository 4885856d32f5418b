import { join } from 'node:path'
import t from 'tap'
import { freePort } from './cluster.ts'
import { leftToCi } from './config.ts'
import { historyLines, startDemo } from './demo.ts'
import { spawnNode, waitFor, withDatabase } from '../testing/database.ts'

t.test('the simulated fleet has a history, and sends heartbeats over HTTP', { skip: leftToCi() }, async t => {
  const db = await withDatabase(t)
  const port = await freePort(true)
  const url = `http://127.0.0.1:${port}`
  await spawnNode(t, 'server/main.ts', {
    env: { DATABASE_URL: db.url('postgres'), PORT: String(port), ADMIN_KEY: 'k'.repeat(32), WORKERS: '1' },
    ready: `${url}/readyz`,
  })
  const file = join(t.testdir({}), 'demo.json')
  const stop = new AbortController()
  t.teardown(() => stop.abort())

  await startDemo(db.sql, url, file, stop.signal)
  const [loaded] = await db.sql`
    select count(*)::integer as beats, count(distinct device_id)::integer as devices, count(distinct ts::date)::integer as days
    from fleet.device_heartbeats where received_at < now() - interval '1 hour'
  `
  t.ok(loaded?.beats > 500_000, `${loaded?.beats} heartbeats`)
  t.equal(loaded?.devices, 200)
  t.ok(loaded?.days >= 89 && loaded?.days <= 92, 'it no longer contains the days beyond the retention')
  const [retired] = await db.sql`select count(*)::integer as days from fleet.hb_partitions where state <> 'active'`
  t.ok(retired?.days >= 8, `${retired?.days} days wait for the archiver`)

  const live = () => db.sql`select from fleet.device_heartbeats where agent_version is not null and ip = '127.0.0.1'`
  await waitFor(async () => (await live()).length > 5, { timeoutMs: 60_000, what: () => 'live heartbeats' })
  stop.abort()

  const count = () => db.sql`select count(*)::integer as beats from fleet.device_heartbeats where ip <<= '10.0.0.0/8'`
  const [before] = await count()
  const again = new AbortController()
  const started = Date.now()
  await startDemo(db.sql, url, file, again.signal)
  again.abort()
  t.ok(Date.now() - started < 5_000, 'a second run has nothing to load')
  t.strictSame(await count().then(rows => rows[0]), before)
  t.match(await db.sql`select count(*)::integer as devices from fleet.devices`, [{ devices: 200 }])
})

t.test('no matter when it is started, no device has two heartbeats in a bucket', async t => {
  const devices = Array.from({ length: 200 }, (_, n) => ({ number: n + 1, device_id: String(n + 1), token: '' }))
  for (let n = 0; n < 24; n++) {
    const firstLiveAt = new Date(Date.UTC(2026, 10, 21) + n * 3_607_003).toISOString()
    for (const day of [Date.UTC(2026, 10, 20), Date.UTC(2026, 10, 21)]) {
      const seen = new Set<string>()
      let lines = 0
      for (const line of historyLines({ devices, firstLiveAt }, day, Math.min(day + 86_400_000, Date.parse(firstLiveAt)))) {
        const [ts = '', , device_id] = line.split('\t')
        seen.add(`${device_id} ${Math.floor(Date.parse(ts) / 10_000)}`)
        lines++
      }
      t.equal(seen.size, lines, `${firstLiveAt}: ${lines} on the day of ${new Date(day).toISOString()}`)
    }
  }
})
