// The whole path on a Postgres as many services offer it: nobody is a superuser after the setup, there are no event triggers and no
// pg_cron, and pg_monitor is not granted.
import { spawnSync } from 'node:child_process'
import t from 'tap'
import { migrate } from '../cli/migrate.ts'
import { tick } from '../cli/tick.ts'
import { throwawayCluster } from '../local/cluster.ts'
import { plainEnv } from '../local/config.ts'
import { repository } from '../lib/repository.ts'
import { daysAgo, fillDay, makeDirectory, partitionOf, stateOf, workAll } from './archiver.ts'
import { client, open, testCluster } from './database.ts'
import { asRole, value } from './fleet.ts'
import { withServer } from './server.ts'

t.test('a store without a superuser, event triggers and pg_cron', { timeout: 180_000 }, async t => {
  const { cluster, end } = await throwawayCluster({
    postgres: testCluster().postgres,
    databases: ['fleet'],
    cronDatabase: 'fleet',
    settings: { shared_preload_libraries: '' },
  })
  t.teardown(end)
  const admin = client(cluster.url('postgres', 'fleet'), 1)
  t.teardown(() => admin.end({ timeout: 1 }))
  await admin.unsafe(`create role deployer login createrole password 'x'; alter database fleet owner to deployer`)
  // What an administrator of the service does.
  const { status, stderr } = spawnSync(
    cluster.program('psql'),
    [
      '-X',
      '-v',
      'ON_ERROR_STOP=1',
      '-f',
      'sql/setup/roles.sql',
      '-f',
      'sql/setup/extensions.sql',
      cluster.url('postgres', 'fleet'),
    ],
    { cwd: repository, env: plainEnv(), encoding: 'utf8' },
  )
  t.equal(status, 0, stderr)
  await admin`grant fleet_owner to deployer`
  await migrate(`postgres://deployer:x@127.0.0.1:${cluster.port}/fleet`, { current: true, log: () => {} })
  await cluster.allowLogins()
  await admin`revoke pg_monitor from fleet_owner`
  t.same(await admin`select extname from pg_extension where extname = 'pg_cron'`, [])
  t.same(await admin`select evtname from pg_event_trigger where evtname like 'fleet%'`, [])

  const db = open(t, 'fleet', role => cluster.url(role, 'fleet'))
  const dba = asRole(t, db, 'fleet_dba')
  const { call } = await withServer(t, {}, db)
  const enrolled = await call('POST /admin/devices', { admin: true, body: { alias: 'lobby-1' } })
  const { device_id, token } = enrolled.body as { device_id: number; token: string }
  t.match(await call('POST /v1/heartbeat', { token, body: { battery_pct: 81 } }), { status: 201 })
  t.match(await call(`GET /v1/devices/${device_id}`, { admin: true }), { body: { status: 'online', battery_pct: 81 } })

  const old = daysAgo(88)
  await fillDay(admin, old, 1_000)
  const name = await partitionOf(db.sql, old)
  await db.sql`update fleet.settings set retention = '60 days', archive_grace = '0'`
  const failed = (await tick(db.url('fleet_owner'))).filter(({ error }) => error !== undefined)
  t.same(failed, [])
  t.match(await stateOf(db.sql, name), { state: 'detached' }, 'the night retired the day')
  const directory = await makeDirectory(t)
  const { results } = await workAll(t, db, directory)
  t.notOk(results.includes('failed'), results.join())
  t.match(await stateOf(db.sql, name), { state: 'dropped' }, 'the day is archived and dropped')
  await dba`select fleet.request_restore(${old}::date)`
  await workAll(t, db, directory)
  t.equal(await value(db.sql`select count(*) from ${db.sql(`fleet.${name}`)}`), '1000', 'and comes back')

  t.same(await db.sql`select check_name, detail from fleet.check() where status = 'fail'`, [])
  t.match(
    await db.sql`select check_name, status from fleet.check() where check_name in ('guard', 'monitoring', 'scheduler') order by 1`,
    [
      { check_name: 'guard', status: 'warn' },
      { check_name: 'monitoring', status: 'warn' },
      { check_name: 'scheduler', status: 'ok' },
    ],
  )
})
