import { randomBytes } from 'node:crypto'
import postgres from 'postgres'
import t from 'tap'
import { scramVerifier } from '../../local/scram.ts'
import { withDatabase } from '../../testing/database.ts'
import { value } from '../../testing/fleet.ts'
import { dropAfter, login } from '../../testing/readers.ts'

t.test('Postgres computes the verifier that Node computes, for every length of password and salt', async t => {
  const { sql } = await withDatabase(t)
  const verifier = (password: string, salt: Buffer) => value(sql`select fleet.scram_verifier(${password}, ${salt})`)
  t.equal(
    await verifier('pencil', Buffer.from('W22ZaJ0SNY7soEsUEjb6gQ==', 'base64')), // the example of RFC 7677
    'SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=',
  )
  // A key of HMAC is padded up to 64 bytes, and hashed beyond that.
  for (const length of [1, 2, 31, 32, 33, 63, 64, 65, 68, 127, 128, 129, 200]) {
    const password = randomBytes(length).toString('base64url').slice(0, length)
    const salt = randomBytes(16)
    t.equal(await verifier(password, salt), scramVerifier(password, salt), `${length} characters`)
  }
  t.not(await value(sql`select fleet.scram_verifier('x')`), await value(sql`select fleet.scram_verifier('x')`), 'a new salt')
  for (const password of ['', 'a b', 'ü', 'x'.repeat(201), 'a\n'])
    await t.rejects(sql`select fleet.scram_verifier(${password})`, { code: 'FL422' }, JSON.stringify(password))
  await t.rejects(sql`select fleet.scram_verifier(null)`, { code: 'FL422' })
})

t.test('the password of a reader is in nothing that Postgres logs, and what is stored is only its verifier', async t => {
  const db = await withDatabase(t)
  const name = `${db.name}_logged`
  dropAfter(t, db, name)
  const lines: string[] = []
  const loud = postgres(db.url('postgres'), { max: 1, onnotice: notice => lines.push(JSON.stringify(notice)) })
  t.teardown(() => loud.end({ timeout: 1 }))
  // Everything that can be logged of statements, also of those inside functions, with their parameters.
  await loud`load 'auto_explain'`
  for (const [setting, on] of Object.entries({
    client_min_messages: 'log',
    log_statement: 'all',
    log_min_duration_statement: '0',
    log_parameter_max_length: '-1',
    log_parameter_max_length_on_error: '-1',
    debug_print_plan: 'on',
    debug_print_parse: 'on',
    'auto_explain.log_min_duration': '0',
    'auto_explain.log_nested_statements': 'on',
    'auto_explain.log_verbose': 'on',
    'auto_explain.log_analyze': 'on',
  }))
    await loud`select set_config(${setting}, ${on}, false)`
  const passwords = [
    (await value(loud`select fleet.create_reader(${name}, array['acme'])`)) as string,
    (await value(loud`select fleet.renew_reader_password(${name})`)) as string,
  ]
  const all = lines.join('\n')
  t.match(all, /create role|alter role/i, 'the statements inside the functions are logged')
  t.match(all, /SCRAM-SHA-256\$4096:/, 'with the verifier')
  for (const password of passwords) {
    t.match(password, /^nxr_[0-9a-f]{64}$/)
    t.notOk(all.includes(password.slice(4)), 'the password is not')
    t.notOk(all.includes([...Buffer.from(password)].join(' ')), 'nor its bytes, as plans show constants')
  }
  const [role] = await db.admin<{ stored: string }[]>`select rolpassword as stored from pg_authid where rolname = ${name}`
  const salt = Buffer.from(/:([^$]*)\$/.exec(role!.stored)![1]!, 'base64')
  t.equal(role!.stored, scramVerifier(passwords[1]!, salt))

  t.equal(await value(login(t, db, name, passwords[1]!)`select session_user::text`), name)
  for (const wrong of [passwords[0]!, role!.stored, ''])
    await t.rejects(login(t, db, name, wrong)`select 1`, { code: '28P01' }, 'no other password works')
})
