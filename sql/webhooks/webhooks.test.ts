// Which messages are queued, and in which order and how often they are handed out.
import type { Sql, TransactionSql } from 'postgres'
import t, { type Test } from 'tap'
import { waitFor, withDatabase } from '../../testing/database.ts'
import { asRole, enroll, value } from '../../testing/fleet.ts'
import { change, closeIncident, messages, openIncident, told } from '../../testing/webhooks.ts'

const URL = 'https://example.com/hook'

interface Claim {
  delivery_id: string
  message_id: string
  webhook_name: string
  event: string
  kind: string
  secrets: string[]
}

async function claim(sql: Sql, worker = 'me', limit = 100) {
  return [...(await sql<Claim[]>`select * from fleet.claim_deliveries(${worker}, ${limit})`)]
}

/** Hands out and accepts what is due until nothing is, and returns `event kind` of each message. */
async function deliver(sql: Sql) {
  const sent: string[] = []
  for (let due = await claim(sql); due.length > 0; due = await claim(sql)) {
    for (const { delivery_id, event, kind } of due) {
      sent.push(`${event} ${kind}`)
      await sql`select fleet.record_delivery(${delivery_id}, 'me', 204)`
    }
  }
  return sent
}

async function withFleet(test: Test, devices = 3) {
  const db = await withDatabase(test)
  const ids = (await enroll(db.sql, devices)) as [number, number, number]
  return { ...db, ids, dba: asRole(test, db, 'fleet_dba'), notifier: asRole(test, db, 'fleet_notifier') }
}

t.test('a webhook is made with a secret that is shown once, and its arguments are judged', async t => {
  const { dba, sql } = await withFleet(t)
  const secret = (await value(dba`select fleet.create_webhook('hook', 'https://user:pass@example.com:8443/a/b?c')`)) as string
  t.match(secret, /^whsec_[A-Za-z0-9+/]{43}=$/)
  t.equal(Buffer.from(secret.slice(6), 'base64').length, 32)
  await t.rejects(dba`select secret from fleet.webhooks`, { code: '42501' })
  t.match(await dba`select * from fleet.webhook_health`, [
    {
      webhook_name: 'hook',
      state: 'ok',
      receiver: 'https://example.com:8443',
      pending: '0',
      created_by: 'fleet_dba',
      cohort: null,
    },
  ])
  t.match(await dba`select setting, old_value, new_value from fleet.settings_audit`, [
    { setting: 'webhook:hook', old_value: null, new_value: /^json to https:\/\/example.com:8443, .*offline.*grace 00:02:00$/ },
  ])
  t.notMatch(JSON.stringify(await dba`select * from fleet.settings_audit`), /pass|\/a\/b|whsec/)

  const wrong: [string, RegExp][] = [
    [`null, '${URL}'`, /^name must/],
    [`'a b', '${URL}'`, /^name must/],
    [`'x', null`, /^url must/],
    [`'x', 'ftp://example.com'`, /^url must/],
    [`'x', 'https://'`, /^url must/],
    [`'x', 'https://user@/x'`, /^url must/],
    [`'x', 'https://a b'`, /^url must/],
    [`'x', 'https://evil\\@example.com'`, /^url must/],
    [`'x', 'https://bücher.example'`, /^url must/],
    [`'x', '${URL}', '{}'`, /^events must/],
    [`'x', '${URL}', null`, /^events must/],
    [`'x', '${URL}', array['offline', 'offlin']`, /^events: unknown: offlin$/],
    [`'x', '${URL}', array['offline', null]`, /^events: unknown: null$/],
    [`'x', '${URL}', p_cohort => ' '`, /^cohort must/],
    [`'x', '${URL}', p_grace => null`, /^grace null/],
    [`'x', '${URL}', p_grace => '-1 s'`, /^grace -00:00:01/],
    [`'x', '${URL}', p_grace => '2 days'`, /^grace 2 days/],
    [`'x', '${URL}', p_repeat_after => '1 s'`, /^repeat_after 00:00:01/],
    [`'x', '${URL}', p_format => 'xml'`, /^format must .* not xml$/],
    [`'x', '${URL}', p_format => null`, /^format must .* not null$/],
  ]
  for (const [args, message] of wrong)
    await t.rejects(dba.unsafe(`select fleet.create_webhook(${args})`), { code: 'FL422', message }, args)
  await t.rejects(dba`select fleet.create_webhook('hook', ${URL})`, { code: 'FL409', message: /hook already exists/ })
  for (const call of [
    'pause_webhook($1)',
    'resume_webhook($1)',
    'remove_webhook($1)',
    'rotate_webhook_secret($1)',
    'test_webhook($1)',
    'replay_webhook($1, 1)',
    'retry_deliveries($1)',
    'dismiss_deliveries($1)',
  ]) {
    for (const name of ['nobody', null])
      await t.rejects(dba.unsafe(`select fleet.${call}`, [name]), { code: 'FL404', message: `there is no webhook ${name}` }, call)
  }
  t.equal(await value(sql`select count(*)::int from fleet.webhooks`), 1)
})

