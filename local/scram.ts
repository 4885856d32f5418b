import { createHash, createHmac, pbkdf2Sync, randomBytes } from 'node:crypto'

/**
 * What Postgres keeps of a password, in the form of RFC 5803: with it a role gets its password, and the password itself is in no
 * statement, no log of statements and no pg_stat_statements.
 * @throws Error for a password that isUnambiguous() is false of
 */
export function scramVerifier(password: string, salt = randomBytes(16), iterations = 4096) {
  if (!isUnambiguous(password)) throw new Error('the password has characters that not every client prepares in the same way')
  const salted = pbkdf2Sync(password, salt, iterations, 32, 'sha256')
  const key = (name: string) => createHmac('sha256', salted).update(name).digest()
  const stored = createHash('sha256').update(key('Client Key')).digest('base64')
  return `SCRAM-SHA-256$${iterations}:${salt.toString('base64')}$${stored}:${key('Server Key').toString('base64')}`
}

/**
 * Whether SASLprep (RFC 4013) leaves a password as it is. libpq does that to it before a login and postgres.js does not, so of any other
 * password there is no verifier that both of them meet. All of ASCII stays as it is.
 */
export function isUnambiguous(password: string) {
  // What is dropped (table B.1 of RFC 3454), and the spaces that become one of ASCII (table C.1.2).
  const isMapped = /\u00a0|\u00ad|\u034f|\u1680|\u1806|[\u180b-\u180d]|[\u2000-\u200d]|\u202f|\u205f|\u2060|\u3000|[\ufe00-\ufe0f]|\ufeff/u.test(password)
  return !isMapped && password === password.normalize('NFKC') && !password.includes('\0')
}
