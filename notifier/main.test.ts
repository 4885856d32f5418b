// The process: what it sends and when, how it stops, and what it survives.
import { setTimeout as sleep } from 'node:timers/promises'
import postgres from 'postgres'
import t from 'tap'
import { leftToCi, size } from '../local/config.ts'
import { spawnNode, waitFor, withCluster, withDatabase } from '../testing/database.ts'
import { plainOnly } from '../testing/distributed.ts'
import { asRole, enroll, ingest, ingestAndNote, value } from '../testing/fleet.ts'
import { generator } from '../testing/random.ts'
import {
  change,
  messages,
  notifierEnv,
  notifyOnce,
  startNotifier,
  told,
  withReceiver,
  type Received,
} from '../testing/webhooks.ts'

const SEED = 20261129

/** The device of a message, by its alias. */
const aliasOf = ({ body }: Received) => (body.data.device as { alias: string }).alias
const idOf = ({ headers }: Received) => headers['webhook-id']!

function groupBy<T>(list: T[], keyOf: (one: T) => string) {
  const groups = new Map<string, T[]>()
  for (const one of list) groups.set(keyOf(one), [...(groups.get(keyOf(one)) ?? []), one])
  return groups
}

t.test('a notification wakes it at once, and without one it looks every two seconds', async t => {
  const db = await withDatabase(t)
  const dba = asRole(t, db, 'fleet_dba')
  const [device] = (await enroll(db.sql, 1)) as [number]
  const receiver = await withReceiver(t)
  const notifier = await startNotifier(t, db)
  await dba`select fleet.create_webhook('hook', ${receiver.url}, p_grace => '0')`
  const id = await value(dba`select fleet.test_webhook('hook')`)
  await waitFor(async () => receiver.received.length === 1)
  t.equal(idOf(receiver.received[0]!), id)
  await change(db.sql, device, { event: 'offline' })
  await waitFor(async () => receiver.received.length === 2)
  await change(db.sql, device, { event: 'back', from: 'offline' })
  await waitFor(async () => receiver.received.length === 3)
  await waitFor(async () => (await told(db.sql)).every(text => text.endsWith('delivered')))
  t.match(await dba`select status, detail from fleet.check_webhooks() where check_name = 'notifier'`, [{ status: 'ok' }])
  t.same(await notifier.stop('SIGTERM'), { code: 0, signal: null })
  t.notMatch(notifier.output(), /whsec_|error|warn/)
})

t.test('from a heartbeat that does not come to the message, and from the next one to the recovery', async t => {
  const db = await withDatabase(t)
  const dba = asRole(t, db, 'fleet_dba')
  const devices = (await enroll(db.sql, 12)) as [number, ...number[]]
  const [silent, ...others] = devices
  await db.admin`update fleet.devices set enrolled_at = now() - interval '1 day'`
  const receiver = await withReceiver(t)
  await dba`select fleet.create_webhook('hook', ${receiver.url}, p_grace => '0')`
  await startNotifier(t, db)
  const ago = (minutes: number) => new Date(Date.now() - minutes * 60_000).toISOString()
  await ingest(db.sql, [{ device_id: silent, ts: ago(15), battery_pct: 40 }], ago(15))
  await ingest(
    db.sql,
    others.map(device_id => ({ device_id, ts: ago(0), battery_pct: 40 })),
  )
  await db.sql`call fleet.mark_silent()`
  await waitFor(async () => receiver.received.length === 1)
  t.match(receiver.received[0]!.body, {
    type: 'device.offline',
    data: { device: { id: silent, alias: 'device-1' }, battery_pct: 40 },
  })
  await ingestAndNote(db.sql, [{ device_id: silent, ts: ago(0) }])
  await waitFor(async () => receiver.received.length === 2)
  t.match(receiver.received[1]!.body, { type: 'device.back', data: { first_id: idOf(receiver.received[0]!) } })
})

t.test('a receiver that fails in every way gets the message again with the same id, until it accepts it', async t => {
  const db = await withDatabase(t)
  const [device] = (await enroll(db.sql, 1)) as [number]
  const receiver = await withReceiver(t)
  await db.sql`select fleet.create_webhook('hook', ${receiver.url}, p_grace => '0')`
  await change(db.sql, device, { event: 'offline' })
  await change(db.sql, device, { event: 'back', from: 'offline' })
  const again = () =>
    db.sql`update fleet.webhook_deliveries set next_attempt_at = now() where state = 'pending'`.then(
      () => db.sql`update fleet.webhooks set hold_until = null`,
    )
  const failures = [
    500,
    (response: { destroy: () => void }) => response.destroy(),
    (response: { writeHead: (status: number, headers: object) => { write: (text: string) => void }; destroy: () => void }) => {
      response.writeHead(200, { 'content-length': '100' }).write('half')
      setTimeout(() => response.destroy(), 20)
    },
    // It acts on the message, and answers too late.
    (response: { writeHead: (status: number) => { end: () => void } }) => setTimeout(() => response.writeHead(200).end(), 10_500),
  ]
  for (const failure of failures) {
    receiver.answer = failure as typeof receiver.answer
    t.match(await notifyOnce(t, db), { code: 1, output: /webhook\.failed/ })
    await again()
  }
  receiver.answer = 200
  t.match(await notifyOnce(t, db), { code: 0 })
  t.same(await told(db.sql), ['offline first delivered', 'back recovery delivered'])
  const ids = receiver.received.map(idOf)
  t.same(new Set(ids.slice(0, 5)).size, 1, 'the first message, five times')
  t.equal(ids.length, 6)
  t.not(ids[5], ids[0])
  t.equal(new Set(receiver.received.slice(0, 5).map(({ text }) => text)).size, 1, 'and each time the same body')
})