t.test('trouble is told after its grace, once, and its end names the first message', async t => {
  const { dba, sql, notifier, ids } = await withFleet(t)
  const [device] = ids
  await dba`select fleet.create_webhook('hook', ${URL}, p_grace => '5 minutes')`
  await change(sql, device, { event: 'late' })
  t.same(await told(sql), [], 'late was not asked for')
  const id = await change(sql, device, { event: 'offline', from: 'late', reason: 'battery' })
  t.same(await claim(notifier), [], 'the grace has not passed')
  await sql`update fleet.webhook_deliveries set due_at = due_at - interval '5 minutes', next_attempt_at = now()`
  t.same(await deliver(notifier), ['offline first'])
  await change(sql, device, { event: 'back', from: 'offline' })
  t.same(await deliver(notifier), ['back recovery'])
  const [first, recovery] = await messages(sql)
  t.match(first, { state: 'delivered', is_open: false, first_id: null, message_id: /^msg_[0-9a-f]{32}$/ })
  t.match(first!.body, {
    type: 'device.offline',
    version: 1,
    timestamp: /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+00:00$/,
    data: {
      kind: 'first',
      event: 'offline',
      device: { id: device, alias: 'device-1', cohort: 'default' },
      status: 'offline',
      previous_status: 'late',
      reason: 'battery',
      battery_pct: 17,
      transition_id: id,
    },
  })
  t.match(recovery!.body, {
    type: 'device.back',
    data: { kind: 'recovery', first_id: first!.message_id, began_at: first!.body.data.since },
  })
  t.equal(recovery!.first_id, first!.message_id)
  await change(sql, device, { event: 'back', from: 'offline' })
  t.equal((await told(sql)).length, 2, 'the end of what was not told is not told')
})

t.test('a device that is back before the message is due is not told of at all', async t => {
  const { dba, sql, notifier, ids } = await withFleet(t)
  const [device, other] = ids
  await dba`select fleet.create_webhook('hook', ${URL})`
  for (let flap = 0; flap < 3; flap++) {
    await change(sql, device, { event: 'offline' })
    await change(sql, device, { event: 'back', from: 'offline' })
    await change(sql, other, { event: 'unity_down' })
    await change(sql, other, { event: 'online', from: 'unity_down' })
  }
  t.same(await told(sql), Array.from({ length: 3 }, () => ['offline first dropped', 'unity_down first dropped']).flat())
  t.same(await claim(notifier), [])
  await change(sql, device, { event: 'offline' })
  await sql`update fleet.webhook_deliveries set next_attempt_at = now(), attempts = 1 where state = 'pending'`
  await change(sql, device, { event: 'back', from: 'offline' })
  t.same(
    (await told(sql)).slice(-2),
    ['offline first pending', 'back recovery pending'],
    'but what was tried once may have arrived',
  )
})

t.test('another trouble of the same device belongs to the first, and one recovery ends both', async t => {
  const { dba, sql, notifier, ids } = await withFleet(t)
  const [device, other] = ids
  await dba`select fleet.create_webhook('hook', ${URL}, array['late', 'offline', 'unity_down'], p_grace => '0')`
  await change(sql, device, { event: 'late' })
  await change(sql, device, { event: 'offline', from: 'late' })
  await change(sql, device, { event: 'back', from: 'offline', status: 'unity_down' })
  await change(sql, device, { event: 'online', from: 'unity_down' })
  t.same(await deliver(notifier), ['late first', 'offline change', 'unity_down change', 'online recovery'], 'in order')
  const [first, ...others] = await messages(sql)
  t.same(
    others.map(({ first_id }) => first_id),
    others.map(() => first!.message_id),
  )
  await dba`select fleet.remove_webhook('hook')`
  await dba`select fleet.create_webhook('hook', ${URL}, array['late', 'offline'], p_grace => '1 hour')`
  await change(sql, other, { event: 'late', ago: '30 minutes' })
  await change(sql, other, { event: 'offline', from: 'late' })
  t.same(await told(sql), ['late first dropped', 'offline first pending'], 'within the grace only the newest counts')
  t.equal(
    await value(
      sql`select now() - due_at between '-31 minutes' and '-29 minutes' from fleet.webhook_deliveries where state = 'pending'`,
    ),
    true,
    'and it is due when the first would have been',
  )
})

t.test('while a device is silent nobody knows whether its app runs again', async t => {
  const { dba, sql, notifier, ids } = await withFleet(t)
  const [device] = ids
  await dba`select fleet.create_webhook('hook', ${URL}, array['unity_down'], p_grace => '0')`
  await change(sql, device, { event: 'unity_down' })
  await change(sql, device, { event: 'offline', from: 'unity_down' })
  t.same(await deliver(notifier), ['unity_down first'])
  await change(sql, device, { event: 'back', from: 'offline', status: 'unity_down' })
  t.same(await deliver(notifier), [], 'it is down as it was told')
  await change(sql, device, { event: 'online', from: 'unity_down' })
  t.same(await deliver(notifier), ['online recovery'])
  await change(sql, device, { event: 'unity_down' })
  await change(sql, device, { event: 'revoked', from: 'unity_down' })
  t.same(await deliver(notifier), ['unity_down first', 'revoked recovery'], 'a revoked device is no trouble')
})

t.test('what is no trouble is told to those who ask for it', async t => {
  const { dba, sql, notifier, ids } = await withFleet(t)
  const [device, other] = ids
  await dba`select fleet.create_webhook('hook', ${URL}, array['online', 'back', 'revoked'])`
  await change(sql, device, { event: 'online', from: 'new' })
  await change(sql, device, { event: 'offline' })
  await change(sql, device, { event: 'back', from: 'offline' })
  await change(sql, device, { event: 'revoked' })
  t.same(await deliver(notifier), ['online first', 'back first', 'revoked first'])
  const incident = await openIncident(sql, 'cohort', 'default', [other])
  await change(sql, other, { event: 'back', from: 'offline' })
  t.same(await deliver(notifier), [], 'but a device that was silent together with others does not come back by itself')
  t.ok(incident)
})

