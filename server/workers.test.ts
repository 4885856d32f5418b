import t from 'tap'
import { waitFor, withDatabase } from '../testing/database.ts'
import { isAlive } from '../lib/process.ts'
import { enroll, living, load, lost, NO_LIMIT, withProcess, type Call } from '../testing/server.ts'

async function metric(call: Call, name: string) {
  const { body } = await call('GET /metrics', { admin: true })
  return Number(new RegExp(`^${name} (\\S+)$`, 'm').exec(body as string)?.[1])
}

t.test('workers killed under load are replaced, nothing acknowledged is lost, and no total falls', async t => {
  const db = await withDatabase(t)
  const { device_id, token } = await enroll(db, 'a')
  const { server, call, url } = await withProcess(t, db, { WORKERS: '2', ...NO_LIMIT })
  await waitFor(async () => living(server).length === 2, { what: () => server.output() })
  t.same((await call('GET /ops/pool_health', { admin: true })).body, {
    status: 'ok',
    pool: { in_use: 0, max: 20, utilization_pct: 0, waiting: 0 },
  })

  const traffic = load(url, token, 5)
  const totals = [0]
  for (let round = 1; round <= 3; round++) {
    await waitFor(async () => traffic.acknowledged.length > 100 * round)
    totals.push(await metric(call, 'heartbeats_ingested_total'))
    const [victim] = living(server)
    process.kill(victim!, 'SIGKILL')
    await waitFor(async () => !living(server).includes(victim!))
    totals.push(await metric(call, 'heartbeats_ingested_total').catch(() => metric(call, 'heartbeats_ingested_total')))
    await waitFor(async () => living(server).length === 2, { what: () => server.output() })
  }
  await traffic.stop()
  t.same(
    totals,
    totals.toSorted((a, b) => a - b),
  )
  t.same([...traffic.statuses.keys()], [201])
  t.same(await lost(db, device_id, traffic.acknowledged), [])

  const before = traffic.acknowledged.length
  const quiet = await metric(call, 'heartbeats_ingested_total')
  const more = load(url, token, 5, before)
  await waitFor(async () => more.acknowledged.length > 100)
  await more.stop()
  t.equal(await metric(call, 'heartbeats_ingested_total'), quiet + more.acknowledged.length, 'one scrape has all workers')
  t.equal((await server.stop('SIGTERM')).code, 0, server.output())
  t.equal(server.output().match(/"server.listening"/g)?.length, 1)
})

t.test('a worker that stops in order leaves all its counts', async t => {
  const db = await withDatabase(t)
  const { token } = await enroll(db, 'a')
  const { server, call, url } = await withProcess(t, db, { WORKERS: '2', ...NO_LIMIT })
  await waitFor(async () => living(server).length === 2)
  const traffic = load(url, token, 5)
  await waitFor(async () => traffic.acknowledged.length > 100)
  for (const pid of living(server)) {
    process.kill(pid, 'SIGTERM')
    await waitFor(async () => !living(server).includes(pid) && living(server).length === 2, { what: () => server.output() })
  }
  await traffic.stop()
  t.equal(await metric(call, 'heartbeats_ingested_total'), traffic.acknowledged.length)
  t.same([...traffic.statuses.keys()], [201])
})

t.test('a worker that hangs does not hold up the scrape, and its last snapshot counts', async t => {
  const db = await withDatabase(t)
  const { token } = await enroll(db, 'a')
  const { server, call, url } = await withProcess(t, db, { WORKERS: '3', ...NO_LIMIT })
  await waitFor(async () => living(server).length === 3)
  const traffic = load(url, token, 5)
  await waitFor(async () => traffic.acknowledged.length > 100)
  await traffic.stop()
  const total = await metric(call, 'heartbeats_ingested_total')
  const [first] = living(server)
  process.kill(first!, 'SIGSTOP')
  t.teardown(() => isAlive(first!) && process.kill(first!, 'SIGKILL'))
  // A connection that is handed to the hanging worker gets no answer. The others answer all that follow.
  let answer = NaN
  await waitFor(async () => {
    answer = await Promise.race([
      metric(call, 'heartbeats_ingested_total'),
      new Promise<number>(resolve => setTimeout(resolve, 2_500, NaN)),
    ])
    return answer >= total
  })
  t.equal(answer, total)
  process.kill(first!, 'SIGCONT')
  t.equal((await server.stop('SIGTERM')).code, 0, server.output())
})
