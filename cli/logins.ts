// npm run logins: lets the roles that the setup made log in, each with the password given for it.
import { pathToFileURL } from 'node:url'
import type { Sql } from 'postgres'
import { databaseUrl, rolePasswords } from '../local/config.ts'
import { openDatabase } from '../lib/database.ts'
import { say } from '../lib/progress.ts'
import { scramVerifier } from '../local/scram.ts'
import { reportFailure, UsageError } from '../lib/errors.ts'

/** Needs the right to alter the roles. */
export async function giveLogins(sql: Sql, passwords: ReturnType<typeof rolePasswords>) {
  for (const { role, password } of passwords) await sql.unsafe(`alter role ${role} login password '${scramVerifier(password)}'`)
}

async function main() {
  try {
    if (process.argv.length > 2)
      throw new UsageError('usage: DATABASE_URL=postgres://… FLEET_SERVER_PASSWORD=… npm run logins (no arguments)')
    const passwords = rolePasswords()
    const sql = openDatabase(databaseUrl(), { max: 1 })
    try {
      await giveLogins(sql, passwords)
    } finally {
      await sql.end({ timeout: 5 })
    }
    say(`These roles can log in with their new passwords: ${passwords.map(({ role }) => role).join(', ')}.`)
  } catch (error) {
    process.exitCode = reportFailure(error)
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) await main()