t.test('an incident is told once, not its devices, and once when it ends', async t => {
  const { dba, sql, notifier, ids } = await withFleet(t, 10)
  await dba`select fleet.create_webhook('hook', ${URL}, array['offline'], p_grace => '0')`
  await dba`select fleet.create_webhook('other', ${URL}, array['offline', 'cohort_silent'], 'elsewhere', p_grace => '0')`
  await dba`select fleet.create_webhook('slow', ${URL}, array['cohort_silent'], p_grace => '1 hour')`
  const incident = await openIncident(sql, 'cohort', 'default', ids)
  t.same(await deliver(notifier), ['cohort_silent first'], 'also for a webhook that asks only for offline devices')
  t.same(await told(sql, 'other'), [], 'but not to those who watch another cohort')
  for (const id of ids) await change(sql, id, { event: 'back', from: 'offline', incident })
  t.same(await deliver(notifier), [])
  await closeIncident(sql, incident)
  t.same(await deliver(notifier), ['cohort_silent recovery'])
  const [first, recovery] = await messages(sql)
  t.match(first!.body, { type: 'incident.cohort_silent', data: { subject: 'default', devices: 10, incident_id: incident } })
  t.strictSame([first!.body.data.devices, recovery!.body.data.devices], [10, 10], 'as a number')
  t.match(recovery!.body, {
    type: 'incident.ended',
    data: { event: 'cohort_silent', first_id: first!.message_id, ended_at: String },
  })
  t.same(await told(sql, 'slow'), ['cohort_silent first dropped'], 'the grace is that of devices')
  await closeIncident(sql, incident)
  t.equal((await messages(sql)).length, 2)
})

t.test('ingest and networks concern a cohort, too', async t => {
  const { dba, sql, ids, admin } = await withFleet(t)
  await dba`select fleet.create_webhook('hook', ${URL}, p_cohort => 'lobby')`
  await openIncident(sql, 'ingest', '(all)')
  await openIncident(sql, 'network', '10.0.0.0/24', [ids[1]])
  t.same(await told(sql), ['ingest_down first pending'])
  await admin`update fleet.devices set cohort = 'lobby' where device_id = ${ids[0]}`
  const network = await openIncident(sql, 'network', '10.0.1.0/24', [ids[1]])
  await change(sql, ids[0], { event: 'offline', incident: network })
  t.same(await told(sql), ['ingest_down first pending', 'network_silent first pending'], 'when a device of it joins later')
})

t.test('a device that moves to another cohort ends what was told of it', async t => {
  const { dba, sql, notifier, ids } = await withFleet(t)
  await dba`select fleet.create_webhook('hook', ${URL}, p_cohort => 'default', p_grace => '0')`
  await change(sql, ids[0], { event: 'offline' })
  await change(sql, ids[0], { event: 'back', from: 'offline', cohort: 'lobby' })
  await change(sql, ids[0], { event: 'offline', cohort: 'lobby' })
  t.same(await deliver(notifier), ['offline first', 'back recovery'])
})

/** Several changes of a device that one call found. */
async function changes(sql: Sql, device: number, events: [event: string, status: string, previous: string, reason?: string][]) {
  await sql.begin(async transaction => {
    const ids: string[] = []
    for (const [event, status, previous, reason] of events) {
      const [row] = await transaction<{ transition_id: string }[]>`
        insert into fleet.device_transitions (position, device_id, cohort, at, since, event, status, previous_status, reason)
        values (0, ${device}, 'default', now(), now(), ${event}, ${status}, ${previous}, ${reason ?? null})
        returning transition_id`
      ids.push(row!.transition_id)
    }
    await transaction`select fleet.queue_messages(${ids}, '{}', '{}')`
  })
}

t.test('of several changes in one call, what was over when it was seen is not told', async t => {
  const { dba, sql, notifier, ids } = await withFleet(t)
  const [device, other] = ids
  await dba`select fleet.create_webhook('hook', ${URL}, array['late', 'offline', 'unity_down'], p_grace => '0')`
  await changes(sql, device, [
    ['late', 'late', 'online'],
    ['offline', 'offline', 'late'],
    ['back', 'online', 'offline'],
  ])
  t.same(await told(sql), [], 'not even as dropped')
  await changes(sql, device, [
    ['offline', 'offline', 'online'],
    ['back', 'online', 'offline'],
    ['unity_down', 'unity_down', 'online'],
  ])
  t.same(await deliver(notifier), ['unity_down first'], 'but what lasts is')
  await changes(sql, device, [
    ['offline', 'offline', 'unity_down'],
    ['back', 'online', 'offline'],
  ])
  t.same(await deliver(notifier), ['offline change', 'back recovery'], 'and what belongs to a trouble that was told')
  await changes(sql, other, [
    ['late', 'late', 'online'],
    ['offline', 'offline', 'late'],
  ])
  t.same(await deliver(notifier), ['late first', 'offline change'], 'in order')
})

t.test('who is silent because heartbeats could not be stored is not told singly', async t => {
  const { dba, sql, notifier, ids } = await withFleet(t)
  const [device, other] = ids
  const all = ['late', 'offline', 'online', 'back']
  await dba`select fleet.create_webhook('hook', ${URL}, ${all}, p_grace => '0')`
  await changes(sql, device, [['late', 'late', 'online', 'ingest_down']])
  await changes(sql, device, [['offline', 'offline', 'late', 'ingest_down']])
  await changes(sql, device, [['back', 'online', 'offline', 'ingest_down']])
  t.same(await told(sql), [])
  t.equal(await value(dba`select fleet.replay_webhook('hook', 1)`), '0', 'nor when it is told again')
  await change(sql, other, { event: 'offline', reason: 'battery' })
  await changes(sql, other, [['back', 'online', 'offline', 'ingest_down']])
  t.same(await deliver(notifier), ['offline first', 'back recovery'], 'but what was told ends')
})

