import t from 'tap'
import { withDatabase } from '../../testing/database.ts'
import { asRole, enroll, value } from '../../testing/fleet.ts'

t.test('the DBA sends, the server hands over, and dashboards can only read', async t => {
  const db = await withDatabase(t)
  const [device] = (await enroll(db.sql, 1)) as [number]
  const [dba, server, reader] = [asRole(t, db, 'fleet_dba'), asRole(t, db, 'fleet_server'), asRole(t, db, 'fleet_reader')]
  const id = (await value(dba`select fleet.send_command(${device}, 'set_volume', '{"percent":30}')`)) as string
  await dba`select fleet.send_command(${device}, 'restart_unity')`
  t.match(await server`select * from fleet.take_commands(${device})`, [
    { command_id: id, command: 'set_volume', payload: { percent: 30 }, created_at: Date },
    { command: 'restart_unity', payload: null },
  ])
  t.equal(await value(server`select fleet.ack_command(${device}, ${id})`), true)
  t.equal(await value(server`select fleet.ack_command(${device}, ${id})`), false)
  await t.rejects(server`select fleet.ack_command(${device + 1}, ${id})`, { code: 'FL404', hint: String })
  t.match(await reader`select * from fleet.device_commands where acknowledged_at is not null`, [
    { command_id: id, created_by: 'fleet_dba' },
  ])
  t.match(await reader`select event from fleet.command_dispatch_log where command_id = ${id} order by dispatch_id`, [
    { event: 'sent' },
    { event: 'handed_over' },
    { event: 'acknowledged' },
  ])

  await reader`set default_transaction_read_only = off`
  for (const role of [dba, reader]) {
    await t.rejects(role`select * from fleet.take_commands(${device})`, { code: '42501' })
    await t.rejects(role`select fleet.ack_command(${device}, 1)`, { code: '42501' })
    await t.rejects(role`delete from fleet.device_commands`, { code: '42501' })
    await t.rejects(role`update fleet.command_dispatch_log set event = 'sent'`, { code: '42501' })
  }
  await t.rejects(reader`select fleet.send_command(${device}, 'x')`, { code: '42501' })
  for (const table of ['device_commands', 'command_dispatch_log']) {
    await t.rejects(server`select from ${server(`fleet.${table}`)}`, { code: '42501' })
  }
})

t.test('a command that cannot be sent is refused with the reason', async t => {
  const { sql } = await withDatabase(t)
  const [device] = (await enroll(sql, 1)) as [number]
  for (const command of [null, '', ' ', 'x'.repeat(65)]) {
    await t.rejects(sql`select fleet.send_command(${device}, ${command})`, { code: 'FL422', message: /1 to 64/ })
  }
  await t.rejects(sql`select fleet.send_command(${device}, 'x', to_jsonb(repeat('y', 70000)))`, {
    code: 'FL422',
    message: /70002 bytes/,
  })
  await t.rejects(sql`select fleet.send_command(999, 'x')`, { code: 'FL404', hint: /device_status/ })
  await t.rejects(sql`select fleet.send_command(null, 'x')`, { code: 'FL404' })
  await sql`select fleet.revoke_device(${device})`
  await t.rejects(sql`select fleet.send_command(${device}, 'x')`, { code: 'FL404', message: /revoked/ })
  t.same(await sql`select from fleet.command_dispatch_log`, [])
})

t.test('an expired command is not handed over, and an older one is pruned with its log', async t => {
  const { sql, admin } = await withDatabase(t)
  const [device] = (await enroll(sql, 1)) as [number]
  for (const name of ['old', 'new']) await sql`select fleet.send_command(${device}, ${name})`
  await sql`select * from fleet.take_commands(${device})`
  await admin`update fleet.device_commands set created_at = now() - interval '8 days' where command = 'old'`
  await admin`
    update fleet.command_dispatch_log l set at = c.created_at
    from fleet.device_commands c where c.device_id = l.device_id and c.command_id = l.command_id
  `
  t.match(await sql`select command from fleet.take_commands(${device})`, [{ command: 'new' }])
  t.equal(await value(sql`select fleet.ack_command(${device}, 1)`), true, 'it may still be acknowledged')
  await sql`update fleet.settings set command_expires_after = '9 days'`
  t.equal(await value(sql`select fleet.ack_command(${device}, 1)`), false)
  await t.rejects(sql`update fleet.settings set commands_keep = '8 days'`, { message: /settings_commands_keep_range/ })

  t.equal(await value(sql`select fleet.prune(now() + interval '21 days')`), '0')
  const pruned = Number(await value(sql`select fleet.prune(now() + interval '23 days')`))
  t.equal(pruned, 1 + 2, 'the command, and its events sent and handed_over; the acknowledgement is recent')
  t.match(await sql`select command from fleet.device_commands`, [{ command: 'new' }])
  await sql`call fleet.nightly(null, null, now() + interval '31 days')`
  t.same(await sql`select from fleet.device_commands`, [])
  t.same(await sql`select from fleet.command_dispatch_log`, [])
})

t.test('a poll that finds nothing writes nothing', async t => {
  const { sql } = await withDatabase(t)
  const devices = await enroll(sql, 50)
  for (const device of devices) await sql`select fleet.send_command(${device}, 'ping')`
  await sql`select fleet.ack_command(${devices[0]!}, 1)`
  t.equal(
    await value(sql`
    with polled as materialized (select count(*) from fleet.take_commands(${devices[0]!}))
    select pg_current_xact_id_if_assigned() from polled
  `),
    null,
    'no transaction id was taken',
  )
})
