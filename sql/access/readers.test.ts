import t from 'tap'
import { waitFor, withDatabase } from '../../testing/database.ts'
import { asRole, value } from '../../testing/fleet.ts'
import { createReader, dropAfter, login, OTHER, OWN, twoCompanies } from '../../testing/readers.ts'

t.test('the DBA makes a login for a partner, which sees the devices of its cohort and nothing else', async t => {
  const db = await withDatabase(t)
  const { own, other } = await twoCompanies(db)
  const dba = asRole(t, db, 'fleet_dba')
  const name = `${db.name}_partner`
  dropAfter(t, db, name)
  const password = (await value(dba`select fleet.create_reader(${name}, array['acme', 'acme-lab', 'acme'])`)) as string
  const partner = login(t, db, name, password)

  t.same(await partner`select fleet.seen_cohorts() as cohorts`, [{ cohorts: [OWN, 'acme-lab'] }])
  t.same(
    (
      await partner<{ device_id: number; cohort: string }[]>`select device_id::int, cohort from fleet.device_status order by 1`
    ).map(row => [row.device_id, row.cohort]),
    own.map(id => [id, OWN]),
  )
  t.match(await partner`select cohort, devices::int, offline::int, unity_down::int from fleet.fleet_summary`, [
    { cohort: '(all)', devices: 3, offline: 1, unity_down: 1 },
    { cohort: OWN, devices: 3, offline: 1, unity_down: 1 },
  ])
  t.same(
    (await partner`select cohort from fleet.fleet_silence`).map(row => row.cohort as string),
    [OWN],
    'the silence of the whole fleet is not shown',
  )
  t.equal(await value(partner`select count(*)::int from fleet.device_status where device_id = any (${other}::bigint[])`), 0)
  for (const table of ['events', 'hb_partitions', 'partition_health', 'archives', 'counters', 'incidents', 'fleet_trend', 'slo'])
    await t.rejects(partner`select * from ${partner(`fleet.${table}`)}`, { code: '42501' }, table)

  t.match(await dba`select * from fleet.reader_logins`, [
    {
      reader: name,
      cohorts: ['acme', 'acme-lab'],
      empty_cohorts: ['acme-lab'],
      can_login: true,
      connection_limit: 5,
      sessions: '1',
      created_by: 'fleet_dba',
    },
  ])
  for (const role of ['fleet_reader', 'fleet_server'] as const) {
    await t.rejects(asRole(t, db, role)`select * from fleet.readers`, { code: '42501' }, role)
    await t.rejects(asRole(t, db, role)`select fleet.create_reader('x', array['x'])`, { code: '42501' }, role)
  }
})

t.test('a reader has the limits of fleet_reader', async t => {
  const db = await withDatabase(t)
  const { name, password, sql } = await createReader(t, db, [OWN])
  const reader = asRole(t, db, 'fleet_reader')
  for (const setting of [
    'statement_timeout',
    'idle_in_transaction_session_timeout',
    'default_transaction_read_only',
    'jit',
    'temp_file_limit',
  ])
    t.equal(await value(sql.unsafe(`show ${setting}`)), await value(reader.unsafe(`show ${setting}`)), setting)
  await sql`select 1`
  const others = Array.from({ length: 5 }, () => login(t, db, name, password))
  const answers = await Promise.all(
    others.map(one =>
      one`select 1`.then(
        () => 'in',
        (error: { code: string }) => error.code,
      ),
    ),
  )
  t.same(answers.sort(), ['53300', 'in', 'in', 'in', 'in'], 'five connections')
})

t.test('a device that moves disappears for one reader and appears for the other, with its heartbeats', async t => {
  const db = await withDatabase(t)
  const { own } = await twoCompanies(db)
  const device = own[0]!
  const acme = await createReader(t, db, [OWN], 'acme')
  const borealis = await createReader(t, db, [OTHER], 'borealis')
  const sees = async (sql: typeof acme.sql) => {
    const seen = []
    for (const table of ['device_status', 'device_heartbeats', 'device_last_status', 'device_commands', 'device_availability'])
      if ((await sql`select from ${sql(`fleet.${table}`)} where device_id = ${device}`).length > 0) seen.push(table)
    return seen
  }
  const all = ['device_status', 'device_heartbeats', 'device_last_status', 'device_commands', 'device_availability']
  t.same([await sees(acme.sql), await sees(borealis.sql)], [all, []])
  await db.sql`select fleet.move_device(${device}, ${OTHER})`
  t.same([await sees(acme.sql), await sees(borealis.sql)], [[], all], 'from the next statement on')

  const events = (sql: typeof acme.sql) =>
    sql`select event, cohort from fleet.device_transitions where device_id = ${device}`.then(rows => rows.length)
  t.ok((await events(acme.sql)) > 0, 'what happened in a cohort stays with the readers of that cohort')
  t.equal(await events(borealis.sql), 0, 'and is not shown to those of the next one')
  t.same(
    await acme.sql`select distinct alias from fleet.recent_changes where device_id = ${device}`,
    [{ alias: null }],
    'but the name of the device, which the other company may change, is not shown any longer',
  )
  await db.sql`select fleet.move_device(${device}, ${OWN})`
  t.same([await sees(acme.sql), await sees(borealis.sql)], [all, []])
})