t.test('a later message about a device waits for the earlier one, and other devices do not', async t => {
  const { dba, sql, notifier, ids } = await withFleet(t)
  const [device, other] = ids
  await dba`select fleet.create_webhook('hook', ${URL}, p_grace => '0')`
  await change(sql, device, { event: 'offline' })
  const [first] = (await claim(notifier, 'one')) as [Claim]
  await change(sql, device, { event: 'back', from: 'offline' })
  await change(sql, other, { event: 'offline' })
  const [elsewhere, ...more] = (await claim(notifier, 'two')) as [Claim]
  t.match(elsewhere, { event: 'offline' })
  t.same(more, [])
  t.equal(await value(notifier`select fleet.record_delivery(${first.delivery_id}, 'two', 200)`), false, 'the lease is of another')
  t.equal(await value(notifier`select fleet.fail_delivery(${first.delivery_id}, 'two', null, 'no')`), null)
  t.equal(await value(notifier`select fleet.fail_delivery(${first.delivery_id}, 'one', 500, 'it answered 500')`), 'pending')
  t.same(await claim(notifier), [], 'it waits for its next attempt, and what follows waits with it')
  await sql`update fleet.webhook_deliveries set next_attempt_at = now() where delivery_id = ${first.delivery_id}`
  const [again] = (await claim(notifier)) as [Claim]
  t.equal(again.message_id, first.message_id, 'the id stays')
  t.same(await claim(notifier), [])
  t.equal(await value(notifier`select fleet.record_delivery(${again.delivery_id}, 'me', 200)`), true)
  t.match(await claim(notifier), [{ event: 'back', kind: 'recovery' }])
  t.equal(await value(notifier`select fleet.release_deliveries('two')`), '1')
  t.match(await claim(notifier), [{ delivery_id: elsewhere.delivery_id }], 'what was given back is handed out at once')
})

t.test('two notifiers never get the same message, and never two of one device', async t => {
  const db = await withFleet(t, 50)
  const { dba, sql, ids } = db
  await dba`select fleet.create_webhook('hook', ${URL}, p_grace => '0')`
  for (const id of ids) {
    await change(sql, id, { event: 'offline' })
    await change(sql, id, { event: 'back', from: 'offline' })
  }
  const seen = new Map<string, string[]>()
  const held = new Set<string>()
  const work = async (worker: string) => {
    const notifier = asRole(t, db, 'fleet_notifier')
    for (let idle = 0; idle < 5;) {
      const due = await notifier<{ delivery_id: string; body: { data: { device: { id: number } } }; event: string }[]>`
        select * from fleet.claim_deliveries(${worker}, 7, p_per_webhook => 100)`
      idle = due.length ? 0 : idle + 1
      for (const { delivery_id, body, event } of due) {
        const device = String(body.data.device.id)
        t.notOk(held.has(device), `${device} is in one hand`)
        held.add(device)
        await new Promise(resolve => setImmediate(resolve))
        seen.set(device, [...(seen.get(device) ?? []), event])
        held.delete(device)
        await notifier`select fleet.record_delivery(${delivery_id}, ${worker}, 200)`
      }
    }
  }
  await Promise.all([work('a'), work('b'), work('c')])
  t.equal(seen.size, 50)
  for (const events of seen.values()) t.same(events, ['offline', 'back'])
})

t.test('after a lease has ended another notifier sends the message again', async t => {
  const { dba, sql, notifier, ids } = await withFleet(t)
  await dba`select fleet.create_webhook('hook', ${URL}, p_grace => '0')`
  await change(sql, ids[0], { event: 'offline' })
  const [first] = (await claim(notifier, 'dead')) as [Claim]
  t.same(await claim(notifier, 'me'), [])
  await sql`update fleet.webhook_deliveries set next_attempt_at = now()`
  t.match(await claim(notifier, 'me'), [{ message_id: first.message_id, attempts: 2 }])
})

t.test(
  'a receiver that fails gets a pause and then a single message, and a refused message does not hold back others',
  async t => {
    const { dba, sql, notifier, ids } = await withFleet(t, 10)
    await dba`select fleet.create_webhook('hook', ${URL}, p_grace => '0')`
    for (const id of ids) await change(sql, id, { event: 'offline' })
    const [one, two, ...others] = (await claim(notifier, 'me', 4)) as [Claim, Claim]
    await notifier`select fleet.fail_delivery(${one.delivery_id}, 'me', 400, 'it answered 400')`
    t.match(await dba`select state, last_status from fleet.webhook_health`, [{ state: 'ok', last_status: 400 }])
    await notifier`select fleet.fail_delivery(${two.delivery_id}, 'me', null, 'timeout', true)`
    for (const { delivery_id } of others) await notifier`select fleet.fail_delivery(${delivery_id}, 'me', null, 'timeout', true)`
    t.match(await sql`select failures from fleet.webhooks`, [{ failures: 1 }], 'what was on its way together counts once')
    t.same(await claim(notifier), [], 'it rests')
    await sql`update fleet.webhooks set hold_until = now()`
    const tried = (await claim(notifier)) as [Claim]
    t.equal(tried.length, 1)
    t.same(await claim(notifier), [], 'one at a time')
    await notifier`select fleet.fail_delivery(${tried[0].delivery_id}, 'me', 429, 'it answered 429', true, '1 hour')`
    t.equal(
      await value(sql`select hold_until - now() > '59 minutes' from fleet.webhooks`),
      true,
      'as long as the receiver asks for',
    )
    t.match(await dba`select state from fleet.webhook_health`, [{ state: 'failing' }])
    t.match(await dba`select status, detail from fleet.check_webhooks() where check_name = 'webhooks'`, [
      { status: 'ok', detail: /^not accepted for less than 15 minutes: .*: it answered 429$/ },
    ])
    await sql`update fleet.webhooks set hold_until = now()`
    const [accepted] = (await claim(notifier)) as [Claim]
    await notifier`select fleet.record_delivery(${accepted.delivery_id}, 'me', 200)`
    t.ok((await claim(notifier)).length > 1, 'all is well again')
  },
)

