import t from 'tap'
import { freePort } from '../local/cluster.ts'
import { leftToDeep } from '../local/config.ts'
import { runScenario, startScenario } from '../testing/bench.ts'
import { lyingServer } from '../testing/checkout.ts'
import { enroll, withServer } from '../testing/server.ts'
import { wrk } from '../testing/wrk.ts'
import { startBare } from './bare-server.ts'
import { runWrk, wrkScript } from './wrk.ts'

// Each scenario makes its own durable cluster.
t.setTimeout(600_000)

t.test('the bare server that parses gives the same answer as the server', async t => {
  const { db, url } = await withServer(t)
  const port = await freePort(true)
  const bare = await startBare(port, 1, 'parses')
  t.teardown(() => bare.stop())
  const { token } = await enroll(db, 'bench')
  // Postgres leaves out zeros at the end of a fraction.
  const ts = new Date(Math.floor(Date.now() / 1000) * 1000).toISOString().replace('.000', '')
  const body = JSON.stringify({ ts, battery_pct: 81, network_type: 'wifi', unity_running: true })
  const [mine, others] = await Promise.all(
    [url, `http://127.0.0.1:${port}`].map(async origin => {
      const answer = await fetch(`${origin}/v1/heartbeat`, {
        method: 'POST',
        headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' },
        body,
      })
      return {
        status: answer.status,
        type: answer.headers.get('content-type'),
        body: (await answer.text()).replace(/(?<="next_interval_s":)\d+/, 'a number'),
      }
    }),
  )
  t.same(others, mine)
})

t.test('wrk that gets errors is not measured', { skip: wrk.without }, async t => {
  const { url } = await withServer(t)
  const script = await wrkScript('test', 'function request() return "POST /v1/heartbeat HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n" end\n')
  t.teardown(() => script.remove())
  await t.rejects(runWrk(url, script.file, { seconds: 1 }), { message: /^[1-9]\d* errors/ })
})

t.test('targets measures each of them in turns', { skip: wrk.without || leftToDeep() }, async t => {
  const figures = await runScenario(t, 'targets', [
    '--rounds',
    '1',
    '--seconds',
    '2',
    '--warmup',
    '2',
    '--restart',
    '4',
    '--devices',
    '300,700',
    '--connections',
    '64,256',
    '--workers',
    '1,2',
  ])
  for (const [name, target] of [
    ['heartbeats, 700 / 300 devices, 256', { at: 'least', value: 0.9 }],
    ['memory, 700 / 300 devices, 256', { at: 'most', value: 1.1 }],
    ["server's CPU / bare, parses, 256", { at: 'most', value: 1.3 }],
    ['heartbeats / without the database, 256', { at: 'least', value: 0.6 }],
    ['CPU of Postgres for each heartbeat, 64', { at: 'most', value: 35 }],
    ['CPU of Postgres for each heartbeat, 256', { at: 'most', value: 22 }],
    ['heartbeats, 2 workers / 1, 64', { at: 'least', value: 1 }],
    ['heartbeats, first 4 s after a restart / before', { at: 'least', value: 0.9 }],
  ] as const)
    t.match(
      figures.find(found => found.name === name),
      { target },
      name,
    )
  for (const kind of ['server', 'without', 'parses', 'reads'])
    t.ok(
      figures.some(({ name, measured }) => name === `${kind}, a new connection for each heartbeat: heartbeats` && measured > 0),
      kind,
    )
  // A store of few devices is updated in few pages, so CPU of Postgres may be too little for the ticks of /proc.
  t.ok(figures.every(({ name, measured }) => measured > 0 || name.includes('CPU')))
})

t.test('targets fails if the server stores nothing', { skip: wrk.without || leftToDeep() }, async t => {
  const args = [
    '--rounds',
    '1',
    '--seconds',
    '1',
    '--warmup',
    '1',
    '--restart',
    '2',
    '--devices',
    '300',
    '--connections',
    '8',
    '--workers',
    '1',
  ]
  const bench = await startScenario(t, 'targets', ['--server', await lyingServer(t), ...args, '--only', 'server'])
  t.match(await bench.exited, { code: 1 })
  t.match(bench.output(), /server: \d+ heartbeats were acknowledged, and 0 are in the database/)
})
