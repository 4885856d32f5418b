import t from 'tap'
import { nameOf } from './oidc.ts'

t.test('a person cannot choose the name in the audit log', async t => {
  const names: [Record<string, unknown>, string][] = [
    [{ email: 'ann@example.com', email_verified: true }, 'ann@example.com'],
    [{ email: 'ceo@example.com' }, 'sub 7'],
    [{ email: 'ceo@example.com', email_verified: false }, 'sub 7'],
    [{ email: 'ceo@example.com', email_verified: 'true' }, 'sub 7'],
    [{ email: 'ADMIN_KEY', email_verified: true }, 'sub 7'],
    [{ email: 'a@b\nfleet_dba', email_verified: true }, 'sub 7'],
    [{ email: '', email_verified: true, preferred_username: 'ADMIN_KEY' }, 'ADMIN_KEY (sub 7)'],
    [{ preferred_username: 'fleet_dba' }, 'fleet_dba (sub 7)'],
    [{ preferred_username: 'x'.repeat(101) }, 'sub 7'],
    [{ preferred_username: ['a'] }, 'sub 7'],
  ]
  for (const [claims, name] of names) t.equal(nameOf({ sub: '7', ...claims }), name, JSON.stringify(claims))
})
