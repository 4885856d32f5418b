// fleet.check() of the jobs, sessions, settings and files of Postgres; check.test.ts has the rest.
import t from 'tap'
import { withHealthyStore } from '../../testing/troubles.ts'
import { troublesOfPostgres } from '../../testing/troubles-of-postgres.ts'

t.setTimeout(900_000)

t.test('check() names each trouble with Postgres, and its remedy ends it', { timeout: 900_000 }, async t => {
  const store = await withHealthyStore(t)
  await store.goThrough(troublesOfPostgres(store))
})
