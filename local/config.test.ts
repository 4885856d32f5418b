import t from 'tap'
import { databaseUrl, optionalDatabaseUrl, ownerDatabaseUrl } from './config.ts'

t.test("the commands that migrate take one host, and say so by the setting's name, without its password", t => {
  const several = 'postgres://u:secret@db1:5432,db2:5432/fleet'
  const reads = { DATABASE_URL: [databaseUrl, optionalDatabaseUrl], OWNER_DATABASE_URL: [ownerDatabaseUrl] }
  for (const [name, functions] of Object.entries(reads)) {
    for (const read of functions) {
      t.equal(read({ [name]: 'postgres://u:p,q@db1:5432/fleet' }), 'postgres://u:p,q@db1:5432/fleet')
      const { message } = t.throws(() => read({ [name]: several })) as Error
      t.match(message, `${name}: expected one host`)
      t.notMatch(message, 'secret')
    }
  }
  t.end()
})