t.test('cohorts are changed from the next statement on, also of a statement that was prepared', async t => {
  const db = await withDatabase(t)
  await twoCompanies(db)
  const dba = asRole(t, db, 'fleet_dba')
  const { name, sql } = await createReader(t, db, [OWN])
  await sql.unsafe(`set plan_cache_mode = force_generic_plan`)
  await sql.unsafe(`prepare seen as select distinct cohort from fleet.device_status order by 1`)
  const seen = async () => (await sql.unsafe('execute seen')).map(row => row.cohort as string)
  t.same(await seen(), [OWN])
  t.equal(await value(dba`select fleet.set_reader_cohorts(${name}, array['borealis', 'acme'])`), true)
  t.same(await seen(), [OWN, OTHER])
  t.equal(await value(dba`select fleet.set_reader_cohorts(${name}, array['acme', 'borealis'])`), false, 'nothing to do')
  t.equal(await value(dba`select fleet.set_reader_cohorts(${name}, array['elsewhere'])`), true)
  t.same(await seen(), [])
  await db.sql`delete from fleet.readers`
  t.same(await seen(), [], 'a login without a row sees nothing')
  t.same(await sql`select fleet.seen_cohorts() as cohorts`, [{ cohorts: [] }])
})

t.test('a new password ends the sessions, and the old one does not work any longer', async t => {
  const db = await withDatabase(t)
  const dba = asRole(t, db, 'fleet_dba')
  const { name, password, sql } = await createReader(t, db, [OWN])
  const pid = Number(await value(sql`select pg_backend_pid()`))
  const renewed = (await value(dba`select fleet.renew_reader_password(${name})`)) as string
  t.not(renewed, password)
  await waitFor(async () => (await db.admin`select from pg_stat_activity where pid = ${pid}`).length === 0)
  await t.rejects(login(t, db, name, password)`select 1`, { code: '28P01' })
  t.equal(await value(login(t, db, name, renewed)`select session_user::text`), name)
  await t.rejects(dba`select fleet.renew_reader_password('nobody')`, { code: 'FL404' })
})

t.test('a reader that is dropped cannot log in, its sessions end, and a session that slips through may read nothing', async t => {
  const db = await withDatabase(t)
  await twoCompanies(db)
  const dba = asRole(t, db, 'fleet_dba')
  const { name, password, sql } = await createReader(t, db, [OWN])
  const pid = Number(await value(sql`select pg_backend_pid()`))
  const late = login(t, db, name, password)
  await dba.begin(async dropping => {
    await dropping`select fleet.drop_reader(${name})`
    await waitFor(async () => (await db.admin`select from pg_stat_activity where pid = ${pid}`).length === 0)
    // The drop is not committed yet, so its role still exists for others.
    t.ok((await late`select * from fleet.device_status`).length > 0)
  })
  for (const relation of ['device_status', 'devices_offline', 'device_heartbeats', 'fleet_summary', 'fleet_silence', 'settings'])
    await t.rejects(late`select * from ${late(`fleet.${relation}`)}`, { code: /42501|42704|22023/ }, relation)
  await t.rejects(late`select fleet.seen_cohorts()`, { code: /42501|42704|22023/ })
  await t.rejects(login(t, db, name, password)`select 1`, { code: /28P01|28000/ })
  t.same(await db.admin`select from pg_roles where rolname = ${name}`, [])
  t.same(await dba`select * from fleet.reader_logins`, [])
  await t.rejects(dba`select fleet.drop_reader(${name})`, { code: 'FL404' })
  await t.resolves(createReader(t, db, [OTHER]), 'the name is free again')
})

