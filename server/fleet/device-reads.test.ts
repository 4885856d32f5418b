import t from 'tap'
import { ingestOnTime } from '../../testing/fleet.ts'
import { spawnNode, waitFor, withDatabase } from '../../testing/database.ts'
import { isWithin } from './device-reads.ts'
import { ago, client, enroll, serverEnv, withServer } from '../../testing/server.ts'

interface Page {
  devices: { alias: string; status: string; battery_pct: number | null }[]
}

t.test('a path and query is always in the share or never, and a larger share includes the smaller one', t => {
  const requests = Array.from({ length: 2000 }, (_, n) => `/v1/devices/${n}`)
  const tenth = requests.filter(target => isWithin(target, 0.1))
  t.ok(tenth.length > 140 && tenth.length < 260, `${tenth.length} of 2000 at 10%`)
  t.ok(tenth.every(target => isWithin(target, 0.5)))
  t.same(
    requests.filter(target => isWithin(target, 0)),
    [],
  )
  t.equal(requests.filter(target => isWithin(target, 1)).length, 2000)
  t.end()
})

t.test('READ_FROM_LAST_STATUS=false answers from the heartbeats, with the same result while both agree', async t => {
  const fast = await withServer(t)
  const { db } = fast
  const legacy = await withServer(t, { readFromLastStatus: 0 }, db)
  const devices: Awaited<ReturnType<typeof enroll>>[] = []
  for (const alias of ['a', 'b', 'c', 'd', 'e']) devices.push(await enroll(db, alias))
  const beats = [
    { ts: ago(5), battery_pct: 1 },
    { ts: ago(1200), battery_pct: 2 },
    { ts: ago(200), unity_running: false },
    { ts: ago(-3600) },
  ]
  await ingestOnTime(
    db.sql,
    beats.map((beat, n) => ({ device_id: devices[n]!.device_id, ...beat })),
  )
  const { device_id: revoked } = await enroll(db, 'gone')
  await db.sql`select fleet.revoke_device(${revoked})`
  const body = async (server: typeof fast, path: string) => {
    const answer = (await server.call(`GET ${path}`, { admin: true })).body
    return JSON.parse(JSON.stringify(answer, (key, value: unknown) => (key === 'seconds_since' ? undefined : value))) as Page
  }
  const paths = [
    '/v1/devices',
    '/v1/devices?status=offline',
    '/v1/devices?older_than=3m',
    '/v1/devices?status=clock_skewed',
    '/v1/devices?status=new',
    '/v1/devices?status=unity_down',
    '/v1/devices?status=revoked',
    '/v1/devices?status=revoked&cohort=nobody',
    '/v1/devices?limit=2&cursor=1',
    `/v1/devices/${devices[1]!.device_id}`,
    `/v1/devices/${devices[4]!.device_id}`,
  ]
  for (const path of paths) t.same(await body(legacy, path), await body(fast, path), path)
  t.same(
    (await body(legacy, '/v1/devices')).devices.map(device => device.status),
    ['online', 'offline', 'late', 'clock_skewed', 'new'],
  )
  t.match((await body(legacy, '/v1/devices?status=revoked')).devices, [{ device_id: revoked, alias: 'gone', status: 'revoked' }])
  t.match((await body(legacy, '/v1/devices?status=unity_down')).devices, [{ device_id: devices[2]!.device_id }])

  await db.admin`update fleet.device_last_status set battery_pct = 99`
  t.equal((await body(fast, '/v1/devices')).devices[0]!.battery_pct, 99)
  t.equal((await body(legacy, '/v1/devices')).devices[0]!.battery_pct, 1, 'last status is not read at all')
  const page = await legacy.call('GET /metrics', { admin: true })
  t.match(page.body, /^query_latency_legacy_list_devices_ms_count [1-9]/m)
  t.match(page.body, /^query_latency_fast_list_devices_ms_count 0/m)
})

t.test('PERF_DIFF_ENABLED compares both ways, and says whether they agree', async t => {
  const db = await withDatabase(t)
  const server = await spawnNode(t, 'server/main.ts', {
    env: { ...serverEnv(db), PERF_DIFF_ENABLED: 'true' },
    ready: /server\.listening/,
  })
  const call = client(`http://127.0.0.1:${/"port":(\d+)/.exec(server.output())![1]!}`)
  const { token, device_id } = await enroll(db, 'a')
  await call('POST /v1/heartbeat', { token, body: { ts: ago(30), battery_pct: 50 } })
  const comparisons = () =>
    server
      .output()
      .split('\n')
      .filter(line => line.includes('perf_diff.query_comparison'))
      .map(line => JSON.parse(line) as Record<string, unknown>)
  const compared = async (count: number) => {
    await call('GET /v1/devices', { admin: true })
    await waitFor(async () => comparisons().length >= count, { what: () => `comparison ${count}:\n${server.output()}` })
    return comparisons()[count - 1]
  }
  t.match(await compared(1), {
    query: 'list_devices',
    fast_ms: Number,
    legacy_ms: Number,
    speedup: Number,
    agrees: true,
    differing: [],
    rows: 1,
  })
  await db.admin`update fleet.device_last_status set battery_pct = 99`
  t.match(await compared(2), { agrees: false, differing: [device_id] })
  const metrics = (await call('GET /metrics', { admin: true })).body
  t.match(metrics, /^query_latency_legacy_list_devices_ms_count [23]/m)
  t.match(metrics, /^query_latency_fast_list_devices_ms_count [2-4]/m)
})