t.test('the attempts become rarer, and after three days the message is dead', async t => {
  const { dba, sql, notifier, ids } = await withFleet(t)
  await dba`select fleet.create_webhook('hook', ${URL}, p_grace => '0')`
  await change(sql, ids[0], { event: 'offline' })
  await change(sql, ids[0], { event: 'back', from: 'offline' })
  const waits: number[] = []
  for (let attempt = 1; attempt <= 14; attempt++) {
    const [due] = (await claim(notifier)) as [Claim]
    t.equal(await value(notifier`select fleet.fail_delivery(${due.delivery_id}, 'me', 500, 'it answered 500')`), 'pending')
    waits.push(
      Number(
        await value(sql`
      update fleet.webhook_deliveries d set next_attempt_at = now()
      from (select next_attempt_at from fleet.webhook_deliveries where delivery_id = ${due.delivery_id}) o
      where delivery_id = ${due.delivery_id} returning extract(epoch from o.next_attempt_at - now())`),
      ),
    )
  }
  for (const [n, wait] of waits.entries()) {
    const longest = Math.min(5 * 2 ** n, 3600)
    t.ok(wait > longest / 2 - 5 && wait <= longest, `${wait} s after attempt ${n + 1}`)
  }
  await sql`update fleet.webhook_deliveries set due_at = due_at - interval '3 days 1 second'`
  const [last] = (await claim(notifier)) as [Claim]
  t.equal(await value(notifier`select fleet.fail_delivery(${last.delivery_id}, 'me', 500, 'it answered 500')`), 'dead')
  t.same(await told(sql), ['offline first dead', 'back recovery dropped'], 'nobody knows of it, so its end is not told')
  t.same(await claim(notifier), [])
  await change(sql, ids[0], { event: 'offline' })
  t.same(await deliver(notifier), ['offline first'], 'and what comes later goes on')
  t.match(await dba`select check_name, status, remedy from fleet.check_webhooks() where check_name = 'webhooks'`, [
    { status: 'warn', remedy: /\nselect fleet.retry_deliveries\('hook'\);$/ },
  ])
  t.equal(await value(dba`select fleet.retry_deliveries('hook')`), '1')
  t.same(await deliver(notifier), ['offline first', 'back recovery'], 'with what follows from it')
  t.equal(await value(sql`select total::int from fleet.counters where counter = 'hb_webhook_dead_total'`), 1)
})

t.test('what a failing receiver kept waiting is given up after three days without an attempt', async t => {
  const { dba, sql, ids } = await withFleet(t)
  await dba`select fleet.create_webhook('hook', ${URL}, p_grace => '0')`
  await change(sql, ids[0], { event: 'offline' })
  await sql`update fleet.webhook_deliveries set due_at = due_at - interval '4 days'`
  await sql`select fleet.remind_webhooks(now())`
  t.same(await told(sql), ['offline first pending'], 'not because no notifier runs')
  await sql`update fleet.webhooks set failures = 3, last_error = 'it answered 500'`
  await sql`select fleet.remind_webhooks(now())`
  t.same(await told(sql), ['offline first pending'], 'nor because none ran')
  await sql`
    insert into fleet.notifiers (worker, version, started_at, last_seen_at)
    values ('one', '1', now() - interval '5 days', now() - interval '2 days'),
      ('two', '1', now() - interval '2 days' + interval '1 hour', now())`
  await sql`select fleet.remind_webhooks(now())`
  t.same(await told(sql), ['offline first pending'], 'nor because none ran for an hour')
  await change(sql, ids[0], { event: 'back', from: 'offline' })
  await sql`update fleet.webhook_deliveries set state = 'pending'`
  await sql`update fleet.notifiers set started_at = now() - interval '2 days' where worker = 'two'`
  await sql`select fleet.remind_webhooks(now())`
  t.match(await messages(sql), [
    { state: 'dead', last_error: /did not accept anything: it answered 500/ },
    { state: 'dropped', last_error: 'its first message is dead' },
  ])
  t.equal(await value(sql`select total::int from fleet.counters where counter = 'hb_webhook_dead_total'`), 1)
  await t.rejects(dba`select fleet.retry_deliveries('hook', 'msg_x')`, { code: 'FL404', message: /no dead message msg_x/ })
  t.equal(await value(dba`select fleet.dismiss_deliveries('hook')`), '1')
  t.match(await dba`select status from fleet.check_webhooks() where check_name = 'webhooks'`, [{ status: 'ok' }])
  await sql`delete from fleet.notifiers`
  await change(sql, ids[1], { event: 'offline' })
  await sql`update fleet.webhook_deliveries set due_at = due_at - interval '4 days', attempts = 1 where state = 'pending'`
  await sql`select fleet.remind_webhooks(now())`
  t.same((await told(sql)).slice(2), ['offline first dead'], 'what was tried is given up')
})

