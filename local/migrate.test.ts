import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import t from 'tap'
import { plainEnv, repository } from './config.ts'
import { migrate } from './migrate.ts'
import { withCronDatabase, withDatabase } from './testing.ts'

const silent = { current: true, log: () => {} }

function npmRunMigrate(env: Record<string, string>, ...args: string[]) {
  return spawnSync(process.execPath, ['--import', 'tsx', join(repository, 'local/migrate.ts'), ...args], {
    env: { ...plainEnv(), ...env }, encoding: 'utf8',
  })
}

t.test('an empty database is set up; a second time there is nothing to do', async t => {
  const db = await withDatabase(t, 'template0')
  await migrate(db.url('postgres'), silent)
  const count = () => db.sql`
    select
      (select count(*)::integer from fleet.hb_partitions) as partitions,
      (select count(*)::integer from graphile_migrate.migrations) as migrations,
      (select count(*)::integer from fleet.events) as events
  `
  const [before] = await count()
  t.ok(before?.partitions > 90)
  await migrate(db.url('postgres'), silent)
  const [after] = await count()
  t.strictSame(after, before)
  t.strictSame(
    [...await db.sql`
      select c.relname from pg_class c
      where c.relnamespace in ('fleet'::regnamespace, 'graphile_migrate'::regnamespace)
        and c.relowner <> 'fleet_owner'::regrole
    `],
    [], 'the owner owns what migrations make',
  )
})

t.test('several at once take their turns', async t => {
  const db = await withDatabase(t, 'template0')
  await Promise.all([1, 2, 3].map(() => migrate(db.url('postgres'), silent)))
  t.ok((await db.sql`select from fleet.hb_partitions limit 1`).length)
})

t.test('the jobs are scheduled where pg_cron is', async t => {
  const db = withCronDatabase(t)
  const jobs = await db.sql<{ username: string }[]>`select jobname, username from cron.job`
  t.ok(jobs.length >= 2)
  t.ok(jobs.every(job => job.username === 'fleet_owner'))
})

t.test('a login that is no superuser migrates a database that is prepared', async t => {
  const db = await withDatabase(t)
  await migrate(db.url('fleet_owner'), silent)
  t.pass('nothing was left to do for a superuser')
})

t.test('npm run migrate ends with 2 for wrong usage, 1 for a fault', async t => {
  t.match(npmRunMigrate({}), { status: 2, stderr: /DATABASE_URL.*not set/ })
  t.match(npmRunMigrate({ DATABASE_URL: 'fleet' }), { status: 2, stderr: /DATABASE_URL: expected postgres:/ })
  t.match(npmRunMigrate({ DATABASE_URL: 'postgres://a@127.0.0.1/b' }, 'now'), { status: 2, stderr: /usage/ })
  t.match(npmRunMigrate({ DATABASE_URL: 'postgres://a:b@127.0.0.1:9/c' }), { status: 1, stderr: /ECONNREFUSED/ })
  const db = await withDatabase(t)
  t.match(npmRunMigrate({ DATABASE_URL: db.url('postgres') }).status, 0)
})