t.test('names and cohorts that would be wrong or dangerous are refused, and nothing is left', async t => {
  const db = await withDatabase(t)
  const dba = asRole(t, db, 'fleet_dba')
  const { name } = await createReader(t, db, [OWN])
  // Other tests make roles on the same cluster.
  const roles = () =>
    db.admin`select r.rolname from pg_shdescription d join pg_roles r on r.oid = d.objoid where d.description = fleet_guard.reader_mark()`
  for (const wrong of [
    null,
    '',
    'Acme',
    '1acme',
    '_acme',
    'acme-dashboard',
    'acme dashboard',
    'acme"; drop role postgres; --',
    `acme' superuser`,
    'ácme',
    'acme\n',
    'a'.repeat(64),
    'pg_acme',
    'fleet_acme',
    'public',
    'none',
  ])
    await t.rejects(dba`select fleet.create_reader(${wrong}, array['acme'])`, { code: 'FL422' }, JSON.stringify(wrong))
  for (const taken of ['postgres', name])
    await t.rejects(dba`select fleet.create_reader(${taken}, array['acme'])`, { code: 'FL409' }, taken)
  for (const cohorts of [null, [], [''], ['  '], [null], ['acme', null], ['(all)'], ['x'.repeat(101)]])
    for (const call of [
      dba`select fleet.create_reader(${`${name}_2`}, ${cohorts})`,
      dba`select fleet.set_reader_cohorts(${name}, ${cohorts})`,
    ])
      await t.rejects(call, { code: 'FL422' }, JSON.stringify(cohorts))
  await t.rejects(dba`select fleet.set_reader_cohorts('nobody', array['acme'])`, { code: 'FL404' })
  t.same(await roles(), [{ rolname: name }])
  t.same(
    (await dba`select reader from fleet.reader_logins`).map(row => row.reader as string),
    [name],
  )
  await t.rejects(db.sql`update fleet.readers set cohorts = array['(all)']`, { code: '23514' })
})

t.test('what is done with readers is in the audit log if and only if it is committed, without the password', async t => {
  const db = await withDatabase(t)
  const dba = asRole(t, db, 'fleet_dba')
  const { name } = await createReader(t, db, [OWN])
  await dba`select fleet.set_reader_cohorts(${name}, array['acme', 'acme-lab'])`
  await dba`select fleet.renew_reader_password(${name})`
  await dba`select fleet.drop_reader(${name})`
  await dba
    .begin(async undone => {
      await undone`select fleet.create_reader(${`${name}_2`}, array['acme'])`
      throw new Error('undone')
    })
    .catch(() => {})
  t.same(await db.admin`select from pg_roles where rolname = ${`${name}_2`}`, [])
  t.same(
    await dba`select action, target, actor, how, before, after from fleet.audit_log where target like 'reader:%' order by audit_id`,
    [
      { action: 'reader.created', before: null, after: { cohorts: [OWN] }, actor: 'fleet_owner' },
      { action: 'reader.changed', before: { cohorts: [OWN] }, after: { cohorts: [OWN, 'acme-lab'] }, actor: 'fleet_dba' },
      { action: 'reader.password_renewed', before: null, after: null, actor: 'fleet_dba' },
      { action: 'reader.dropped', before: { cohorts: [OWN, 'acme-lab'] }, after: null, actor: 'fleet_dba' },
    ].map(row => ({ target: `reader:${name}`, how: 'sql', ...row })),
  )
})

t.test('after a dump was restored, a new password makes the missing login again', async t => {
  const db = await withDatabase(t)
  await twoCompanies(db)
  const dba = asRole(t, db, 'fleet_dba')
  const { name } = await createReader(t, db, [OWN])
  // A dump has fleet.readers but no roles.
  await db.admin.unsafe(`drop role ${name}`)
  t.match(await dba`select can_login, sessions from fleet.reader_logins`, [{ can_login: false, sessions: '0' }])
  t.match(await dba`select * from fleet.check_readers()`, [
    { check_name: 'readers', status: 'warn', remedy: new RegExp(`^select fleet.renew_reader_password\\('${name}'\\);$`, 'm') },
  ])
  const password = (await value(dba`select fleet.renew_reader_password(${name})`)) as string
  t.same(
    (await login(t, db, name, password)`select distinct cohort from fleet.device_status`).map(row => row.cohort as string),
    [OWN],
  )
  t.match(await dba`select * from fleet.check_readers()`, [{ status: 'ok' }])
})