t.test('a trouble that ends while its first message is dead is told from its beginning by a retry', async t => {
  const { dba, sql, notifier, ids } = await withFleet(t)
  await dba`select fleet.create_webhook('hook', ${URL}, p_grace => '0')`
  await change(sql, ids[0], { event: 'offline' })
  await sql`update fleet.webhook_deliveries set state = 'dead', attempts = 99`
  await change(sql, ids[0], { event: 'back', from: 'offline' })
  t.same(await told(sql), ['offline first dead', 'back recovery dropped'])
  t.equal(await value(dba`select fleet.retry_deliveries('hook')`), '1')
  t.same(await deliver(notifier), ['offline first', 'back recovery'])
})

t.test('an open transaction of a DBA does not make ingest wait, and the removal of a webhook waits for ingest', async t => {
  const db = await withFleet(t)
  const { dba, sql, ids } = db
  const [one, two, three] = ids
  await dba`select fleet.create_webhook('hook', ${URL}, p_grace => '0')`
  await change(sql, one, { event: 'offline' })
  await change(sql, two, { event: 'offline' })
  const impatient = asRole(t, db, 'fleet_owner', { lock_timeout: '5000' })
  await dba.begin(async transaction => {
    await transaction`select fleet.test_webhook('hook')`
    await change(impatient, three, { event: 'offline' })
  })
  t.equal((await messages(sql)).filter(({ event }) => event === 'offline').length, 3)

  // What ingest does to several devices in one transaction, with the removal in between.
  let removal: Promise<unknown> | undefined
  await sql.begin(async transaction => {
    const end = async (device: number) => {
      const [row] = await transaction<{ transition_id: string }[]>`
        insert into fleet.device_transitions (position, device_id, cohort, at, since, event, status, previous_status)
        values (0, ${device}, 'default', now(), now(), 'back', 'online', 'offline') returning transition_id`
      await transaction`select fleet.queue_messages(${[row!.transition_id]}, null, null)`
    }
    await end(three)
    removal = value(dba`select fleet.remove_webhook('hook')`)
    await waitFor(
      async () =>
        (await value(db.admin`
        select exists (
          select from pg_stat_activity
          where datname = current_database() and wait_event_type = 'Lock' and query ~ 'remove_webhook'
        )`)) === true,
    )
    await end(one)
    await end(two)
  })
  t.equal(await removal, '7', 'with what was queued meanwhile')
  t.equal(await value(sql`select count(*)::int from fleet.webhook_deliveries`), 0)
})

t.test('what waits for a time that a wrong clock set is freed', async t => {
  const { dba, sql, notifier, ids } = await withFleet(t)
  const [leased, told, failed] = ids
  await dba`select fleet.create_webhook('hook', ${URL}, p_grace => '0')`
  for (const id of ids) await change(sql, id, { event: 'offline' })
  const set = (hours: number) => sql`
    update fleet.webhook_deliveries
    set next_attempt_at = now() + case device_id when ${leased} then '2 minutes' when ${told} then '0' else '23 hours' end::interval
        + ${hours} * interval '1 hour',
      lease_owner = case device_id when ${leased} then 'dead' end, attempts = case device_id when ${told} then 0 else 1 end`
  await set(0)
  await sql`update fleet.webhooks set hold_until = now() + interval '23 hours'`
  await sql`select fleet.remind_webhooks()`
  t.equal(await value(sql`select count(*)::int from fleet.webhooks where hold_until is not null`), 1)
  t.equal(
    await value(sql`select count(*)::int from fleet.webhook_deliveries where next_attempt_at > now() + interval '1 minute'`),
    2,
  )
  await set(5)
  await sql`update fleet.webhooks set hold_until = now() + interval '28 hours'`
  t.same(await claim(notifier), [])
  await sql`select fleet.remind_webhooks()`
  t.same(
    (await messages(sql)).map(({ device_id }) => Number(device_id)),
    ids,
  )
  t.equal((await claim(notifier)).length, 3, `${failed}, too`)
})

t.test('what is due is found without reading all that wait or was sent', async t => {
  const { dba, admin, notifier } = await withFleet(t)
  await dba`select fleet.create_webhook('hook', ${URL}, p_grace => '0', p_repeat_after => '1 hour')`
  await dba`select fleet.create_webhook('other', ${URL})`
  await admin`
    insert into fleet.webhook_deliveries (webhook_id, device_id, event, kind, body, due_at, next_attempt_at, state, delivered_at)
    select 1 + i % 2, i, 'offline', 'replay', '{}', now() - interval '1 second', now() - interval '1 second',
      case when i > 20000 then 'delivered' else 'pending' end, case when i > 20000 then now() end
    from generate_series(1, 40000) i`
  await admin`analyze fleet.webhook_deliveries`
  const read = async (call: (transaction: TransactionSql) => Promise<unknown>) => {
    await admin`select pg_stat_force_next_flush()`
    return await admin.begin(async transaction => {
      await call(transaction)
      const [row] = await transaction<{ scans: number; rows: number }[]>`
        select seq_scan::int as scans, (seq_tup_read + idx_tup_fetch)::int as rows
        from pg_stat_xact_user_tables where relid = 'fleet.webhook_deliveries'::regclass`
      return row!
    })
  }
  for (const again of ['first', 'second']) {
    const { scans, rows } = await read(transaction => transaction`select from fleet.claim_deliveries('me', 16)`)
    t.equal(scans, 0, again)
    t.ok(rows < 1000, `${rows} rows`)
  }
  t.match(await read(transaction => transaction`select fleet.remind_webhooks()`), { scans: 0 })
  t.match(await read(transaction => transaction`select fleet.wake_notifier()`), { scans: 0 })
  t.match(await read(transaction => transaction`select open_troubles, dead from fleet.webhook_health`), {
    scans: 0,
    rows: Number,
  })
  t.equal((await claim(notifier, 'you', 3)).length, 0, 'each webhook has its eight on the way')
})

