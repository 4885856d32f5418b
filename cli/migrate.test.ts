import { spawnSync } from 'node:child_process'
import postgres from 'postgres'
import t from 'tap'
import { throwawayCluster } from '../local/cluster.ts'
import { plainEnv } from '../local/config.ts'
import { nodeArgs, repository } from '../lib/repository.ts'
import { migrate, SETUP_FILES } from './migrate.ts'
import { testCluster, withCronDatabase, withDatabase } from '../testing/database.ts'
import { value } from '../testing/fleet.ts'

const silent = { current: true, log: () => {} }

function npmRunMigrate(env: Record<string, string>, ...args: string[]) {
  return spawnSync(process.execPath, [...nodeArgs('cli/migrate.ts'), ...args], {
    env: { ...plainEnv(), ...env },
    encoding: 'utf8',
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
    [
      ...(await db.sql`
      select c.relname from pg_class c
      where c.relnamespace in ('fleet'::regnamespace, 'graphile_migrate'::regnamespace)
        and c.relowner <> 'fleet_owner'::regrole
    `),
    ],
    [],
    'the owner owns what migrations make',
  )
})

t.test('several migrations started at once run one after the other', async t => {
  const db = await withDatabase(t, 'template0')
  await Promise.all([1, 2, 3].map(() => migrate(db.url('postgres'), silent)))
  t.ok((await db.sql`select from fleet.hb_partitions limit 1`).length)
})

t.test('the jobs are scheduled in the database that has pg_cron', async t => {
  const db = withCronDatabase(t)
  const jobs = await db.sql<{ username: string }[]>`select jobname, username from cron.job`
  t.ok(jobs.length >= 2)
  t.ok(jobs.every(job => job.username === 'fleet_owner'))
})

t.test('a login that is not a superuser migrates a prepared database', async t => {
  const db = await withDatabase(t)
  await migrate(db.url('fleet_owner'), silent)
  t.pass('nothing was left for a superuser to do')
})

