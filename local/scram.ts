import { createHash, createHmac, pbkdf2Sync, randomBytes } from 'node:crypto'

/**
 * The verifier that Postgres stores instead of a password, in the form of RFC 5803. A role can be given its password with it, while the
 * password itself appears in no statement, log or pg_stat_statements.
 * @throws Error for a password for which isUnambiguous() is false
 */
export function scramVerifier(password: string, salt = randomBytes(16), iterations = 4096) {
  if (!isUnambiguous(password)) throw new Error('the password has characters that clients encode in different ways')
  const salted = pbkdf2Sync(password, salt, iterations, 32, 'sha256')
  const key = (name: string) => createHmac('sha256', salted).update(name).digest()
  const stored = createHash('sha256').update(key('Client Key')).digest('base64')
  return `SCRAM-SHA-256$${iterations}:${salt.toString('base64')}$${stored}:${key('Server Key').toString('base64')}`
}

/**
 * Whether SASLprep (RFC 4013) leaves a password unchanged. libpq applies it before a login and postgres.js does not, so no verifier of any
 * other password fits both. ASCII is never changed.
 */
export function isUnambiguous(password: string) {
  // Characters that are dropped (table B.1 of RFC 3454), and spaces that become an ASCII space (table C.1.2).
  const mapped =
    /\u00a0|\u00ad|\u034f|\u1680|\u1806|[\u180b-\u180d]|[\u2000-\u200d]|\u202f|\u205f|\u2060|\u3000|[\ufe00-\ufe0f]|\ufeff/u
  return !mapped.test(password) && password === password.normalize('NFKC') && !password.includes('\0')
}