t.test('what is told again is limited, so that it does not run for hours', async t => {
  const { dba, admin, ids } = await withFleet(t)
  await dba`select fleet.create_webhook('hook', ${URL})`
  await admin`
    insert into fleet.device_transitions (position, device_id, cohort, at, since, event, status, previous_status)
    select 0, ${ids[0]}, 'default', now(), now(), 'offline', 'offline', 'online' from generate_series(1, 100001)`
  const from = Number(await value(admin`select min(transition_id) from fleet.device_transitions`))
  await t.rejects(dba`select fleet.replay_webhook('hook', ${from})`, {
    code: 'FL422',
    message: `from transition ${from} on there are more than 100000 messages`,
    hint: /^Begin with a later one/,
  })
  t.equal(await value(dba`select fleet.replay_webhook('hook', ${from + 99_991})`), '10')
})

t.test('a reminder comes each time that repeat_after has passed, with its number, until the trouble ends', async t => {
  const { dba, sql, notifier, ids } = await withFleet(t)
  const [device, other] = ids
  await dba`select fleet.create_webhook('hook', ${URL}, array['late', 'offline'], p_grace => '0', p_repeat_after => '1 hour')`
  const remind = async (hours: number) =>
    Number(await value(sql`select fleet.remind_webhooks(now() + ${hours} * interval '1 hour')`))
  await change(sql, device, { event: 'late' })
  await change(sql, device, { event: 'offline', from: 'late' })
  await change(sql, other, { event: 'offline' })
  t.equal(await remind(2), 0, 'not before it was told')
  await deliver(notifier)
  const incident = await openIncident(sql, 'ingest', '(all)')
  await deliver(notifier)
  t.equal(await remind(0.9), 0)
  t.equal(await remind(1.1), 3)
  t.equal(await remind(2.3), 0, 'while a reminder waits there is no other')
  const due = () => sql`update fleet.webhook_deliveries set next_attempt_at = now() where state = 'pending'`
  await due()
  t.same((await deliver(notifier)).sort(), ['ingest_down reminder', 'offline reminder', 'offline reminder'])
  t.equal(await remind(1.9), 0)
  t.equal(await remind(2.3), 3)
  const reminders = (await messages(sql)).filter(({ kind, device_id }) => kind === 'reminder' && device_id === String(device))
  const [first] = await messages(sql)
  t.match(
    reminders.map(({ event, first_id, body }) => [event, first_id, body.type, body.data.reminder, body.data.kind]),
    [1, 2].map(number => ['offline', first!.message_id, 'device.offline', number, 'reminder']),
    'of the newest trouble',
  )
  await change(sql, device, { event: 'back', from: 'offline' })
  await closeIncident(sql, incident)
  await due()
  t.same(
    (await deliver(notifier)).sort(),
    ['back recovery', 'ingest_down recovery', 'offline reminder'],
    'a reminder that waits is dropped',
  )
  t.equal(await remind(9), 1)
  await dba`select fleet.pause_webhook('hook')`
  await due()
  t.equal(await remind(19), 0)
})

t.test('a paused webhook keeps its messages, and sends or drops them when it is resumed', async t => {
  const { dba, sql, notifier, ids } = await withFleet(t)
  await dba`select fleet.create_webhook('hook', ${URL}, p_grace => '0')`
  t.equal(await value(dba`select fleet.pause_webhook('hook')`), true)
  t.equal(await value(dba`select fleet.pause_webhook('hook')`), false)
  await change(sql, ids[0], { event: 'offline' })
  t.same(await claim(notifier), [])
  t.equal(await value(sql`select fleet.wake_notifier()`), false)
  await t.rejects(dba`select fleet.test_webhook('hook')`, { code: 'FL002', message: /hook is paused/ })
  await sql`update fleet.webhook_deliveries set due_at = due_at - interval '1 week'`
  t.equal(await value(dba`select fleet.resume_webhook('hook')`), '1')
  t.equal(await value(dba`select fleet.resume_webhook('hook')`), '0')
  t.equal(await value(sql`select fleet.wake_notifier()`), true)
  const [due] = (await claim(notifier)) as [Claim]
  t.equal(
    await value(notifier`select fleet.fail_delivery(${due.delivery_id}, 'me', 500, 'x')`),
    'pending',
    'its three days begin now',
  )
  await dba`select fleet.pause_webhook('hook')`
  t.equal(await value(dba`select fleet.resume_webhook('hook', true)`), '1')
  t.same(await told(sql), ['offline first dropped'])
  t.match(await dba`select old_value, new_value from fleet.settings_audit where setting = 'webhook:hook' order by audit_id`, [
    {},
    { new_value: 'paused' },
    { new_value: 'active' },
    { new_value: 'paused' },
    { new_value: 'active' },
  ])
})