t.test('a superuser is not needed after the setup', async t => {
  const { cluster, end } = await throwawayCluster({
    postgres: testCluster().postgres,
    databases: ['managed', 'prepared'],
    cronDatabase: 'prepared',
  })
  t.teardown(end)
  const connect = (url: string) => {
    const sql = postgres(url, { max: 1, onnotice: () => {} })
    t.teardown(() => sql.end({ timeout: 5 }))
    return sql
  }
  const admin = connect(cluster.url('postgres', 'managed'))
  await admin.unsafe(`create role deployer login password 'x'; alter database managed owner to deployer`)
  const deployer = (database: string) => `postgres://deployer:x@127.0.0.1:${cluster.port}/${database}`
  const psql = (database: string, files: string[]) =>
    spawnSync(
      cluster.program('psql'),
      ['-X', '-v', 'ON_ERROR_STOP=1', ...files.flatMap(file => ['-f', `sql/setup/${file}`]), cluster.url('postgres', database)],
      { cwd: repository, env: plainEnv(), encoding: 'utf8' },
    )
  const migrated = async (database: string) => {
    const lines: string[] = []
    await migrate(deployer(database), { current: true, log: line => lines.push(line) })
    return lines.join('\n')
  }

  await t.test('a role that may not prepare the database is told what an administrator has to do', async t => {
    await t.rejects(migrated('managed'), {
      message:
        /is not prepared.*psql -v ON_ERROR_STOP=1 -f sql\/setup\/roles\.sql -f sql\/setup\/extensions\.sql -f sql\/setup\/guard\.sql/,
    })
  })

  await t.test(
    'once the roles and extensions exist, the owner of the database does the rest, and is told what is not guarded',
    async t => {
      t.match(psql('managed', ['roles.sql', 'extensions.sql']), { status: 0 })
      await admin`grant fleet_owner to deployer`
      // Some managed services do not let anybody grant it. Then settings such as cron.database_name are hidden.
      await admin`revoke pg_monitor from fleet_owner`
      const said = await migrated('managed')
      t.match(
        said,
        /deployer is not a superuser: the event triggers fleet_guard_drop and fleet_guard_find were not created\n.*a plain DROP TABLE by the owner is not guarded/,
      )
      // Only logins that see some cohorts need a role that may create roles.
      const left = /^sql\/setup\/reader-logins\.sql needs an administrator and was not run \(deployer may not create roles.*\n/m
      t.match(said, left)
      t.notMatch(said.replace(left, ''), /no privileges were granted|was not run/)
      t.notMatch(
        (await migrated('managed')).replace(left, ''),
        /no privileges were granted|was not run|000001/,
        'the second time there is nothing to do',
      )

      const owner = connect(deployer('managed'))
      await owner`set role fleet_owner`
      t.match(await owner`select status, remedy from fleet.check() where check_name = 'guard'`, [
        { status: 'warn', remedy: '# in a shell, with DATABASE_URL of a superuser\nnpm run migrate' },
      ])
      t.same(await owner`select check_name, detail from fleet.check() where status = 'fail'`, [])
      await owner`select fleet.create_device('a')`
      t.match(await owner`select result from fleet.ingest('[{"device_id": 1}]')`, [{ result: 'stored' }])
      await owner`call fleet.nightly()`
      const [{ partition_name: name } = {}] = await owner<
        { partition_name: string }[]
      >`select partition_name from fleet.hb_partitions order by range_start limit 1`
      await t.rejects(owner`select fleet.drop_partition(${name!})`, { message: /proven|archive/ }, 'the function still refuses')
      await t.resolves(owner.unsafe(`begin; drop table fleet.${name}; rollback`), 'but nothing stops the plain statement')
      const remedy = String(await value(owner`select remedy from fleet.check() where check_name = 'guard'`))
      const fixed = spawnSync('sh', ['-c', remedy], {
        cwd: repository,
        env: { ...plainEnv(), DATABASE_URL: cluster.url('postgres', 'managed') },
        encoding: 'utf8',
      })
      t.equal(fixed.status, 0, fixed.stderr)
      await t.rejects(owner.unsafe(`drop table fleet.${name}`), { code: 'FL001' }, 'until a superuser runs the remedy of check()')
    },
  )

  await admin`grant pg_monitor to fleet_owner`
  await t.test('if an administrator ran all the files, the owner of the store can do the rest', async t => {
    t.match(psql('prepared', SETUP_FILES), { status: 0 })
    t.notMatch(await migrated('prepared'), /not guarded/)
    const owner = connect(deployer('prepared'))
    t.match(await owner`select usename, jobname from cron.job right join (select current_user as usename) u on true`, [
      { usename: 'deployer' },
    ])
    await owner`set role fleet_owner`
    t.ok((await owner`select from cron.job`).length >= 6, 'including the jobs')
    t.same(await owner`select check_name from fleet.check() where status = 'fail' or check_name = 'guard' and status <> 'ok'`, [])
  })
})

t.test('npm run migrate ends with 2 for wrong usage and 1 for an error', async t => {
  t.match(npmRunMigrate({}), { status: 2, stderr: /DATABASE_URL.*not set/ })
  t.match(npmRunMigrate({ DATABASE_URL: 'fleet' }), { status: 2, stderr: /DATABASE_URL: expected postgres:/ })
  t.match(npmRunMigrate({ DATABASE_URL: 'postgres://a@127.0.0.1/b' }, 'now'), { status: 2, stderr: /usage/ })
  t.match(npmRunMigrate({ DATABASE_URL: 'postgres://a:b@127.0.0.1:9/c' }), {
    status: 1,
    stderr: /ECONNREFUSED 127.0.0.1:9\n.*RUNBOOK.md, "Postgres does not answer"/,
  })
  const db = await withDatabase(t)
  t.match(npmRunMigrate({ DATABASE_URL: db.url('postgres') }).status, 0)
})