t.test('a receiver that hangs does not hold up another one', async t => {
  const db = await withDatabase(t)
  const devices = await enroll(db.sql, 30)
  const hanging = await withReceiver(t, () => {})
  const good = await withReceiver(t)
  await db.sql`select fleet.create_webhook('hanging', ${hanging.url}, p_grace => '0')`
  await db.sql`select fleet.create_webhook('good', ${good.url}, p_grace => '0')`
  for (const device of devices) await change(db.sql, device, { event: 'offline' })
  const notifier = await startNotifier(t, db)
  await waitFor(async () => good.received.length === 30, { what: notifier.output })
  t.ok(hanging.received.length <= 8, 'it has a part of the connections only')
  await notifier.stop('SIGTERM')
  t.equal(
    await value(db.sql`select count(*)::int from fleet.webhook_deliveries where lease_owner is not null`),
    0,
    'what was on its way has ended, or is given back',
  )
})

t.test('two notifiers share the work, and no message is sent twice', async t => {
  const db = await withDatabase(t)
  const devices = await enroll(db.sql, 60)
  const receiver = await withReceiver(t, response => setTimeout(() => response.writeHead(204).end(), 10))
  await db.sql`select fleet.create_webhook('hook', ${receiver.url}, p_grace => '0')`
  const notifiers = await Promise.all([startNotifier(t, db), startNotifier(t, db)])
  for (const device of devices) {
    await change(db.sql, device, { event: 'offline' })
    await change(db.sql, device, { event: 'back', from: 'offline' })
  }
  await waitFor(async () => (await told(db.sql)).every(text => text.endsWith('delivered')))
  for (const notifier of notifiers) await notifier.stop('SIGTERM')
  t.equal(receiver.received.length, 120)
  t.equal(new Set(receiver.received.map(idOf)).size, 120)
  const kinds = groupBy(receiver.received, aliasOf)
  for (const [alias, list] of kinds)
    t.same(
      list.map(({ body }) => body.data.kind),
      ['first', 'recovery'],
      alias,
    )
})

t.test('it does not send to an address that is not allowed, and says so', async t => {
  const db = await withDatabase(t)
  const receiver = await withReceiver(t)
  await db.sql`select fleet.create_webhook('hook', ${receiver.url.replace('//', '//user:hunter2@')}, p_grace => '0')`
  await db.sql`select fleet.test_webhook('hook')`
  const { code, output } = await notifyOnce(t, db, { WEBHOOK_ALLOW: '10.0.0.0/8' })
  t.equal(code, 1)
  t.match(output, /127\.0\.0\.1 is not a public address; if that is meant, name it in WEBHOOK_ALLOW/)
  t.notMatch(output, /hunter2|whsec_/)
  t.match(await db.sql`select last_error from fleet.webhook_health`, [{ last_error: /not a public address/ }])
  t.same(receiver.received, [])
})

t.test('it reports what is wrong with its settings and with the database', async t => {
  const wrong = await spawnNode(t, 'notifier/main.ts', { env: { WEBHOOK_ALLOW: '10.0.0.0/99', LOG_LEVEL: 'loud' } })
  t.equal((await wrong.exited).code, 2)
  for (const name of ['WEBHOOK_ALLOW', 'LOG_LEVEL', 'NOTIFIER_DATABASE_URL']) t.match(wrong.output(), name)
  const usage = await spawnNode(t, 'notifier/main.ts', { args: ['--twice'] })
  t.equal((await usage.exited).code, 2)
  t.match(usage.output(), /usage: npm run notifier/)
  const nowhere = await spawnNode(t, 'notifier/main.ts', {
    args: ['--once'],
    env: { NOTIFIER_DATABASE_URL: 'postgres://fleet_notifier@127.0.0.1:1/none' },
  })
  t.equal((await nowhere.exited).code, 1)
  t.match(nowhere.output(), /"notifier.failed".*ECONNREFUSED/)
})

const KILLS = size({ deep: 1000, quick: 10 })