t.test('after a rotation both secrets sign for a while, or only the new one if the old one leaked', async t => {
  const { dba, notifier, sql } = await withFleet(t)
  const first = (await value(dba`select fleet.create_webhook('hook', ${URL})`)) as string
  const second = (await value(dba`select fleet.rotate_webhook_secret('hook')`)) as string
  t.not(first, second)
  t.match(await value(dba`select fleet.test_webhook('hook')`), /^msg_/)
  t.match(await claim(notifier), [{ event: 'test', kind: 'test', secrets: [second, first] }])
  await sql`update fleet.webhook_deliveries set next_attempt_at = now()`
  const third = (await value(dba`select fleet.rotate_webhook_secret('hook', '0')`)) as string
  t.match(await claim(notifier), [{ secrets: [third] }])
  await t.rejects(dba`select fleet.rotate_webhook_secret('hook', '-1 day')`, { code: 'FL422', message: /^keep_old/ })
  t.notMatch(JSON.stringify(await dba`select * from fleet.settings_audit`), /whsec/)
})

t.test('a receiver that lost its data is told again from a transition on', async t => {
  const { dba, sql, notifier, ids } = await withFleet(t)
  const [device, other] = ids
  await dba`select fleet.create_webhook('hook', ${URL}, p_grace => '0')`
  await change(sql, device, { event: 'offline' })
  const from = await change(sql, device, { event: 'back', from: 'offline' })
  await change(sql, device, { event: 'late' })
  await change(sql, device, { event: 'online', from: 'late' })
  await closeIncident(sql, await openIncident(sql, 'cohort', 'default', [other]))
  await change(sql, device, { event: 'unity_down' })
  await deliver(notifier)
  t.equal(await value(dba`select fleet.replay_webhook('hook', ${from})`), '4')
  t.equal((await deliver(notifier)).length, 4)
  const replays = (await messages(sql)).filter(({ kind }) => kind === 'replay')
  t.same(
    replays.map(({ body }) => [body.type, body.data.kind, body.data.replay_of]),
    [
      ['incident.cohort_silent', 'replay', 'first'],
      ['incident.ended', 'replay', 'recovery'],
      ['device.back', 'replay', 'recovery'],
      ['device.unity_down', 'replay', 'first'],
    ],
  )
  t.equal(await value(dba`select fleet.replay_webhook('hook', 99999)`), '0')
  await t.rejects(dba`select fleet.replay_webhook('hook', null)`, { code: 'FL422', message: /^from_transition/ })
})

t.test('the check says when nobody sends, and only if there is something to send to', async t => {
  const { dba, sql, notifier, ids } = await withFleet(t)
  const state = async () =>
    (await dba`select check_name, status, detail from fleet.check_webhooks()`).map(row => `${row.check_name} ${row.status}`)
  t.same(await state(), ['notifier ok', 'webhooks ok'])
  await dba`select fleet.create_webhook('hook', ${URL}, p_grace => '0')`
  t.same(await state(), ['notifier warn', 'webhooks ok'])
  await change(sql, ids[0], { event: 'offline', ago: '5 minutes' })
  t.same(await state(), ['notifier fail', 'webhooks ok'])
  await notifier`select fleet.notifier_heartbeat('me', '0')`
  t.same(await state(), ['notifier ok', 'webhooks ok'])
  await sql`update fleet.webhooks set failures = 1, last_error = 'it answered 500', created_at = now() - interval '1 hour'`
  t.same(await state(), ['notifier ok', 'webhooks warn'])
  const metrics = await dba<{ name: string; value: number }[]>`
    select metric || labels as name, value from fleet.metric_values() where metric ~ 'webhook_|notifier' order by 1`
  t.match(Object.fromEntries(metrics.map(({ name, value }) => [name, Math.floor(value / 300)])), {
    'hb_webhook_dead{"webhook": "hook"}': 0,
    'hb_webhook_dead_total{}': 0,
    'hb_webhook_delivered_total{}': 0,
    'hb_webhook_failed_total{}': 0,
    'hb_webhook_oldest_seconds{"webhook": "hook"}': 1,
    'hb_webhook_pending{"webhook": "hook"}': 0,
    'notifier_heartbeat_age_seconds{}': 0,
  })
  t.equal(metrics.find(({ name }) => name.startsWith('hb_webhook_pending'))?.value, 1)
})

t.test('messages are pruned, but not those that wait or whose trouble lasts; they go with an erased device', async t => {
  const { dba, sql, notifier, ids } = await withFleet(t)
  const [open, over, waiting] = ids
  await dba`select fleet.create_webhook('hook', ${URL}, p_grace => '0')`
  await change(sql, open, { event: 'offline' })
  await change(sql, over, { event: 'offline' })
  await change(sql, over, { event: 'back', from: 'offline' })
  await deliver(notifier)
  await change(sql, waiting, { event: 'offline' })
  await sql`select fleet.prune(now() + interval '29 days')`
  t.equal((await messages(sql)).length, 4)
  await sql`select fleet.prune(now() + interval '31 days')`
  t.same(
    (await messages(sql)).map(({ device_id }) => Number(device_id)),
    [open, waiting],
  )
  await dba`select fleet.erase_device(${open}, 'a test')`
  t.same(
    (await messages(sql)).map(({ device_id }) => Number(device_id)),
    [waiting],
  )
})

t.test('without a webhook, or with a device that was deleted meanwhile, nothing fails', async t => {
  const { dba, sql, notifier, admin, ids } = await withFleet(t)
  await change(sql, ids[0], { event: 'offline' })
  await dba`select fleet.create_webhook('hook', ${URL}, p_grace => '0')`
  await change(sql, ids[0], { event: 'unity_down' })
  const [claimed] = (await claim(notifier)) as [Claim]
  await admin`delete from fleet.devices where device_id = ${ids[0]}`
  t.equal(await value(notifier`select fleet.record_delivery(${claimed.delivery_id}, 'me', 200)`), false)
  t.equal(await value(sql`select fleet.queue_messages(null, null, null)`), '0')
})
