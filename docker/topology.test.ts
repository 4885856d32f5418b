// Starts the topology of compose.yaml natively: its settings and commands, with other addresses, from the files of the image.
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import postgres from 'postgres'
import t, { type Test } from 'tap'
import { ownStore, withoutOwnStore } from '../testing/s3.ts'
import { daysAgo, fillDay, partitionOf } from '../testing/archiver.ts'
import { freePort, throwawayCluster } from '../local/cluster.ts'
import { prometheus, withPrometheus } from '../testing/prometheus.ts'
import { spawnProgram, testCluster, waitFor, type ProcessOptions } from '../testing/database.ts'
import { topology, withHaproxy, withPgbouncer } from '../testing/topology.ts'
import { client } from '../testing/server.ts'
import { healthcheckOf, readCompose, withImage } from '../testing/images.ts'
import { run, withDirectory } from '../testing/scripts.ts'
import { withReceiver } from '../testing/webhooks.ts'

const { services } = await readCompose()

async function withCompose(t: Test) {
  const { cluster, end } = await throwawayCluster({
    postgres: testCluster().postgres,
    databases: ['fleet'],
    cronDatabase: 'fleet',
  })
  t.teardown(end)
  const store = await ownStore()
  const image = await withImage(t)
  const work = await withDirectory(t)

  // Postgres and the object store already have their secrets. All others are made.
  const secrets = await withDirectory(t)
  await mkdir(join(secrets, 'all'))
  const given = {
    postgres_password: new URL(cluster.url('postgres', 'fleet')).password,
    s3_access_key: store.accessKey,
    s3_secret_key: store.secretKey,
  }
  for (const [name, secret] of Object.entries(given)) await writeFile(join(secrets, 'all', name), secret, { mode: 0o600 })
  const made = await run('sh', ['docker/secrets/make.sh', secrets], { cwd: image })
  if (made.code !== 0) throw new Error(made.output)
  const secret = (path: string) => readFile(join(secrets, path), 'utf8')
  const url = async (role: string) => `postgres://${role}:${await secret(`all/${role}_password`)}@127.0.0.1:${cluster.port}/fleet`

  const addresses: Record<string, string> = {
    'postgres:5432': `127.0.0.1:${cluster.port}`,
    'http://objects:8333': store.endpoint,
    '0.0.0.0': '127.0.0.1',
    '/work': work,
  }
  const environment = (name: string) => {
    const { environment: settings = {}, volumes = [] } = services[name]!
    const [, own = ''] = /^secrets-(\w+):/.exec(volumes.filter(volume => typeof volume === 'string').join('\n')) ?? []
    const moved = Object.entries({ ...addresses, '/run/secrets': join(secrets, own) })
    return Object.fromEntries(
      Object.entries(settings).map(([setting, value]) => [
        setting,
        moved.reduce((text, [from, to]) => text.replace(from, to), value),
      ]),
    )
  }
  /** Starts a service of the node image through its entrypoint. It can have another command, as with docker compose run. */
  const start = (name: string, options: ProcessOptions & { command?: string[] } = {}) =>
    spawnProgram(
      t,
      'sh',
      [
        'docker/node/with-secrets.sh',
        ...(options.command ?? services[name]?.command ?? ['node', '--enable-source-maps', 'build/server/main.js']),
      ],
      { name, cwd: image, ...options, env: { ...environment(name), ...options.env } },
    )
  const once = async (name: string, command?: string[]) => {
    const process = await start(name, command ? { command } : {})
    const { code } = await process.exited
    return { code, output: process.output() }
  }
  return { cluster, start, once, secret, url, addresses, image }
}