t.test(`killed with -9 at ${KILLS} random moments, it loses no message, and the order stays`, { timeout: 3_600_000 }, async t => {
  t.comment(`seed ${SEED}`)
  const random = generator(SEED)
  const db = await withDatabase(t)
  const devices = await enroll(db.sql, 12)
  const receiver = await withReceiver(t, (response, { text }) => {
    // Some answers come late, and some never.
    const delay = text.length % 7 === 0 ? 60 : Math.floor(random() * 15)
    setTimeout(() => (random() < 0.1 ? response.destroy() : response.writeHead(200).end()), delay)
  })
  await db.sql`select fleet.create_webhook('hook', ${receiver.url}, array['late', 'offline', 'unity_down'], p_grace => '0')`
  const state = new Map(devices.map(device => [device, 'online']))
  const step = async () => {
    const device = devices[Math.floor(random() * devices.length)]!
    const from = state.get(device)!
    const next =
      from === 'online' ? (['late', 'unity_down'] as const)[Math.floor(random() * 2)]! : from === 'late' ? 'offline' : 'back'
    await change(db.sql, device, { event: next, from })
    state.set(device, next === 'back' ? 'online' : next)
  }
  /** As if the leases of the dead one had ended, and every pause was over. */
  const expire = async () => {
    await db.sql`update fleet.webhook_deliveries set next_attempt_at = now() where state = 'pending'`
    await db.sql`update fleet.webhooks set hold_until = null, failures = 0`
  }
  for (let killed = 0; killed < KILLS; killed++) {
    for (let n = 0; n < 10; n++) await step()
    const notifier = await startNotifier(t, db)
    await sleep(random() * 150)
    await notifier.stop('SIGKILL')
    await db.admin`
      select pg_terminate_backend(pid) from pg_stat_activity where usename = 'fleet_notifier' and datname = current_database()`
    await expire()
  }
  // Nothing is killed any more, but a tenth of the answers still fails.
  for (let round = 0, left = 1; left > 0 && round < 30; round++) {
    await notifyOnce(t, db)
    await expire()
    left = Number(await value(db.sql`select count(*) from fleet.webhook_deliveries where state = 'pending'`))
  }

  const sent = await messages(db.sql)
  t.same(new Set(sent.map(message => message.state)), new Set(['delivered']))
  const byId = groupBy(receiver.received, idOf)
  t.same([...byId.keys()].sort(), sent.map(message => message.message_id).sort(), 'each message arrived, and no other')
  t.comment(`${sent.length} messages, and ${receiver.received.length - sent.length} repeats`)
  for (const [id, copies] of byId) t.equal(new Set(copies.map(({ text }) => text)).size, 1, `${id}: each copy is the same`)
  for (const device of devices) {
    const should = sent.filter(message => Number(message.device_id) === device).map(message => message.message_id)
    const arrived = receiver.received.filter(received => should.includes(idOf(received))).map(idOf)
    t.same([...new Set(arrived)], should, `the messages about device ${device} arrive in their order`)
    // A copy never comes after a later message.
    const places = arrived.map(id => should.indexOf(id))
    t.same(
      places,
      [...places].sort((a, b) => a - b),
      'copies, too',
    )
  }
})

const ownCluster = plainOnly('it has a cluster of its own')
t.test('it survives restarts of Postgres', { skip: ownCluster || leftToCi(), timeout: 120_000 }, async t => {
  const db = await withCluster(t, { durable: true })
  const receiver = await withReceiver(t)
  const ask = async <T>(use: (sql: postgres.Sql) => Promise<T>) => {
    const sql = postgres(db.url('postgres'), { max: 1, onnotice: () => {} })
    try {
      return await use(sql)
    } finally {
      await sql.end({ timeout: 1 })
    }
  }
  const [device] = await ask(async sql => {
    await sql`select fleet.create_webhook('hook', ${receiver.url}, p_grace => '0')`
    return await enroll(sql, 1)
  })
  const notifier = await spawnNode(t, 'notifier/main.ts', { env: notifierEnv(db), ready: /notifier\.ready/ })
  for (let crash = 0; crash < 3; crash++) {
    await ask(async sql => {
      await change(sql, device!, { event: 'offline' })
      await change(sql, device!, { event: 'back', from: 'offline' })
    })
    await sleep(crash * 20)
    await db.cluster.stop(crash === 1 ? 'fast' : 'immediate')
    await db.cluster.start()
  }
  await waitFor(
    async () =>
      await ask(async sql => {
        await sql`update fleet.webhook_deliveries set next_attempt_at = now() where state = 'pending' and lease_owner is null`
        return (await told(sql)).every(text => text.endsWith('delivered'))
      }),
    { timeoutMs: 90_000, what: notifier.output },
  )
  t.equal(new Set(receiver.received.map(idOf)).size, 6)
  t.equal((await notifier.stop('SIGTERM')).code, 0, 'it survived every restart, and stops when it is told to')
})
