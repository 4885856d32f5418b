import { once } from 'node:events'
import {
  appendFile,
  chmod,
  mkdir,
  mkdtemp,
  readFile,
  realpath,
  readlink,
  rename,
  rm,
  stat,
  symlink,
  writeFile,
} from 'node:fs/promises'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import postgres from 'postgres'
import t, { type Test } from 'tap'
import { Cluster, clusterMajor, clusterUser, isFree, placeFor } from './cluster.ts'
import { testCluster, waitFor } from '../testing/database.ts'

async function directory(t: Test) {
  const dir = await mkdtemp(join(await realpath(tmpdir()), 'nexmdm-cluster-'))
  await chmod(dir, 0o755)
  t.teardown(() => rm(dir, { recursive: true, force: true }))
  return dir
}

async function madeCluster(t: Test, dir: string) {
  const cluster = new Cluster({ dir, postgres: testCluster().postgres, databases: ['fleet'], cronDatabase: 'fleet' })
  await cluster.create()
  t.teardown(() => cluster.stop('immediate'))
  return cluster
}

async function ask(url: string, query: string) {
  const sql = postgres(url, { max: 1 })
  try {
    return [...(await sql.unsafe(query))].map(row => ({ ...row }))
  } finally {
    await sql.end({ timeout: 1 })
  }
}

