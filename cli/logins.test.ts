import { spawnSync } from 'node:child_process'
import postgres from 'postgres'
import t from 'tap'
import { plainEnv } from '../local/config.ts'
import { nodeArgs } from '../lib/repository.ts'
import { giveLogins } from './logins.ts'
import { isUnambiguous, scramVerifier } from '../local/scram.ts'
import { withDatabase } from '../testing/database.ts'

const npmRunLogins = (env: Record<string, string>) =>
  spawnSync(process.execPath, nodeArgs('cli/logins.ts'), {
    env: { ...plainEnv(), ...env },
    encoding: 'utf8',
  })

t.test('a role logs in with the password that it was given, and no statement contained the password', async t => {
  const { admin, name, url } = await withDatabase(t)
  // Roles belong to the cluster, which other test files use too, so this test makes its own role.
  const role = `${name}_login`
  await admin.unsafe(`create role ${role}`)
  t.teardown(async () => {
    const sql = postgres(url('postgres').replace(/[^/]+$/, 'postgres'), { max: 1 })
    await sql.unsafe(`drop role ${role}`)
    await sql.end({ timeout: 5 })
  })
  const who = async (password: string) => {
    const login = new URL(url('postgres'))
    const sql = postgres({ host: login.hostname, port: Number(login.port), database: name, username: role, password, max: 1 })
    try {
      return (await sql`select session_user as name`)[0]?.name as string
    } finally {
      await sql.end({ timeout: 5 })
    }
  }
  for (const password of ['plain', `with 'quotes', $ and ü`]) {
    await giveLogins(admin, [{ role, password }])
    t.equal(await who(password), role)
    await t.rejects(who('another'), { code: '28P01' })
  }
  const salt = Buffer.from('W22ZaJ0SNY7soEsUEjb6gQ==', 'base64')
  t.equal(
    scramVerifier('pencil', salt), // the example of RFC 7677
    'SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=',
  )
})

t.test('a password that clients encode in different ways is refused', async t => {
  for (const password of ['plain', ' ~!', 'ü', '漢字', '😀']) t.ok(isUnambiguous(password), JSON.stringify(password))
  // A ligature, a letter in two parts, a soft hyphen, wide spaces, a joiner, a fraction.
  for (const password of ['\ufb01n', 'u\u0308', 'a\u00adb', 'a\u00a0b', 'a\u3000b', 'a\u200db', '\u00bd', 'a\0']) {
    t.notOk(isUnambiguous(password), JSON.stringify(password))
    t.throws(() => scramVerifier(password), /clients encode in different ways/)
  }
  t.match(npmRunLogins({ DATABASE_URL: 'postgres://a@127.0.0.1/b', FLEET_READER_PASSWORD: 'a\u00a0b' }), {
    status: 2,
    stderr: /FLEET_READER_PASSWORD: /,
  })
})

t.test('npm run logins ends with 2 if no password or no database is given', async t => {
  t.match(npmRunLogins({ DATABASE_URL: 'postgres://a@127.0.0.1/b' }), { status: 2, stderr: /FLEET_SERVER_PASSWORD/ })
  t.match(npmRunLogins({ FLEET_SERVER_PASSWORD: 'x' }), { status: 2, stderr: /DATABASE_URL.*not set/ })
})