t.test(
  'the topology of compose.yaml',
  { skip: withoutOwnStore || topology.without || prometheus.without, timeout: 300_000 },
  async t => {
    const { cluster, start, once, secret, url, addresses, image } = await withCompose(t)

    for (const time of ['first', 'second'])
      t.match(await once('migrate'), { code: 0, output: /up to date[^]*fleet_dba/ }, `migrate, the ${time} time`)
    t.match(await once('bucket'), { code: 0, output: 'bucket nexmdm was made' })
    t.match(await once('bucket'), { code: 0, output: 'bucket nexmdm exists' })

    const pool = await withPgbouncer(t, await url('fleet_server'))
    await pool.start()
    addresses['pgbouncer:6432'] = `127.0.0.1:${pool.port}`
    const ports: [number, number] = [await freePort(true), await freePort(true)]
    const [servers, archiver, notifier] = await Promise.all([
      Promise.all(ports.map((port, i) => start(`server-${i + 1}`, { env: { PORT: String(port) }, ready: /"server.listening"/ }))),
      start('archiver', { ready: /"archiver.ready"/ }),
      start('notifier', { env: { WEBHOOK_ALLOW: '127.0.0.1' }, ready: /"notifier.ready"/ }),
    ])
    const balancer = await withHaproxy(t, ports)
    await balancer.start()
    await waitFor(async () => (await balancer.states()).join() === 'UP,UP', {
      what: () => servers.map(server => server.output()).join(),
    })

    const health = async (name: string, port: number) => {
      // Debian has one pg_isready for all versions.
      const [program = '', ...args] = (await healthcheckOf(services[name]!)).map(text =>
        text.replace(/(?<=[:/=])(8080|8404|6432)\b/, String(port)),
      )
      return (await run(program, name === 'postgres' ? [...args, `--port=${port}`] : args, { cwd: image })).code
    }
    const healthy: [string, number][] = [
      ['postgres', cluster.port],
      ['pgbouncer', pool.port],
      ['server-1', ports[0]],
      ['server-2', ports[1]],
      ['haproxy', Number(new URL(balancer.stats).port)],
    ]
    for (const [name, port] of healthy) {
      t.equal(await health(name, port), 0, `${name} is healthy`)
      t.not(await health(name, await freePort(true)), 0, `a healthcheck fails at an address where ${name} is not`)
    }

    const dba = postgres(await url('fleet_dba'), { max: 2, onnotice: () => {} })
    t.teardown(() => dba.end({ timeout: 1 }))
    const adminKey = await secret('server/admin_key')

    await t.test('a heartbeat goes through the balancer, a server and the pool to Postgres, and appears in the view', async t => {
      const call = client(balancer.url)
      t.equal(
        (await call('POST /admin/devices', { body: { alias: 'lobby' }, headers: { 'x-admin': adminKey } })).status,
        404,
        'administrators have no access at the address of the devices',
      )
      const { status, body } = await client(balancer.operators)('POST /admin/devices', {
        body: { alias: 'lobby' },
        headers: { 'x-admin': adminKey },
      })
      t.equal(status, 201, JSON.stringify(body))
      const { token } = body as { token: string }
      t.match(await call('POST /v1/heartbeat', { token, body: { battery_pct: 81, unity_running: true } }), {
        status: 201,
        body: { result: 'stored' },
      })
      t.match(await dba`select alias, status, battery_pct from fleet.device_status`, [
        { alias: 'lobby', status: 'online', battery_pct: 81 },
      ])
      const reader = postgres(await url('fleet_reader'), { max: 1 })
      t.match(
        await reader`select online from fleet.fleet_summary where cohort = '(all)'`,
        [{ online: '1' }],
        'as Grafana sees it',
      )
      await reader.end({ timeout: 1 })
    })

    await t.test('a day is archived to the object store', async t => {
      const date = daysAgo(70)
      const admin = postgres(await url('postgres'), { max: 1 })
      t.teardown(() => admin.end({ timeout: 1 }))
      await fillDay(admin, date, 500)
      const partition = await partitionOf(admin, date)
      await dba`select fleet.archive_partition(${partition})`
      await waitFor(
        async () =>
          (await dba`select from fleet.archives where row_count = 500 and archive_url like 's3://nexmdm/archive/%'`).length === 1,
        { what: archiver.output },
      )
      t.match(await once('archiver', ['node', 'build/archiver/cli.js', 'verify', date]), { code: 0 })
    })

    await t.test('a message of a webhook arrives', async t => {
      const receiver = await withReceiver(t)
      await dba`select fleet.create_webhook('on-call', ${receiver.url})`
      await dba`select fleet.test_webhook('on-call')`
      await waitFor(async () => receiver.received.length === 1, { what: notifier.output })
      await waitFor(async () => (await dba`select from fleet.webhook_health where last_success_at is not null`).length === 1)
    })

    await t.test('Prometheus scrapes everything', async t => {
      const prometheus = await withPrometheus(t, {
        adminKey: await secret('prometheus/admin_key'),
        servers: ports.map(port => `127.0.0.1:${port}`),
        haproxy: [new URL(balancer.stats).host],
      })
      const value = async (query: string) => {
        const { result } = await prometheus.api<{ result: { value: [number, string] }[] }>('query', { query })
        return result.map(({ value: [, value] }) => Number(value))
      }
      // Two servers, the balancer and Prometheus itself; a heartbeat; and, from the servers, what Postgres knows of the archiver
      // and of the scheduler.
      for (const [query, wanted] of [
        ['sum(up)', 4],
        ['sum(hb_writes_total)', 1],
        ['sum(haproxy_server_status{proxy="servers", state="UP"})', 2],
        ['max(hb_partition_archived_total)', 1],
        ['max(archiver_heartbeat_age_seconds) < bool 60', 1],
        ['max(notifier_heartbeat_age_seconds) < bool 60', 1],
        ['max(hb_webhook_delivered_total)', 1],
      ] as const) {
        let seen: number[] = []
        await waitFor(async () => (seen = await value(query))[0] === wanted, {
          what: () => `${query} to be ${wanted}, not ${seen.join()}\n${prometheus.server.output()}`,
        })
        t.equal(seen[0], wanted, query)
      }
    })

    t.same(await dba`select check_name, detail from fleet.check() where status = 'fail'`, [], 'nothing is wrong')
    for (const process of [...servers, archiver, notifier]) t.equal((await process.stop('SIGTERM')).code, 0, process.output())
  },
)