t.test('a cluster of its own', async t => {
  const dir = join(await directory(t), 'pg')
  const cluster = await madeCluster(t, dir)
  t.equal(await cluster.start(), 'started')
  const url = cluster.url('postgres', 'fleet')

  await t.test('is preloaded and configured for this machine', async t => {
    const [settings] = await ask(
      url,
      `
      select current_setting('shared_preload_libraries') as preload, current_setting('cron.database_name') as cron,
        current_setting('timezone') as timezone, current_setting('listen_addresses') as addresses,
        current_setting('fsync') as fsync, current_setting('data_checksums') as checksums,
        current_setting('server_encoding') as encoding`,
    )
    t.strictSame(settings, {
      preload: 'pg_cron',
      cron: 'fleet',
      timezone: 'UTC',
      addresses: '127.0.0.1',
      fsync: 'on',
      checksums: 'on',
      encoding: 'UTF8',
    })
    t.equal(await clusterMajor(dir), testCluster().postgres.major)
  })

  await t.test('lets the roles log in, and no password appears in a statement or in the log', async t => {
    await ask(url, `alter system set log_statement = 'all'`)
    await ask(url, 'select pg_reload_conf()')
    for (const role of ['fleet_reader', 'fleet_dba']) await ask(url, `create role ${role}`)
    await waitFor(async () => (await ask(url, 'show log_statement'))[0]?.log_statement === 'all')
    await cluster.allowLogins()
    t.strictSame(await ask(cluster.url('fleet_reader', 'fleet'), 'select session_user as name'), [{ name: 'fleet_reader' }])
    const log = await readFile(cluster.log, 'utf8')
    t.match(log, /alter role fleet_dba login password 'SCRAM-SHA-256\$/)
    const { passwords } = JSON.parse(await readFile(join(dir, 'cluster.json'), 'utf8')) as { passwords: Record<string, string> }
    for (const [role, password] of Object.entries(passwords)) t.notOk(log.includes(password), role)
    await ask(url, 'alter system reset log_statement')
    await ask(url, 'select pg_reload_conf()')
    for (const role of ['fleet_reader', 'fleet_dba']) await ask(url, `drop role ${role}`)
  })

  await t.test('lets nobody in without the password', async t => {
    const wrong = new URL(url)
    wrong.password = 'wrong'
    await t.rejects(ask(wrong.href, 'select 1'), { code: '28P01' })
    wrong.password = ''
    await t.rejects(ask(wrong.href, 'select 1'))
    const socket = postgres({
      host: join(dir, 'sockets'),
      port: cluster.port,
      user: 'postgres',
      password: 'wrong',
      database: 'fleet',
      max: 1,
    })
    await t.rejects(
      socket`select 1`.then(() => {}),
      { code: '28P01' },
    )
    await socket.end({ timeout: 1 })
    t.notMatch(await readFile(join(dir, 'data/pg_hba.conf'), 'utf8'), /^[^#]*\btrust\b/m)
    t.equal((await stat(join(dir, 'cluster.json'))).mode & 0o077, 0)
  })

  await t.test('that still runs is reused, not started twice', async t => {
    const again = new Cluster({ dir, postgres: testCluster().postgres, databases: ['fleet'], cronDatabase: 'fleet' })
    t.equal(await again.start(), 'reused')
    t.equal(await again.pid(), await cluster.pid())
    t.equal(again.url('postgres', 'fleet'), url)
  })

  await t.test('keeps its port, and takes another if that is taken', async t => {
    const { port } = cluster
    await cluster.stop()
    await cluster.start()
    t.equal(cluster.port, port)
    await cluster.stop()
    const other = createServer()
    await new Promise<void>(resolve => other.listen(port, '127.0.0.1', resolve))
    t.teardown(() => other.close())
    await cluster.start()
    t.not(cluster.port, port)
    t.match(await ask(cluster.url('postgres', 'fleet'), 'select 1 as one'), [{ one: 1 }])
  })

  await t.test('comes back after kill -9', async t => {
    await ask(cluster.url('postgres', 'fleet'), 'create table kept as select 1 as one')
    process.kill((await cluster.pid()) ?? 0, 'SIGKILL')
    await waitFor(async () => !(await cluster.pid()))
    const { port } = cluster
    await waitFor(() => isFree(port))
    const held = createServer().listen(port, '127.0.0.1')
    await once(held, 'listening')
    setTimeout(() => held.close(), 1_000)
    t.equal(await cluster.start(), 'started')
    t.equal(cluster.port, port, 'on the same port, although processes of the dead one held it for a moment')
    t.match(await ask(cluster.url('postgres', 'fleet'), 'select one from kept'), [{ one: 1 }])
  })

  await t.test('that cannot start reports the end of its log', async t => {
    await cluster.stop()
    await appendFile(join(dir, 'data/postgresql.auto.conf'), `work_mem = 'plenty'\n`)
    await t.rejects(cluster.start(), { message: /did not start[^]*invalid value for parameter "work_mem": "plenty"/ })
  })
})

t.test('a long path is no problem: its sockets go elsewhere', async t => {
  const parent = join(await directory(t), 'a-directory-with-a-name'.repeat(3), 'and-another-with-a-name'.repeat(2))
  await mkdir(parent, { recursive: true })
  const cluster = await madeCluster(t, join(parent, 'pg'))
  await cluster.start()
  t.match(await ask(cluster.url('postgres', 'fleet'), 'select 1 as one'), [{ one: 1 }])
  const sockets = /unix_socket_directories = '(.*)'/.exec(await readFile(join(cluster.data, 'fleet.conf'), 'utf8'))?.[1] ?? ''
  t.ok(Buffer.byteLength(sockets) < 80, sockets)
  t.equal((await stat(sockets)).mode & 0o077, 0)
  await cluster.stop()
  await t.rejects(stat(sockets), { code: 'ENOENT' }, 'it is removed when the cluster stops')
})

t.test('a half-made cluster is replaced', async t => {
  const dir = join(await directory(t), 'pg')
  await mkdir(join(dir, 'data.new'), { recursive: true })
  await writeFile(join(dir, 'data.new/PG_VERSION'), 'nonsense')
  const cluster = await madeCluster(t, dir)
  t.ok(cluster.exists())
})

t.test(
  'the place of a cluster',
  { skip: process.getuid?.() === 0 ? false : 'needs root, so that Postgres runs as another user' },
  async t => {
    t.test('is the wanted directory if the postgres user can enter it', async t => {
      const clone = await directory(t)
      t.equal(await placeFor(join(clone, 'pg')), join(clone, 'pg'))
    })

    t.test('is elsewhere for a clone in a private home directory, and stays there', async t => {
      const elsewhere = await directory(t)
      const home = await directory(t)
      const local = join(home, 'clone/.local')
      await mkdir(local, { recursive: true })
      await chmod(home, 0o700)
      const place = await placeFor(join(local, 'pg'), elsewhere)
      t.match(place, elsewhere)
      t.equal(await readlink(join(local, 'pg')), place)
      const cluster = await madeCluster(t, place)
      await cluster.start()
      t.match(await ask(cluster.url('postgres', 'fleet'), 'select 1 as one'), [{ one: 1 }])
      t.equal((await stat(cluster.data)).uid, clusterUser()?.uid)

      await chmod(home, 0o755)
      t.equal(await placeFor(join(local, 'pg'), elsewhere), place, 'also when the home directory is opened')

      await rename(join(home, 'clone'), join(home, 'moved'))
      t.equal(await placeFor(join(home, 'moved/.local/pg'), elsewhere), place, 'also when the clone is moved')
    })

    t.test('of a copied clone is not the one of the original', async t => {
      const elsewhere = await directory(t)
      const home = await directory(t)
      await chmod(home, 0o700)
      for (const name of ['one', 'two']) await mkdir(join(home, name), { recursive: true })
      const place = await placeFor(join(home, 'one/pg'), elsewhere)
      await symlink(place, join(home, 'two/pg'))
      t.not(await placeFor(join(home, 'two/pg'), elsewhere), place)
      t.equal(await placeFor(join(home, 'one/pg'), elsewhere), place)
    })
  },
)
