import t from 'tap'
import { withDatabase, type TestDatabase } from '../../testing/database.ts'
import { DEVICE_LISTS } from '../../testing/distributed.ts'

type Sql = TestDatabase['sql']

async function enroll(sql: Sql, alias: string, cohort = 'default') {
  const [device] = await sql<{ device_id: string; token: string }[]>`select * from fleet.create_device(${alias}, ${cohort})`
  return device!
}

async function events(sql: Sql) {
  const rows = await sql<
    { line: string }[]
  >`select event || ': ' || detail as line from fleet.events where event like 'device.%' order by event_id`
  return rows.map(({ line }) => line)
}

t.test('a device is renamed and moved; each change is recorded once, with who made it', async t => {
  const { sql } = await withDatabase(t)
  const { device_id } = await enroll(sql, 'lobby-7')
  const [who] = await sql<{ name: string }[]>`select session_user as name`
  const changes = []
  for (const alias of ['lobby-8', 'lobby-8'])
    changes.push((await sql`select fleet.rename_device(${device_id}, ${alias}) as changed`)[0]!.changed)
  for (const cohort of ['hall', 'hall'])
    changes.push((await sql`select fleet.move_device(${device_id}, ${cohort}) as changed`)[0]!.changed)
  t.same(changes, [true, false, true, false])
  t.match(await sql`select alias, cohort from fleet.device_status`, [{ alias: 'lobby-8', cohort: 'hall' }])
  t.same(await events(sql), [
    `device.renamed: device ${device_id}: lobby-8, was lobby-7; by ${who!.name}`,
    `device.moved: device ${device_id} (lobby-8): cohort hall, was default; by ${who!.name}`,
  ])
})

t.test('a new token and a revocation are recorded, never the token', async t => {
  const { sql } = await withDatabase(t)
  const { device_id, token } = await enroll(sql, 'lobby-7')
  const renewed = []
  renewed.push((await sql<{ token: string }[]>`select fleet.renew_token(${device_id}) as token`)[0]!.token)
  await sql`select fleet.revoke_device(${device_id}), fleet.revoke_device(${device_id})`
  renewed.push((await sql<{ token: string }[]>`select fleet.renew_token(${device_id}) as token`)[0]!.token)
  const lines = await events(sql)
  t.match(lines, [
    /^device.token_renewed: .* got a new token; by/,
    /^device.revoked: device \d+ \(lobby-7\); by/,
    /^device.token_renewed: .* revoked at/,
  ])
  t.equal(lines.length, 3)
  t.notOk([token, ...renewed].some(secret => lines.join().includes(secret.slice(4))))
})

t.test('a change that is not possible is refused, and the hint says what to do', async t => {
  const { sql } = await withDatabase(t)
  const { device_id } = await enroll(sql, 'lobby-7')
  const other = await enroll(sql, "o'lobby")
  await t.rejects(sql`select fleet.rename_device(${device_id}, 'o''lobby')`, {
    code: 'FL409',
    message: new RegExp(`device ${other.device_id} already has the alias o'lobby; device ${device_id} keeps the alias lobby-7`),
    hint: /rename_device\(\d+, 'o''lobby \(old\)'\)/,
  })
  await t.rejects(enroll(sql, 'lobby-7'), {
    code: 'FL409',
    hint: new RegExp(`fleet.renew_token\\(${device_id}\\); or POST /admin/devices/${device_id}/token`),
  })
  for (const text of ['', '  ', 'x'.repeat(201), null]) {
    await t.rejects(sql`select fleet.rename_device(${device_id}, ${text})`, { code: 'FL422' })
    await t.rejects(sql`select fleet.move_device(${device_id}, ${text})`, { code: 'FL422' })
  }
  await t.rejects(sql`select fleet.rename_device(999, 'a')`, { code: 'FL404' })
  await t.rejects(sql`select fleet.move_device(999, 'a')`, { code: 'FL404' })
  t.same(await events(sql), [])
})

t.test('if two devices take one alias at the same time, one gets it and the other an error', async t => {
  const { sql } = await withDatabase(t)
  const devices = [await enroll(sql, 'a'), await enroll(sql, 'b')]
  const results = await Promise.allSettled(devices.map(({ device_id }) => sql`select fleet.rename_device(${device_id}, 'same')`))
  t.same(results.map(({ status }) => status).sort(), ['fulfilled', 'rejected'])
  t.match(
    results.find(result => result.status === 'rejected'),
    { reason: { code: 'FL409' } },
  )
})

t.test('both queries list devices by cohort and by alias, with every other filter', async t => {
  const { sql } = await withDatabase(t)
  for (const [n, alias] of ['a', 'b', 'c', 'd', 'e'].entries()) await enroll(sql, alias, n % 2 === 0 ? 'even' : 'odd')
  await sql`
    select fleet.ingest(json_build_array(json_build_object('device_id', d.device_id)), now() - case d.alias when 'c' then '0' else '2 hours' end::interval)
    from fleet.devices d where d.alias in ('a', 'b', 'c')
  `
  await sql`call fleet.mark_silent()`
  const ask = async (filter: string) => {
    const found = []
    for (const name of DEVICE_LISTS) {
      const rows = await sql.unsafe<{ alias: string }[]>(`select alias from fleet.${name}(${filter})`)
      found.push(rows.map(({ alias }) => alias).join(''))
    }
    t.equal(found[0], found.at(-1), filter)
    return found[0]
  }
  t.equal(await ask("p_cohort => 'even'"), 'ace')
  t.equal(await ask("p_cohort => 'odd'"), 'bd')
  t.equal(await ask("p_cohort => 'Even'"), '')
  t.equal(await ask("p_cohort => 'even', p_limit => 2"), 'ac')
  t.equal(await ask("p_cohort => 'even', p_after => (select device_id from fleet.devices where alias = 'c')"), 'e')
  t.equal(await ask("p_alias => 'b'"), 'b')
  t.equal(await ask("p_alias => 'b', p_cohort => 'even'"), '')
  t.equal(await ask("p_alias => 'x'"), '')
  t.equal(await ask("'offline', p_cohort => 'even'"), 'a')
  t.equal(await ask("'offline', '12 minutes', p_cohort => 'odd'"), 'b')
  t.equal(await ask("'offline', p_alias => 'b'"), 'b')
  t.equal(await ask("'online', p_alias => 'b'"), '')
  t.equal(await ask("null, '12 minutes', p_alias => 'c'"), '')
  t.equal(await ask("'clock_skewed', p_cohort => 'even'"), '')
})
